"""Trials of weights files: whatever they hold, they are tensors or refused."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile
from functools import cache
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from latents.errors import ModelError
from latents.weights import load_tensors, tensors_digest
from tests.mutations import damaged, hostile_json

TENSORS: dict[str, Tensor] = {
    "encoder.weight": torch.arange(6.0).reshape(2, 3),
    "encoder.bias": torch.ones(4, dtype=torch.float16),
    "step": torch.tensor(3),
    "empty": torch.zeros(0, 3),
}
_DTYPES = ("F64", "F16", "BF16", "BOOL", "I64", "U64", "F8_E4M3", "F4", "C64", "X", "")
_SHAPES = (
    *([], [0], [-1], [6], [3, 2], [1.5], ["a"], [1] * 100, [2**31] * 2, [2**63], [2**64]),
    *([2**32] * 3, [10**30], [2**62, 0], None),
)
_OFFSETS = (
    *([0, 24], [24, 0], [4, 28], [0, 0], [-1, 5], [0], [1, 2, 3], [0, 2**63], [2**64 - 1, 3]),
    *([10**6, 10**7], [0, 2**40], None),
)


def read_hostile_safetensors(seed: int) -> str:
    """Loads a hostile ``.safetensors`` file."""
    random = Random(seed)
    change = random.choice((_in_its_bytes, _in_its_header, _in_its_claims))
    return _outcome("model.safetensors", change(safetensors_file(), random))


def read_hostile_checkpoint(seed: int) -> str:
    """Loads a hostile checkpoint of torch, in its present form or the one before."""
    random = Random(seed)
    change = random.choice((_in_its_bytes, _in_its_parts))
    content = checkpoint_file(is_zip=change == _in_its_parts or random.random() < 0.5)
    return _outcome("model.ckpt", change(content, random))


def _outcome(name: str, content: bytes) -> str:
    path = _folder() / name
    path.write_bytes(content)
    try:
        tensors = load_tensors(path)
    except ModelError:
        return "refused"
    assert sum(tensor.nbytes for tensor in tensors.values()) <= len(content)
    return "same" if tensors_digest(tensors) == tensors_digest(TENSORS) else "other"


@cache
def safetensors_file() -> bytes:
    return save(TENSORS, metadata={"format": "pt"})


@cache
def checkpoint_file(*, is_zip: bool) -> bytes:
    sink = io.BytesIO()
    content: dict[str, Any] = {"state_dict": TENSORS, "step": 3, "more": [1.5, None, "a", (1,)]}
    torch.save(content, sink, _use_new_zipfile_serialization=is_zip)
    return sink.getvalue()


def with_header(header: bytes, body: bytes, *, length: int | None = None) -> bytes:
    """A safetensors file that says its header is of some length."""
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def header_and_body() -> tuple[dict[str, Any], bytes]:
    content = safetensors_file()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8:end]), content[end:]


@cache
def _folder() -> Path:
    return Path(mkdtemp())


def _in_its_bytes(content: bytes, random: Random) -> bytes:
    others = [safetensors_file(), checkpoint_file(is_zip=True), checkpoint_file(is_zip=False)]
    return damaged(content, random, others)


def _in_its_header(_: bytes, random: Random) -> bytes:
    header, body = header_and_body()
    return with_header(hostile_json(header, random), body)


def _in_its_claims(_: bytes, random: Random) -> bytes:
    header, body = header_and_body()
    claims = header[random.choice(list(TENSORS))]
    for name, values in (("dtype", _DTYPES), ("shape", _SHAPES), ("data_offsets", _OFFSETS)):
        if random.random() < 0.5:
            claims[name] = random.choice(values)
    text = json.dumps(header).encode()
    lengths = (0, 1, len(text) - 1, len(text) + 1, 10**8, 10**8 + 1, 2**63, 2**64 - 1)
    return with_header(text, body, length=random.choice(lengths) if random.random() < 0.2 else None)


def _in_its_parts(content: bytes, random: Random) -> bytes:
    """A sound archive of unsound parts."""
    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(sink, "w") as after:
        for part in before.infolist():
            inner = before.read(part)
            if inner and random.random() < 0.4:
                inner = _in_its_bytes(inner, random)
            if random.random() < 0.97:
                with warnings.catch_warnings(action="ignore"):  # of names that are there twice
                    name = part.filename if random.random() < 0.97 else "archive/../data.pkl"
                    after.writestr(name, inner, random.choice((zipfile.ZIP_STORED, 8)))
    return sink.getvalue()

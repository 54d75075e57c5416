"""The file of a pack: which tensors it holds, and where they lie."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latents.fields import LEVELS, Level

SUFFIX = ".safetensors"
METADATA_KEY = "mmldm"
"""One key, as safetensors writes several in an order that varies by process."""
ALIGNMENT = 64
"""Bytes: each field, and the tables behind them, begin at a multiple of it."""

_SAFETENSORS_TYPES = {
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "int64": "I64",
    "int32": "I32",
    "uint32": "U32",
    "uint8": "U8",
}

CLIP_TABLES: Mapping[str, str] = {
    "clips.loudness_dbfs": "float64",
    "clips.num_windows": "int32",
    "clips.start_frame": "int32",
    "clips.fps": "int32",
    "clips.window_frames": "int32",
    "clips.window_stride": "int32",
    "clips.window_first_frame": "int32",
    "clips.key": "uint8",
    "clips.source": "uint8",
    "clips.split": "uint8",
}
"""Small tensors with a row for each clip, by name, and their types."""


def field_tables(field: str) -> dict[str, str]:
    """Small tensors that belong to one field, by name, and their types."""
    return {
        f"{field}.mean_sum": "float64",
        f"{field}.square_sum": "float64",
        f"{field}.channel_count": "int64",
        f"{field}.crc32c": "uint32",
    }


def tables_of(level: Level) -> dict[str, str]:
    """All small tensors of a pack and their types, in their order in the file."""
    tables = dict(CLIP_TABLES)
    for field in LEVELS[level]:
        tables |= field_tables(field)
    # Types with larger items first: each then begins at a multiple of its item's size.
    return dict(sorted(tables.items(), key=lambda one: (-np.dtype(one[1]).itemsize, one[0])))


def expected_tensors(
    level: Level, *, num_clips: int, num_windows: int
) -> dict[str, tuple[str, tuple[int | None, ...]]]:
    """Type and shape of each tensor of a pack; None for an axis of whatever length."""
    tensors: dict[str, tuple[str, tuple[int | None, ...]]] = dict.fromkeys(
        LEVELS[level], ("float16", (num_windows, None, None, None))
    )
    for name, dtype in tables_of(level).items():
        rows = num_windows if name.endswith(".crc32c") else num_clips
        tensors[name] = (dtype, (rows, *_ROW_AXES.get(name.rpartition(".")[2], ())))
    return tensors


_ROW_AXES: Mapping[str, tuple[int | None, ...]] = {
    "key": (None,),
    "source": (32,),
    "mean_sum": (None,),
    "square_sum": (None,),
}
"""Of the tables whose rows are not single numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedTensor:
    """Where a tensor lies in the file."""

    name: str
    dtype: str
    """numpy's name."""
    shape: tuple[int, ...]
    offset: int
    """Byte at which it begins, counted from the first tensor's."""

    @property
    def num_bytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def end(self) -> int:
        """Byte before which it ends."""
        return self.offset + self.num_bytes


def lay_out(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> list[PackedTensor]:
    """Places tensors one after the other, fields first.

    What is no multiple of `ALIGNMENT` is followed by zeros, as a tensor: a safetensors file has no
    gaps. The tables at the end need none.

    Args:
        tensors: By name, type and shape.
    """
    laid: list[PackedTensor] = []
    end = 0
    for name, (dtype, shape) in tensors.items():
        gap = -end % ALIGNMENT if name in _FIELDS or _follows_field(laid) else 0
        if gap:
            padding = f"padding.{len(laid)}"
            laid.append(PackedTensor(name=padding, dtype="uint8", shape=(gap,), offset=end))
        laid.append(PackedTensor(name=name, dtype=dtype, shape=shape, offset=end + gap))
        end = laid[-1].end
    return laid


_FIELDS = frozenset(name for names in LEVELS.values() for name in names)


def _follows_field(laid: Sequence[PackedTensor]) -> bool:
    return bool(laid) and laid[-1].name in _FIELDS


def head_of(tensors: Sequence[PackedTensor], metadata: str) -> bytes:
    """The bytes before the first tensor: the header's length, the header, and spaces."""
    header: dict[str, Any] = {"__metadata__": {METADATA_KEY: metadata}}
    for one in tensors:
        header[one.name] = {
            "dtype": _SAFETENSORS_TYPES[one.dtype],
            "shape": list(one.shape),
            "data_offsets": [one.offset, one.end],
        }
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-(8 + len(content)) % ALIGNMENT)
    return len(content).to_bytes(8, "little") + content

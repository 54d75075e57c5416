"""Comparing all bytes of a pack with their checksums."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np

from latents.cache.damage import Damage
from latents.cache.pack import OpenPack, PackedWindows, read_pack
from latents.cache.snapshot import content_digest
from latents.recipe import sha256_hex


def verify_pack(path: str | Path) -> list[Damage]:
    """The windows of a pack whose bytes are not those that were exported, in order of field.

    Each is compared with its CRC-32C. Where none fails, all clips together are compared with the
    content digest, which takes SHA-256 of every clip.

    Raises:
        CacheError: The file is no pack that can be opened.
        DamagedError: Its parts do not fit together, or a table is not as it was written.
    """
    pack = read_pack(Path(path))
    windows = PackedWindows(pack, np.arange(len(pack.tables["clips.key"])))
    damaged = list(_failed_checksums(pack, windows))
    if not damaged and _content_digest(pack, windows) != windows.content_digest:
        damaged = [Damage(path=str(path), problem="its windows do not hash to its content digest")]
    return damaged


def _failed_checksums(pack: OpenPack, windows: PackedWindows) -> Iterator[Damage]:
    for field, tensor in pack.fields.items():
        offset = _offset_of(pack.path, field)
        checksums = pack.tables[f"{field}.crc32c"].tolist()
        for number, (window, wanted) in enumerate(zip(tensor, checksums, strict=True)):
            if google_crc32c.value(window.tobytes()) != wanted:
                clip, index = windows.place(number)
                yield Damage(
                    path=str(pack.path),
                    clip=clip,
                    field=field,
                    offset=offset + number * window.nbytes,
                    problem=f"{field} of clip {clip}, slice {index}, fails its CRC-32C",
                )


def _offset_of(path: Path, tensor: str) -> int:
    """The byte of a safetensors file at which a tensor begins."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return 8 + length + int(header[tensor]["data_offsets"][0])


def _content_digest(pack: OpenPack, windows: PackedWindows) -> str:
    return content_digest(
        {
            "clip": key,
            "field": field,
            "shape": [len(windows.index.windows_of(clip)), *tensor.shape[1:]],
            "digest": sha256_hex(tensor[windows.index.windows_of(clip)].tobytes()),
        }
        for field, tensor in pack.fields.items()
        for clip, key in enumerate(windows.clip_keys())
    )

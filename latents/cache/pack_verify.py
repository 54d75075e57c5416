"""Comparing all bytes of a pack with their checksums."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np

from latents.cache.damage import Damage
from latents.cache.pack import OpenPack, PackedWindows, read_pack
from latents.cache.pack_format import head_of, lay_out
from latents.cache.snapshot import content_digest
from latents.recipe import sha256_hex


def verify_pack(path: str | Path) -> list[Damage]:
    """What of a pack's bytes is not as it was exported: the header first, then windows by field.

    Each window is compared with its CRC-32C. Where nothing fails, all clips together are compared
    with the content digest, which takes SHA-256 of every clip.

    Raises:
        CacheError: There is no such file, or it is no pack of this version.
        DamagedError: It cannot be opened, as `latents.cache.pack.open_pack` says.
    """
    pack = read_pack(Path(path))
    windows = PackedWindows(pack, np.arange(len(pack.tables["clips.key"])))
    damaged = [*_changed_between(pack), *_failed_checksums(pack, windows)]
    if not damaged and _content_digest(pack, windows) != windows.content_digest:
        damaged = [Damage(path=str(path), problem="its windows do not hash to its content digest")]
    return damaged


def _changed_between(pack: OpenPack) -> Iterator[Damage]:
    """The header and the zeros between tensors, for which the format leaves no choice."""
    tensors = {**pack.fields, **pack.tables}
    laid = lay_out({name: (str(one.dtype), one.shape) for name, one in tensors.items()})
    head = head_of(laid, pack.header.to_json())
    with pack.path.open("rb") as file:
        if file.read(len(head)) != head:
            yield Damage(path=str(pack.path), problem="its header is not as it was written")
            return
        for one in (one for one in laid if one.name not in tensors):
            file.seek(len(head) + one.offset)
            if any(file.read(one.num_bytes)):
                yield Damage(
                    path=str(pack.path),
                    offset=len(head) + one.offset,
                    problem=f"{one.name} is not all zeros",
                )


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

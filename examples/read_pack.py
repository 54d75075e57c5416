"""Reads a pack with numpy alone: it is one safetensors file, whose tensors lie as they are.

    mmldm cache export --cache cache --to pack --out pack.safetensors
    python examples/read_pack.py pack.safetensors

`latents.cache.pack.open_pack` does the same and checks what it opens.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DTYPES = {"F16": "<f2", "F64": "<f8", "I64": "<i8", "I32": "<i4", "U32": "<u4", "U8": "u1"}


def read_pack(path: str | Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """What a pack says of itself, and its tensors, mapped from the file."""
    with Path(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    about = json.loads(header.pop("__metadata__")["mmldm"])
    tensors: dict[str, NDArray[Any]] = {}
    for name, one in header.items():
        begin = 8 + length + one["data_offsets"][0]
        dtype, shape = DTYPES[one["dtype"]], tuple(one["shape"])
        tensors[name] = np.memmap(path, dtype, "r", offset=begin, shape=shape)
    return about, tensors


def main(path: str) -> None:
    """Shows what a pack holds, and the mean of each field of each clip's first window."""
    about, tensors = read_pack(path)
    digest = about["content_digest"][:16]
    sys.stdout.write(f"{about['level']} of commit {about['commit']}, content {digest}\n")
    first = 0
    for key, num_windows in zip(tensors["clips.key"], tensors["clips.num_windows"], strict=True):
        sys.stdout.write(f"{key.tobytes().decode()}  {num_windows} windows\n")
        for field in about["fields"]:
            moments = tensors[field][first]  # mean, then log-variance: (2 * channel, row, column)
            mean = moments[: len(moments) // 2].mean(dtype=np.float64)
            sys.stdout.write(f"  {field}  {moments.shape}  mean {mean:.4f}\n")
        first += int(num_windows)


if __name__ == "__main__":
    main(sys.argv[1])

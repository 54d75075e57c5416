"""Files that show the same and are not the same: a source is known by its bytes."""

from __future__ import annotations

import struct
from pathlib import Path


def vary(original: Path, path: Path, *, number: int) -> None:
    """Copies an mp4 file with an empty box behind it that holds a number (ISO/IEC 14496-12)."""
    path.write_bytes(original.read_bytes() + struct.pack(">I4sQ", 16, b"free", number))

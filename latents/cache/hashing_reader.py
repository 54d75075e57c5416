"""Reading parts of a file and hashing the whole of it, in one pass."""

from __future__ import annotations

import hashlib
import os
from typing import BinaryIO

_PIECE_BYTES = 2**20


def read_at(file: BinaryIO, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a file, fewer where it ends before."""
    stop = min(stop, file.seek(0, os.SEEK_END))
    pieces: list[bytes] = []
    if start < stop:
        file.seek(start)
    while start < stop and (piece := file.read(stop - start)):
        pieces.append(piece)
        start += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class HashingReader:
    """Reads a file at ascending places, and hashes all of it on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._num_hashed = 0

    def read(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop), fewer where the file ends before."""
        while self._num_hashed < start and self._hash(
            read_at(self._file, self._num_hashed, min(start, self._num_hashed + _PIECE_BYTES))
        ):
            pass
        content = read_at(self._file, start, stop)
        self._hash(memoryview(content)[self._num_hashed - start :])
        return content

    def digest(self) -> str:
        """SHA-256 of the whole file."""
        while self._hash(read_at(self._file, self._num_hashed, self._num_hashed + _PIECE_BYTES)):
            pass
        return self._digest.hexdigest()

    def _hash(self, content: bytes | memoryview) -> int:
        self._digest.update(content)
        self._num_hashed += len(content)
        return len(content)

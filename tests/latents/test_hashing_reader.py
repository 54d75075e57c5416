"""Parts of a file are read and the whole of it is hashed, in one pass."""

from __future__ import annotations

import io

import pytest

from latents.cache.hashing_reader import HashingReader, read_at
from latents.recipe import sha256_hex

CONTENT = bytes(range(256)) * 9000  # more than two of the pieces it is read in


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [(0, 10)],
        [(5, 10), (10, 20), (2_000_000, 2_100_000)],
        [(5, 1_500_000), (7, 9), (1_499_999, 1_500_001)],
        [(0, len(CONTENT))],
        [(len(CONTENT) - 1, len(CONTENT) + 50), (len(CONTENT) + 3, len(CONTENT) + 9)],
    ],
)
def test_the_digest_is_the_whole_files_whatever_was_read(parts: list[tuple[int, int]]) -> None:
    reader = HashingReader(io.BytesIO(CONTENT))

    assert [reader.read(*part) for part in parts] == [CONTENT[slice(*part)] for part in parts]
    assert reader.digest() == sha256_hex(CONTENT)


def test_an_empty_file_has_a_digest() -> None:
    reader = HashingReader(io.BytesIO(b""))

    assert reader.read(3, 5) == b""
    assert reader.digest() == sha256_hex(b"")


class Drops(io.BytesIO):
    """A file that gives at most three bytes at a time, as a raw one may."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size or 0, 3))


def test_a_file_that_gives_little_at_a_time_is_read_whole() -> None:
    assert read_at(Drops(b"0123456789"), 1, 9) == b"12345678"
    assert HashingReader(Drops(b"0123456789")).digest() == sha256_hex(b"0123456789")


def test_nothing_is_read_beyond_the_end() -> None:
    assert read_at(io.BytesIO(b"0123"), 2, 2**62) == b"23"
    assert read_at(io.BytesIO(b"0123"), 2**62, 2**63) == b""

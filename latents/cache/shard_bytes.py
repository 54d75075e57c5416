"""Bytes of a shard into memory, and what it is called when they are not there or not as written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from latents.durable import reason
from latents.errors import DamagedError


@contextmanager
def told_as_damage(name: str, offset: int) -> Iterator[None]:
    """Turns a fault of the disk into a `DamagedError` with the shard's file and the byte."""
    try:
        yield
    except FileNotFoundError:
        raise DamagedError(name, 0, "the shard is missing") from None
    except OSError as error:
        raise DamagedError(name, offset, f"cannot be read ({reason(error)})") from error


def require_end(descriptor: int, name: str, end: int) -> None:
    """Raises `DamagedError` where an open shard has fewer bytes than a row says."""
    found = os.fstat(descriptor).st_size
    if found < end:
        raise DamagedError(name, found, f"ends {end - found} bytes too early")


def fill(descriptor: int, name: str, content: memoryview, offset: int) -> None:
    """Reads from a byte of an open shard on, until a buffer of bytes is full.

    Raises:
        DamagedError: The shard ends before that.
        OSError: The disk fails.
    """
    num_read = 0
    while num_read < len(content):  # one call gives 2 GiB at most
        num_new = os.preadv(descriptor, [content[num_read:]], offset + num_read)
        if not num_new:
            raise DamagedError(name, offset + num_read, "was cut while it was read")
        num_read += num_new


def failed_checksum(name: str, offset: int, *, field: str, clip: str, index: int) -> DamagedError:
    """The error of a slice whose bytes are others than its CRC-32C says."""
    return DamagedError(name, offset, f"{field} of clip {clip}, slice {index}, fails its CRC-32C")

"""What a shard format offers: tensors of some clips go in, an immutable file comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """Where one tensor's bytes lie, and what they are."""

    shard: str
    """File name below ``shards/``."""
    offset: int
    """Byte at which the data begins; the data is contiguous, C order, little-endian."""
    dtype: str
    shape: tuple[int, ...]
    digest: str
    """SHA-256 of the data."""
    crc32c: tuple[int, ...]
    """CRC-32C (Castagnoli) of each slice along the first axis."""


class ShardWriter(Protocol):
    """Writes one shard. It has one writer and is never reopened."""

    @property
    def num_bytes(self) -> int:
        """Bytes of tensors added so far."""

    def add(self, clip: str, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Adds tensors of a clip by field name, side by side; each field of a clip once."""

    def seal(self) -> dict[tuple[str, str], StoredTensor]:
        """Makes the shard durable, reads it back, names it by its content.

        Returns:
            ``(clip, field)`` to where its tensor lies.
        """

    def discard(self) -> None:
        """Forgets the shard; nothing of it remains."""

"""A stretch of a file that is a source of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal

from latents.recipe import sha256_hex


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Seconds [start, stop) of a file, counted by presentation time from its first picture."""

    start_seconds: Decimal
    stop_seconds: Decimal

    def __post_init__(self) -> None:
        if not 0 <= self.start_seconds < self.stop_seconds < Decimal(10) ** 9:
            raise ValueError(
                f"the span is {self.start_seconds} to {self.stop_seconds} s; it must begin at 0 or "
                "later, and end after it begins"
            )

    def digest(self, file_digest: str) -> str:
        """SHA-256 of this stretch of a file, in hex: equal for equal numbers however written."""
        bounds = [_plain(self.start_seconds), _plain(self.stop_seconds)]
        text = json.dumps({"file": file_digest, "span": bounds}, sort_keys=True)
        return sha256_hex(text.encode())

    def of_uri(self, uri: str) -> str:
        """The file's URI with the stretch behind it, as W3C's media fragments write it."""
        return f"{uri}#t={_plain(self.start_seconds)},{_plain(self.stop_seconds)}"


def _plain(seconds: Decimal) -> str:
    """``1E+1`` and ``10.0`` as ``10``."""
    return f"{seconds.normalize():f}"

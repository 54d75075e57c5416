"""What people call a source: its URI, a path to its file, or the digest of its bytes."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from latents.errors import CacheError

MIN_PREFIX = 8
"""Digits of a digest that are enough, where only one digest begins with them."""
_PREFIX = re.compile(rf"[0-9a-f]{{{MIN_PREFIX},64}}")
_MAX_COMPARED = 10_000
"""Names looked through for near ones; comparing a million takes minutes."""


def uris_of(name: str) -> tuple[str, ...]:
    """The URIs that a name may stand for: itself, or those of a file's path."""
    path = os.path.abspath(name)
    return tuple(dict.fromkeys((name, path, Path(path).as_uri())))


def digest_of(name: str, digests: pa.Array) -> str | None:
    """The digest that a name is, or is the beginning of; None where there is none.

    Raises:
        CacheError: Several begin so.
    """
    if not _PREFIX.fullmatch(name):
        return None
    found = digests.filter(pc.starts_with(digests, name)).to_pylist()
    if len(found) > 1:
        raise CacheError(
            f"{name!r} is the beginning of {len(found)} digests, among them {found[0]} and "
            f"{found[1]}; give more digits"
        )
    return found[0] if found else None


def unknown_name(place: str, name: str, known: Iterable[str]) -> CacheError:
    """The error that says so, with the nearest names there are."""
    candidates = list(known)
    base = os.path.basename(name)
    near = [one for one in candidates if base and os.path.basename(one) == base]
    near += difflib.get_close_matches(name, candidates[:_MAX_COMPARED], n=3, cutoff=0.5)
    hint = ", ".join(dict.fromkeys(near[:3]))
    return CacheError(
        f"{place}: nothing is called {name!r}; wanted a URI or path of a source, "
        f"{MIN_PREFIX} digits or more of its digest, or the key of a clip"
        + (f". Near it: {hint}" if hint else "")
    )

"""The split of a source, by what people say of it or by its digest alone."""

from __future__ import annotations

from typing import Literal, get_args

from latents.errors import CacheError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


def split_of(source: str, annotated: str | None, *, validation_share: float) -> Split:
    """The split of a source.

    Args:
        source: SHA-256 of its bytes, in hex.
        annotated: What people say, which counts; None where they say nothing.
        validation_share: Of the others, the share that is held out. Which these are depends on
            the source alone, so that more sources move none of those that are there.

    Raises:
        CacheError: What people say is no split.
    """
    if annotated is not None:
        for split in SPLITS:
            if annotated == split:
                return split
        raise CacheError(
            f"source {source[:16]} is annotated with split {annotated!r}; wanted one of "
            f"{', '.join(SPLITS)}. Ingest it again with another annotation"
        )
    return "validation" if int(source[:13], 16) < validation_share * 16**13 else "train"

"""What whitening needs of the clips of a pack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latents.channel_sums import ClipChannelSums


def clip_sums(
    keys: Sequence[str], tables: Mapping[str, NDArray[Any]], field: str, clips: NDArray[np.int64]
) -> Iterator[ClipChannelSums]:
    """Sums of some clips' latents of a field.

    Args:
        keys: Of these clips.
        tables: Of all clips, by name.
        field: Which.
        clips: Numbers of the clips.
    """
    counts = tables[f"{field}.channel_count"][clips].tolist()
    means = tables[f"{field}.mean_sum"][clips].tolist()
    squares = tables[f"{field}.square_sum"][clips].tolist()
    for key, count, mean, square in zip(keys, counts, means, squares, strict=True):
        yield ClipChannelSums(
            clip=key, channel_count=count, mean_sum=tuple(mean), square_sum=tuple(square)
        )

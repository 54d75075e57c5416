"""A window of a Zarr shard, read with zarr and with xarray as they are.

    python examples/read_zarr_shard.py CACHE/shards/<sha256>.zip

Each clip of a shard is a group, each field an array in it whose axes have names. The first half of
a latent's channels are means, the second half log-variances. Which clips and shards count, the log
says (``query_rows.py`` beside this), and only `latents.cache.reader` compares its checksums. Of a
scene of 4 s:

    $ mmldm ingest scenes:0:1:4 --cache cache --store zarr
    $ python examples/read_zarr_shard.py cache/shards/*.zip
    456765940e89d3da462cfc100d8408f7-00000000-10
      kl.audio  mel_channel 8, mel_row 32, mel_column 32; mean -0.9683
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import xarray
import zarr
from numpy.typing import NDArray
from zarr.storage import ZipStore


def clips_and_fields(shard: str) -> dict[str, list[str]]:
    """By clip the fields that have a row for each window."""
    with ZipStore(shard, mode="r") as store:
        root = zarr.open_group(store, mode="r")
        return {
            clip: [name for name, array in group.arrays() if _axes(array)[0] == "window"]
            for clip, group in sorted(root.groups())
        }


def _axes(array: zarr.Array[Any]) -> tuple[str, ...]:
    return array.metadata.dimension_names


def window_by_zarr(shard: str, clip: str, field: str, window: int) -> NDArray[np.float16]:
    """Mean and log-variance of a window, (2 * channel, row, column)."""
    with ZipStore(shard, mode="r") as store:
        return zarr.open_array(store, path=f"{clip}/{field}", mode="r")[window]


def window_by_xarray(shard: str, clip: str, field: str, window: int) -> xarray.DataArray:
    """The same, with names for its axes."""
    with ZipStore(shard, mode="r") as store:
        fields = xarray.open_zarr(store, group=clip, chunks=None)
        return fields[field].isel(window=window).load()


def main(shard: str) -> None:
    """Writes axes and mean of the last window of each clip and field."""
    for clip, fields in clips_and_fields(shard).items():
        sys.stdout.write(f"{clip}\n")
        for field in fields:
            window = window_by_xarray(shard, clip, field, -1)
            axes = ", ".join(f"{axis} {length}" for axis, length in window.sizes.items())
            means = np.split(window_by_zarr(shard, clip, field, -1), 2)[0]
            sys.stdout.write(f"  {field}  {axes}; mean {means.mean(dtype=np.float64):.4f}\n")


if __name__ == "__main__":
    main(sys.argv[1])

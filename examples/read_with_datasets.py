"""The latents of a cache in a folder, read from its tar shards with Hugging Face datasets.

    python examples/read_with_datasets.py CACHE LEVEL

Shards are WebDataset tars: a clip is a sample, each of its fields a safetensors file. A shard may
also hold what does not count, because its clip left or was encoded anew; what counts, the log says.
The bytes are compared with those of `latents.cache.reader`, which alone looks at checksums.
Of 48 scenes:

    $ mmldm ingest scenes:0:48:4 --cache cache --levels perceptual --autoencoder tiny
    $ python examples/read_with_datasets.py cache perceptual
    perceptual.video  48 of 48 clips, 48 equal
    perceptual.audio  48 of 48 clips, 48 equal
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import numpy as np
import safetensors.numpy
from datasets import Features, IterableDataset, Value, config, load_dataset
from numpy.typing import NDArray

from latents.cache.reader import CachedLevel, open_cache
from latents.errors import CacheError
from latents.fields import FIELDS


def samples_of(level: CachedLevel) -> IterableDataset:
    """Every clip of the shards that the level has tensors in, as it is in one shard.

    Columns are the clip (``__key__``), the shard's path (``__url__``) and the bytes of each field,
    which are None where the shard does not hold it.
    """
    shards = {row.shard for clip in level for row in clip.rows.values()}
    columns = {f"{field}.safetensors": Value("binary") for field in level.recipes}
    # Or the use of "webdataset" is counted by a server, wherever the files are.
    config.HF_UPDATE_DOWNLOAD_COUNTS = False
    return load_dataset(
        "webdataset",
        data_files=sorted(f"{level.layout.url}/{level.layout.shard(shard)}" for shard in shards),
        split="train",
        streaming=True,
        # Named, as shards may differ in the fields that they hold.
        features=Features({"__key__": Value("string"), "__url__": Value("string"), **columns}),
    )


def tensors_of(level: CachedLevel) -> Iterator[tuple[str, str, NDArray[Any]]]:
    """Clip, field and tensor of all that counts, shard after shard."""
    counted = {(clip.clip, field, row.shard) for clip in level for field, row in clip.rows.items()}
    for sample in samples_of(level):
        clip, shard = sample["__key__"], PurePath(sample["__url__"]).name
        for field in level.recipes:
            if (clip, field, shard) in counted:
                stored = safetensors.numpy.load(sample[f"{field}.safetensors"])
                yield clip, field, stored[FIELDS[field].tensor]


def main(cache: str, level_name: Any) -> None:
    """Writes how many tensors there are of each field, and how many are as the reader has them."""
    try:
        level = open_cache(cache, level=level_name)
    except CacheError as error:
        sys.exit(str(error))
    clips = {clip.clip: clip for clip in level}
    if any(row.shard.endswith(".zip") for one in clips.values() for row in one.rows.values()):
        sys.exit(f"{cache} has Zarr shards, which examples/read_zarr_shard.py reads")
    found, equal = Counter[str](), Counter[str]()
    for clip, field, tensor in tensors_of(level):
        found[field] += 1
        equal[field] += np.array_equal(tensor, level.read(clips[clip], field))
    for field in level.recipes:
        sys.stdout.write(f"{field}  {found[field]} of {len(level)} clips, {equal[field]} equal\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])

"""Which store a shard is of: the suffix of its name says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from latents.errors import CacheError

StoreName = Literal["tar", "zarr"]
STORE_NAMES: tuple[StoreName, ...] = get_args(StoreName)

SHARD_SUFFIXES: Mapping[StoreName, str] = {"tar": "tar", "zarr": "zip"}


def store_of(shard: str) -> StoreName:
    """The store that writes shards of this name, such as ``5f3c….zip``.

    Raises:
        CacheError: None that is known here does.
    """
    suffix = shard.rpartition(".")[2]
    for store, known in SHARD_SUFFIXES.items():
        if suffix == known:
            return store
    raise CacheError(
        f"shard {shard} is of no store that is known here ({', '.join(SHARD_SUFFIXES.values())}); "
        "use the version that wrote it"
    )

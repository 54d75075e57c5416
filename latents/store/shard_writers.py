"""The writer of each store, by the store's name."""

from __future__ import annotations

from collections.abc import Callable

from latents.cache.storage import Storage
from latents.store.kinds import StoreName
from latents.store.protocol import ShardWriter


def shard_writer_of(store: StoreName) -> Callable[[Storage], ShardWriter]:
    """Opens a new shard in the storage of a cache. The store's library is loaded here."""
    if store == "tar":
        from latents.store.tar_store import TarShardWriter

        return TarShardWriter
    from latents.store.zarr_store import ZarrShardWriter

    return ZarrShardWriter

"""From a cache's folder or URL to the storage that has its files."""

from __future__ import annotations

from pathlib import Path

from latents.cache.local_storage import LocalStorage
from latents.cache.storage import Storage


def open_storage(url: str | Path) -> Storage:
    """The storage of a folder, or of a URL such as ``s3://bucket/prefix`` or ``file:///folder``.

    Raises:
        CacheError: The URL is of no known kind, or wrong.
    """
    if str(url).startswith("file://"):
        url = Path(str(url).removeprefix("file://"))
    if "://" in str(url):
        # Here, not at the top: most caches are folders and need no network client.
        from latents.cache.object_storage import open_object_storage

        return open_object_storage(str(url))
    return LocalStorage(Path(url))

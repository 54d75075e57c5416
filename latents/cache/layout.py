"""Where things lie in a cache, and how a cache is made or recognised."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from latents.cache.open_storage import open_storage
from latents.cache.storage import Storage
from latents.durable import PARTIAL, reason, writing_to
from latents.errors import CacheError, DamagedError
from latents.recipe import open_sealed_json, sealed_json

FORMAT = "mmldm-cache"
FORMAT_VERSION = 2
FORMAT_FILE = "cache.json"
LAST_COMMIT = 10**12 - 1
"""Highest number that a commit's file name has room for."""


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """A cache's storage and the names of the files in it.

    ::

        cache.json                    format version
        recipes/<sha256>.json         what made a field
        shards/<sha256>.tar, .zip     tensors of some clips, named by content
        rows/<sha256>.parquet         rows of a commit or of a checkpoint
        commits/<n, 12 digits>.json   the hash-chained log
        checkpoints/<n>.json          rows of 256 commits in a few files; derived
        refs/<name>.json              a commit and the recipes that belong together
        drivers/<id>.json             who is writing now
    """

    storage: Storage

    @property
    def url(self) -> str:
        """The cache as the user named it."""
        return self.storage.url

    @staticmethod
    def recipe(digest: str) -> str:
        """File of a recipe."""
        return f"recipes/{digest}.json"

    @staticmethod
    def rows(digest: str) -> str:
        """File of rows of one kind."""
        return f"rows/{digest}.parquet"

    @staticmethod
    def commit(number: int) -> str:
        """File of a commit."""
        return f"commits/{number:012d}.json"

    @staticmethod
    def checkpoint(number: int) -> str:
        """File of the checkpoint whose last commit this is."""
        return f"checkpoints/{number:012d}.json"

    @staticmethod
    def ref(name: str) -> str:
        """File of a ref."""
        return f"refs/{name}.json"

    @staticmethod
    def shard(file_name: str) -> str:
        """File of a shard, which rows name without its folder."""
        return f"shards/{file_name}"


def create_cache(root: Path | str) -> CacheLayout:
    """Makes an empty cache, or opens the one that is there.

    Args:
        root: A folder, or a URL of an object store.

    Raises:
        CacheError: The place cannot be written, or holds something that is not a cache.
    """
    layout = CacheLayout(open_storage(root))
    storage = layout.storage
    with writing_to(layout.url):
        # Several drivers may make one cache at once, so its format file is looked for last.
        is_foreign = any(PARTIAL not in file.name for file in storage.list(""))
        if is_foreign and not storage.exists(FORMAT_FILE):
            raise CacheError(
                f"{root} is not empty and holds no cache.json; name an empty or a new folder"
            )
        content = sealed_json({"format": FORMAT, "version": FORMAT_VERSION})
        if not storage.create(FORMAT_FILE, content):
            _require_exclusive_creation(storage, content)
    check_format(layout)
    return layout


def _require_exclusive_creation(storage: Storage, content: bytes) -> None:
    """Refuses a server that creates what is there already: commits would overwrite each other."""
    if storage.create(FORMAT_FILE, content):
        raise CacheError(
            f"{storage.url}: the server created {FORMAT_FILE} a second time, so it does not honour "
            "conditional writes (If-None-Match), and commits of two drivers could overwrite each "
            "other; use another server, or a folder"
        )


def find_cache(root: Path | str) -> CacheLayout:
    """The layout of an existing cache.

    Raises:
        CacheError: There is none, or its format version is not known here.
        DamagedError: Its format file is damaged.
    """
    layout = CacheLayout(open_storage(root))
    check_format(layout)
    return layout


def check_format(layout: CacheLayout) -> None:
    """Refuses what is not a cache of this format; raises as `find_cache`."""
    root = layout.url
    try:
        parsed = open_sealed_json(layout.storage.read(FORMAT_FILE))
    except (FileNotFoundError, NotADirectoryError):
        raise CacheError(
            f"{root} is not a cache (it has no cache.json); make one with "
            f"`mmldm ingest SOURCE --cache {root}`"
        ) from None
    except OSError as error:
        raise CacheError(f"{root}: {FORMAT_FILE} cannot be read ({reason(error)})") from error
    except ValueError as error:
        raise DamagedError(
            FORMAT_FILE, 0, f"the format file of {root} cannot be read: {error}"
        ) from error
    found = parsed.get("format"), parsed.get("version")
    if found != (FORMAT, FORMAT_VERSION):
        raise CacheError(
            f"{root} has cache format {found}; this version reads {FORMAT, FORMAT_VERSION}. Ingest "
            "its sources into a new cache, or use the version that made it"
        )

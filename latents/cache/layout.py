"""Where things lie in a cache's folder, and how a cache is made or recognised."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from latents.durable import PARTIAL, create_file, sync_folder, writing_to
from latents.errors import CacheError, DamagedError
from latents.recipe import open_sealed_json, sealed_json

FORMAT = "mmldm-cache"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """Paths of a cache.

    ::

        cache.json                    format version
        recipes/<sha256>.json         what made a field
        shards/<sha256>.tar           tensors of some clips, named by content
        rows/<sha256>.parquet         rows of one commit
        commits/<n, 12 digits>.json   the hash-chained log
        refs/<name>.json              a commit and the recipes that belong together
    """

    root: Path

    @property
    def format_file(self) -> Path:
        """The file that says this folder is a cache."""
        return self.root / "cache.json"

    def recipe(self, digest: str) -> Path:
        """File of a recipe."""
        return self.root / "recipes" / f"{digest}.json"

    def rows(self, digest: str) -> Path:
        """File of a commit's rows of one kind."""
        return self.root / "rows" / f"{digest}.parquet"

    def commit(self, number: int) -> Path:
        """File of a commit."""
        return self.root / "commits" / f"{number:012d}.json"

    def ref(self, name: str) -> Path:
        """File of a ref."""
        return self.root / "refs" / f"{name}.json"

    @property
    def shards(self) -> Path:
        """Folder of the shards."""
        return self.root / "shards"


def create_cache(root: Path) -> CacheLayout:
    """Makes an empty cache, or opens the one that is there.

    Raises:
        CacheError: The folder cannot be written, or holds something that is not a cache.
    """
    layout = CacheLayout(root)
    with writing_to(root):
        root.mkdir(parents=True, exist_ok=True)
        # Several drivers may make one cache at once, so its format file is looked for last.
        is_foreign = any(not path.name.startswith(PARTIAL) for path in root.iterdir())
        if is_foreign and not layout.format_file.exists():
            raise CacheError(
                f"{root} is not empty and holds no cache.json; name an empty or a new folder"
            )
        create_file(layout.format_file, sealed_json({"format": FORMAT, "version": FORMAT_VERSION}))
        find_cache(root)
        for folder in ("recipes", "shards", "rows", "commits", "refs"):
            (root / folder).mkdir(exist_ok=True)
        sync_folder(root)
    return layout


def find_cache(root: Path) -> CacheLayout:
    """The layout of an existing cache.

    Raises:
        CacheError: There is none, or its format version is not known here.
        DamagedError: Its format file is damaged.
    """
    layout = CacheLayout(root)
    try:
        parsed = open_sealed_json(layout.format_file.read_bytes())
    except FileNotFoundError:
        raise CacheError(
            f"{root} is not a cache (it has no cache.json); make one with "
            f"`mmldm ingest SOURCE --cache {root}`"
        ) from None
    except OSError as error:
        raise CacheError(f"{layout.format_file} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DamagedError(
            layout.format_file.name, 0, f"the format file of {root} cannot be read: {error}"
        ) from error
    found = parsed.get("format"), parsed.get("version")
    if found != (FORMAT, FORMAT_VERSION):
        raise CacheError(
            f"{root} has cache format {found}; this version reads {FORMAT, FORMAT_VERSION}"
        )
    return layout

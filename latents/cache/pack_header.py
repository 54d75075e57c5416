"""What a pack says of itself, in the metadata of its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latents.fields import LEVELS, Level
from latents.recipe import (
    Recipe,
    recipe_documents,
    recipes_from_documents,
    sealed_json,
)
from latents.whitening import Whitening

FORMAT = "mmldm-pack"
FORMAT_VERSION = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class PackHeader:
    """What a pack says of itself."""

    ref: str
    """The name of the snapshot when it was exported."""
    commit: int
    level: Level
    content_digest: str
    """Of the level; see `latents.cache.snapshot.content_digest`."""
    recipes: Mapping[str, Recipe]
    """Of each field, with all they are made from."""
    validation_share: float
    """Of the sources without a split of their own; what `whitening` left out."""
    whitening: Mapping[str, Whitening]
    """Of each field over the training split; empty where that has no window."""
    tables_digest: str
    """SHA-256 of the tables, which are the end of the file."""

    def to_json(self) -> str:
        """Sealed canonical JSON."""
        return sealed_json(
            {
                "format": FORMAT,
                "version": FORMAT_VERSION,
                "ref": self.ref,
                "commit": self.commit,
                "level": self.level,
                "content_digest": self.content_digest,
                "fields": {field: recipe.digest for field, recipe in self.recipes.items()},
                "recipes": recipe_documents(self.recipes.values()),
                "validation_share": repr(self.validation_share),
                "whitening": {name: _as_text(one) for name, one in self.whitening.items()},
                "tables": self.tables_digest,
            }
        ).decode()

    @classmethod
    def from_record(cls, found: Mapping[str, Any]) -> PackHeader:
        """Inverse of `to_json`, of the object that was sealed.

        Raises:
            ValueError: It is no header of a pack of this version.
        """
        if (found.get("format"), found.get("version")) != (FORMAT, FORMAT_VERSION):
            raise ValueError(
                f"it has format {found.get('format')!r}, version {found.get('version')!r}; this "
                f"version reads {FORMAT!r}, version {FORMAT_VERSION}"
            )
        try:
            header = cls(
                ref=found["ref"],
                commit=found["commit"],
                level=found["level"],
                content_digest=found["content_digest"],
                recipes=recipes_from_documents(
                    {field: found["fields"][field] for field in LEVELS[found["level"]]},
                    found["recipes"],
                ),
                validation_share=float(found["validation_share"]),
                whitening={k: Whitening.from_record(one) for k, one in found["whitening"].items()},
                tables_digest=found["tables"],
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"its header lacks something ({error!r})") from error
        return header


def _as_text(whitening: Whitening) -> dict[str, Any]:
    """A record without floats, of which canonical JSON has none."""
    record = whitening.to_record()
    return {
        "mean": [repr(value) for value in record["mean"]],
        "std": [repr(value) for value in record["std"]],
        "spread": record["spread"],
        "std_floor": repr(record["std_floor"]),
    }

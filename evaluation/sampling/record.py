"""What a folder of samples records, so that one run never goes on in another's files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from latents.durable import make_folder, replace_file
from latents.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedCondition:
    """What one sample goes by."""

    name: str
    """For people; it says nothing of what was given."""
    digest: str


def claim(
    out: Path,
    stem: str,
    *,
    made_by: Mapping[str, Any],
    conditions: Sequence[RecordedCondition] = (),
) -> None:
    """Records in ``out/<stem>.json`` what the files ``out/<stem>_*.mp4`` are made by.

    A run may be extended: as long as its first conditions are those on record.

    Args:
        out: The folder; made if missing.
        stem: Task and seed.
        made_by: JSON values that each sample depends on.
        conditions: By number of the sample.

    Raises:
        ConfigError: There are samples of other models, settings or conditions, or of which
            nothing is on record.
        OSError: The folder cannot be read or written.
    """
    make_folder(out)
    path = out / f"{stem}.json"
    known: list[RecordedCondition] = []
    if path.exists():
        known = _known_conditions(path, made_by)
    elif any(out.glob(f"{stem}_*.mp4")):
        raise ConfigError(
            f"{out} holds samples {stem}_*.mp4, and nothing says how they were made; choose "
            "another folder"
        )
    for index, (found, wanted) in enumerate(zip(known, conditions, strict=False)):
        if found.digest != wanted.digest:
            raise ConfigError(
                f"{out}: sample {index} of {stem} went by {found.name}, now it is to go by "
                f"{wanted.name}; choose another folder"
            )
    longer = [*conditions, *known[len(conditions) :]]
    record = {"made_by": made_by, "conditions": [asdict(one) for one in longer]}
    replace_file(path, (json.dumps(record, indent=2) + "\n").encode())


def _known_conditions(path: Path, made_by: Mapping[str, Any]) -> list[RecordedCondition]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        found = dict(record["made_by"])
        conditions = [RecordedCondition(**one) for one in record["conditions"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path} is no record of samples ({error!r}); choose another folder"
        ) from error
    differences = [
        f"{name} was {_short(found.get(name))}, now it is {_short(made_by.get(name))}"
        for name in sorted(found.keys() | made_by.keys())
        if found.get(name) != made_by.get(name)
    ]
    if differences:
        raise ConfigError(
            f"{path.parent} holds samples {path.stem} that were made otherwise: "
            f"{'; '.join(differences)}. Choose another folder"
        )
    return conditions


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."

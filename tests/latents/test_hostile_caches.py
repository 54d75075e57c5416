"""Caches whose author made every seal and digest true, and the rows and recipes a lie."""

from __future__ import annotations

import json
import math
import re
import shutil
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from latents.cache.commit import Commit, RowFile, commit_from_json
from latents.cache.inspect import inspect_cache
from latents.cache.layout import CacheLayout, find_cache
from latents.cache.local_storage import LocalStorage
from latents.cache.reader import open_cache, read_tensor
from latents.cache.refs import ancestral_recipes, require_ref
from latents.cache.rows import (
    ROW_KINDS,
    LatentRow,
    RowKind,
    latent_row,
    row_schema,
    table_from_bytes,
    table_to_bytes,
)
from latents.cache.snapshot import load_snapshot
from latents.cache.verify import verify_cache
from latents.errors import DamagedError, LatentError
from latents.recipe import canonical_json, sealed_json, sha256_hex
from latents.testing import fake_recipes, make_cache
from tests.mutations import hostile_value

# The sums of hostile numbers are beyond a float, and numpy says so.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

INSIDE = re.compile(
    r"(cache\.json|(recipes|rows|commits|checkpoints|refs|shards|drivers)(/[0-9a-z][0-9a-z.]*)?)?"
)
TEXTS = (
    *("", "a", "../../etc/passwd", "/etc/passwd", "a\0b", "0" * 64, "a" * 70_000, "é", "a-b-c"),
    *("scenes:", "scenes:1:2", "scenes:1:2:" + "9" * 30, "../" * 10 + "a", "2" * 64 + ".tar"),
    *("0" * 32 + "-00000000-10", "kl.video", "clip.video", "float32", "object", "changed", "moved"),
)
INTEGERS = (0, 1, -1, 255, 2**16, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63))
FLOATS = (0.0, -1.0, math.nan, math.inf, -math.inf, 1e308)
LISTS = (
    [],
    [0],
    [1],
    [-1],
    [5, 4, 2, 2],
    [2**62] * 3,
    [2**40] * 5,
    [1] * 6,
    [2**63 - 1],
    [1] * 9999,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A sound cache of two commits."""
    root = Path(make_cache(tmp_path_factory.mktemp("cache") / "cache").url)
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.fixture(autouse=True)
def _watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing outside the cache is ever asked for."""
    path_of = LocalStorage._path

    def watched(self: LocalStorage, name: str) -> Path:
        assert INSIDE.fullmatch(name), f"{name!r} was asked for"
        return path_of(self, name)

    monkeypatch.setattr(LocalStorage, "_path", watched)


class Forger:
    """Rewrites the last commit of a cache, and whatever names what it rewrites."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = dict(files)
        self.commit = commit_from_json(files["commits/000000000001.json"])

    def rows(self, kind: RowKind) -> list[dict[str, Any]]:
        if kind not in self.commit.files:
            return []
        name = f"rows/{self.commit.files[kind].sha256}.parquet"
        records: list[dict[str, Any]] = table_from_bytes(kind, self.files[name]).to_pylist()
        return records

    def put_rows(self, kind: RowKind, records: list[dict[str, Any]]) -> None:
        table = pa.Table.from_pylist(records, schema=row_schema(kind))
        content = table_to_bytes(table)
        file = RowFile(sha256=sha256_hex(content), num_rows=len(records))
        self.files[f"rows/{file.sha256}.parquet"] = content
        self.commit = Commit(
            number=self.commit.number,
            previous=self.commit.previous,
            files={**self.commit.files, kind: file},
            run=self.commit.run,
        )
        self.files["commits/000000000001.json"] = self.commit.to_json()

    def put_recipe(self, name: str, value: Any) -> None:
        """Another recipe in the place of a field's, in the ref and in the rows."""
        ref = json.loads(self.files["refs/current.json"])
        del ref["seal"]
        content = canonical_json(value)
        before, after = ref["recipes"][name], sha256_hex(content)
        ref["recipes"][name] = after
        self.files[f"recipes/{after}.json"] = content
        self.files["refs/current.json"] = sealed_json(ref)
        rows = self.rows("latents")
        renamed = [
            {**row, "recipe": after if row["recipe"] == before else row["recipe"]} for row in rows
        ]
        self.put_rows("latents", renamed)

    def write(self, root: Path) -> CacheLayout:
        shutil.rmtree(root, ignore_errors=True)
        for name, content in self.files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        return CacheLayout(LocalStorage(root))


def hostile_cell(column: pa.Field, random: Random) -> Any:
    if column.nullable and random.random() < 0.2:
        return None
    if pa.types.is_string(column.type):
        return random.choice(TEXTS)
    if pa.types.is_integer(column.type):
        return random.choice(INTEGERS)
    if pa.types.is_floating(column.type):
        return random.choice(FLOATS)
    chosen = random.choice(LISTS)
    if pa.types.is_floating(column.type.value_type):
        return list(map(float, chosen))
    return [one % 2**32 for one in chosen] if column.name == "crc32c" else chosen


def forge_cells(forger: Forger, random: Random) -> None:
    """Other values in rows that are there."""
    kind = random.choice(sorted(forger.commit.files))
    rows = forger.rows(kind)
    for _ in range(random.randint(1, 3)):
        column = random.choice(list(row_schema(kind)))
        random.choice(rows)[column.name] = hostile_cell(column, random)
    forger.put_rows(kind, rows)


def forge_rows(forger: Forger, random: Random) -> None:
    """Rows out of nothing, of clips and sources that are there."""
    kind = random.choice(ROW_KINDS)
    known = {name: [row[name] for row in forger.rows("latents")] for name in ("clip", "source")}
    known["digest"] = known["source_digest"] = known["source"]
    rows = forger.rows(kind)
    for _ in range(random.randint(1, 3)):
        row = {column.name: hostile_cell(column, random) for column in row_schema(kind)}
        for name in row.keys() & known.keys():
            if random.random() < 0.6:
                row[name] = random.choice(known[name])
        if kind == "tombstones":
            row["reason"] = random.choice(("changed", "pruned", "dropped", "readmitted", "moved"))
        rows.append(row)
    forger.put_rows(kind, rows)


def forge_recipe(forger: Forger, random: Random) -> None:
    """A recipe that says something else."""
    name = random.choice(("kl.video", "kl.audio"))
    value = json.loads(fake_recipes()[name].to_json())
    try:
        forger.put_recipe(name, hostile_value(value, random))
    except (TypeError, ValueError):  # that cannot be written as canonical JSON
        forge_cells(forger, random)


def consumers(root: Path) -> Iterator[Callable[[], object]]:
    """What people do with a cache that they were given."""
    yield lambda: open_cache(root, level="kl", recipes=fake_recipes()).num_windows
    yield lambda: read_everything(root)
    yield lambda: load_snapshot(find_cache(root)).open_quarantine()
    yield lambda: ancestral_recipes(find_cache(root), require_ref(find_cache(root), "current"))
    yield lambda: inspect_cache(find_cache(root))
    yield lambda: verify_cache(find_cache(root))


def read_everything(root: Path) -> int:
    level = open_cache(root, level="kl")
    return sum(level.read(clip, name).size for clip in level for name in clip.rows)


def survey(files: dict[str, bytes], root: Path, seeds: range) -> Counter[str]:
    """How many consumers were given an answer, and how many an error that says why not."""
    outcomes: Counter[str] = Counter()
    for seed in seeds:
        random = Random(seed)
        forger = Forger(files)
        random.choice((forge_cells, forge_rows, forge_recipe))(forger, random)
        forger.write(root)
        for number, consume in enumerate(consumers(root)):
            try:
                consume()
                outcomes["answered"] += 1
            except LatentError:
                outcomes["refused"] += 1
            except Exception as error:
                error.add_note(f"seed {seed}, consumer {number}")
                raise
    return outcomes


def test_a_forged_cache_is_read_or_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    outcomes = survey(files, tmp_path / "forged", range(25))

    assert min(outcomes["answered"], outcomes["refused"]) > 20


@pytest.mark.slow
def test_any_forged_cache_is_read_or_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    outcomes = survey(files, tmp_path / "forged", range(25, 700))

    assert min(outcomes["answered"], outcomes["refused"]) > 350


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("offset", 2**63 - 1),
        ("offset", 2**40),
        ("shape", [5, 2**40]),
        ("shape", [5, 2**40, 2**40, 2**40, 2**40]),
        ("dtype", "object"),
        ("crc32c", [1, 2]),
        ("crc32c", [0] * 9999),
        ("shard", "../../../etc/passwd"),
        ("shard", "a" * 64 + ".tar"),
    ],
)
def test_a_tensor_that_cannot_be_is_refused_before_room_is_made_for_it(
    files: dict[str, bytes], tmp_path: Path, column: str, value: object
) -> None:
    forger = Forger(files)
    rows = [{**row, column: value} for row in forger.rows("latents")]
    forger.put_rows("latents", rows)
    forger.write(tmp_path / "forged")

    tracemalloc.start()
    with pytest.raises(DamagedError):
        read_everything(tmp_path / "forged")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 2**20


def test_a_row_that_no_table_gave_is_refused_before_room_is_made_for_it(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    forger = Forger(files)
    layout = forger.write(tmp_path / "cache")
    record = forger.rows("latents")[0]
    huge = [5, 2**62, 2**62, 2**62]

    row: LatentRow = latent_row({**record, "shape": huge, "crc32c": [0] * 5})
    with pytest.raises(DamagedError, match="bytes too early"):
        read_tensor(layout, row)
    with pytest.raises(ValueError, match="OBJECT"):
        read_tensor(layout, latent_row({**record, "dtype": "object", "shape": [1, 1]}))
    assert np.isfinite(read_tensor(layout, latent_row(record))).all()

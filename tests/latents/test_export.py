"""A snapshot becomes a cache of its own, bit by bit, in either store."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from latents.cache import export
from latents.cache.export import Exported, export_cache
from latents.cache.inspect import inspect_cache
from latents.cache.layout import CacheLayout, find_cache
from latents.cache.log import CommitLog
from latents.cache.object_storage import open_object_storage
from latents.cache.reader import open_cache, read_tensor
from latents.cache.refs import Ref, read_ref, write_ref
from latents.cache.removal import drop
from latents.cache.rows import AnnotationRow, latent_row, row_schema, rows_to_table
from latents.cache.snapshot import load_snapshot
from latents.cache.verify import verify_cache
from latents.errors import CacheError, DamagedError
from latents.fields import Level
from latents.store.kinds import STORE_NAMES, StoreName, store_of
from latents.store.protocol import ShardWriter
from latents.store.shard_writers import shard_writer_of
from latents.testing import (
    commit_clips,
    fake_clips,
    fake_recipes,
    make_cache,
    perceptual_clips,
    perceptual_recipes,
)
from tests.latents.s3_server import S3Server

RUN = {"command": "test"}
RECIPES = {
    field: recipe.digest
    for recipes in (fake_recipes(), perceptual_recipes())
    for field, recipe in recipes.items()
}
OTHER: dict[StoreName, StoreName] = {"tar": "zarr", "zarr": "tar"}


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[StoreName, CacheLayout]:
    return {store: template(tmp_path_factory.mktemp(store), store) for store in STORE_NAMES}


def template(root: Path, store: StoreName) -> CacheLayout:
    """Five clips of the kl level, two in a shard, one of the perceptual level, and annotations."""
    layout = make_cache(root / "cache", num_clips=5, store=store)
    commit_clips(layout, perceptual_clips(1), perceptual_recipes(), store=store)
    source = fake_clips(1)[0].key.source_digest
    for label in ("rain", "surf"):
        row = AnnotationRow(source=source, label=label, caption="a", split="test")
        CommitLog(layout).append({"annotations": rows_to_table("annotations", [row])}, {})
    write_ref(layout, "current", Ref(commit=CommitLog(layout).head(), recipes=RECIPES))
    return layout


@pytest.fixture
def store() -> StoreName:
    """Of the cache; tests of both override it."""
    return "tar"


@pytest.fixture
def layout(
    templates: dict[StoreName, CacheLayout], store: StoreName, tmp_path: Path
) -> CacheLayout:
    shutil.copytree(templates[store].url, tmp_path / "cache")
    return find_cache(tmp_path / "cache")


def run(
    layout: CacheLayout,
    out: Path | str,
    store: StoreName,
    *,
    open_shard: Callable[[CacheLayout], ShardWriter] | None = None,
    ref: str = "current",
    level: Level | None = None,
    on_shard: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:
    return export_cache(
        layout,
        out,
        store=store,
        open_shard=open_shard or (lambda target: shard_writer_of(store)(target.storage)),
        run=RUN,
        ref=ref,
        level=level,
        on_shard=on_shard,
    )


def rows(layout: CacheLayout) -> pa.Table:
    """All latents rows that current names, in order, but for where the tensors lie."""
    ref = read_ref(layout, "current")
    assert ref is not None
    snapshot = load_snapshot(layout, ref.commit)
    parts = [snapshot.rows_of(recipe) for recipe in sorted(ref.recipes.values())]
    return pa.concat_tables(parts)


def shards(layout: CacheLayout) -> dict[str, bytes]:
    found = layout.storage.list("shards")
    return {file.name: layout.storage.read(file.name) for file in found}


def recipes(layout: CacheLayout) -> dict[str, bytes]:
    found = layout.storage.list("recipes")
    return {file.name: layout.storage.read(file.name) for file in found}


def said(layout: CacheLayout) -> list[pa.Table]:
    """Sources and annotations, without the commits that brought them."""
    snapshot = load_snapshot(layout)
    return [
        snapshot.sources.select(row_schema("sources").names),
        snapshot.annotations.select(row_schema("annotations").names),
    ]


@pytest.mark.parametrize("store", STORE_NAMES)
def test_the_new_cache_holds_the_same(
    layout: CacheLayout, store: StoreName, tmp_path: Path
) -> None:
    exported = run(layout, tmp_path / "out", OTHER[store])

    out = find_cache(tmp_path / "out")
    places = ["shard", "offset"]
    assert rows(out).drop_columns(places).equals(rows(layout).drop_columns(places))
    assert {store_of(shard) for shard in rows(out)["shard"].to_pylist()} == {OTHER[store]}
    assert recipes(out) == recipes(layout)
    assert said(out) == said(layout)
    assert said(out)[1]["label"].to_pylist() == ["surf"]
    levels = inspect_cache(layout).levels
    assert inspect_cache(out).levels == levels
    assert exported.levels == {name: one.content_digest for name, one in levels.items()}
    assert set(levels) == {"kl", "perceptual"}
    assert read_ref(out, "current") == Ref(commit=exported.commit, recipes=RECIPES)
    assert verify_cache(out) == []


@pytest.mark.parametrize("store", STORE_NAMES)
def test_every_tensor_is_read_bit_by_bit(
    layout: CacheLayout, store: StoreName, tmp_path: Path
) -> None:
    run(layout, tmp_path / "out", OTHER[store])

    out = find_cache(tmp_path / "out")
    for before, after in zip(rows(layout).to_pylist(), rows(out).to_pylist(), strict=True):
        wanted = read_tensor(layout, latent_row(before))
        assert read_tensor(out, latent_row(after)).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("store", STORE_NAMES)
def test_there_and_back_gives_the_same_shards(
    layout: CacheLayout, store: StoreName, tmp_path: Path
) -> None:
    run(layout, tmp_path / "there", OTHER[store])
    run(find_cache(tmp_path / "there"), tmp_path / "back", store)

    assert len(shards(layout)) == 4
    assert shards(find_cache(tmp_path / "back")) == shards(layout)


def test_one_level_can_be_exported(layout: CacheLayout, store: StoreName, tmp_path: Path) -> None:
    exported = run(layout, tmp_path / "out", store, level="perceptual")

    out = find_cache(tmp_path / "out")
    ref = read_ref(out, "current")
    assert ref is not None
    assert ref.recipes.keys() == {"perceptual.video", "perceptual.audio"}
    assert (exported.num_clips, exported.num_shards) == (1, 1)
    assert exported.levels == {
        "perceptual": inspect_cache(layout).levels["perceptual"].content_digest
    }
    assert verify_cache(out) == []


def test_what_has_left_is_not_exported(
    layout: CacheLayout, store: StoreName, tmp_path: Path
) -> None:
    gone = fake_clips(5)[3]
    drop(layout, [str(gone.key)], run=RUN)

    run(layout, tmp_path / "out", store)

    out = find_cache(tmp_path / "out")
    stays = {str(clip.key) for clip in fake_clips(5)} - {str(gone.key)}
    assert open_cache(out.url, level="kl").clips.clip_keys() == sorted(stays)
    picture = gone.tensors["kl.video"].tobytes()
    assert any(picture in content for content in shards(layout).values())
    assert not any(picture[:64] in content for content in shards(out).values())


def test_an_older_snapshot_is_exported_as_it_was(
    layout: CacheLayout, store: StoreName, tmp_path: Path
) -> None:
    kl = {field: RECIPES[field] for field in ("kl.video", "kl.audio")}
    write_ref(layout, "first", Ref(commit=0, recipes=kl))

    run(layout, tmp_path / "out", store, ref="first")

    out = find_cache(tmp_path / "out")
    wanted = open_cache(layout.url, level="kl", ref="first").clips.clip_keys()
    assert open_cache(out.url, level="kl").clips.clip_keys() == wanted
    assert len(wanted) == 2
    assert said(out)[1].num_rows == 0


class Killed(Exception):
    pass


@pytest.mark.parametrize("killed_at", [1, 3])
def test_a_killed_export_goes_on_where_it_stopped(
    killed_at: int, layout: CacheLayout, store: StoreName, tmp_path: Path
) -> None:
    def kill(done: int, total: int) -> None:
        if done == killed_at:
            raise Killed

    with pytest.raises(Killed):
        run(layout, tmp_path / "out", store, on_shard=kill)
    with pytest.raises(CacheError, match="has no ref 'current'"):
        open_cache(tmp_path / "out", level="kl")
    told: list[tuple[int, int]] = []
    again = run(
        layout, tmp_path / "out", store, on_shard=lambda done, total: told.append((done, total))
    )

    assert again.num_copied == 4 - killed_at
    assert told == [(done, 4) for done in range(killed_at + 1, 5)]
    out = find_cache(tmp_path / "out")
    assert (shards(out), said(out)) == (shards(layout), said(layout))
    assert rows(out).equals(rows(layout))
    assert verify_cache(out) == []


def test_an_export_that_was_killed_before_the_ref_moved_only_moves_it(
    layout: CacheLayout, store: StoreName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(export, "write_ref", raise_killed)
        with pytest.raises(Killed):
            run(layout, tmp_path / "out", store)
    out = find_cache(tmp_path / "out")
    head = CommitLog(out).head()

    assert run(layout, out.url, store).num_copied == 0

    assert CommitLog(out).head() == head
    assert open_cache(out.url, level="kl").commit == head


def raise_killed(*_: object) -> None:
    raise Killed


@pytest.mark.parametrize("store", STORE_NAMES)
def test_a_shard_that_was_not_sealed_leaves_nothing(
    layout: CacheLayout, store: StoreName, tmp_path: Path
) -> None:
    class Stopping:
        def __init__(self, target: CacheLayout) -> None:
            self._writer = shard_writer_of(store)(target.storage)
            self.num_bytes = 0
            self.discard = self._writer.discard
            self.add = self._writer.add

        def seal(self) -> None:
            raise Killed

    with pytest.raises(Killed):
        run(layout, tmp_path / "out", store, open_shard=Stopping)  # type: ignore[arg-type]

    out = find_cache(tmp_path / "out")
    assert (shards(out), CommitLog(out).head()) == ({}, -1)


def test_a_finished_export_is_not_done_again(
    layout: CacheLayout, store: StoreName, tmp_path: Path
) -> None:
    first = run(layout, tmp_path / "out", store)
    second = run(layout, tmp_path / "out", store)
    assert (first.num_copied, second.num_copied) == (4, 0)
    assert first.commit == second.commit == CommitLog(find_cache(tmp_path / "out")).head()


def test_another_cache_is_not_added_to(
    layout: CacheLayout, store: StoreName, tmp_path: Path
) -> None:
    other = make_cache(tmp_path / "other")
    before = CommitLog(other).head()
    for out in (other.url, layout.url):
        with pytest.raises(CacheError, match=r"holds a cache already.*name an empty or a new"):
            run(layout, out, store)
    assert CommitLog(other).head() == before


def test_the_rest_of_another_export_is_not_gone_on_with(
    layout: CacheLayout, store: StoreName, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        run(layout, tmp_path / "out", store, on_shard=raise_killed)

    with pytest.raises(CacheError, match="not this export begun before"):
        run(layout, tmp_path / "out", OTHER[store])
    with pytest.raises(CacheError, match="not this export begun before"):
        run(layout, tmp_path / "out", store, level="kl")


def test_a_level_that_is_not_there_is_refused(
    layout: CacheLayout, store: StoreName, tmp_path: Path
) -> None:
    with pytest.raises(CacheError, match=r"has no clip\.video or clip\.audio; it has kl\.audio"):
        run(layout, tmp_path / "out", store, level="clip")
    assert not (tmp_path / "out").exists()


def test_nothing_is_not_exported(tmp_path: Path) -> None:
    layout = make_cache(tmp_path / "cache", clips=[])
    with pytest.raises(CacheError, match="there is nothing to export"):
        run(layout, tmp_path / "out", "tar")
    assert not (tmp_path / "out").exists()


def test_a_damaged_tensor_is_named_and_not_taken_over(
    layout: CacheLayout, store: StoreName, tmp_path: Path
) -> None:
    row = open_cache(layout.url, level="kl").clips[0].rows["kl.audio"]
    shard = Path(layout.url, layout.shard(row.shard))
    content = bytearray(shard.read_bytes())
    content[row.offset + 3] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(content)

    with pytest.raises(DamagedError, match=row.shard):
        run(layout, tmp_path / "out", store)
    with pytest.raises(CacheError, match="has no ref 'current'"):
        open_cache(tmp_path / "out", level="kl")


def test_from_bucket_to_bucket_each_shard_is_fetched_once(
    layout: CacheLayout, store: StoreName, s3: S3Server, s3_url: str, tmp_path: Path
) -> None:
    bucket = open_object_storage(s3_url, local=tmp_path / "local")
    for file in layout.storage.list(""):
        bucket.replace(file.name, layout.storage.read(file.name))
    s3.requests.clear()

    run(find_cache(s3_url), f"{s3_url}-out", store)

    fetched = [one.rpartition("/")[2] for one in s3.requests if one.startswith("GET")]
    assert sorted(one for one in fetched if one.endswith(".tar")) == sorted(
        name.removeprefix("shards/") for name in shards(layout)
    )
    out = find_cache(f"{s3_url}-out")
    assert shards(out) == shards(layout)
    assert verify_cache(out) == []

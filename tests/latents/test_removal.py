"""Taking content down, by whatever name, and letting it back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from latents.cache.layout import CacheLayout, find_cache
from latents.cache.log import CommitLog
from latents.cache.reader import open_cache
from latents.cache.refs import Ref, delete_ref, read_ref, write_ref
from latents.cache.removal import drop, dropped_clips, dropped_digests, readmit
from latents.cache.rows import SourceRow, TombstoneReason, TombstoneRow, rows_to_table
from latents.cache.snapshot import load_snapshot
from latents.errors import CacheError
from latents.testing import (
    commit_clips,
    fake_clips,
    fake_recipes,
    fake_source_row,
    make_cache,
    quarantine_table,
)

RUN = {"command": "test"}
CLIPS = fake_clips(3)
DIGESTS = [clip.key.source_digest for clip in CLIPS]
URIS = [fake_source_row(clip).uri for clip in CLIPS]
KEYS = [str(clip.key) for clip in CLIPS]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> CacheLayout:
    return make_cache(tmp_path_factory.mktemp("template") / "cache", num_clips=3)


@pytest.fixture
def layout(template: CacheLayout, tmp_path: Path) -> CacheLayout:
    shutil.copytree(template.url, tmp_path / "cache")
    return find_cache(tmp_path / "cache")


def name_also(layout: CacheLayout, uri: str, digest: str) -> None:
    """Records the same bytes under another name."""
    row = SourceRow(
        uri=uri,
        size=1000,
        mtime_ns=0,
        etag="",
        digest=digest,
        segmentation="0" * 64,
        num_segments=1,
    )
    log = CommitLog(layout, seen=CommitLog(layout).head())
    log.append({"sources": rows_to_table("sources", [row])}, RUN)


def entomb(layout: CacheLayout, reason: TombstoneReason, digest: str) -> None:
    row = TombstoneRow(reason=reason, uri=None, source=digest, clip=None)
    log = CommitLog(layout, seen=CommitLog(layout).head())
    log.append({"tombstones": rows_to_table("tombstones", [row])}, RUN)


def clips_of_head(layout: CacheLayout) -> list[str]:
    snapshot = load_snapshot(layout)
    clips: list[str] = snapshot.rows_of(fake_recipes()["kl.video"].digest)["clip"].to_pylist()
    return clips


def clips_of_current(layout: CacheLayout) -> list[str]:
    return [clip.clip for clip in open_cache(layout.url, level="kl")]


@pytest.mark.parametrize("name", [URIS[1], DIGESTS[1], DIGESTS[1][:8]])
def test_a_source_is_taken_down_by_any_of_its_names(layout: CacheLayout, name: str) -> None:
    dropped = drop(layout, [name], run=RUN)

    assert (dropped.sources, dropped.uris, dropped.clips) == ((DIGESTS[1],), (URIS[1],), ())
    assert dropped.num_clips == 1
    assert clips_of_head(layout) == sorted([KEYS[0], KEYS[2]])
    snapshot = load_snapshot(layout)
    assert snapshot.sources["uri"].to_pylist() == sorted([URIS[0], URIS[2]])
    assert dropped_digests(snapshot) == {DIGESTS[1]}
    assert dropped_clips(snapshot) == {}


def test_a_file_is_named_by_its_path_too(
    layout: CacheLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name_also(layout, str(tmp_path / "videos" / "a.mp4"), DIGESTS[0])
    name_also(layout, (tmp_path / "videos" / "b.mp4").as_uri(), DIGESTS[1])

    dropped = drop(layout, ["videos/a.mp4", "./videos/../videos/b.mp4"], run=RUN)

    assert dropped.sources == (DIGESTS[0], DIGESTS[1])


def test_a_clip_is_taken_down_by_its_key_and_its_source_stays(layout: CacheLayout) -> None:
    dropped = drop(layout, [KEYS[1]], run=RUN)

    assert (dropped.sources, dropped.clips, dropped.num_clips) == ((), (KEYS[1],), 1)
    assert clips_of_head(layout) == sorted([KEYS[0], KEYS[2]])
    snapshot = load_snapshot(layout)
    assert snapshot.sources.num_rows == 3
    assert (dropped_digests(snapshot), dropped_clips(snapshot)) == (set(), {KEYS[1]: 8})


def test_what_is_taken_down_is_content_under_all_its_names(layout: CacheLayout) -> None:
    name_also(layout, "file:///copy.mp4", DIGESTS[0])

    dropped = drop(layout, [URIS[0]], run=RUN)

    assert set(dropped.uris) == {URIS[0], "file:///copy.mp4"}
    assert load_snapshot(layout).sources["uri"].to_pylist() == sorted(URIS[1:])


def test_a_source_of_which_nothing_is_on_record_is_known_by_its_digest(
    layout: CacheLayout,
) -> None:
    row = TombstoneRow(reason="pruned", uri=URIS[0], source=None, clip=None)
    log = CommitLog(layout, seen=1)
    log.append({"tombstones": rows_to_table("tombstones", [row])}, RUN)

    assert drop(layout, [DIGESTS[0]], run=RUN).uris == ()
    assert clips_of_head(layout) == sorted(KEYS[1:])


def test_several_names_are_one_commit(layout: CacheLayout) -> None:
    dropped = drop(layout, [URIS[0], KEYS[1], DIGESTS[0]], run=RUN)

    assert dropped.commit == CommitLog(layout).head() == 2
    assert (dropped.sources, dropped.clips, dropped.num_clips) == ((DIGESTS[0],), (KEYS[1],), 2)


class TestUnknownNames:
    def test_an_unknown_name_is_told_with_the_nearest_there_is(self, layout: CacheLayout) -> None:
        name = URIS[0].replace("mp4", "mov")

        with pytest.raises(CacheError, match=f"nothing is called .*Near it: {URIS[0]}"):
            drop(layout, [KEYS[1], name], run=RUN)
        assert CommitLog(layout).head() == 1

    def test_a_file_of_the_same_name_elsewhere_is_near(self, layout: CacheLayout) -> None:
        name = f"/some/where/else/{URIS[0].rpartition('/')[2]}"

        with pytest.raises(CacheError, match=f"Near it: {URIS[0]}"):
            drop(layout, [name], run=RUN)

    def test_a_prefix_of_several_digests_is_refused(self, layout: CacheLayout) -> None:
        twin = DIGESTS[0][:10] + "0" * 54
        name_also(layout, "file:///twin.mp4", twin)

        with pytest.raises(CacheError, match="is the beginning of 2 digests"):
            drop(layout, [DIGESTS[0][:8]], run=RUN)

    def test_seven_digits_are_too_few(self, layout: CacheLayout) -> None:
        with pytest.raises(CacheError, match="8 digits or more"):
            drop(layout, [DIGESTS[0][:7]], run=RUN)

    @pytest.mark.parametrize("name", [URIS[0], DIGESTS[0]])
    def test_what_was_dropped_before_is_told(self, layout: CacheLayout, name: str) -> None:
        drop(layout, [URIS[0]], run=RUN)

        with pytest.raises(CacheError, match="was dropped before"):
            drop(layout, [name], run=RUN)


class TestReadmission:
    @pytest.mark.parametrize("name", [URIS[1], DIGESTS[1], DIGESTS[1][:8]])
    def test_a_source_is_readmitted_by_any_of_its_names(
        self, layout: CacheLayout, name: str
    ) -> None:
        drop(layout, [URIS[1], URIS[0]], run=RUN)

        readmitted = readmit(layout, [name], run=RUN)

        assert (readmitted.sources, readmitted.uris) == ((DIGESTS[1],), (URIS[1],))
        assert dropped_digests(load_snapshot(layout)) == {DIGESTS[0]}
        assert clips_of_head(layout) == [KEYS[2]]  # nothing comes back by itself
        commit_clips(layout, [CLIPS[1]], fake_recipes())
        assert clips_of_head(layout) == sorted(KEYS[1:])
        assert URIS[1] in load_snapshot(layout).sources["uri"].to_pylist()

    def test_a_clip_is_readmitted_by_its_key(self, layout: CacheLayout) -> None:
        drop(layout, [KEYS[0], KEYS[1]], run=RUN)

        readmit(layout, [KEYS[0]], run=RUN)

        assert dropped_clips(load_snapshot(layout)) == {KEYS[1]: 8}

    def test_the_last_word_counts(self, layout: CacheLayout) -> None:
        for _ in range(2):
            drop(layout, [DIGESTS[0]], run=RUN)
            readmit(layout, [DIGESTS[0]], run=RUN)
            commit_clips(layout, [CLIPS[0]], fake_recipes())
        drop(layout, [DIGESTS[0]], run=RUN)

        assert dropped_digests(load_snapshot(layout)) == {DIGESTS[0]}

    def test_other_reasons_to_leave_are_no_word(self, layout: CacheLayout) -> None:
        drop(layout, [DIGESTS[0]], run=RUN)
        for reason in ("changed", "pruned", "unreached"):
            entomb(layout, reason, DIGESTS[0])
            entomb(layout, reason, DIGESTS[1])

        assert dropped_digests(load_snapshot(layout)) == {DIGESTS[0]}

    def test_what_was_not_dropped_cannot_be_readmitted(self, layout: CacheLayout) -> None:
        with pytest.raises(CacheError, match="dropped: nothing is called"):
            readmit(layout, [URIS[0]], run=RUN)


class TestCurrentRef:
    def test_it_moves_along_where_nothing_else_was_committed(self, layout: CacheLayout) -> None:
        assert drop(layout, [URIS[0]], run=RUN).current == "moved"
        CommitLog(layout, seen=2).append({"quarantine": quarantine_table("a" * 64)}, RUN)
        assert drop(layout, [URIS[1]], run=RUN).current == "moved"
        assert readmit(layout, [URIS[1]], run=RUN).current == "moved"

        assert clips_of_current(layout) == [KEYS[2]]

    @pytest.mark.parametrize("what", ["latents", "tombstones"])
    def test_it_stays_before_work_that_was_not_completed(
        self, layout: CacheLayout, what: str
    ) -> None:
        """Of an ingest that was interrupted, `current` must show all or nothing."""
        if what == "latents":
            commit_clips(layout, fake_clips(1, seed=7), fake_recipes())
        else:
            entomb(layout, "changed", DIGESTS[1])

        assert drop(layout, [URIS[0]], run=RUN).current == "stays"

        assert read_ref(layout, "current") == Ref(
            commit=1, recipes={name: one.digest for name, one in fake_recipes().items()}
        )
        assert clips_of_current(layout) == sorted(KEYS)

    def test_other_refs_stay(self, layout: CacheLayout) -> None:
        current = read_ref(layout, "current")
        assert current is not None
        write_ref(layout, "mine", current)

        drop(layout, [URIS[0]], run=RUN)

        assert read_ref(layout, "mine") == current

    def test_there_may_be_none(self, layout: CacheLayout) -> None:
        delete_ref(layout, "current")

        assert drop(layout, [URIS[0]], run=RUN).current == "absent"
        assert read_ref(layout, "current") is None

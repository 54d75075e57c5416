"""Sources wherever they lie, through whole jobs: the same clips, planned once, and nothing left."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from latents.recipe import sha256_hex
from pipeline.decode import SegmentRejected, SourceDecoded
from pipeline.job import ClipTensors, DecodeClips, SourceUnread
from pipeline.source_hashing import hash_sources
from pipeline.source_rows import source_task
from pipeline.sources import HashedSource, Source, find_sources
from pipeline.synth import synthesise
from tests.pipeline.small_jobs import SmallCache, SmallJob

pytestmark = pytest.mark.usefixtures("decode_in_process")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Five seconds of picture and sound."""
    folder = tmp_path_factory.mktemp("synth")
    synthesise(folder, num_clips=1, seconds=5, seed=2, fps=10, height=64, width=64)
    return next(folder.glob("*.mp4")).read_bytes()


@pytest.fixture
def small(small_kl_vae: Path) -> SmallJob:
    return SmallJob(kl_vae=small_kl_vae, levels=("clip",))


@pytest.fixture
def memory(video: bytes) -> Iterator[MemoryFileSystem]:
    files = MemoryFileSystem()
    files.store.clear()
    files.pipe("/v/far.mp4", video)
    yield files
    files.store.clear()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def produced(small: SmallJob, source: Source) -> list[ClipTensors]:
    (hashed,) = hash_sources([source], {}, num_threads=1)
    assert isinstance(hashed, HashedSource)
    decoder = DecodeClips(small.settings)
    events = list(decoder.produce(source_task(hashed, skip_segments=frozenset(), fields=())))
    decoder.close()
    assert not [e for e in events if isinstance(e, SegmentRejected | SourceUnread)], events
    assert isinstance(events[-1], SourceDecoded)
    return [event for event in events if isinstance(event, ClipTensors)]


def test_one_video_in_a_tar_at_a_url_and_here_is_encoded_once(
    tmp_path: Path, video: bytes, memory: MemoryFileSystem, small: SmallJob, temporary: Path
) -> None:
    (tmp_path / "near.mp4").write_bytes(video)
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        archive.add(tmp_path / "near.mp4", arcname="in.mp4")
    cache = SmallCache(tmp_path / "cache")
    done = cache.ingest(small, f"{tmp_path}/shard.tar", "memory://v", f"{tmp_path}/near.mp4")
    assert done.result.num_clips_encoded == 1
    assert done.result.num_quarantined == 0
    rows = {row["uri"]: row for row in done.rows["sources"]}
    assert set(rows) == {
        f"tar://in.mp4::{tmp_path}/shard.tar",
        "memory:///v/far.mp4",
        str(tmp_path / "near.mp4"),
    }
    assert {row["digest"] for row in rows.values()} == {sha256_hex(video)}
    assert {row["num_segments"] for row in rows.values()} == {1}
    assert list(temporary.iterdir()) == []


def test_a_member_of_a_tar_gives_the_same_clip_as_the_file(
    tmp_path: Path, video: bytes, small: SmallJob, temporary: Path
) -> None:
    (tmp_path / "near.mp4").write_bytes(video)
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        archive.add(tmp_path / "near.mp4", arcname="in.mp4")
    clips = [
        produced(small, *find_sources([argument]))
        for argument in (f"{tmp_path}/near.mp4", f"{tmp_path}/shard.tar")
    ]
    ((near,), (member,)) = clips
    assert near.key == member.key
    np.testing.assert_array_equal(near.tensors["clip.video"], member.tensors["clip.video"])
    np.testing.assert_array_equal(near.tensors["clip.audio"], member.tensors["clip.audio"])


def test_stretches_of_a_video_are_sources_of_their_own(
    tmp_path: Path, video: bytes, small: SmallJob
) -> None:
    (tmp_path / "one.mp4").write_bytes(video)
    (tmp_path / "list.csv").write_text(
        "file,start,stop,label\none.mp4,0,2,first\none.mp4,2,5.0,second\n"
    )
    cache = SmallCache(tmp_path / "cache")
    done = cache.ingest(small, f"{tmp_path}/list.csv")
    assert done.result.num_clips_encoded == 2
    assert sorted(row["uri"] for row in done.rows["sources"]) == [
        f"{tmp_path}/one.mp4#t=0,2",
        f"{tmp_path}/one.mp4#t=2,5",
    ]
    assert {row["label"] for row in done.rows["annotations"]} == {"first", "second"}
    refreshed = cache.refresh(small)
    assert refreshed.result.num_already_present == 2


def test_a_stretch_holds_what_the_video_shows_in_it(
    tmp_path: Path, video: bytes, small: SmallJob
) -> None:
    path = tmp_path / "one.mp4"
    path.write_bytes(video)
    (whole,) = produced(small, *find_sources([str(path)]))
    (part,) = produced(small, *find_sources([f"{path}#t=2,4"]))
    assert part.key.start_frame == 0
    np.testing.assert_array_equal(part.tensors["clip.video"], whole.tensors["clip.video"][20:40])


def test_a_file_elsewhere_that_is_gone_is_quarantined_and_the_rest_goes_on(
    tmp_path: Path, video: bytes, memory: MemoryFileSystem, small: SmallJob
) -> None:
    done = SmallCache(tmp_path / "cache").ingest(small, "memory://v/gone.mp4", "memory://v/far.mp4")
    assert done.result.num_clips_encoded == 1
    (row,) = done.rows["quarantine"]
    assert (row["source"], row["stage"], row["error_class"], row["message"]) == (
        "memory://v/gone.mp4",
        "read",
        "FetchError",
        "the file cannot be fetched (memory://v/gone.mp4 is not there)",
    )


def test_a_file_that_changes_after_it_was_hashed_is_no_clip(
    memory: MemoryFileSystem, video: bytes, small: SmallJob, temporary: Path
) -> None:
    (hashed,) = hash_sources(find_sources(["memory://v/far.mp4"]), {}, num_threads=1)
    assert isinstance(hashed, HashedSource)
    memory.pipe("/v/far.mp4", video + b"more")
    decoder = DecodeClips(small.settings)
    unread, end = decoder.produce(source_task(hashed, skip_segments=frozenset(), fields=()))
    decoder.close()
    assert isinstance(unread, SourceUnread)
    assert type(unread.error).__name__ == "FetchError"
    assert end == SourceDecoded(num_segments=0)


def test_a_tar_that_is_gone_leaves_its_members_unread(
    tmp_path: Path, video: bytes, small: SmallJob
) -> None:
    (tmp_path / "near.mp4").write_bytes(video)
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        archive.add(tmp_path / "near.mp4", arcname="in.mp4")
    (hashed,) = hash_sources(find_sources([f"{tmp_path}/shard.tar"]), {}, num_threads=1)
    assert isinstance(hashed, HashedSource)
    shutil.move(tmp_path / "shard.tar", tmp_path / "elsewhere.tar")
    decoder = DecodeClips(small.settings)
    unread, _ = decoder.produce(source_task(hashed, skip_segments=frozenset(), fields=()))
    decoder.close()
    assert isinstance(unread, SourceUnread)
    assert "cannot be fetched" in unread.error.reason

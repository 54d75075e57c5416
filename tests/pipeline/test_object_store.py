"""A whole job in an object store: the same content as in a folder, whatever the network does."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from latents.cache.gc import collect_garbage, plan_gc
from latents.cache.layout import find_cache
from latents.cache.reader import open_cache
from latents.cache.refs import require_ref
from latents.cache.snapshot import load_snapshot
from latents.cache.verify import verify_cache
from latents.errors import CacheError
from tests.pipeline.crash_job import (
    NUM_SOURCES,
    digest_of,
    ingest_slowly,
    run_ingest,
    write_sources,
)

if TYPE_CHECKING:
    from tests.latents.s3_server import S3Server


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetched shards are kept below the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    return write_sources(tmp_path / "videos")


@pytest.fixture
def in_a_folder(tmp_path: Path, sources: Path) -> str:
    run_ingest(tmp_path / "folder", sources)
    return digest_of(tmp_path / "folder")


def test_an_ingest_into_a_bucket_ends_as_in_a_folder(
    s3_url: str, sources: Path, in_a_folder: str
) -> None:
    result = run_ingest(s3_url, sources)

    layout = find_cache(s3_url)
    assert result.num_clips_encoded == NUM_SOURCES
    assert digest_of(s3_url) == in_a_folder
    assert verify_cache(layout) == []
    assert require_ref(layout, "current").commit == load_snapshot(layout).commit


def test_latents_are_read_from_a_bucket(s3_url: str, sources: Path) -> None:
    run_ingest(s3_url, sources)
    level = open_cache(s3_url, level="kl")

    read = {clip.clip: level.read(clip, "kl.video", 2, 5).tobytes() for clip in level}

    assert len(read) == NUM_SOURCES
    assert all(len(content) == 3 * 4 * 2 * 2 * 2 for content in read.values())


def test_an_ingest_run_again_writes_nothing(s3: S3Server, s3_url: str, sources: Path) -> None:
    run_ingest(s3_url, sources)
    before = find_cache(s3_url)
    commit = load_snapshot(before).commit
    s3.forget()

    run_ingest(s3_url, sources)

    assert load_snapshot(before).commit == commit
    written = [request for request in s3.requests if request.startswith("PUT")]
    folders = {request.split("/")[4] for request in written}
    assert folders <= {"cache.json", "drivers", "recipes"}


def test_a_commit_whose_answer_is_lost_is_made_once(
    s3: S3Server, s3_url: str, sources: Path, in_a_folder: str
) -> None:
    lost: list[str] = []

    def lose_first_answer_of_a_commit(request: str) -> str | None:
        if request.startswith("PUT") and "/commits/" in request and not lost:
            lost.append(request)
            return "lose answer"
        return None

    s3.fault = lose_first_answer_of_a_commit
    run_ingest(s3_url, sources)

    assert len(lost) == 1
    assert digest_of(s3_url) == in_a_folder
    assert verify_cache(find_cache(s3_url)) == []


def test_an_upload_that_is_denied_stops_the_job_and_leaves_the_cache_intact(
    s3: S3Server, s3_url: str, sources: Path, in_a_folder: str
) -> None:
    s3.fault = lambda request: (
        "deny" if request.startswith("PUT") and "/shards/" in request else None
    )
    with pytest.raises(CacheError, match="writing failed"):
        run_ingest(s3_url, sources)
    s3.forget()

    assert verify_cache(find_cache(s3_url)) == []
    run_ingest(s3_url, sources)
    assert digest_of(s3_url) == in_a_folder


@pytest.mark.slow
def test_drivers_racing_in_a_bucket_lose_and_double_nothing(
    s3_url: str, sources: Path, in_a_folder: str
) -> None:
    # Not the server of forks: it may have been started before the environment named the store.
    processes = multiprocessing.get_context("spawn")
    drivers = [
        processes.Process(target=ingest_slowly, args=(s3_url, sources, 0.02)) for _ in range(3)
    ]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()

    assert [driver.exitcode for driver in drivers] == [0, 0, 0]
    layout = find_cache(s3_url)
    assert digest_of(s3_url) == in_a_folder
    collect_garbage(layout, plan_gc(layout, grace_seconds=0), run={})
    assert verify_cache(layout) == []
    assert digest_of(s3_url) == in_a_folder

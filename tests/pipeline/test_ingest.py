"""The main job end to end: what it makes, what it does not make again, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import mmldm
from latents.cache.inspect import inspect_cache
from latents.cache.layout import find_cache
from latents.cache.reader import open_cache
from latents.cache.snapshot import load_snapshot
from latents.cache.verify import verify_cache
from pipeline.synth import synthesise

SMALL = ["--set", "clip.size=64", "--set", "window.stride=16"]


def ingest(cache: Path, kl_vae: Path, *sources: str, options: tuple[str, ...] = ()) -> int:
    return mmldm.main(
        ["ingest", *sources, "--cache", str(cache), "--kl-vae", str(kl_vae), *SMALL, *options]
    )


def content(cache: Path, level: str = "kl") -> str:
    return inspect_cache(find_cache(cache)).levels[level].content_digest


def last_json(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_scenes_become_a_committed_verified_cache(tmp_path: Path, small_kl_vae: Path) -> None:
    assert ingest(tmp_path / "c", small_kl_vae, "scenes:0:2:2") == 0
    summary = inspect_cache(find_cache(tmp_path / "c"))
    assert summary.levels["kl"].num_clips == 2
    assert summary.levels["kl"].num_windows == 2
    assert verify_cache(find_cache(tmp_path / "c")) == []
    level = open_cache(tmp_path / "c", level="kl")
    assert [level.read(clip, "kl.video").shape for clip in level] == [(20, 8, 8, 8)] * 2
    assert [level.read(clip, "kl.audio").shape for clip in level] == [(1, 8, 32, 32)] * 2


def test_ingesting_twice_encodes_nothing_the_second_time(
    tmp_path: Path, small_kl_vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ingest(tmp_path / "c", small_kl_vae, "scenes:0:2:2")
    before = sorted((tmp_path / "c").rglob("*"))
    assert ingest(tmp_path / "c", small_kl_vae, "scenes:0:2:2", options=("--json",)) == 0
    result = last_json(capsys)
    assert (result["num_clips_encoded"], result["num_kl_images"]) == (0, 0)
    assert result["num_already_present"] == 2
    assert sorted((tmp_path / "c").rglob("*")) == before


def test_one_more_source_encodes_one_more_clip(
    tmp_path: Path, small_kl_vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ingest(tmp_path / "c", small_kl_vae, "scenes:0:2:2")
    ingest(tmp_path / "c", small_kl_vae, "scenes:0:3:2", options=("--json",))
    assert last_json(capsys)["num_clips_encoded"] == 1


def test_the_number_of_workers_does_not_change_a_byte(tmp_path: Path, small_kl_vae: Path) -> None:
    for workers in ("1", "3"):
        ingest(tmp_path / workers, small_kl_vae, "scenes:0:4:2", options=("--workers", workers))
    assert content(tmp_path / "1") == content(tmp_path / "3")


@pytest.mark.slow
@pytest.mark.ray
def test_ray_and_in_process_give_the_same_content(tmp_path: Path, small_kl_vae: Path) -> None:
    options = ("--levels", "clip,kl")
    assert ingest(tmp_path / "local", small_kl_vae, "scenes:0:4:2", options=options) == 0
    ray = ("--engine", "ray", "--workers", "2", *options)
    command = [sys.executable, "-m", "mmldm", "ingest", "scenes:0:4:2", *SMALL, *ray]
    command += ["--cache", str(tmp_path / "ray"), "--kl-vae", str(small_kl_vae)]
    # A process of its own: Ray's daemons end with it.
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    for level in ("clip", "kl"):
        assert content(tmp_path / "local", level) == content(tmp_path / "ray", level)
    assert verify_cache(find_cache(tmp_path / "ray")) == []


def test_videos_are_ingested_and_a_broken_one_is_quarantined(
    tmp_path: Path, small_kl_vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = tmp_path / "videos"
    synthesise(videos, num_clips=2, seconds=2.0, seed=1, fps=10, height=64, width=96)
    (videos / "text.mp4").write_text("this is no video")
    assert ingest(tmp_path / "c", small_kl_vae, str(videos)) == 3
    capsys.readouterr()
    assert mmldm.main(["cache", "quarantine", "ls", "--cache", str(tmp_path / "c"), "--json"]) == 0
    (event,) = last_json(capsys)
    assert event["source"].endswith("text.mp4")
    assert (event["stage"], event["error_class"]) == ("decode", "DecodeError")
    assert inspect_cache(find_cache(tmp_path / "c")).levels["kl"].num_sources == 2


def test_nothing_but_broken_files_is_a_failure(tmp_path: Path, small_kl_vae: Path) -> None:
    (tmp_path / "text.mp4").write_text("this is no video")
    assert ingest(tmp_path / "c", small_kl_vae, str(tmp_path / "text.mp4")) == 1


def test_another_encoder_refreshes_from_the_clip_level_with_the_videos_gone(
    tmp_path: Path,
    small_kl_vae: Path,
    other_kl_vae: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    videos, cache = tmp_path / "videos", tmp_path / "c"
    synthesise(videos, num_clips=2, seconds=2.0, seed=1, fps=10, height=64, width=64)
    ingest(cache, small_kl_vae, str(videos), options=("--levels", "clip,kl"))
    straight = tmp_path / "straight"
    ingest(straight, other_kl_vae, str(videos))
    for video in videos.glob("*.mp4"):
        video.unlink()
    before = content(cache)
    refresh = ["refresh", "--cache", str(cache), "--kl-vae", str(other_kl_vae), "--json"]
    assert mmldm.main(refresh) == 0
    assert last_json(capsys)["num_clips_encoded"] == 2
    assert content(cache) == content(straight) != before
    assert mmldm.main(refresh) == 0
    assert last_json(capsys)["num_clips_encoded"] == 0


def test_refresh_without_a_clip_level_decodes_the_sources_on_record(
    tmp_path: Path, small_kl_vae: Path, other_kl_vae: Path
) -> None:
    cache, straight = tmp_path / "c", tmp_path / "straight"
    ingest(cache, small_kl_vae, "scenes:0:2:2")
    ingest(straight, other_kl_vae, "scenes:0:2:2")
    refresh = ["refresh", "--cache", str(cache), "--kl-vae", str(other_kl_vae)]
    assert mmldm.main(refresh) == 0
    assert content(cache) == content(straight)


def test_refresh_with_weights_that_are_not_those_on_record_says_what_to_name(
    tmp_path: Path, small_kl_vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Other sound needs the KL-VAE, and a cache does not say where that is.
    ingest(tmp_path / "c", small_kl_vae, "scenes:0:1:2")
    options = ["--cache", str(tmp_path / "c"), "--set", "mel.name=audioldm16k"]
    assert mmldm.main(["refresh", *options]) == 1
    assert "Name the right ones with --kl-vae" in capsys.readouterr().err


def start(cache: Path, kl_vae: Path, sources: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mmldm", "ingest", sources, "--cache", str(cache)]
    command += ["--kl-vae", str(kl_vae), *SMALL, "--set", "run.commit_seconds=1"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def wait_for_a_commit(cache: Path) -> None:
    deadline = time.monotonic() + 120
    while not list((cache / "commits").glob("*.json")):
        assert time.monotonic() < deadline, "no commit within two minutes"
        time.sleep(0.05)


@pytest.mark.slow
def test_killed_and_run_again_it_ends_with_the_same_content(
    tmp_path: Path, small_kl_vae: Path
) -> None:
    sources = "scenes:0:24:3"
    ingest(tmp_path / "whole", small_kl_vae, sources)
    killed = tmp_path / "killed"
    process = start(killed, small_kl_vae, sources)
    wait_for_a_commit(killed)
    process.kill()
    process.communicate()
    assert verify_cache(find_cache(killed)) == []
    assert not (killed / "refs" / "current.json").exists()
    assert ingest(killed, small_kl_vae, sources) == 0
    assert content(killed) == content(tmp_path / "whole")
    assert verify_cache(find_cache(killed)) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_commits_what_is_finished_and_says_how_to_go_on(
    number: signal.Signals, tmp_path: Path, small_kl_vae: Path
) -> None:
    process = start(tmp_path / "c", small_kl_vae, "scenes:0:40:3")
    wait_for_a_commit(tmp_path / "c")
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    (message,) = [line for line in err.splitlines() if line.startswith("mmldm:")]
    assert number.name in message
    assert "Run the same command again" in message
    summary = inspect_cache(find_cache(tmp_path / "c"))
    assert summary.ref is None
    assert summary.levels["kl"].num_clips > 0
    assert not list((tmp_path / "c" / "shards").glob(".partial-*"))


def test_a_hundred_failures_in_a_row_stop_the_run_and_keep_what_was_made(
    tmp_path: Path, small_kl_vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for index in range(130):
        (broken / f"{index:03}.mp4").write_text(f"no video {index}")
    options = ("--workers", "1")
    assert ingest(tmp_path / "c", small_kl_vae, "scenes:0:1:2", str(broken), options=options) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert "100 in a row" in message
    assert "100 x DecodeError" in message
    summary = inspect_cache(find_cache(tmp_path / "c"))
    assert (summary.levels["kl"].num_clips, summary.num_quarantined) == (1, 100)
    assert summary.ref is None


def test_a_cache_of_another_recipe_is_refused_with_what_differs(
    tmp_path: Path, small_kl_vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ingest(tmp_path / "c", small_kl_vae, "scenes:0:1:2")
    before = content(tmp_path / "c")
    capsys.readouterr()
    options = ("--set", "mel.name=audioldm16k", "--set", "window.stride=4")
    assert ingest(tmp_path / "c", small_kl_vae, "scenes:1:1:2", options=options) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "kl.audio mel sample_rate: 22050 -> 16000" in message
    assert "kl.audio window stride: 16 -> 4" in message
    assert "make the others beside them with `mmldm refresh`" in message
    assert content(tmp_path / "c") == before


def test_a_clip_level_of_other_clips_is_refused_beside_the_kl_level(
    tmp_path: Path, small_kl_vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ingest(tmp_path / "c", small_kl_vae, "scenes:0:1:2")
    options = ("--levels", "clip", "--set", "clip.size=128")
    assert ingest(tmp_path / "c", small_kl_vae, "scenes:0:1:2", options=options) == 2
    assert "clip.video size: 64 -> 128" in capsys.readouterr().err


def test_a_run_that_made_no_rows_leaves_current_as_it_was(
    tmp_path: Path, small_kl_vae: Path
) -> None:
    (tmp_path / "text.mp4").write_text("this is no video")
    assert ingest(tmp_path / "c", small_kl_vae, str(tmp_path / "text.mp4")) == 1
    assert not (tmp_path / "c" / "refs" / "current.json").exists()
    # Other settings are free as long as nothing was made with these.
    assert (
        ingest(tmp_path / "c", small_kl_vae, "scenes:0:1:4", options=("--set", "clip.fps=5")) == 0
    )


def test_a_file_that_changes_after_it_was_hashed_is_not_stored_under_the_old_digest(
    tmp_path: Path, small_kl_vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline import ingest as module

    videos = tmp_path / "videos"
    synthesise(videos, num_clips=1, seconds=2.0, seed=1, fps=10, height=64, width=64)
    (video,) = videos.glob("*.mp4")
    whole = video.read_bytes()
    hash_sources = module.hash_sources

    def hash_then_grow(*arguments: Any, **options: Any) -> Any:
        hashed = hash_sources(*arguments, **options)
        video.write_bytes(whole)
        return hashed

    video.write_bytes(whole[: len(whole) // 2])  # a copy is under way
    monkeypatch.setattr(module, "hash_sources", hash_then_grow)
    assert ingest(tmp_path / "c", small_kl_vae, str(video)) == 1
    monkeypatch.undo()
    assert ingest(tmp_path / "c", small_kl_vae, str(video)) == 0


CLIPS = Path(__file__).resolve().parents[2].parent / "shared" / "clips"


@pytest.mark.slow
@pytest.mark.skipif(not CLIPS.is_dir(), reason="the real clips are not beside the checkout")
def test_of_the_real_clips_35_become_rows_and_the_one_shorter_than_a_window_does_not(
    tmp_path: Path, small_kl_vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ingest(tmp_path / "c", small_kl_vae, str(CLIPS / "good"), options=("--json",)) == 3
    assert last_json(capsys)["num_sources_with_rows"] == 35
    (event,) = load_snapshot(find_cache(tmp_path / "c")).open_quarantine()
    assert event["source"].endswith("openl3_bento.mp4")
    assert event["error_class"] == "TooShortError"


@pytest.mark.slow
@pytest.mark.skipif(not CLIPS.is_dir(), reason="the real clips are not beside the checkout")
def test_the_awkward_clips_do_not_stop_the_run(tmp_path: Path, small_kl_vae: Path) -> None:
    assert ingest(tmp_path / "c", small_kl_vae, str(CLIPS / "awkward")) == 3
    assert verify_cache(find_cache(tmp_path / "c")) == []

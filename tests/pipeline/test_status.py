"""``mmldm status``: how a run stands, also after its process is gone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import mmldm
from latents.cache.drivers import driving
from latents.cache.layout import create_cache
from latents.errors import CacheError, ConfigError
from pipeline.run_folder import LINES_FILE, RUN_FILE, RunFolder
from pipeline.status import find_run, read_status
from tests.pipeline.test_progress import FIGURES

RUN_THAT_WAITS = """
import sys, time
from latents.cache.drivers import driving
from latents.cache.layout import create_cache
from pipeline.run_folder import RunFolder
from tests.pipeline.test_progress import FIGURES
with driving(create_cache(sys.argv[1]), purpose="ingest"):
    RunFolder(sys.argv[1], purpose="ingest", unit="sources").note(FIGURES)
    print("noted", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    create_cache(tmp_path / "cache")
    return tmp_path / "cache"


def begin(cache: Path) -> RunFolder:
    return RunFolder(str(cache), purpose="ingest", unit="sources")


def test_a_run_whose_driver_is_there_is_running(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with driving(create_cache(cache), purpose="ingest"):
        run = begin(cache)
        assert read_status(run.path).figures is None
        run.note(FIGURES)
        assert mmldm.main(["status", str(cache)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"running: ingest of {cache}"
    assert lines[2].startswith("encoded 10/40 sources, 12 clips, 0.60 clips/s, 15.0 windows/s")
    assert lines[-2].endswith("ends it after what is in hand")
    assert lines[-1].endswith(f"mmldm cache quarantine ls --cache {cache}")


def test_a_run_that_ended_says_so_as_json(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = begin(cache)
    run.note(FIGURES)
    run.note(FIGURES, state="ended")
    assert mmldm.main(["status", str(run.path), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["state"], status["run"], status["error"]) == ("ended", str(run.path), "")
    assert status["figures"]["num_clips"] == 12
    assert status["figures"]["causes"] == {"DecodeError": 3, "TooShortError": 1}


def test_a_run_that_failed_says_why(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(cache).note(FIGURES, state="failed", error="the disk is full")
    assert mmldm.main(["status", str(cache)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("failed: ")
    assert "it said: the disk is full" in out
    assert "mend the cause" in out


def test_a_run_that_was_killed_is_not_taken_for_one_that_goes_on(cache: Path) -> None:
    command = [sys.executable, "-c", RUN_THAT_WAITS, str(cache)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "noted\n"
        assert read_status(find_run(str(cache))).state == "running"
        process.kill()
    status = read_status(find_run(str(cache)))
    assert status.state == "killed"
    assert status.pid == process.pid
    assert status.figures == FIGURES


def test_another_run_on_the_cache_does_not_keep_a_killed_one_alive(cache: Path) -> None:
    run = begin(cache)
    file = run.path / RUN_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pid": 1}))
    with driving(create_cache(cache), purpose="ingest"):
        assert read_status(run.path).state == "killed"


def test_of_several_runs_a_cache_tells_of_the_newest(cache: Path) -> None:
    begin(cache).note(FIGURES, state="ended")
    newest = begin(cache)
    assert find_run(str(cache)) == newest.path


def test_a_line_that_is_half_written_is_left_out(cache: Path) -> None:
    run = begin(cache)
    run.note(FIGURES, state="ended")
    with (run.path / LINES_FILE).open("a") as file:
        file.write('{"state": "runn')
    assert read_status(run.path).state == "ended"


@pytest.mark.parametrize("text", ["{}\n", "no JSON\n", '{"state": "merry"}\n'])
def test_a_line_that_no_run_wrote_is_refused(cache: Path, text: str) -> None:
    run = begin(cache)
    (run.path / LINES_FILE).write_text(text)
    with pytest.raises(CacheError, match="the last line is none of a run"):
        read_status(run.path)


def test_what_is_neither_run_nor_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run on a cache of this name"):
        find_run(str(tmp_path))


def test_the_runs_on_a_bucket_are_found_by_its_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    other, wanted = (
        RunFolder(url, purpose="ingest", unit="sources") for url in ("s3://b/other", "s3://b/c")
    )
    assert other.path != wanted.path
    assert find_run("s3://b/c") == wanted.path

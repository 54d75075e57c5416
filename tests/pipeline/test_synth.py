"""Synthesised folders: complete, deterministic, resumable, never mixed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from latents.errors import ConfigError
from pipeline.scenes.catalogue import SCENE_LABELS, make_scene, split_of
from pipeline.synth import synthesise

SMALL: dict[str, Any] = {"seconds": 0.6, "seed": 5, "fps": 10, "height": 32, "width": 32}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_synthesis_writes_each_clip_and_its_line(tmp_path: Path) -> None:
    synthesise(tmp_path, num_clips=9, **SMALL)
    lines = [json.loads(line) for line in (tmp_path / "clips.jsonl").read_text().splitlines()]

    assert [line["file"] for line in lines] == [
        f"clip_{i:05d}_{label}.mp4" for i, label in enumerate(SCENE_LABELS)
    ]
    assert all((tmp_path / line["file"]).is_file() for line in lines)
    scene = make_scene(5, 2, seconds=0.6)
    assert lines[2] == {
        "file": "clip_00002_pendulum.mp4",
        "label": "pendulum",
        "split": split_of(5, 2),
        "seconds": 0.6,
        "fps": 10,
        "seed": 5,
        "index": 2,
        "events": [{"time_seconds": e.time_seconds, "kind": e.kind} for e in scene.events],
    }


def test_a_written_clip_sounds_when_its_event_is_seen(tmp_path: Path) -> None:
    parameters = {**SMALL, "seconds": 2.0, "seed": 1}
    synthesise(tmp_path, num_clips=3, **parameters)
    line = json.loads((tmp_path / "clips.jsonl").read_text().splitlines()[2])
    with av.open(str(tmp_path / line["file"])) as container:
        assert container.streams.video[0].frames == 20
        assert container.streams.video[0].average_rate == 10
        pieces = [frame.to_ndarray() for frame in container.decode(audio=0)]
    waveform = np.concatenate(pieces, axis=1).astype(np.float64)
    rise = np.diff(waveform.mean(axis=0), n=2) ** 2

    for event in line["events"]:
        at = round(event["time_seconds"] * 44100)
        if 2000 < at < 2 * 44100 - 2000:
            near = rise[at - 2000 : at + 2000]
            onset = int(np.argmax(near > 0.3 * near.max())) - 2000
            assert abs(onset) / 44100 < 0.03


def test_equal_parameters_give_equal_folders(tmp_path: Path) -> None:
    synthesise(tmp_path / "a", num_clips=4, **SMALL)
    synthesise(tmp_path / "b", num_clips=4, **SMALL)

    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_an_interrupted_synthesis_goes_on_to_the_same_folder(tmp_path: Path) -> None:
    def stop_after_two(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesise(tmp_path / "a", num_clips=4, **SMALL, on_clip=stop_after_two)
    assert not (tmp_path / "a" / "clips.jsonl").exists()
    (tmp_path / "a" / "clip_00002_pendulum.mp4.part").write_bytes(b"half a file")
    kept = (tmp_path / "a" / "clip_00001_rain.mp4").stat().st_mtime_ns

    synthesise(tmp_path / "a", num_clips=4, **SMALL)
    synthesise(tmp_path / "b", num_clips=4, **SMALL)

    assert (tmp_path / "a" / "clip_00001_rain.mp4").stat().st_mtime_ns == kept
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_synthesis_can_be_extended_but_not_cut(tmp_path: Path) -> None:
    synthesise(tmp_path / "a", num_clips=2, **SMALL)
    synthesise(tmp_path / "a", num_clips=4, **SMALL)
    synthesise(tmp_path / "b", num_clips=4, **SMALL)

    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    with pytest.raises(ConfigError, match="only 3 clips are asked for"):
        synthesise(tmp_path / "a", num_clips=3, **SMALL)


def test_progress_is_reported_after_each_clip(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    synthesise(
        tmp_path, num_clips=3, **SMALL, on_clip=lambda done, total: seen.append((done, total))
    )

    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_folder_of_another_synthesis_is_refused(tmp_path: Path) -> None:
    synthesise(tmp_path, num_clips=1, **SMALL)
    before = contents(tmp_path)

    with pytest.raises(ConfigError, match="seed is 5, asked for is 6"):
        synthesise(tmp_path, num_clips=1, **{**SMALL, "seed": 6})

    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["holiday.mp4", "clips.jsonl", "clip_00000_rain.mp4"])
def test_a_folder_with_other_files_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"mine")

    with pytest.raises(ConfigError, match="choose an empty folder"):
        synthesise(tmp_path, num_clips=1, **SMALL)

    assert contents(tmp_path) == {name: b"mine"}


def test_a_parameters_file_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "synthesis.json").write_text("{")

    with pytest.raises(ConfigError, match="is not JSON"):
        synthesise(tmp_path, num_clips=1, **SMALL)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(ConfigError, match="cannot write the clips there"):
        synthesise(tmp_path / "file" / "out", num_clips=1, **SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_clips": 0}, "num_clips is 0"),
        ({"seconds": 0.0}, "seconds is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"fps": 0}, "fps is 0"),
        ({"height": 31}, "height is 31"),
        ({"sample_rate": 12345}, "sample_rate is 12345"),
    ],
)
def test_parameters_out_of_range_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        synthesise(tmp_path / "out", **{"num_clips": 1, **SMALL, **change})

    assert not (tmp_path / "out").exists()

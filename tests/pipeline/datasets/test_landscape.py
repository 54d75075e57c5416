"""Landscape in the layouts it may come in: splits by folder, classes as far as they are told."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from latents.errors import SourceError
from pipeline.source_entries import Annotation
from pipeline.sources import find_sources


def make_videos(root: Path, *names: str) -> str:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return f"landscape:{root}"


def said_of(argument: str) -> dict[str, Annotation | None]:
    """What is said of each video, by the file's name."""
    return {Path(source.uri).name: source.annotation for source in find_sources([argument])}


def test_the_splits_are_those_of_the_folders(tmp_path: Path) -> None:
    names = [f"train/v{number}.mp4" for number in range(9)] + ["test/w0.mp4", "test/w1.mp4"]
    found = said_of(make_videos(tmp_path, *names, "train/notes.txt"))
    assert Counter(said.split for said in found.values() if said) == {"train": 9, "test": 2}
    assert {said.label for said in found.values() if said} == {None}


def test_the_class_is_what_the_folder_or_the_name_says(
    tmp_path: Path,
) -> None:
    argument = make_videos(
        tmp_path / "all",
        *("train/thunder/a.mp4", "train/snow/b.mp4", "test/fire_crackling_141_2_1.mp4"),
        *("test/mp4/underwater_bubbling_119_7_21.mp4", "test/Wind Noise 7.mp4"),
        *("test/rainbow.mp4", "raining/c.mp4", "batch1/d.mp4"),
    )
    assert said_of(argument) == {
        "a.mp4": Annotation(label="thunder", split="train"),
        "b.mp4": Annotation(label="snow", split="train"),
        "fire_crackling_141_2_1.mp4": Annotation(label="fire_crackling", split="test"),
        "underwater_bubbling_119_7_21.mp4": Annotation(label="underwater_bubbling", split="test"),
        "Wind Noise 7.mp4": Annotation(label="wind_noise", split="test"),
        "rainbow.mp4": Annotation(split="test"),
        "c.mp4": Annotation(label="raining"),
        "d.mp4": None,
    }


def test_a_table_of_classes_counts_more_than_folders(tmp_path: Path) -> None:
    argument = make_videos(tmp_path, "train/raining/a.mp4", "train/raining/b.mp4", "train/c.mp4")
    classes = {"a": {"class_id": 3, "class_name": "thunder"}, "c": "explosion"}
    (tmp_path / "vid2class.json").write_text(json.dumps(classes))
    found = said_of(argument)
    assert [said.label for said in found.values() if said] == ["explosion", "thunder", "raining"]


def test_the_folder_of_one_split_may_be_named_alone(tmp_path: Path) -> None:
    argument = make_videos(tmp_path / "train", "a.mp4")
    assert said_of(argument) == {"a.mp4": Annotation(split="train")}


@pytest.mark.parametrize("table", ["[]", '{"a": 3}', "{", '{"a": {"class_id": 1}}'])
def test_a_table_of_something_else_is_refused(tmp_path: Path, table: str) -> None:
    argument = make_videos(tmp_path, "train/a.mp4")
    (tmp_path / "vid2class.json").write_text(table)
    with pytest.raises(SourceError, match=r"vid2class\.json cannot be read"):
        find_sources([argument])


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is no folder"):
        find_sources([f"landscape:{tmp_path}/gone"])

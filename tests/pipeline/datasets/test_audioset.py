"""AudioSet: its lists of segments, and the files that people fetched of them."""

from __future__ import annotations

import logging
from decimal import Decimal
from pathlib import Path

import pytest

from latents.errors import SourceError
from pipeline.datasets.audioset import read_segments, split_of_list
from pipeline.source_entries import Annotation
from pipeline.sources import find_sources
from pipeline.spans import Span

HEADER = (
    "# Segments csv created Sun Mar  5 10:54:31 2017\n"
    "# num_ytids=3, num_segs=3, num_unique_labels=3, num_positive_labels=4\n"
    "# YTID, start_seconds, end_seconds, positive_labels\n"
)
ROWS = (
    '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n'
    '-0RWZT-miFs, 420.000, 430.000, "/m/03v3yw"\n'
    '_x_y_30, 0.000, 10.000, "/m/0k4j"\n'
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    (tmp_path / "balanced_train_segments.csv").write_text(HEADER + ROWS)
    return tmp_path


def argument(folder: Path) -> str:
    return f"audioset:{folder}/balanced_train_segments.csv:{folder}/videos"


def test_the_published_list_is_read(folder: Path) -> None:
    first, _, last = read_segments(str(folder / "balanced_train_segments.csv"))
    assert (first.video, first.labels) == ("--PJHxphWEs", ("/m/09x0r", "/t/dd00088"))
    assert first.span == Span(start_seconds=Decimal(30), stop_seconds=Decimal(40))
    assert last.video == "_x_y_30"


def test_a_whole_video_gives_the_segment_as_a_stretch(folder: Path) -> None:
    (folder / "videos/--PJHxphWEs.mp4").write_bytes(b"x")
    (one,) = find_sources([argument(folder)])
    assert one.uri == f"{folder}/videos/--PJHxphWEs.mp4#t=30,40"
    assert one.annotation == Annotation(label="/m/09x0r,/t/dd00088", split="train")


@pytest.mark.parametrize(
    "name",
    [
        *("-0RWZT-miFs_420", "-0RWZT-miFs_420_430", "-0RWZT-miFs_420.000_430.000"),
        *("-0RWZT-miFs_420000", "-0RWZT-miFs_420000_430000", "-0RWZT-miFs_000420"),
        "-0RWZT-miFs_420.0",
    ],
)
def test_a_file_of_the_segment_alone_is_the_source(folder: Path, name: str) -> None:
    (folder / f"videos/{name}.mkv").write_bytes(b"x")
    (folder / "videos/-0RWZT-miFs.mp4").write_bytes(b"x")
    (one,) = find_sources([argument(folder)])
    assert (Path(one.uri).stem, one.span) == (name, None)
    assert one.annotation == Annotation(label="/m/03v3yw", split="train")


def test_segments_without_a_file_are_counted(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "videos/_x_y_30.mp4").write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        (one,) = find_sources([argument(folder)])
    assert one.span == Span(start_seconds=Decimal(0), stop_seconds=Decimal(10))
    assert "2 of 3 segments have no file" in caplog.text


def test_files_that_no_segment_names_are_refused_as_a_whole(folder: Path) -> None:
    (folder / "videos/other.mp4").write_bytes(b"x")
    with pytest.raises(SourceError, match="none of the 3 segments"):
        find_sources([argument(folder)])


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("balanced_train_segments.csv", "train"),
        ("unbalanced_train_segments.csv", "train"),
        ("eval_segments.csv", "test"),
        ("mine.csv", None),
    ],
)
def test_the_split_is_by_the_name_of_the_list(name: str, split: str | None) -> None:
    assert split_of_list(f"/eval/train/{name}") == split


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("id, 1.0, 2.0\n", "row 1: found 3 columns; wanted 4: YTID, start_seconds"),
        ("id, x, 2.0, /m/1\n", "row 1, column 'start_seconds': found 'x'; wanted seconds"),
        ("id, 3, 2, /m/1\n", "row 1, column 'end_seconds': the span is 3"),
        ("a/b, 1, 2, /m/1\n", "row 1, column 'YTID': found 'a/b'"),
        ('id, 1, 2, "/m/1\n', "cannot be read as a list of segments"),
    ],
)
def test_a_row_that_is_no_segment_is_named(folder: Path, row: str, problem: str) -> None:
    (folder / "videos/id.mp4").write_bytes(b"x")
    (folder / "balanced_train_segments.csv").write_text(HEADER + row)
    with pytest.raises(SourceError, match=problem):
        find_sources([argument(folder)])


@pytest.mark.parametrize("wrong", ["audioset:videos", "audioset:a.csv:", "audioset:"])
def test_an_argument_without_list_or_folder_is_refused(wrong: str) -> None:
    with pytest.raises(SourceError, match="wanted audioset:CSV:FOLDER"):
        find_sources([wrong])

"""Lists of videos: what their columns mean, and what an error in them says."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latents.errors import SourceError
from pipeline.source_entries import Annotation, NamedFile
from pipeline.source_lists import read_list
from pipeline.spans import Span


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "one.mp4").write_bytes(b"x")
    (tmp_path / "two, with a comma.mp4").write_bytes(b"x")
    return tmp_path


def span(start: str, stop: str) -> Span:
    return Span(start_seconds=Decimal(start), stop_seconds=Decimal(stop))


def read(path: Path, content: str) -> list[NamedFile]:
    path.write_text(content)
    return list(read_list(str(path)))


def read_parquet(path: Path, **columns: list[Any]) -> list[NamedFile]:
    pq.write_table(pa.table(columns), path)
    return list(read_list(str(path)))


def test_a_csv_names_files_stretches_labels_captions_and_splits(folder: Path) -> None:
    one, two = read(
        folder / "list.csv",
        "path,Start,end,class,text,split,width\n"
        'one.mp4,420.000,430,dog,"A dog, barking",train,640\n'
        '"two, with a comma.mp4",,,,,,\n',
    )
    assert one.place == str(folder / "one.mp4")
    assert one.span == span("420", "430")
    assert one.annotation == Annotation(label="dog", caption="A dog, barking", split="train")
    assert two == NamedFile(place=str(folder / "two, with a comma.mp4"))


def test_tabs_separate_the_cells_of_a_tsv(folder: Path) -> None:
    (one,) = read(folder / "list.tsv", "\ufefffile\tlabel\none.mp4\train, light\n")
    assert one.annotation == Annotation(label="rain, light")


def test_parquet_and_jsonl_say_the_same_as_csv(folder: Path) -> None:
    columns = {"file": ["one.mp4"], "start": [0.1], "stop": [2.5], "label": ["dog"]}
    line = json.dumps({name: cells[0] for name, cells in columns.items()})
    wanted = [
        NamedFile(
            place=str(folder / "one.mp4"),
            span=span("0.1", "2.5"),
            annotation=Annotation(label="dog"),
        )
    ]
    assert read_parquet(folder / "list.parquet", **columns) == wanted
    assert read(folder / "list.jsonl", line) == wanted
    assert read(folder / "list.csv", "file,start,stop,label\none.mp4,0.1,2.5,dog\n") == wanted


def test_a_span_may_be_one_cell_or_stand_behind_the_name(folder: Path) -> None:
    wanted = span("420", "430.5")
    (pair,) = read_parquet(folder / "list.parquet", file=["one.mp4"], span=[[420.0, 430.5]])
    (cell,) = read(folder / "list.csv", 'file,span\none.mp4,"420,430.5"\n')
    (name,) = read(folder / "list.txt", "one.mp4#t=420,430.5\n")
    assert [pair.span, cell.span, name.span] == [wanted] * 3
    assert name.place == str(folder / "one.mp4")


def test_urls_are_left_as_they_are_and_not_asked_for(folder: Path) -> None:
    (one,) = read(folder / "list.csv", "url\nhttps://nowhere.invalid/a.mp4\n")
    assert one.place == "https://nowhere.invalid/a.mp4"


def test_a_parquet_of_more_rows_than_are_read_at_once_is_read_whole(folder: Path) -> None:
    found = read_parquet(folder / "list.parquet", file=["one.mp4"] * 5000)
    assert len(found) == 5000


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("name\nx\n", r"row 1 \(line 2\): found the columns 'name'; wanted one named file or"),
        ("file,start,stop\none.mp4,abc,2\n", "row 1 .*'start': found 'abc'; wanted seconds"),
        ("file,start,stop\none.mp4,0,1\none.mp4,3,2\n", r"row 2 \(line 3\), column 'stop': the"),
        ("file,start,stop\none.mp4,3,\n", "the stop is missing"),
        ("file,span\none.mp4,7\n", "column 'span': found '7'; wanted two numbers"),
        ("file\ngone.mp4\n", r"row 1 \(line 2\): .*gone.mp4 does not exist"),
        ("file\n\"\"\n", "column 'file': found ''; wanted a path or a URL"),
        ("file,label\none.mp4\n", "row 1 .*: found 1 cells; wanted 2"),
        ("path,video\none.mp4,one.mp4\n", "'path' and 'video' both mean the file"),
        ("file\nfoo://bucket/one.mp4\n", "column 'file': foo:// cannot be read here"),
        ("file\n", "lists no paths"),
        ('file\n"one.mp4', "cannot be read as a list of paths"),
    ],
)  # fmt: skip
def test_an_error_names_file_row_and_column(folder: Path, content: str, problem: str) -> None:
    with pytest.raises(SourceError, match=problem) as caught:
        read(folder / "list.csv", content)
    assert str(folder / "list.csv") in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"file": [1]}, "row 1, column 'file': found 1; wanted a path or a URL"),
        ({"file": ["one.mp4"], "label": [7]}, "row 1: label is 7; wanted a text"),
        ({"file": ["one.mp4"], "start": [float("nan")], "stop": [1.0]}, "'start': found nan"),
        ({"file": ["one.mp4"], "start": [True], "stop": [True]}, "'start': found True"),
        ({"file": ["one.mp4", None]}, "row 2, column 'file': found None"),
    ],
)
def test_an_error_in_a_parquet_names_row_and_column(
    folder: Path, columns: dict[str, list[Any]], problem: str
) -> None:
    with pytest.raises(SourceError, match=problem):
        read_parquet(folder / "list.parquet", **columns)


def test_what_is_no_parquet_is_refused(folder: Path) -> None:
    with pytest.raises(SourceError, match=r"list\.parquet cannot be read as a list of paths"):
        read(folder / "list.parquet", "file\none.mp4\n")

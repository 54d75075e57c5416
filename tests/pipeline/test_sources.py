"""Folders, files, lists and scenes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from latents.errors import SourceError
from pipeline.sources import (
    HashedSource,
    KnownFile,
    UnreadableSource,
    find_sources,
    hash_sources,
)


def test_a_folder_is_searched_through_for_videos_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/two.MP4", "one.webm", "notes.txt", "clips.jsonl"):
        (tmp_path / name).write_bytes(b"x")
    found = find_sources([str(tmp_path)])
    assert [source.uri for source in found] == [
        str(tmp_path / "b/two.MP4"),
        str(tmp_path / "one.webm"),
    ]


def test_a_list_names_paths_relative_to_itself(tmp_path: Path) -> None:
    (tmp_path / "one.mp4").write_bytes(b"x")
    (tmp_path / "list.txt").write_text("# a comment\none.mp4\n\n")
    assert [s.uri for s in find_sources([str(tmp_path / "list.txt")])] == [
        str(tmp_path / "one.mp4")
    ]


def test_a_jsonl_names_its_files(tmp_path: Path) -> None:
    (tmp_path / "one.mp4").write_bytes(b"x")
    (tmp_path / "clips.jsonl").write_text('{"file": "one.mp4", "label": "rain"}\n')
    found = find_sources([str(tmp_path / "clips.jsonl")])
    assert [source.uri for source in found] == [str(tmp_path / "one.mp4")]


def test_scenes_are_sources_of_four_seconds_unless_said() -> None:
    assert [s.uri for s in find_sources(["scenes:3:2"])] == ["scenes:3:0:4", "scenes:3:1:4"]
    assert [s.uri for s in find_sources(["scenes:3:1:10"])] == ["scenes:3:0:10"]


def test_a_source_named_twice_counts_once(tmp_path: Path) -> None:
    (tmp_path / "one.mp4").write_bytes(b"x")
    assert len(find_sources([str(tmp_path), str(tmp_path / "one.mp4")])) == 1


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("missing", "does not exist"),
        ("empty", "holds no video"),
        ("scenes:1", "wanted scenes:SEED:NUM"),
        ("scenes:1:0", "wanted scenes:SEED:NUM"),
        ("scenes:x:1", "wanted scenes:SEED:NUM"),
        ("blank.txt", "lists no paths"),
        ("wrong.txt", "gone.mp4 does not exist"),
        ("wrong.jsonl", 'wanted a JSON object with a "file"'),
    ],
)
def test_wrong_sources_are_named(argument: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.txt").write_text("\n# nothing\n")
    (tmp_path / "wrong.txt").write_text("gone.mp4\n")
    (tmp_path / "wrong.jsonl").write_text('{"path": "x"}\n')
    name = argument if argument.startswith("scenes") else str(tmp_path / argument)
    with pytest.raises(SourceError, match=message) as caught:
        find_sources([name])
    assert caught.value.exit_code == 2


def test_the_digest_is_sha256_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "one.mp4").write_bytes(b"bytes")
    (one,) = hash_sources(find_sources([str(tmp_path)]), {}, num_threads=1)
    assert isinstance(one, HashedSource)
    assert one.digest == hashlib.sha256(b"bytes").hexdigest()


def test_a_file_is_read_again_only_when_its_size_or_time_changed(tmp_path: Path) -> None:
    path = tmp_path / "one.mp4"
    path.write_bytes(b"bytes")
    stat = path.stat()
    known = {str(path): KnownFile(size=5, mtime_ns=stat.st_mtime_ns, digest="on record")}
    sources = find_sources([str(path)])
    (same,) = hash_sources(sources, known, num_threads=1)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    (touched,) = hash_sources(sources, known, num_threads=1)
    assert isinstance(same, HashedSource)
    assert isinstance(touched, HashedSource)
    assert same.digest == "on record"
    assert touched.digest == hashlib.sha256(b"bytes").hexdigest()


def test_a_file_that_went_away_is_reported_and_not_raised(tmp_path: Path) -> None:
    path = tmp_path / "one.mp4"
    path.write_bytes(b"bytes")
    sources = find_sources([str(path)])
    path.unlink()
    (lost,) = hash_sources(sources, {}, num_threads=1)
    assert isinstance(lost, UnreadableSource)
    assert "cannot be read" in lost.reason

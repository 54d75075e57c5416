"""Folders, files, lists and scenes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from latents.errors import SourceError
from pipeline.scene_clips import SceneRef
from pipeline.source_hashing import hash_sources
from pipeline.sources import (
    Annotation,
    HashedSource,
    KnownFile,
    UnreadableSource,
    find_sources,
    part_of,
    source_of_uri,
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


def test_a_jsonl_says_what_its_files_are(tmp_path: Path) -> None:
    for name in ("one.mp4", "two.mp4"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "clips.jsonl").write_text(
        '{"file": "one.mp4", "label": "rain", "caption": "It rains.", "split": "test"}\n'
        '{"file": "two.mp4", "seconds": 4}\n'
    )
    one, two = find_sources([str(tmp_path / "clips.jsonl")])
    assert one.annotation == Annotation(label="rain", caption="It rains.", split="test")
    assert two.annotation is None


def test_what_a_list_says_of_a_file_is_heard_though_its_folder_is_named_too(
    tmp_path: Path,
) -> None:
    (tmp_path / "one.mp4").write_bytes(b"x")
    listed = tmp_path / "clips.jsonl"
    listed.write_text('{"file": "one.mp4", "label": "rain"}\n')
    for order in ([str(tmp_path), str(listed)], [str(listed), str(tmp_path)]):
        (one,) = find_sources(order)
        assert one.annotation == Annotation(label="rain")


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
        ("label.jsonl", "label is 7; wanted a text"),
    ],
)
def test_wrong_sources_are_named(argument: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.txt").write_text("\n# nothing\n")
    (tmp_path / "wrong.txt").write_text("gone.mp4\n")
    (tmp_path / "wrong.jsonl").write_text('{"name": "x"}\n')
    (tmp_path / "label.jsonl").write_text('{"file": "blank.txt", "label": 7}\n')
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


def test_every_file_is_read_again_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "one.mp4"
    path.write_bytes(b"bytes")
    known = {
        str(path): KnownFile(size=5, mtime_ns=path.stat().st_mtime_ns, digest="of other bytes")
    }
    (found,) = hash_sources(find_sources([str(path)]), known, num_threads=1, rehash=True)
    assert isinstance(found, HashedSource)
    assert found.digest == hashlib.sha256(b"bytes").hexdigest()


def test_parts_are_disjoint_and_whole_and_stay_when_sources_are_added() -> None:
    few, more = find_sources(["scenes:0:20"]), find_sources(["scenes:0:40"])
    parts = [part_of(few, part=number, num_parts=3) for number in (1, 2, 3)]
    assert sorted(s.uri for part in parts for s in part) == sorted(s.uri for s in few)
    assert all(
        set(part) <= set(part_of(more, part=n, num_parts=3)) for n, part in enumerate(parts, 1)
    )


def test_a_recorded_name_is_the_source_again(tmp_path: Path) -> None:
    assert source_of_uri("scenes:3:1:10").scene == SceneRef(seed=3, index=1, seconds=10)
    assert source_of_uri("/videos/one.mp4").path == Path("/videos/one.mp4")
    with pytest.raises(SourceError, match="wanted scenes:SEED:INDEX:SECONDS"):
        source_of_uri("scenes:3:x:10")


def test_a_file_that_went_away_is_reported_and_not_raised(tmp_path: Path) -> None:
    path = tmp_path / "one.mp4"
    path.write_bytes(b"bytes")
    sources = find_sources([str(path)])
    path.unlink()
    (lost,) = hash_sources(sources, {}, num_threads=1)
    assert isinstance(lost, UnreadableSource)
    assert "cannot be read" in lost.reason

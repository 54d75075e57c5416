"""Lists, names and URIs that somebody made to do harm: sources, or an error that says why not."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from latents.errors import SourceError
from latents.recipe import sha256_hex
from pipeline.source_hashing import hash_sources
from pipeline.sources import (
    HashedSource,
    Source,
    UnreadableSource,
    find_sources,
    part_of,
    source_of_uri,
)
from tests.mutations import damaged, hostile_json

ENTRIES = [
    {"file": "one.mp4", "label": "dog", "caption": "A dog barks.", "split": "train"},
    {"file": "two.mp4", "label": None},
]
LIST = "".join(json.dumps(entry) + "\n" for entry in ENTRIES).encode()
URIS = (
    *("scenes:", "scenes:::", "scenes:1", "scenes:1:2", "scenes:1:2:3:4", "scenes:a:b:c"),
    *("scenes:-1:0:4", "scenes:0:-1:4", "scenes:0:0:0", "scenes:0:0:-4", "scenes:0:0:4.0"),
    *("scenes:0:0:3601", "scenes:0:10000000:4", f"scenes:{2**63}:0:4", "scenes:0:0:" + "9" * 5000),
    *("scenes: 0:0:4", "scenes:0_0:0:4", "scenes:+0:0:4", "scenes:00:0:4", "scenes:٣:0:4"),
    *("scenes:0:0:4\n", "scenes:0:0:4\0", "scenes:0:0:" + "9" * 400),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for entry in ENTRIES:
        (tmp_path / str(entry["file"])).write_bytes(b"x")
    return tmp_path


def hashed(sources: Sequence[Source]) -> list[HashedSource | UnreadableSource]:
    found = hash_sources(sources, {}, num_threads=1)
    for one in found:
        assert one.source.uri.encode().decode() == one.source.uri
    part_of(sources, part=1, num_parts=2)
    return found


def reason_of(path: Path) -> str:
    """Why the file at a path is not read."""
    (found,) = hashed([Source(uri="uri", path=path, scene=None)])
    assert isinstance(found, UnreadableSource)
    return found.reason


@pytest.mark.parametrize("suffix", [".jsonl", ".txt"])
def test_a_hostile_list_gives_sources_or_is_refused(folder: Path, suffix: str) -> None:
    path = folder / f"list{suffix}"
    whole = LIST if suffix == ".jsonl" else b"one.mp4\ntwo.mp4\n"
    num_refused = 0
    for seed in range(700):
        random = Random(f"{suffix} {seed}")
        if seed % 2 and suffix == ".jsonl":
            lines = [json.dumps(ENTRIES[0]).encode(), hostile_json(ENTRIES[1], random)]
            path.write_bytes(b"\n".join(lines))
        else:
            path.write_bytes(damaged(whole, random, [LIST, b"\xff\xfe\0\0/\n../\n~"]))
        try:
            hashed(find_sources([str(path)]))
        except SourceError:
            num_refused += 1
    assert num_refused > 200


@pytest.mark.parametrize(
    "name",
    ["a\0b.mp4", "a" * 300 + ".mp4", "a/" * 3000, "a" * 10_000_000, "\ud800.mp4", "one.mp4/x"],
)
def test_a_list_with_a_name_that_no_file_can_have_is_refused(folder: Path, name: str) -> None:
    (folder / "list.jsonl").write_text(json.dumps({"file": name}))

    with pytest.raises(SourceError, match="list") as caught:
        find_sources([str(folder / "list.jsonl")])
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("entry", ["[" * 100_000, '{"file":' * 50_000, '{"file": {}}', "1", '"a"'])
def test_a_line_that_is_no_entry_is_named(folder: Path, entry: str) -> None:
    (folder / "list.jsonl").write_text(f"{json.dumps(ENTRIES[0])}\n{entry}\n")

    with pytest.raises(SourceError, match='entry 2: wanted a JSON object with a "file"'):
        find_sources([str(folder / "list.jsonl")])


@pytest.mark.parametrize("value", ["\ud800", 5, ["a"], {}, True])
@pytest.mark.parametrize("key", ["label", "caption", "split"])
def test_what_a_list_says_of_a_file_is_text(folder: Path, key: str, value: object) -> None:
    (folder / "list.jsonl").write_text(json.dumps({"file": "one.mp4", key: value}))

    with pytest.raises(SourceError, match=f"entry 1: {key} is .*; wanted a text"):
        find_sources([str(folder / "list.jsonl")])


@pytest.mark.parametrize("uri", URIS)
def test_a_recorded_scene_that_cannot_be_is_refused(uri: str) -> None:
    with pytest.raises(SourceError, match="is no scene") as caught:
        source_of_uri(uri)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("uri", ["scenes:0:0:4", f"scenes:{2**63 - 1}:9999999:3600"])
def test_a_scene_that_can_be_is_one(uri: str) -> None:
    (found,) = hashed([source_of_uri(uri)])

    assert isinstance(found, HashedSource)
    assert found.source.uri == uri


@pytest.mark.parametrize(
    "argument",
    ["scenes:0:1:3601", f"scenes:{2**63}:1", "scenes:0:10000001", "scenes:0:" + "9" * 5000],
)
def test_scenes_beyond_measure_are_refused_at_once(argument: str) -> None:
    with pytest.raises(SourceError, match="wanted scenes:SEED:NUM"):
        find_sources([argument])


@pytest.mark.parametrize(
    "uri", ["", "a\0b", "/a\0b", "a" * 5000, "/" + "a/" * 5000, ".", "/dev/null"]
)
def test_a_recorded_name_that_is_no_file_cannot_be_read(uri: str) -> None:
    (found,) = hashed([source_of_uri(uri)])

    assert isinstance(found, UnreadableSource)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/stdin", "/"])
def test_what_has_no_end_is_not_begun(path: str) -> None:
    assert "it is no file but a folder, device or pipe" in reason_of(Path(path))


def test_a_pipe_that_nobody_writes_to_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")

    assert "device or pipe" in reason_of(tmp_path / "pipe.mp4")


def test_a_name_that_is_not_utf_8_is_told_and_the_rest_goes_on(folder: Path) -> None:
    with open(os.fsencode(folder) + b"/caf\xe9.mp4", "wb"):
        pass

    broken, *others = hashed(find_sources([str(folder)]))

    assert isinstance(broken, UnreadableSource)
    assert broken.source.uri == f"{folder}/caf\\xe9.mp4"
    assert "not UTF-8" in broken.reason
    assert [one.digest for one in others if isinstance(one, HashedSource)] == [sha256_hex(b"x")] * 2


def test_a_time_that_rows_cannot_hold_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "one.mp4"
    path.write_bytes(b"x")
    late = os.stat_result((*path.stat()[:8], 0, 0), {"st_mtime_ns": 2**63})
    monkeypatch.setattr(Path, "stat", lambda self: late)

    assert "2262" in reason_of(path)

"""``mmldm cache``: what people and machines read of a cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mmldm
from latents.cache.layout import CacheLayout
from latents.cache.log import CommitLog
from latents.cache.reader import open_cache
from latents.cache.refs import Ref, write_ref
from latents.testing import fake_clips, fake_recipes, make_cache, quarantine_table

RECIPES = {field: recipe.digest for field, recipe in fake_recipes().items()}


def run(*arguments: str | Path) -> int:
    return mmldm.main(["cache", *map(str, arguments)])


@pytest.fixture
def layout(tmp_path: Path) -> CacheLayout:
    """Three clips, and one source that was given up."""
    layout = make_cache(tmp_path / "cache", num_clips=3)
    CommitLog(layout).append({"quarantine": quarantine_table("a" * 64)}, {})
    write_ref(layout, "current", Ref(commit=CommitLog(layout).head(), recipes=RECIPES))
    return layout


def out(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def as_json(capsys: pytest.CaptureFixture[str]) -> Any:
    text = out(capsys)
    assert text.count("\n") == 1
    return json.loads(text)


def damage_one_slice(layout: CacheLayout) -> dict[str, object]:
    row = open_cache(layout.root, level="kl").clips[0].rows["kl.audio"]
    path = layout.shards / row.shard
    content = bytearray(path.read_bytes())
    content[row.offset + 40] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    return {
        "path": f"shards/{row.shard}",
        "clip": row.clip,
        "field": "kl.audio",
        "offset": row.offset + 32,
        "problem": f"kl.audio of clip {row.clip}, slice 1, fails its CRC-32C",
    }


def test_inspect_gives_counts_and_digests_as_json(
    layout: CacheLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("inspect", "--cache", layout.root, "--json") == 0

    found = as_json(capsys)
    assert found.keys() == {"commit", "ref", "levels", "fields", "num_quarantined"}
    assert (found["commit"], found["ref"], found["num_quarantined"]) == (2, "current", 1)
    assert found["levels"].keys() == {"kl"}
    kl = found["levels"]["kl"]
    assert kl.keys() == {"num_sources", "num_clips", "num_windows", "content_digest"}
    assert (kl["num_sources"], kl["num_clips"], kl["num_windows"]) == (3, 3, 15)
    assert len(kl["content_digest"]) == 64
    assert found["fields"].keys() == {"kl.video", "kl.audio"}
    video = found["fields"]["kl.video"]
    assert video.keys() == {"recipe", "num_clips", "num_bytes", "mean", "std"}
    assert (video["recipe"], video["num_clips"]) == (RECIPES["kl.video"], 3)
    assert len(video["mean"]) == len(video["std"]) == 2


def test_inspect_tells_people_the_same(
    layout: CacheLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("inspect", "--cache", layout.root) == 0

    text = out(capsys)
    assert "commit 2, ref current" in text
    assert "3 sources, 3 clips, 15 windows" in text
    assert f"recipe {RECIPES['kl.video'][:16]}" in text


def test_ls_gives_one_record_a_clip(
    layout: CacheLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("ls", "--cache", layout.root, "--json") == 0

    records = as_json(capsys)
    assert [record["clip"] for record in records] == sorted(str(c.key) for c in fake_clips(3))
    assert records[0]["num_windows"] == 5
    assert records[0]["fields"] == {"kl.video": [8, 4, 2, 2], "kl.audio": [5, 4, 2, 2]}


def test_ls_tells_people_one_line_a_clip(
    layout: CacheLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("ls", "--cache", layout.root) == 0

    lines = out(capsys).splitlines()
    assert len(lines) == 3
    assert lines[0].endswith("5 windows  kl.video 8x4x2x2  kl.audio 5x4x2x2")


def test_quarantine_ls_says_who_where_and_why(
    layout: CacheLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("quarantine", "ls", "--cache", layout.root, "--json") == 0

    assert as_json(capsys) == [
        {
            "source": "file:///bad.mp4",
            "segment": None,
            "stage": "decode",
            "error_class": "DecodeError",
            "message": "no video stream",
        }
    ]
    assert run("quarantine", "ls", "--cache", layout.root) == 0
    assert out(capsys).splitlines() == [
        "file:///bad.mp4  [decode] DecodeError: no video stream",
        "1 quarantined",
    ]


def test_verify_of_an_intact_cache_exits_0(
    layout: CacheLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("verify", "--cache", layout.root, "--json") == 0
    assert as_json(capsys) == {"damaged": []}
    assert run("verify", "--cache", layout.root) == 0
    assert out(capsys) == f"{layout.root} is intact\n"


def test_verify_of_a_damaged_cache_names_the_damage_and_exits_1(
    layout: CacheLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    damage = damage_one_slice(layout)

    assert run("verify", "--cache", layout.root, "--json") == 1
    assert as_json(capsys) == {"damaged": [damage]}
    assert run("verify", "--cache", layout.root) == 1
    assert out(capsys).splitlines() == [
        f"{damage['path']} at byte {damage['offset']} (kl.audio of clip {damage['clip']}): "
        f"{damage['problem']}",
        "1 damaged",
    ]


def test_verify_tells_of_a_damaged_format_file_like_of_any_other(
    layout: CacheLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    layout.format_file.write_bytes(b"{}")

    assert run("verify", "--cache", layout.root, "--json") == 1
    assert [damage["path"] for damage in as_json(capsys)["damaged"]] == ["cache.json"]


@pytest.mark.parametrize("verb", [["ls"], ["inspect"], ["verify"], ["quarantine", "ls"]])
def test_a_folder_that_is_no_cache_is_told_in_one_line_by_every_verb(
    verb: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*verb, "--cache", tmp_path) == 1

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"mmldm: {tmp_path} is not a cache (it has no cache.json)")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("verb", "folder"),
    [
        (["ls"], "commits"),
        (["ls"], "rows"),
        (["ls"], "refs"),
        (["inspect"], "commits"),
        (["inspect"], "rows"),
        (["inspect"], "refs"),
        (["quarantine", "ls"], "commits"),
        (["quarantine", "ls"], "rows"),
    ],
)
def test_damage_is_told_in_one_line_by_every_verb(
    verb: list[str], folder: str, layout: CacheLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (layout.root / folder).iterdir():
        path.write_bytes(b"[1.5]")

    assert run(*verb, "--cache", layout.root) == 1

    captured = capsys.readouterr()
    assert captured.err.startswith(f"mmldm: {folder}/")
    assert captured.err.count("\n") == 1

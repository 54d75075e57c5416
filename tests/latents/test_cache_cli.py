"""``mmldm cache``: what people and machines read of a cache."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import latents.cli
import mmldm
from latents.cache.drivers import driving
from latents.cache.layout import CacheLayout, find_cache
from latents.cache.log import CommitLog
from latents.cache.reader import open_cache
from latents.cache.refs import Ref, write_ref
from latents.testing import (
    commit_clips,
    fake_clips,
    fake_recipes,
    make_cache,
    quarantine_table,
)

RECIPES = {field: recipe.digest for field, recipe in fake_recipes().items()}


def run(*arguments: str | Path) -> int:
    return mmldm.main(["cache", *map(str, arguments)])


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> CacheLayout:
    """Three clips, and one source that was given up."""
    layout = make_cache(tmp_path_factory.mktemp("template") / "cache", num_clips=3)
    CommitLog(layout).append({"quarantine": quarantine_table("a" * 64)}, {})
    write_ref(layout, "current", Ref(commit=CommitLog(layout).head(), recipes=RECIPES))
    return layout


@pytest.fixture
def layout(template: CacheLayout, tmp_path: Path) -> CacheLayout:
    shutil.copytree(template.url, tmp_path / "cache")
    return find_cache(tmp_path / "cache")


def out(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def as_json(capsys: pytest.CaptureFixture[str]) -> Any:
    text = out(capsys)
    assert text.count("\n") == 1
    return json.loads(text)


def damage_one_slice(layout: CacheLayout) -> dict[str, object]:
    row = open_cache(layout.url, level="kl").clips[0].rows["kl.audio"]
    path = Path(layout.url, layout.shard(row.shard))
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
    assert run("inspect", "--cache", layout.url, "--json") == 0

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
    assert video.keys() == {"recipe", "num_clips", "num_bytes", "mean", "std", "histograms"}
    assert (video["recipe"], video["num_clips"]) == (RECIPES["kl.video"], 3)
    assert len(video["mean"]) == len(video["std"]) == 2


def test_inspect_tells_people_the_same(
    layout: CacheLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("inspect", "--cache", layout.url) == 0

    text = out(capsys)
    assert "commit 2, ref current" in text
    assert "3 sources, 3 clips, 15 windows" in text
    assert f"recipe {RECIPES['kl.video'][:16]}" in text
    assert "clip length (frames): min 8, median 8, max 8" in text


def test_inspect_refuses_a_ref_that_is_not_there(
    layout: CacheLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("inspect", "--cache", layout.url, "--ref", "mine") == 1
    assert "has no ref 'mine'; it has current" in capsys.readouterr().err


def test_ls_gives_one_record_a_clip(
    layout: CacheLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("ls", "--cache", layout.url, "--json") == 0

    records = as_json(capsys)
    assert [record["clip"] for record in records] == sorted(str(c.key) for c in fake_clips(3))
    assert records[0]["num_windows"] == 5
    assert records[0]["fields"] == {"kl.video": [8, 4, 2, 2], "kl.audio": [5, 4, 2, 2]}


def test_ls_tells_people_one_line_a_clip(
    layout: CacheLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("ls", "--cache", layout.url) == 0

    lines = out(capsys).splitlines()
    assert len(lines) == 3
    assert lines[0].endswith("5 windows  kl.video 8x4x2x2  kl.audio 5x4x2x2")


def test_quarantine_ls_says_who_where_and_why(
    layout: CacheLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("quarantine", "ls", "--cache", layout.url, "--json") == 0

    assert as_json(capsys) == [
        {
            "event": "rejected",
            "source": "file:///bad.mp4",
            "source_digest": "a" * 64,
            "segment": None,
            "stage": "decode",
            "error_class": "DecodeError",
            "message": "no video stream",
            "attempts": 1,
        }
    ]
    assert run("quarantine", "ls", "--cache", layout.url) == 0
    assert out(capsys).splitlines() == [
        "file:///bad.mp4  [decode] DecodeError: no video stream",
        "1 quarantined",
    ]


def test_verify_of_an_intact_cache_exits_0(
    layout: CacheLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("verify", "--cache", layout.url, "--json") == 0
    assert as_json(capsys) == {"damaged": []}
    assert run("verify", "--cache", layout.url) == 0
    assert out(capsys) == f"{layout.url} is intact\n"


def test_verify_of_a_damaged_cache_names_the_damage_and_exits_1(
    layout: CacheLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    damage = damage_one_slice(layout)

    assert run("verify", "--cache", layout.url, "--json") == 1
    assert as_json(capsys) == {"damaged": [damage]}
    assert run("verify", "--cache", layout.url) == 1
    assert out(capsys).splitlines() == [
        f"{damage['path']} at byte {damage['offset']} (kl.audio of clip {damage['clip']}): "
        f"{damage['problem']}",
        "1 damaged",
    ]


def test_verify_tells_of_a_damaged_format_file_like_of_any_other(
    layout: CacheLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(layout.url, "cache.json").write_bytes(b"{}")

    assert run("verify", "--cache", layout.url, "--json") == 1
    assert [damage["path"] for damage in as_json(capsys)["damaged"]] == ["cache.json"]


VERBS = [
    *(["ls"], ["inspect"], ["verify"], ["log"], ["gc"], ["drop", "a"], ["drop", "a", "--undo"]),
    *(["refs", "ls"], ["refs", "set", "a"], ["refs", "rm", "a"]),
    *(["quarantine", "ls"], ["quarantine", "show", "a"]),
    *(["quarantine", "retry", "--all"], ["quarantine", "drop", "a"]),
]


@pytest.mark.parametrize("verb", VERBS)
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
        (["log"], "commits"),
        (["gc"], "commits"),
        (["gc"], "refs"),
        (["drop", "a"], "rows"),
        (["refs", "ls"], "refs"),
        (["quarantine", "ls"], "commits"),
        (["quarantine", "ls"], "rows"),
    ],
)
def test_damage_is_told_in_one_line_by_every_verb(
    verb: list[str], folder: str, layout: CacheLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in Path(layout.url, folder).iterdir():
        path.write_bytes(b"[1.5]")

    assert run(*verb, "--cache", layout.url) == 1

    captured = capsys.readouterr()
    assert captured.err.startswith(f"mmldm: {folder}/")
    assert captured.err.count("\n") == 1


def test_further_verbs_can_be_mounted() -> None:
    parser = argparse.ArgumentParser()
    verbs = latents.cli.add_commands(parser.add_subparsers())

    verbs.add_parser("why").set_defaults(run="why it is so")

    assert parser.parse_args(["cache", "why"]).run == "why it is so"


def test_log_gives_the_latest_commits_first(
    layout: CacheLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("log", "--cache", layout.url, "--num", "2", "--json") == 0
    assert as_json(capsys) == [
        {"number": 2, "run": {}, "rows": {"quarantine": 1}},
        {
            "number": 1,
            "run": {"started": "2026-01-01T00:00:00Z"},
            "rows": {"latents": 2, "sources": 1},
        },
    ]
    assert run("log", "--cache", layout.url) == 0
    assert out(capsys).splitlines() == [
        "     2  quarantine 1",
        "     1  latents 2, sources 1  2026-01-01T00:00:00Z",
        "     0  latents 4, sources 2  2026-01-01T00:00:00Z",
    ]


class TestRefs:
    def test_refs_are_set_listed_and_removed(
        self, layout: CacheLayout, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("refs", "set", "first", "--commit", "0", "--cache", layout.url, "--json") == 0
        assert as_json(capsys) == {"first": {"commit": 0, "recipes": RECIPES}}
        assert run("ls", "--ref", "first", "--cache", layout.url) == 0
        assert len(out(capsys).splitlines()) == 2

        assert run("refs", "ls", "--cache", layout.url, "--json") == 0
        assert {name: ref["commit"] for name, ref in as_json(capsys).items()} == {
            "current": 2,
            "first": 0,
        }
        assert run("refs", "rm", "first", "--cache", layout.url) == 0
        assert out(capsys).startswith("first named commit 0 and is gone; `mmldm cache gc ")
        assert run("refs", "ls", "--cache", layout.url) == 0
        assert out(capsys).splitlines() == [
            "current  commit 2",
            f"  kl.audio          recipe {RECIPES['kl.audio'][:16]}",
            f"  kl.video          recipe {RECIPES['kl.video'][:16]}",
        ]

    def test_a_ref_is_set_to_another(
        self, layout: CacheLayout, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("refs", "set", "mine", "--to", "current", "--cache", layout.url) == 0
        assert out(capsys) == "mine names commit 2; what it reaches is kept by every gc\n"

        assert run("refs", "set", "mine", "--to", "nothing", "--cache", layout.url) == 1
        assert "has no ref 'nothing'; it has current, mine" in capsys.readouterr().err


class TestDrop:
    def test_what_leaves_and_what_comes_next_is_told(
        self, layout: CacheLayout, capsys: pytest.CaptureFixture[str]
    ) -> None:
        clip = fake_clips(3)[0]
        digest = clip.key.source_digest

        assert run("drop", digest[:8], "--cache", layout.url) == 0
        assert out(capsys).splitlines() == [
            f"  {digest}",
            f"  file:///{digest[:8]}.mp4",
            "commit 3: 1 source dropped whole and 0 clips by name; the latents of 1 clip left",
            "ref current names them no more",
            f"next: `mmldm cache gc --compact --cache {layout.url}` removes their bytes",
        ]
        assert run("ls", "--cache", layout.url) == 0
        assert len(out(capsys).splitlines()) == 2

        assert run("drop", digest[:8], "--undo", "--cache", layout.url) == 0
        assert "1 source and 0 clips readmitted" in out(capsys)

    def test_a_job_that_was_not_completed_is_told(
        self, layout: CacheLayout, capsys: pytest.CaptureFixture[str]
    ) -> None:
        commit_clips(layout, fake_clips(1, seed=1), fake_recipes())
        key = str(fake_clips(3)[0].key)

        assert run("drop", key, "--cache", layout.url, "--json") == 0
        assert as_json(capsys) == {
            "commit": 4,
            "sources": [],
            "uris": [],
            "clips": [key],
            "num_clips": 1,
            "current": "stays",
        }

    def test_an_unknown_name_is_told_in_one_line(
        self, layout: CacheLayout, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("drop", "no-such.mp4", "--cache", layout.url) == 1

        captured = capsys.readouterr()
        assert captured.err.startswith(f"mmldm: {layout.url}: nothing is called 'no-such.mp4'")
        assert captured.err.count("\n") == 1


class TestQuarantine:
    def test_retrying_is_told(
        self, layout: CacheLayout, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("quarantine", "retry", "--all", "--cache", layout.url) == 0
        assert out(capsys).splitlines() == [
            "file:///bad.mp4  [decode] DecodeError: no video stream",
            f"1 event to be tried again; the next `mmldm ingest SOURCE --cache {layout.url}` does",
        ]
        assert run("quarantine", "ls", "--cache", layout.url) == 0
        assert "no video stream  (to be tried again)\n" in out(capsys)
        assert run("quarantine", "retry", "--all", "--cache", layout.url) == 0
        assert out(capsys) == "nothing is waiting in quarantine\n"

    @pytest.mark.parametrize("names", [[], ["file:///bad.mp4", "--all"]])
    def test_what_to_retry_is_named_or_all(
        self, layout: CacheLayout, names: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("quarantine", "retry", *names, "--cache", layout.url) == 2
        assert "name sources, or give --all" in capsys.readouterr().err

    def test_dropping_and_showing(
        self, layout: CacheLayout, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("quarantine", "drop", "a" * 8, "--cache", layout.url, "--json") == 0
        assert [event["source"] for event in as_json(capsys)] == ["file:///bad.mp4"]
        assert run("quarantine", "ls", "--cache", layout.url, "--json") == 0
        assert as_json(capsys) == []

        assert run("quarantine", "show", "file:///bad.mp4", "--cache", layout.url) == 0
        assert out(capsys).splitlines() == [
            "commit      2  rejected  file:///bad.mp4",
            "                attempt 1  [decode] DecodeError: no video stream",
            "commit      3  dropped   file:///bad.mp4",
        ]
        assert run("quarantine", "show", "a" * 64, "--cache", layout.url, "--json") == 0
        assert [(e["commit"], e["event"]) for e in as_json(capsys)] == [
            (2, "rejected"),
            (3, "dropped"),
        ]


class TestGc:
    def test_a_dry_run_lists_and_removes_nothing(
        self, layout: CacheLayout, capsys: pytest.CaptureFixture[str]
    ) -> None:
        orphan = Path(layout.url, "shards", f"{'a' * 64}.tar")
        orphan.write_bytes(b"orphan")

        assert run("gc", "--dry-run", "--grace", "0", "--cache", layout.url) == 0
        assert out(capsys).splitlines() == [
            f"  shards/{orphan.name}  orphan shard",
            "1 file, 6 B would be removed",
            "  orphan shard: 1 file, 6 B",
        ]
        assert orphan.exists()
        assert run("gc", "--cache", layout.url) == 0
        assert out(capsys).splitlines() == [
            "0 files, 0 B removed",
            "1 file, 6 B left, as younger than 3600 s: wait, or give a shorter --grace",
        ]
        assert run("gc", "--grace", "0", "--cache", layout.url, "--json") == 0
        assert as_json(capsys)["removed"] == [
            {
                "name": f"shards/{orphan.name}",
                "num_bytes": 6,
                "reason": "orphan shard",
                "left_for": None,
            }
        ]
        assert not orphan.exists()

    def test_what_was_dropped_goes_by_compacting(
        self, layout: CacheLayout, capsys: pytest.CaptureFixture[str]
    ) -> None:
        clip = fake_clips(3)[0]
        assert run("drop", str(clip.key), "--cache", layout.url) == 0
        assert run("gc", "--compact", "--dry-run", "--cache", layout.url, "--json") == 0
        found = json.loads(out(capsys).splitlines()[-1])
        assert [share["num_dead"] for share in found["rewritten"]] == [2]

        assert run("gc", "--compact", "--grace", "0", "--cache", layout.url) == 0

        assert out(capsys).splitlines()[:3] == [
            "1 shard rewritten without 416 B that have left",
            "ref current moved to the latest commit",
            "1 file, 10240 B removed",
        ]
        contents = [path.read_bytes() for path in Path(layout.url, "shards").iterdir()]
        assert not any(
            tensor.tobytes() in content for tensor in clip.tensors.values() for content in contents
        )
        assert run("verify", "--cache", layout.url) == 0

    def test_a_ref_that_pins_what_was_dropped_is_told(
        self, layout: CacheLayout, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("refs", "set", "mine", "--cache", layout.url) == 0
        assert run("drop", str(fake_clips(3)[0].key), "--cache", layout.url) == 0
        out(capsys)

        assert run("gc", "--compact", "--grace", "0", "--cache", layout.url) == 0

        assert out(capsys).splitlines()[-1] == (
            "ref mine pins 1 shard with latents that have left; "
            f"`mmldm cache refs rm mine --cache {layout.url}` lets them go"
        )

    def test_an_old_encoders_latents_are_told_and_go_when_asked_for(
        self, layout: CacheLayout, capsys: pytest.CaptureFixture[str]
    ) -> None:
        new = fake_recipes(weights="new")
        commit_clips(layout, fake_clips(3), new)
        digests = {name: recipe.digest for name, recipe in new.items()}
        write_ref(layout, "current", Ref(commit=CommitLog(layout).head(), recipes=digests))

        assert run("gc", "--grace", "0", "--cache", layout.url) == 0
        assert out(capsys).splitlines() == [
            "0 files, 0 B removed",
            "2 files, 20480 B left, as no ref reaches them: --unreached removes them",
            f"kl.audio by recipe {RECIPES['kl.audio'][:16]}: 3 clips, 480 B that no ref reaches",
            f"kl.video by recipe {RECIPES['kl.video'][:16]}: 3 clips, 768 B that no ref reaches",
        ]
        assert run("gc", "--unreached", "--grace", "0", "--cache", layout.url) == 0
        assert out(capsys).splitlines() == [
            f"kl.audio by recipe {RECIPES['kl.audio'][:16]}: 3 clips ended",
            f"kl.video by recipe {RECIPES['kl.video'][:16]}: 3 clips ended",
            "2 files, 20480 B removed",
            "  unreached shard: 2 files, 20480 B",
        ]
        assert run("verify", "--cache", layout.url) == 0

    def test_drivers_at_work_are_told(
        self, layout: CacheLayout, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path(layout.url, "shards", f"{'a' * 64}.tar").write_bytes(b"orphan")
        with driving(layout, purpose="ingest"):
            assert run("gc", "--grace", "0", "--cache", layout.url) == 0
            assert "1 file, 6 B left, as drivers are at work (ingest on " in out(capsys)
            assert run("gc", "--compact", "--cache", layout.url) == 1
            assert "no shard can be rewritten while drivers are at work" in capsys.readouterr().err

    def test_a_grace_below_0_is_wrong_use(
        self, layout: CacheLayout, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as caught:
            run("gc", "--grace", "-1", "--cache", layout.url)
        assert caught.value.code == 2
        assert "'-1' is no number of 0 or more" in capsys.readouterr().err

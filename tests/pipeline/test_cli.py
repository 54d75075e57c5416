"""``mmldm plan``, ``refresh``, ``ingest`` and what ``mmldm cache`` asks the pipeline."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import mmldm
from latents.cache.layout import find_cache
from latents.cache.log import CommitLog
from latents.cache.refs import read_ref
from latents.models.kl_vae import KLVAE
from pipeline.synth import synthesise
from tests.pipeline.small_jobs import DecodesInProcess, make_autoencoder

SMALL = ("--set", "clip.size=32", "--set", "window.stride=16", "--workers", "1")
KL, PERCEPTUAL = ("kl.video", "kl.audio"), ("perceptual.video", "perceptual.audio")


@pytest.fixture(autouse=True)
def _decode_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.job.IsolatedDecoder", DecodesInProcess)


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path / "cache", capsys)


class Command:
    """``mmldm`` on one cache."""

    def __init__(self, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.cache, self._capsys = cache, capsys
        self.status = -1

    def __call__(self, *arguments: str) -> str:
        """What a command prints."""
        self._capsys.readouterr()
        self.status = mmldm.main([*arguments, "--cache", str(self.cache)])
        return self._capsys.readouterr().out

    def json(self, *arguments: str) -> Any:
        """What it prints with ``--json``."""
        return json.loads(self(*arguments, "--json").splitlines()[-1])

    def error(self, *arguments: str) -> str:
        """The last line of what it says is wrong."""
        self.status = mmldm.main([*arguments, "--cache", str(self.cache)])
        return self._capsys.readouterr().err.splitlines()[-1]


def to_encode(plan: Any) -> dict[str, dict[str, int]]:
    fields = plan["fields"].items()
    return {name: one["to_encode"] | one["num_uncut"] for name, one in fields}


# plan


def test_a_plan_of_new_sources_changes_nothing_and_makes_no_cache(
    command: Command, small_kl_vae: Path
) -> None:
    plan = command.json("plan", "scenes:0:3:2", "--kl-vae", str(small_kl_vae), *SMALL)

    assert command.status == 0
    assert to_encode(plan) == {field: {"new source": 3} for field in KL}
    assert (plan["num_sources"], plan["num_to_decode"], plan["num_from_cache"]) == (3, 3, 0)
    assert plan["estimate"]["num_clips"] == 3
    assert not command.cache.exists()


def test_a_plan_says_for_people_what_why_and_how_much(command: Command, small_kl_vae: Path) -> None:
    text = command("plan", "scenes:0:3:2", "--kl-vae", str(small_kl_vae), *SMALL)

    assert "3 sources, 0 with nothing left to do" in text
    assert "kl.video                0 clips present   to encode 3 sources: new source" in text
    assert "no clip of this kind has been timed here yet" in text


def test_plan_refresh_and_plan_again(command: Command, small_kl_vae: Path, tmp_path: Path) -> None:
    first, update = (str(make_autoencoder(tmp_path / n, video_seed=int(n))) for n in "01")
    named = ("--kl-vae", str(small_kl_vae), "--autoencoder", first)
    command("ingest", "scenes:0:2:2", *named, *SMALL)
    assert command.status == 0

    # The settings on record need not be named again, nor the KL-VAE, which is not needed.
    plan = command.json("plan", "--autoencoder", update)
    assert to_encode(plan) == {
        **{field: {} for field in KL},
        "perceptual.video": {"new encoder": 2},
        "perceptual.audio": {},
    }
    assert (plan["num_to_decode"], plan["num_from_cache"], plan["leaving"]) == (0, 2, [])
    assert "nothing to do" in command("plan")

    done = command.json("refresh", "--autoencoder", update)
    assert (command.status, done["num_clips_encoded"], done["num_kl_images"]) == (0, 2, 0)
    assert (done["num_videos_opened"], done["num_already_present"]) == (0, 0)

    plan = command.json("plan", "--autoencoder", update)
    assert (plan["num_present"], plan["num_from_cache"]) == (2, 0)
    assert to_encode(plan) == {field: {} for field in (*KL, *PERCEPTUAL)}


@pytest.mark.parametrize("by", ["--kl-vae", "--set", "--preset"])
def test_another_kl_vae_is_planned_however_it_is_named(
    by: str, command: Command, small_kl_vae: Path, other_kl_vae: Path, tmp_path: Path
) -> None:
    command("ingest", "scenes:0:1:2", "--kl-vae", str(small_kl_vae), *SMALL)
    preset = tmp_path / "other.toml"
    preset.write_text(f'[kl_vae]\nsource = "{other_kl_vae}"\n')
    value = {
        "--kl-vae": str(other_kl_vae),
        "--set": f"kl_vae.source={other_kl_vae}",
        "--preset": str(preset),
    }

    plan = command.json("plan", by, value[by])

    assert to_encode(plan) == {field: {"new encoder": 1} for field in KL}


def test_what_would_leave_is_planned_and_leaves(
    command: Command, small_kl_vae: Path, tmp_path: Path
) -> None:
    videos = tmp_path / "videos"
    synthesise(videos, num_clips=2, seconds=2, seed=1, fps=10, height=64, width=64)
    options = ("--kl-vae", str(small_kl_vae), *SMALL)
    command("ingest", str(videos), *options)
    gone = next(videos.glob("*.mp4"))
    gone.unlink()

    plan = command.json("plan", str(videos), "--prune")
    assert [row["uri"] for row in plan["leaving"] if row["uri"]] == [str(gone)]
    assert plan["fields"]["kl.video"]["num_leaving"] == 1
    text = command("plan", str(videos), "--prune")
    assert f"leaving  {gone} (pruned)" in text
    assert "1 clips leaving" in text

    done = command.json("ingest", str(videos), *options, "--prune")
    assert (done["num_clips_left"], done["num_clips_encoded"]) == (1, 0)
    assert command.json("plan", str(videos), "--prune")["leaving"] == []


def test_a_plan_names_what_cannot_be_read(
    command: Command, small_kl_vae: Path, tmp_path: Path
) -> None:
    listed = tmp_path / "list.txt"
    (tmp_path / "folder.mp4").mkdir()
    listed.write_text("folder.mp4\n")

    plan = command.json("plan", str(listed), "--kl-vae", str(small_kl_vae))
    assert (plan["num_unreadable"], plan["num_to_decode"]) == (1, 0)
    assert "unreadable" in command("plan", str(listed), "--kl-vae", str(small_kl_vae))


# ingest


def test_new_clips_get_the_levels_that_the_cache_has(
    command: Command, small_kl_vae: Path, tmp_path: Path
) -> None:
    autoencoder = str(make_autoencoder(tmp_path / "autoencoder"))
    named = ("--kl-vae", str(small_kl_vae), *SMALL)
    command("ingest", "scenes:0:1:2", "--levels", "clip,kl", *named)
    command("refresh", "--autoencoder", autoencoder)

    command("ingest", "scenes:1:1:2", "--autoencoder", autoencoder, *named)

    assert command.status == 0
    levels = command.json("cache", "inspect")["levels"]
    assert {level: one["num_clips"] for level, one in levels.items()} == {
        "clip": 2,
        "kl": 2,
        "perceptual": 2,
    }


def test_without_the_autoencoder_that_the_cache_s_level_needs_nothing_is_done(
    command: Command, small_kl_vae: Path, tmp_path: Path
) -> None:
    named = ("--kl-vae", str(small_kl_vae), *SMALL)
    command(
        "ingest", "scenes:0:1:2", "--autoencoder", str(make_autoencoder(tmp_path / "a")), *named
    )
    head = CommitLog(find_cache(command.cache)).head()

    message = command.error("ingest", "scenes:1:1:2", *named)

    assert command.status == 2
    assert "--autoencoder" in message
    assert "--levels" in message
    assert CommitLog(find_cache(command.cache)).head() == head


def test_parts_leave_current_until_the_whole_is_run(command: Command, small_kl_vae: Path) -> None:
    ingest = ("ingest", "scenes:0:4:2", "--kl-vae", str(small_kl_vae), *SMALL)

    parts = [command.json(*ingest, "--part", f"{number}/2") for number in (1, 2)]

    assert sum(part["num_clips_encoded"] for part in parts) == 4
    assert read_ref(find_cache(command.cache), "current") is None
    assert command.json(*ingest)["num_already_present"] == 4
    assert read_ref(find_cache(command.cache), "current") is not None


def test_ingest_and_refresh_write_shards_of_the_store_that_is_named(
    command: Command, small_kl_vae: Path, tmp_path: Path
) -> None:
    first, update = (str(make_autoencoder(tmp_path / n, video_seed=int(n))) for n in "01")

    def suffixes() -> list[str]:
        return sorted(path.suffix for path in (command.cache / "shards").iterdir())

    command("ingest", "scenes:0:1:2", "--kl-vae", str(small_kl_vae), *SMALL, "--store", "zarr")
    assert suffixes() == [".zip"]
    command("refresh", "--autoencoder", first)
    assert suffixes() == [".tar", ".zip"]
    command("refresh", "--autoencoder", update, "--store", "zarr")
    assert suffixes() == [".tar", ".zip", ".zip"]
    assert "is intact" in command("cache", "verify")


def test_a_file_changed_behind_its_time_is_found_with_rehash(
    command: Command, small_kl_vae: Path, tmp_path: Path
) -> None:
    synthesise(tmp_path / "videos", num_clips=1, seconds=2, seed=1, fps=10, height=64, width=64)
    (video,) = (tmp_path / "videos").glob("*.mp4")
    ingest = ("ingest", str(video), "--kl-vae", str(small_kl_vae), *SMALL)
    command(*ingest)
    content, stat = bytearray(video.read_bytes()), video.stat()
    content[content.index(b"mdat") + 40] ^= 1
    video.write_bytes(content)
    os.utime(video, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    assert command.json(*ingest)["num_clips_encoded"] == 0
    done = command.json(*ingest, "--rehash")
    assert (done["num_clips_encoded"], done["num_clips_left"]) == (1, 1)


# Wrong use.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ingest", "scenes:0:2", "--part", "1/2", "--prune"), "prune in a run of its own"),
        (("plan", "--prune"), "name them"),
    ],
)
def test_wrong_combinations_are_refused(
    arguments: tuple[str, ...], words: str, command: Command
) -> None:
    assert words in command.error(*arguments)
    assert command.status == 2


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b"])
def test_a_part_that_is_none_is_refused(
    part: str, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        command("refresh", "--part", part)
    assert stopped.value.code == 2
    assert "wanted i/n" in capsys.readouterr().err


def test_windows_that_the_autoencoder_cannot_read_are_refused_before_any_work(
    command: Command, small_kl_vae: Path, tmp_path: Path
) -> None:
    autoencoder = str(make_autoencoder(tmp_path / "a"))
    named = ("--kl-vae", str(small_kl_vae), "--autoencoder", autoencoder)

    message = command.error("ingest", "scenes:0:1:2", *named, "--set", "clip.size=128")

    assert command.status == 2
    assert "KL latents of 4 x 4" in message
    assert CommitLog(find_cache(command.cache)).head() == -1


# cache why and cache verify --deep


def test_why_tells_the_chain_for_people_and_machines(
    command: Command, small_kl_vae: Path, other_kl_vae: Path
) -> None:
    command("ingest", "scenes:0:1:2", "--kl-vae", str(small_kl_vae), *SMALL)

    text = command("cache", "why", "scenes:0:0:2", "--kl-vae", str(other_kl_vae))
    assert "kl.video  20x8x4x4" in text
    assert "named by current" in text
    assert "differs: kl.video kl_vae weights" in text
    origin = command.json("cache", "why", "scenes:0:0:2")
    (clip,) = origin["clips"]
    assert [field["field"] for field in clip["fields"]] == list(KL)
    assert [field["differences"] for field in clip["fields"]] == [[], []]


def test_deep_verification_tells_which_field_comes_out_otherwise(
    command: Command, small_kl_vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = ("--kl-vae", str(small_kl_vae))
    command("ingest", "scenes:0:2:2", *named, *SMALL)
    verify = ("cache", "verify", "--deep", "2", *named)

    text = command(*verify)
    assert command.status == 0
    assert "is intact" in text
    assert "2 clips made again, 4 fields: 4 agree, at most 0.0e+00 apart" in text

    encode = KLVAE.encode
    monkeypatch.setattr(KLVAE, "encode", lambda self, images: encode(self, images) * 1.1)
    found = command.json(*verify)
    assert command.status == 1
    assert found["damaged"] == []
    assert {one["field"] for one in found["recomputed"] if one["problem"]} == set(KL)

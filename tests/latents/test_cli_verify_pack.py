"""``mmldm cache verify PACK``: told as the damage of a cache is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mmldm
from latents.cache.pack import open_pack
from latents.cache.pack_writer import write_pack
from latents.cache.reader import open_cache
from latents.testing import make_cache, perceptual_clips, perceptual_recipes

VIDEO = "perceptual.video"


def run(*arguments: str | Path) -> int:
    return mmldm.main(["cache", "verify", *map(str, arguments)])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pack")
    layout = make_cache(root / "cache", clips=perceptual_clips(3), recipes=perceptual_recipes())
    level = open_cache(layout.url, level="perceptual")
    return write_pack(level, root / "p.safetensors", ref="current").path


def begin_of(path: Path, tensor: str) -> int:
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    return begin + int(json.loads(content[8:begin])[tensor]["data_offsets"][0])


def flipped(path: Path, tmp_path: Path, byte: int) -> Path:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(content)
    return copy


def as_json(capsys: pytest.CaptureFixture[str]) -> Any:
    told = capsys.readouterr().out
    assert told.count("\n") == 1
    return json.loads(told)


@pytest.mark.parametrize("option", [[], ["--cache"]], ids=["alone", "as a cache"])
def test_a_whole_pack_exits_0(
    option: list[str], path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*option, path, "--json") == 0
    assert as_json(capsys) == {"damaged": []}
    assert run(*option, path) == 0
    assert capsys.readouterr().out == f"{path} is intact\n"


def test_a_damaged_window_is_named_and_exits_1(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = begin_of(path, VIDEO) + 7 * 4 * 4 * 4 * 2
    damaged = flipped(path, tmp_path, begin + 3)
    clip, window = open_pack(path).place(7)
    problem = f"{VIDEO} of clip {clip}, slice {window}, fails its CRC-32C"

    assert run(damaged, "--json") == 1
    assert as_json(capsys) == {
        "damaged": [
            {
                "path": str(damaged),
                "clip": clip,
                "field": VIDEO,
                "offset": begin,
                "problem": problem,
            }
        ]
    }
    assert run(damaged) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{damaged} at byte {begin} ({VIDEO} of clip {clip}): {problem}",
        "1 damaged",
    ]


def found_in(damaged: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one problem that is told."""
    assert run(damaged, "--json") == 1
    (damage,) = as_json(capsys)["damaged"]
    assert (damage["path"], damage["offset"], damage["clip"]) == (str(damaged), 0, None)
    assert run(damaged) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{damaged} at byte 0: {damage['problem']}", "1 damaged"]
    return str(damage["problem"])


@pytest.mark.parametrize(
    "table", ["clips.loudness_dbfs", "clips.key", f"{VIDEO}.crc32c", f"{VIDEO}.square_sum"]
)
def test_a_damaged_table_is_told_and_exits_1(
    table: str, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = flipped(path, tmp_path, begin_of(path, table))
    assert "its tables are not as they were written" in found_in(damaged, capsys)


@pytest.mark.parametrize(
    ("part", "told"),
    [
        (b'\\"commit\\":', "its header is not as it was written"),
        (b'"data_offsets"', "it is no pack, or not a whole one"),
    ],
)
def test_a_damaged_header_is_told_and_exits_1(
    part: bytes, told: str, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = flipped(path, tmp_path, path.read_bytes().index(part) + 3)
    assert told in found_in(damaged, capsys)


@pytest.mark.parametrize("num_bytes", [0, 7, 100, 6000, -1])
def test_a_cut_file_is_told_and_exits_1(
    num_bytes: int, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:num_bytes])
    assert "it is no pack, or not a whole one" in found_in(cut, capsys)


def test_a_file_that_is_not_there_fails_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "gone.safetensors") == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"mmldm: {tmp_path / 'gone.safetensors'} cannot be read")
    assert told.err.count("\n") == 1


@pytest.mark.parametrize(
    "option",
    [
        *("--deep 2", "--rebuild-checkpoints", "--levels kl", "--kl-vae tiny", "--store tar"),
        *("--autoencoder tiny", "--preset default", "--set run.workers=1", "--workers 0"),
    ],
)
def test_what_can_be_said_of_a_cache_alone_is_wrong_use(
    option: str, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(path, *option.split()) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert f"; {option.split()[0]} can be said of a cache alone" in told.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "one of the arguments PACK --cache is required"),
        (["p.safetensors", "--cache", "c"], "not allowed with argument"),
        (["p.safetensors", "--ref", "mine"], "unrecognized arguments: --ref mine"),
    ],
)
def test_one_pack_or_one_cache_is_verified(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err


def test_a_cache_is_named_by_its_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path) == 2
    told = f"mmldm: {tmp_path} is no pack (*.safetensors); of a cache say --cache {tmp_path}\n"
    assert capsys.readouterr().err == told

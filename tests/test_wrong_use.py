"""Wrong input gives one clear line and the right exit status."""

from __future__ import annotations

from pathlib import Path

import pytest

import mmldm


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    try:
        status = mmldm.main(arguments)
    except SystemExit as stopped:  # argparse's own
        status = int(stopped.code or 0)
    lines = [line for line in capsys.readouterr().err.splitlines() if "mmldm" in line]
    return status, lines[-1:]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing-folder"], "does not exist"),
        (["empty"], "holds no video"),
        (["scenes:0:1", "--preset", "defualt"], "did you mean 'default'?"),
        (["scenes:0:1", "--set", "clip.fsp=5"], "did you mean 'fps'?"),
        (["scenes:0:1", "--set", "clip.fps=many"], "clip.fps is 'many'; wanted int"),
        (["scenes:0:1", "--set", "window.stride=5"], "it must divide window.frames"),
        (["scenes:0:1", "--set", "mel.name=mel"], "wanted one of 'hifigan22k'"),
        (["scenes:0:1", "--set", "nonsense"], "wanted key=value"),
        (["scenes:0:1", "--levels", "pixels"], "wanted some of clip,kl,perceptual"),
        (["scenes:0:1", "--engine", "slurm"], "invalid choice"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_exit_with_2(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    status, lines = run(capsys, "ingest", *arguments, "--cache", "c")
    assert status == 2
    assert len(lines) == 1
    assert words in lines[0]
    assert not (tmp_path / "c").exists()


def test_a_model_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--cache", str(tmp_path / "c"), "--kl-vae", str(tmp_path / "gone"))
    status, (line,) = run(capsys, "ingest", "scenes:0:1", *options)
    assert status == 1
    assert "gone: there is no such file or folder" in line


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    status, (line,) = run(capsys, "ingest", "scenes:0:1", "--cache", str(tmp_path / "file" / "c"))
    assert status == 1
    assert "writing failed (Not a directory)" in line


def test_a_folder_of_other_things_is_not_made_a_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    status, (line,) = run(capsys, "ingest", "scenes:0:1", "--cache", str(tmp_path))
    assert status == 1
    assert "is not empty and holds no cache.json" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.tex"]


def test_a_perceptual_level_without_its_encoders_says_what_to_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--cache", str(tmp_path / "c"), "--levels", "kl,perceptual")
    for command in ("plan", "ingest"):
        status, (line,) = run(capsys, command, "scenes:0:1", *options)
        assert status == 2
        assert "name its folder with --autoencoder" in line


def test_an_autoencoder_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--cache", str(tmp_path / "c"), "--autoencoder", str(tmp_path / "gone"))
    status, (line,) = run(capsys, "ingest", "scenes:0:1", *options)
    assert status == 1
    assert "gone: no autoencoder; wanted config.json and model.safetensors" in line


@pytest.mark.parametrize(
    "command",
    [
        "cache ls",
        "cache inspect",
        "cache verify",
        "cache why scenes:0:0:4",
        "cache quarantine ls",
        "plan",
        "refresh",
    ],
)
def test_a_cache_that_is_not_there_is_named(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, (line,) = run(capsys, *command.split(), "--cache", str(tmp_path / "none"))
    assert status == 1
    assert "is not a cache" in line
    assert not (tmp_path / "none").exists()

"""The README's commands and settings exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import mmldm
from latents.config import load_config
from pipeline.settings import IngestSettings

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = sorted(set(re.findall(r"\bmmldm ((?:cache |train |quarantine )*[a-z-]+)", README)))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        mmldm.main([*command.split(), "--help"])
    assert stopped.value.code == 0
    assert command.split()[-1] in capsys.readouterr().out


def test_the_commands_are_found() -> None:
    named = {"ingest", "synth", "plan", "refresh", "report", "cache verify", "train kl-vae"}
    assert named <= set(COMMANDS)


@pytest.mark.parametrize(
    "key", sorted(set(re.findall(r"`((?:clip|window|mel|kl_vae|sound|run)\.[a-z_]+)`", README)))
)
def test_a_setting_of_the_readme_exists(key: str) -> None:
    section, _, name = key.partition(".")
    assert hasattr(getattr(load_config(IngestSettings, kind="ingest"), section), name)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^):]+)\)", README))))
def test_a_file_that_the_readme_links_to_exists(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize(
    "preset", sorted(file.stem for file in (ROOT / "configs/ingest").glob("*.toml"))
)
def test_presets_load(preset: str) -> None:
    settings = load_config(IngestSettings, kind="ingest", presets=[preset])
    assert preset != "default" or settings == IngestSettings()

"""Presets and overrides become dataclasses, or one sentence that says what is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from latents.clip import ClipSpec, WindowSpec
from latents.config import build_dataclass, load_config, parse_override, preset_names
from latents.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    source: str = "tiny"
    precision: Literal["fp32", "bf16"] = "fp32"
    learning_rate: float = 1e-3
    is_frozen: bool = True
    limit: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    clip: ClipSpec = field(default_factory=ClipSpec)
    window: WindowSpec = field(default_factory=WindowSpec)
    model: Model = field(default_factory=Model)


@dataclass(frozen=True, kw_only=True, slots=True)
class WithoutDefault:
    steps: int


def load(*overrides: str, presets: tuple[str, ...] = ()) -> Settings:
    return load_config(Settings, kind="ingest", presets=presets, overrides=overrides)


def refusal(*overrides: str, presets: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*overrides, presets=presets)
    assert caught.value.exit_code == 2
    return str(caught.value)


def toml(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_without_presets_every_setting_has_its_default() -> None:
    assert load() == Settings()


def test_later_presets_win_key_by_key(tmp_path: Path) -> None:
    first = toml(tmp_path / "first.toml", "[clip]\nfps = 4\nsize = 64\n[window]\nstride = 1\n")
    second = toml(tmp_path / "second.toml", "[clip]\nfps = 5\n")

    settings = load(presets=(first, second))

    assert (settings.clip.fps, settings.clip.size, settings.window.stride) == (5, 64, 1)


def test_overrides_win_over_presets(tmp_path: Path) -> None:
    preset = toml(tmp_path / "preset.toml", "[clip]\nfps = 4\nsize = 64\n")

    settings = load("clip.fps=8", presets=(preset,))

    assert (settings.clip.fps, settings.clip.size) == (8, 64)


def test_loading_leaves_nothing_behind_for_the_next(tmp_path: Path) -> None:
    preset = toml(tmp_path / "preset.toml", "[clip]\nfps = 4\n")
    load("clip.fps=8", presets=(preset,))

    assert load(presets=(preset,)).clip.fps == 4


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b=16", 16),
        ("a.b=-1", -1),
        ("a.b=1e-4", 1e-4),
        ("a.b=true", True),
        ("a.b=tiny", "tiny"),
        ("a.b=/data/run #1/vae", "/data/run #1/vae"),
        ("a.b=stabilityai/sd-vae-ft-mse", "stabilityai/sd-vae-ft-mse"),
        ('a.b="16"', "16"),
        ("a.b= fp32 ", "fp32"),
        ("a.b=x=y", "x=y"),
        ("a.b=", ""),
        ("a.b=1\nc = 2", "1\nc = 2"),
    ],
)
def test_an_override_is_read_as_toml_or_else_as_a_string(text: str, value: object) -> None:
    assert parse_override(text) == {"a": {"b": value}}


@pytest.mark.parametrize("text", ["clip.fps", "=3", ""])
def test_an_override_without_key_or_value_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="wanted key=value"):
        parse_override(text)


def test_ints_strings_bools_and_floats_reach_their_fields() -> None:
    settings = load(
        "model.source=/models/vae",
        "model.is_frozen=false",
        "model.learning_rate=1",
        "model.limit=7",
        "model.precision=bf16",
    )

    assert settings.model == Model(
        source="/models/vae", is_frozen=False, learning_rate=1.0, limit=7, precision="bf16"
    )
    assert isinstance(settings.model.learning_rate, float)


def test_an_unknown_key_names_the_nearest() -> None:
    assert "unknown key 'clip.fsp'; did you mean 'fps'?" in refusal("clip.fsp=10")
    assert "unknown key 'windows'; did you mean 'window'?" in refusal("windows.stride=1")


def test_an_unknown_key_like_no_other_lists_the_known() -> None:
    assert refusal("window.zzz=1") == "unknown key 'window.zzz'; known: frames, stride"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("clip.fps=ten", "clip.fps is 'ten'; wanted int"),
        ("clip.fps=10.0", "clip.fps is 10.0; wanted int"),
        ("clip.fps=true", "clip.fps is True; wanted int"),
        ("model.is_frozen=1", "model.is_frozen is 1; wanted bool"),
        ("model.source=5", "model.source is 5; wanted str"),
        ("model.learning_rate=true", "model.learning_rate is True; wanted float"),
        ("model.limit=many", "model.limit is 'many'; wanted int"),
        ("model.precision=fp64", "model.precision is 'fp64'; wanted one of 'fp32', 'bf16'"),
        ("clip.fit=stretch", "clip.fit is 'stretch'; wanted one of 'letterbox', 'crop'"),
        ("clip=3", "clip is 3; it is a table of keys (clip.key=value)"),
        ("clip.fps=1000", "clip.fps is 1000; it must be between 1 and 120"),
        ("window.stride=5", "window.stride is 5; it must divide window.frames = 16"),
    ],
)
def test_a_value_of_the_wrong_type_choice_or_range_is_refused(override: str, message: str) -> None:
    assert message in refusal(override)


def test_a_value_without_default_must_be_given() -> None:
    with pytest.raises(ConfigError, match=r"run\.steps is missing"):
        build_dataclass(WithoutDefault, {}, path="run.")


def test_every_bundled_ingest_preset_is_named_and_is_toml() -> None:
    names = preset_names("ingest")

    assert "default" in names
    for name in names:
        values: dict[str, Any] = {}
        assert load_config(dict_like(values), kind="ingest", presets=[name])


def dict_like(values: dict[str, Any]) -> type[Any]:
    """A dataclass that takes any of the tables of the bundled presets."""
    from dataclasses import make_dataclass

    tables = ("clip", "window", "mel", "kl_vae", "decode", "sound", "run")
    return make_dataclass("Tables", [(t, object, field(default=None)) for t in tables])


def test_an_unknown_preset_names_the_nearest() -> None:
    assert "no preset 'defualt'; did you mean 'default'?" in refusal(presets=("defualt",))


def test_a_preset_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    broken = toml(tmp_path / "broken.toml", "[clip\n")
    (tmp_path / "latin.toml").write_bytes(b'[clip]\nfit = "\xe9"\n')
    (tmp_path / "folder.toml").mkdir()

    assert "is not TOML" in refusal(presets=(broken,))
    assert "is not TOML" in refusal(presets=(str(tmp_path / "latin.toml"),))
    assert "cannot be read" in refusal(presets=(str(tmp_path / "folder.toml"),))
    assert "no preset" in refusal(presets=(str(tmp_path / "absent.toml"),))

"""TOML presets and ``--set a.b=c`` into frozen dataclasses, where an unknown key is an error."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from latents.errors import ConfigError

T = TypeVar("T")


def load_config(
    cls: type[T],
    *,
    kind: str,
    base: Mapping[str, Any] | None = None,
    presets: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> T:
    """Builds a dataclass of sections from presets, later ones winning, then ``a.b=c`` overrides.

    Args:
        cls: A frozen dataclass whose fields are dataclasses (the TOML tables) or plain values.
        kind: Which bundled presets are meant: the folder ``configs/<kind>``.
        base: Values to start from.
        presets: Names of bundled presets, or paths of TOML files.
        overrides: Texts ``section.key=value``; the value is read as TOML, else as a string.

    Raises:
        ConfigError: An unknown preset or key (naming the nearest), or a value out of range.
    """
    merged: dict[str, Any] = {}
    _merge(merged, base or {})
    for preset in presets:
        _merge(merged, _read_preset(kind, preset))
    for override in overrides:
        _merge(merged, parse_override(override))
    return build_dataclass(cls, merged, path="")


def parse_override(text: str) -> dict[str, Any]:
    """``a.b=c`` as a nested dict; raises `ConfigError` where there is no ``=``."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"--set {text!r}: wanted key=value, for example window.stride=1")
    parsed: Any = value.strip()
    try:
        document = tomllib.loads(f"value = {value}")
        if len(document) == 1:  # more where the value has several lines
            parsed = document["value"]
    except tomllib.TOMLDecodeError:
        pass  # a string without quotes
    for part in reversed(name.strip().split(".")):
        parsed = {part: parsed}
    return dict(parsed)


def build_dataclass(cls: type[T], values: Mapping[str, Any], *, path: str) -> T:
    """An instance of ``cls`` with every key known and every type right."""
    assert is_dataclass(cls)
    hints = get_type_hints(cls)
    known = [field.name for field in fields(cls) if field.init]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"unknown key {path + key!r}; {_nearest(key, known)}")
        arguments[key] = _convert(hints[key], value, path + key)
    for field in fields(cls):
        if field.init and field.name not in arguments and not _has_default(field):
            raise ConfigError(
                f"{path}{field.name} is missing; name a preset that sets it, or --set"
            )
    try:
        return cls(**arguments)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def preset_names(kind: str) -> list[str]:
    """Names of the bundled presets of a kind."""
    return sorted(file.stem for file in (_presets_folder() / kind).glob("*.toml"))


def _has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _presets_folder() -> Path:
    """``latents/presets`` in an installed wheel, ``configs/`` in a checkout."""
    package = Path(__file__).parent
    installed = package / "presets"
    return installed if installed.is_dir() else package.parent / "configs"


def _read_preset(kind: str, name: str) -> dict[str, Any]:
    path = Path(name) if name.endswith(".toml") else _presets_folder() / kind / f"{name}.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"no preset {name!r}; {_nearest(name, preset_names(kind))}, or give the path of a .toml"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise ConfigError(f"{path} is not TOML: {error}") from error


def _merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _convert(wanted: Any, value: Any, path: str) -> Any:
    if is_dataclass(wanted) and isinstance(wanted, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path} is {value!r}; it is a table of keys ({path}.key=value)")
        return build_dataclass(wanted, value, path=f"{path}.")
    origin = get_origin(wanted)
    if origin is Literal:
        if value not in get_args(wanted):
            choices = ", ".join(repr(choice) for choice in get_args(wanted))
            raise ConfigError(f"{path} is {value!r}; wanted one of {choices}")
        return value
    if origin in (Union, UnionType):
        inner = [arm for arm in get_args(wanted) if arm is not type(None)]
        return _convert(inner[0], value, path)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise ConfigError(f"{path} is {value!r}; wanted {wanted.__name__}")
    return value


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    listed = ", ".join(known)
    return f"did you mean {close[0]!r}? (known: {listed})" if close else f"known: {listed}"

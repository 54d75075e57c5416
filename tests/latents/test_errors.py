"""Errors keep their facts and their text through pickling, and so through worker processes."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

from latents import errors
from latents.errors import (
    CacheError,
    ClipError,
    DamagedError,
    InterruptedJobError,
    JobError,
    LatentError,
    StaleFieldError,
)

ARGUMENTS: dict[type[LatentError], tuple[object, ...]] = {
    StaleFieldError: ("cache", "kl.video", "a" * 64, "b" * 64, ("fps: 4 -> 10",), "Do this"),
    DamagedError: ("shards/x.tar", 1536, "fails its CRC-32C"),
    InterruptedJobError: (15, "interrupted by SIGTERM"),
}


def subclasses(cls: type[LatentError]) -> Iterator[type[LatentError]]:
    yield cls
    for child in cls.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from subclasses(child)


def one_of(cls: type[LatentError]) -> LatentError:
    if cls in ARGUMENTS:
        return cls(*ARGUMENTS[cls])
    return cls("a.mp4", "no video stream") if issubclass(cls, ClipError) else cls("what happened")


@pytest.mark.parametrize("cls", list(subclasses(LatentError)))
def test_every_error_survives_pickling(cls: type[LatentError]) -> None:
    error = one_of(cls)

    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is cls
    assert (str(copy), copy.args, vars(copy)) == (str(error), error.args, vars(error))


@pytest.mark.parametrize("cls", list(subclasses(LatentError)))
def test_every_error_is_told_in_one_line(cls: type[LatentError]) -> None:
    assert str(one_of(cls))
    assert "\n" not in str(one_of(cls))


def test_a_fault_is_either_a_clips_or_the_jobs() -> None:
    for cls in set(subclasses(LatentError)) - {LatentError}:
        assert issubclass(cls, ClipError) != issubclass(cls, JobError)


def test_the_module_lists_every_error_in_its_tree() -> None:
    assert errors.__doc__ is not None
    for cls in subclasses(LatentError):
        assert cls.__name__ in errors.__doc__


def test_wrong_use_and_failure_have_different_exit_codes() -> None:
    codes = {
        cls.__name__: cls.exit_code for cls in subclasses(LatentError) if issubclass(cls, JobError)
    }

    wrong_use = {name for name, code in codes.items() if code == 2}
    assert wrong_use == {"SourceError", "ConfigError", "StaleFieldError"}
    assert set(codes.values()) == {1, 2}


def test_messages_hold_the_facts() -> None:
    assert str(one_of(DamagedError)) == "shards/x.tar at byte 1536: fails its CRC-32C"
    assert str(one_of(StaleFieldError)) == (
        "cache: kl.video was made by recipe aaaaaaaaaaaa, but bbbbbbbbbbbb is wanted. They differ "
        "in: fps: 4 -> 10. Do this"
    )
    assert isinstance(one_of(DamagedError), CacheError)

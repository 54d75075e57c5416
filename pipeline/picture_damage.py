"""Which of the pictures that a decoder gives can be believed once part of a stream was lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

from pipeline.segments import MAX_STEP_SECONDS, Frame, Picture


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """A picture as a decoder gives it."""

    time: Fraction | None
    """Presentation time in seconds; None where none is stated."""
    duration: Fraction | None
    """Seconds."""
    is_key: bool
    """It was predicted from no other picture, and nothing after it from one before it."""
    is_corrupt: bool
    """The decoder had to make up part of it."""
    frame: Any
    """The decoder's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lost:
    """A packet that could not be read or decoded."""

    latest: Fraction | None
    """Latest presentation time, in seconds, that it or a packet before it states. Pictures up to
    there may have been decoded earlier, and held back to be shown in order."""


def from_first_whole(decoded: Iterable[Decoded | Lost]) -> Iterator[Decoded | Lost]:
    """Leaves out what is damaged at the very start: a recording may begin anywhere."""
    has_begun = has_lost = False
    for one in decoded:
        if isinstance(one, Lost):
            has_lost = True
        elif not (one.is_corrupt or (has_lost and not one.is_key)):
            has_begun = True
        if has_begun:
            yield one


def mark_damage(
    decoded: Iterable[Decoded | Lost], *, interval: Fraction, render: Callable[[Any], Frame]
) -> Iterator[Picture]:
    """Pictures with their times, each marked whether it can be believed.

    Later pictures are predicted from earlier ones, so damage lasts until the next key picture that
    is whole. A picture that did not come at all leaves a mark where it should have been shown: what
    was shown before it is not held in its place.

    Args:
        decoded: In the order in which it is shown.
        interval: Seconds from a picture to the next one where no time is stated.
        render: Makes a frame of what the decoder gave.
    """
    doubt = _Doubt(interval)
    start: Fraction | None = None
    expected = Fraction(0)
    for one in from_first_whole(decoded):
        if isinstance(one, Lost):
            doubt.lose(None if one.latest is None or start is None else one.latest - start)
            continue
        if start is None:
            start = one.time or Fraction(0)
        time = expected if one.time is None else one.time - start
        expected = time + interval
        yield from doubt.gap_before(time)
        yield Picture(
            time=time,
            duration=one.duration,
            render=partial(render, one.frame),
            is_damaged=doubt.covers(one, time),
        )
    yield from doubt.gap_before(None)


class _Doubt:
    """What is known to be lost of the pictures since the last one that was whole."""

    def __init__(self, interval: Fraction) -> None:
        self._interval = interval
        self._is_on = self._is_gap = False
        self._last: Fraction | None = None
        self._latest: Fraction | None = None

    def lose(self, latest: Fraction | None) -> None:
        self._is_on = self._is_gap = True
        # A time out of all reason is damage as well, and must not keep up the doubt for ever.
        if latest is not None and abs(latest - (self._last or 0)) <= MAX_STEP_SECONDS:
            self._latest = latest

    def gap_before(self, time: Fraction | None) -> Iterator[Picture]:
        """A mark for pictures that should have been shown before this time, or before the end."""
        if self._is_gap and self._last is not None:
            first_lost = self._last + self._interval
            if self._latest is not None and self._latest > self._last:
                first_lost = min(first_lost, self._latest)
            if time is None or first_lost < time:
                yield Picture(time=first_lost, duration=None, render=_never, is_damaged=True)
        self._is_gap = False

    def covers(self, one: Decoded, time: Fraction) -> bool:
        """Whether a picture is in doubt, or ends it."""
        if one.is_corrupt:
            self._is_on = True
        elif one.is_key and (self._latest is None or time > self._latest):
            self._is_on = False
        self._last = time
        return self._is_on


def _never() -> Frame:
    raise AssertionError("a damaged picture is not shown")

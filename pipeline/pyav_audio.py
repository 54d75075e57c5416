"""Sound through PyAV: every channel at the stream's own rate, laid on the pictures' time line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from itertools import chain
from typing import Any

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.codec import Codec
from av.codec.codec import UnknownCodecError
from av.container import InputContainer
from numpy.typing import NDArray

from latents.errors import DecodeError, MissingSoundError
from pipeline.pyav_video import decode_errors, open_file
from pipeline.sound_placement import (
    PlacedBlock,
    SoundBlock,
    place_blocks,
    without_false_times,
)

SAMPLE_RATES = range(1000, 768_001)
"""Hz, of the sound that is accepted. What states another rate is damaged: no recording has it, and
mel images could not be made of it."""

_UNTIMED_FORMATS = frozenset({"avi"})
"""Containers that hold no timestamps; what FFmpeg makes up from their headers can be far off."""

_Samples = NDArray[np.float32]

_log = logging.getLogger(__name__)


class PyavSound:
    """The sound of one audio stream, decoded as it is asked for.

    A packet that cannot be decoded leaves a gap, and a file that breaks off ends the sound: both
    are then missing from what `read` says is present.

    Raises:
        MissingSoundError: Nothing of the stream can be decoded.
        DecodeError: Its rate is not one of `SAMPLE_RATES`.
    """

    def __init__(
        self, container: InputContainer, stream: AudioStream, *, source: str, start_time: Fraction
    ) -> None:
        self._source, self._start_time = source, start_time
        self._frames = _decode_frames(container, stream)
        first = next(self._frames, None)
        if first is None:
            raise MissingSoundError(
                source, f"its audio stream ({stream.codec_context.name}) holds no sound"
            )
        self.sample_rate = first.sample_rate
        self._num_channels = first.layout.nb_channels
        self._check_rate()
        self._change: DecodeError | None = None
        self._blocks = self._place(
            first,
            is_timed=container.format.name not in _UNTIMED_FORMATS,
            is_vorbis=stream.codec_context.name == "vorbis",
        )
        self._block: PlacedBlock | None = next(self._blocks, None)

    def read(self, first_sample: int, num_samples: int) -> tuple[_Samples, NDArray[np.bool_]]:
        """Sound (channel, sample), zero where there is none, and where there is some (sample).

        Raises:
            DecodeError: The rate or the number of channels changes on the way.
        """
        waveform = np.zeros((self._num_channels, num_samples), np.float32)
        present = np.zeros(num_samples, np.bool_)
        stop_sample = first_sample + num_samples
        while self._block is not None:
            block = self._block
            first, stop = max(block.position, first_sample), min(block.stop, stop_sample)
            if first < stop:
                waveform[:, first - first_sample : stop - first_sample] = block.samples[
                    :, first - block.position : stop - block.position
                ]
                present[first - first_sample : stop - first_sample] = True
            if block.stop >= stop_sample:
                # Kept, since the next clip may begin within it.
                break
            self._block = next(self._blocks, None)
        return waveform, present

    def _place(
        self, first: AudioFrame, *, is_timed: bool, is_vorbis: bool
    ) -> Iterator[PlacedBlock]:
        rate = self.sample_rate
        stated = self._stated_blocks(first)
        blocks = stated if is_timed else without_false_times(stated, sample_rate=rate)
        yield from place_blocks(blocks, sample_rate=rate, biased_by_length=is_vorbis)
        # Only now: blocks are read ahead, and those before the change are sound all the same.
        if self._change is not None:
            raise self._change

    def _stated_blocks(self, first: AudioFrame) -> Iterator[SoundBlock]:
        """Blocks until the rate or the number of channels changes, where they say they lie."""
        wanted = (self.sample_rate, self._num_channels)
        for frame in chain([first], self._frames):
            found = (frame.sample_rate, frame.layout.nb_channels)
            if found != wanted:
                self._change = DecodeError(
                    self._source,
                    f"its sound changes from {wanted[0]} Hz and {wanted[1]} channels "
                    f"to {found[0]} Hz and {found[1]} channels",
                )
                return
            yield SoundBlock(samples=_to_float(frame), stated=self._stated_position(frame))

    def _stated_position(self, frame: AudioFrame) -> int | None:
        if frame.pts is None or frame.time_base is None:
            return None
        return round((frame.pts * frame.time_base - self._start_time) * self.sample_rate)

    def _check_rate(self) -> None:
        if self.sample_rate not in SAMPLE_RATES:
            raise DecodeError(
                self._source,
                f"its sound is said to have {self.sample_rate} samples a second; "
                f"{SAMPLE_RATES.start} to {SAMPLE_RATES.stop - 1} are accepted",
            )


@contextmanager
def open_sound(path: str, *, source: str, start_time: Fraction) -> Iterator[PyavSound | None]:
    """The best audio stream of a file, or None if it has none that can be decoded.

    Args:
        path: Local file.
        source: URI, for messages.
        start_time: Presentation time, in seconds, of sample 0, as FFmpeg states it of pictures.

    Raises:
        DecodeError: The file cannot be opened, or its sound has a rate out of `SAMPLE_RATES`.
        MissingSoundError: There is an audio stream, but no sound in it.
    """
    with open_file(path, source=source) as container:
        if container.format.name in _UNTIMED_FORMATS:
            start_time -= _invented_delay(path, source=source)
        stream = container.streams.best("audio")
        # The best of all streams, not of those that FFmpeg has a decoder for.
        if isinstance(stream, AudioStream) and stream.codec_context is not None:
            yield PyavSound(container, stream, source=source, start_time=start_time)
        else:
            yield None


def _invented_delay(path: str, *, source: str) -> Fraction:
    """Seconds by which FFmpeg puts pictures later than their packets, in a file that does neither.

    It allows for pictures that may be out of order, in pictures alone: AVI shows the first one at
    the time of its packet, and sound is counted from there.
    """
    with (
        open_file(path, source=source) as container,
        decode_errors(source, "its packets cannot be read"),
    ):
        stream = container.streams.best("video")
        if stream is None:
            return Fraction(0)
        packet = next(container.demux(stream))
        if packet.pts is None or packet.dts is None:
            return Fraction(0)
        return Fraction((packet.pts - packet.dts) * packet.time_base)


def _decode_frames(container: InputContainer, stream: AudioStream) -> Iterator[AudioFrame]:
    packets = container.demux(stream)
    decoder = _decoder_of(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.FFmpegError, IndexError):
            # The file breaks off, or another stream begins in its middle, which PyAV cannot
            # follow; the pictures' decoder says so if it matters to them.
            return
        if packet is None:
            return
        try:
            yield from [frame for frame in decoder.decode(packet) if not frame.is_corrupt]
        except av.FFmpegError:
            # One bad packet is a gap, which the timestamps of the next ones show.
            continue


def _decoder_of(stream: AudioStream) -> AudioCodecContext:
    """FFmpeg's own decoder of a stream, or libopus for Opus."""
    built_in: AudioCodecContext = stream.codec_context
    libopus = _libopus() if built_in.codec.canonical_name == "opus" else None
    if libopus is None:
        return built_in
    decoder = libopus.create("audio")
    # The header: channels, gain, and how many samples at the start are not to be heard.
    decoder.extradata = built_in.extradata
    decoder.options = {
        # Its default, integers, is cut off at full scale.
        "request_sample_fmt": "flt",
        # Without it, timestamps would not move with the samples that are left out.
        "pkt_timebase": str(stream.time_base),
    }
    return decoder


@cache
def _libopus() -> Codec | None:
    """The reference decoder of Opus, or None, with a warning, where FFmpeg comes without it.

    FFmpeg's own turns whistles, bird song and the like into noise at full scale wherever the Opus
    encoder took them for speech, as it does at low bit rates.
    """
    try:
        return Codec("libopus", "r")
    except UnknownCodecError:
        _log.warning(
            "PyAV's FFmpeg has no libopus; Opus sound is decoded by FFmpeg's own decoder, which "
            "turns some of it into noise. Install PyAV from its wheels."
        )
        return None


def _to_float(frame: AudioFrame) -> _Samples:
    """Samples (channel, sample) in [-1, 1], from integers or floats, packed or planar."""
    stored: NDArray[Any] = frame.to_ndarray()
    if frame.format.is_packed:
        stored = stored.reshape(-1, frame.layout.nb_channels).T
    samples: _Samples = stored.astype(np.float32)
    if stored.dtype == np.uint8:
        samples = (samples - 128) / np.float32(128)
    elif np.issubdtype(stored.dtype, np.integer):
        samples /= np.float32(-float(np.iinfo(stored.dtype).min))
    return samples

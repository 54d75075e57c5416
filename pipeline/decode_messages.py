"""What the decoding process says to its parent, which does not trust it.

A file may take over a native decoder, and with it the process. So a message is a JSON header and
the bytes of arrays, never a pickle. Each number is compared with what was asked for before room is
made for an array, and whose clip it is, the parent knows by itself.
"""

from __future__ import annotations

import json
import os
import select
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latents.clip import Clip, ClipKey, ClipSpec
from latents.errors import (
    ClipError,
    DecodeError,
    MissingSoundError,
    SilentSoundError,
    TooShortError,
)
from pipeline.decode import DecodeEvent, SegmentRejected, SourceDecoded, SourceTask

Request = tuple[SourceTask, dict[str, Any]]
"""A source, and the keyword arguments to decode it with, ``clip_spec`` among them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodingFailed:
    """An error that decoding raised, where it should have rejected the source."""

    traceback: str
    is_import: bool
    """A module was not there or did not load: every source would fail so."""

    @property
    def last_line(self) -> str:
        """The error's class and message."""
        lines = self.traceback.split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


Message = DecodeEvent | DecodingFailed | None
"""None is a sign of life."""

LOOK_SECONDS = 0.1
"""Between two looks at something else while a message is waited for."""

_LENGTH = struct.Struct("<I")
_MAX_HEADER_BYTES = 2**17
_MAX_TEXT = 8000
"""Characters for people to read."""
_MAX_SEGMENTS = 2**24
_MAX_CHANNELS = 256
_MAX_SAMPLE_RATE = 2**22
_MAX_SOUND_BYTES = 2**31
"""Of one clip: far more than a recording has, and little enough to hold."""
_ERRORS: dict[str, type[ClipError]] = {
    error.__name__: error
    for error in (DecodeError, MissingSoundError, SilentSoundError, TooShortError)
}


def send_message(connection: Connection, message: Message) -> None:
    """Sends a message; arrays go as they lie in memory."""
    header, arrays = _describe(message)
    text = json.dumps(header).encode()
    for part in (memoryview(_LENGTH.pack(len(text)) + text), *map(_memory, arrays)):
        rest = part
        while rest:
            rest = rest[os.write(connection.fileno(), rest) :]


def receive_message(
    connection: Connection,
    request: Request | None,
    *,
    limit_seconds: float,
    look: Callable[[], None] = lambda: None,
) -> Message:
    """Receives what `send_message` sent; its arrays are writable.

    Args:
        connection: From the decoding process.
        request: What it was asked; None: nothing yet.
        limit_seconds: Longest wait for any part of the message.
        look: Called before each part, and every `LOOK_SECONDS` of a wait; what it raises ends it.

    Raises:
        EOFError: The other side is gone.
        TimeoutError: Nothing more comes.
        ValueError: That cannot be an answer to what was asked.
    """
    pipe = _Pipe(connection, limit_seconds, look)
    header = _read_header(pipe)
    kind = header.get("kind")
    if kind == "alive":
        return None
    if kind == "failed":
        return _failure(header)
    if request is None:
        raise ValueError("it came before anything was asked")
    task, options = request
    if kind == "decoded":
        return SourceDecoded(num_segments=_number(header, "num_segments", 0, _MAX_SEGMENTS))
    if kind == "rejected":
        return _rejection(header, task)
    if kind == "clip":
        return _clip(header, task, options["clip_spec"], pipe)
    raise ValueError(f"its kind is {str(kind)[:100]!r}")


def _describe(message: Message) -> tuple[dict[str, object], tuple[NDArray[Any], ...]]:
    """The header of a message, and the arrays that follow it."""
    if message is None:
        return {"kind": "alive"}, ()
    if isinstance(message, DecodingFailed):
        text = message.traceback[-_MAX_TEXT:]
        return {"kind": "failed", "traceback": text, "is_import": message.is_import}, ()
    if isinstance(message, SourceDecoded):
        return {"kind": "decoded", "num_segments": message.num_segments}, ()
    if isinstance(message, SegmentRejected):
        error, reason = type(message.error).__name__, message.error.reason[:_MAX_TEXT]
        return (
            {"kind": "rejected", "segment": message.segment, "error": error, "reason": reason},
            (),
        )
    header: dict[str, object] = {
        "kind": "clip",
        "segment": message.segment,
        "start_frame": message.key.start_frame,
        "frames": message.frames.shape,
        "waveform": message.waveform.shape,
        "sample_rate": message.sample_rate,
        "sound_first_frame": message.sound_first_frame,
        "sound_stop_frame": message.sound_stop_frame,
    }
    return header, (message.frames, message.waveform)


def _read_header(pipe: _Pipe) -> dict[str, Any]:
    (num_bytes,) = _LENGTH.unpack(pipe.read(_LENGTH.size))
    if num_bytes > _MAX_HEADER_BYTES:
        raise ValueError(f"its header has {num_bytes} bytes")
    try:
        header = json.loads(pipe.read(num_bytes))
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return header


def _failure(header: Mapping[str, Any]) -> DecodingFailed:
    is_import = header.get("is_import")
    if not isinstance(is_import, bool):
        raise ValueError(f"its is_import is {str(is_import)[:100]}, neither true nor false")
    return DecodingFailed(traceback=_text(header, "traceback"), is_import=is_import)


def _rejection(header: Mapping[str, Any], task: SourceTask) -> SegmentRejected:
    name, segment = header.get("error"), header.get("segment")
    if not isinstance(name, str) or name not in _ERRORS:
        raise ValueError(f"its error is {str(name)[:100]!r}")
    return SegmentRejected(
        segment=None if segment is None else _number(header, "segment", 0, _MAX_SEGMENTS),
        error=_ERRORS[name](task.uri, _text(header, "reason")),
    )


def _clip(header: Mapping[str, Any], task: SourceTask, clip_spec: ClipSpec, pipe: _Pipe) -> Clip:
    segment = _number(header, "segment", 0, _MAX_SEGMENTS)
    start_frame = segment * clip_spec.segment_frames
    sample_rate = _number(header, "sample_rate", 1, _MAX_SAMPLE_RATE)
    num_frames, *picture = _shape(header, "frames")
    most_frames = clip_spec.segment_frames + clip_spec.tail_frames
    if not 1 <= num_frames <= most_frames or picture != [3, clip_spec.size, clip_spec.size]:
        raise ValueError(f"its frames have the shape {header['frames']}")
    num_samples = clip_spec.num_samples(num_frames, sample_rate)
    num_channels, *sound = _shape(header, "waveform")
    most_channels = min(_MAX_CHANNELS, _MAX_SOUND_BYTES // max(1, 4 * num_samples))
    if not 1 <= num_channels <= most_channels or sound != [num_samples]:
        raise ValueError(f"its waveform has the shape {header['waveform']}")
    sound_stop_frame = _number(header, "sound_stop_frame", 0, num_frames)
    return Clip(
        key=ClipKey(
            source_digest=task.digest,
            start_frame=_number(header, "start_frame", start_frame, start_frame),
            fps=clip_spec.fps,
        ),
        source=task.uri,
        segment=segment,
        sample_rate=sample_rate,
        sound_first_frame=_number(header, "sound_first_frame", 0, sound_stop_frame),
        sound_stop_frame=sound_stop_frame,
        frames=pipe.read_array(np.uint8, (num_frames, *picture)),
        waveform=pipe.read_array(np.float32, (num_channels, num_samples)),
    )


class _Pipe:
    """A pipe that may fall silent at any byte.

    Args:
        connection: Its reading end.
        limit_seconds: Longest wait for the next bytes.
        look: Called before each read, and every `LOOK_SECONDS` of a wait.
    """

    def __init__(
        self, connection: Connection, limit_seconds: float, look: Callable[[], None]
    ) -> None:
        self._descriptor = connection.fileno()
        self._limit_seconds = limit_seconds
        self._look = look
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN)

    def read(self, num_bytes: int) -> bytearray:
        content = bytearray(num_bytes)
        self._fill(memoryview(content))
        return content

    def read_array(self, dtype: type[Any], shape: Iterable[int]) -> NDArray[Any]:
        array: NDArray[Any] = np.empty(tuple(shape), dtype)
        self._fill(_memory(array))
        return array

    def _fill(self, rest: memoryview) -> None:
        while rest:
            self._await_bytes()
            num_bytes = os.readv(self._descriptor, [rest])
            if num_bytes == 0:
                raise EOFError
            rest = rest[num_bytes:]

    def _await_bytes(self) -> None:
        deadline = time.monotonic() + self._limit_seconds
        while True:
            self._look()
            rest_seconds = max(0.0, deadline - time.monotonic())
            if self._poll.poll(1000 * min(LOOK_SECONDS, rest_seconds)):
                return
            if not rest_seconds:
                raise TimeoutError


def _memory(array: NDArray[Any]) -> memoryview:
    """An array's bytes; `memoryview.cast` refuses an empty one."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _number(header: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value = header.get(name)
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"its {name} is {str(value)[:100]}, not from {least} to {most}")
    return value


def _shape(header: Mapping[str, Any], name: str) -> list[int]:
    shape = header.get(name)
    if not isinstance(shape, list) or not shape or any(type(length) is not int for length in shape):
        raise ValueError(f"its {name} have the shape {str(shape)[:100]}")
    return shape


def _text(header: Mapping[str, Any], name: str) -> str:
    text = header.get(name)
    if not isinstance(text, str) or len(text) > _MAX_TEXT:
        raise ValueError(f"its {name} is no text")
    return text.encode(errors="replace").decode()  # half a surrogate pair could not be stored

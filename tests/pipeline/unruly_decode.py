"""Functions that stand in for `decode_source` in child processes, and do there what files do."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from latents.clip import Clip, ClipKey
from latents.errors import DecodeError
from pipeline.decode import (
    DecodeEvent,
    SegmentRejected,
    SourceDecoded,
    SourceTask,
    decode_source,
)

NOTES = "UNRULY_NOTES"
"""Environment variable that names a file, which gets a line for each attempt."""

TARGET = "UNRULY_TARGET"
"""Environment variable: a source, a segment of it, and what happens there."""


def some_clip(segment: int, num_frames: int = 2) -> Clip:
    return Clip(
        key=ClipKey(source_digest="0" * 64, start_frame=20 * segment, fps=10),
        source="somewhere",
        segment=segment,
        frames=np.full((num_frames, 3, 32, 32), segment, np.uint8),
        waveform=np.zeros((1, 800 * num_frames), np.float32),
        sample_rate=8000,
        sound_first_frame=0,
        sound_stop_frame=num_frames,
    )


def misbehave(
    source: SourceTask,
    *,
    on_progress: Callable[[], None] = lambda: None,
    backend: str = "decord",
    **_: object,
) -> Iterator[DecodeEvent]:
    """Gives clips, then does what the source's URI says."""
    num_clips, _, deed = source.uri.rpartition(" clips, then ")
    attempt = _note(backend)
    on_progress()
    for segment in range(int(num_clips or 0)):
        if segment not in source.skip_segments:
            yield some_clip(segment)
    match deed:
        case "pickle":
            # Of something that makes the file "unpickled" in the working folder.
            os.write(int(sys.argv[2]), pickle.dumps(_Payload()))
            time.sleep(60)
        case "stop in the middle":
            os.write(int(sys.argv[2]), b"\x10\x00\x00\x00{")
            time.sleep(60)
        case "work slowly":
            for _ in range(6):
                time.sleep(0.25)
                on_progress()
        case "grow under signs of life":
            held = []
            while True:
                held.append(bytearray(os.urandom(2**20)) * 4)
                on_progress()
        case "reject":
            yield SegmentRejected(segment=None, error=DecodeError(source.uri, "no picture"))
        case "crash unless it is PyAV":
            if backend != "pyav":
                _do("segfault", attempt)
        case "one clip an attempt":
            yield some_clip(attempt + int(num_clips) - 1)
            if attempt < 4:
                _do("segfault", attempt)
            yield SourceDecoded(num_segments=4 + int(num_clips))
            return
        case _:
            _do(deed, attempt)
    yield SourceDecoded(num_segments=int(num_clips or 0))


def misbehave_at_target(source: SourceTask, **options: Any) -> Iterator[DecodeEvent]:
    """Decodes, and at the segment that the environment names does what it names."""
    uri, segment, deed = os.environ[TARGET].split(" ", 2)
    if source.uri != uri:
        yield from decode_source(source, **options)
        return
    attempt = _note(options["backend"])
    for event in decode_source(source, **options):
        if isinstance(event, Clip) and event.segment == int(segment):
            _do(deed, attempt)
        yield event


def _do(deed: str, attempt: int) -> None:
    match deed:
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exit":
            sys.stderr.write("[h264 @ 0x1] the last words\n\n")
            sys.stderr.flush()
            os._exit(3)
        case "hang":
            time.sleep(60)
        case "grow":
            held = []
            while True:
                held.append(np.ones(50 * 2**20, np.uint8))
                time.sleep(0.02)
        case "hang once":
            time.sleep(60 if attempt == 1 else 0)
        case "be killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "be killed once":
            if attempt == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        case "memory error":
            raise MemoryError("no room for a picture")
        case "attribute error":
            raise AttributeError("'NoneType' object has no attribute 'thread_count'")
        case "import error":
            raise ModuleNotFoundError("No module named 'av'")


def _note(line: str) -> int:
    """Notes an attempt; how many there have been with it, or 0 where none are counted."""
    path = os.environ.get(NOTES)
    if path is None:
        return 0
    with Path(path).open("a") as notes:
        notes.write(f"{line}\n")
    return len(Path(path).read_text().splitlines())


class _Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch unpickled",)


def count_clips(source: SourceTask, **_: object) -> Iterator[DecodeEvent]:
    """Gives large clips and notes each in the file that the source's URI names."""
    for segment in range(50):
        with Path(source.uri).open("a") as notes:
            notes.write(".")
        yield some_clip(segment, num_frames=30)
    yield SourceDecoded(num_segments=50)

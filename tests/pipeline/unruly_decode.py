"""Functions that stand in for `decode_source` in the child process of `test_isolation`."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from latents.clip import Clip, ClipKey
from latents.errors import DecodeError
from pipeline.decode import DecodeEvent, SegmentRejected, SourceDecoded, SourceTask


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
    source: SourceTask, *, on_progress: Callable[[], None], **_: object
) -> Iterator[DecodeEvent]:
    """Gives clips, then does what the source's URI says."""
    num_clips, _, deed = source.uri.rpartition(" clips, then ")
    on_progress()
    for segment in range(int(num_clips or 0)):
        yield some_clip(segment)
    match deed:
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exit":
            sys.stderr.write("[h264 @ 0x1] the last words\n\n")
            sys.stderr.flush()
            os._exit(3)
        case "hang":
            time.sleep(60)
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
        case "fail":
            raise ZeroDivisionError("a bug of ours")
        case "reject":
            yield SegmentRejected(segment=None, error=DecodeError(source.uri, "no picture"))
    yield SourceDecoded(num_segments=int(num_clips or 0))


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

"""What the decoding process says is carried whole, and believed as far as it can be true."""

from __future__ import annotations

import json
import os
import pickle
import struct
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from latents.clip import Clip, ClipKey, ClipSpec
from latents.errors import DecodeError, MissingSoundError, SilentSoundError, TooShortError
from pipeline.decode import SegmentRejected, SourceDecoded, SourceTask
from pipeline.decode_messages import DecodingFailed, Message, receive_message, send_message
from pipeline.scene_clips import SceneRef
from tests.mutations import damaged, hostile_json, hostile_value

SPEC = ClipSpec(size=8, segment_seconds=1, tail_frames=5)
TASK = SourceTask(
    uri="scenes:0:0:1", path=None, scene=SceneRef(seed=0, index=0, seconds=1), digest="0" * 64
)
REQUEST = TASK, {"clip_spec": SPEC}


def a_clip(num_frames: int = 12, *, channels: int = 2) -> Clip:
    generator = np.random.default_rng(0)
    num_samples = SPEC.num_samples(num_frames, 1000)
    return Clip(
        key=ClipKey(source_digest=TASK.digest, start_frame=30, fps=10),
        source=TASK.uri,
        segment=3,
        frames=generator.integers(0, 256, (num_frames, 3, 8, 8), np.uint8),
        waveform=generator.normal(size=(channels, num_samples)).astype(np.float32),
        sample_rate=1000,
        sound_first_frame=1,
        sound_stop_frame=num_frames,
    )


MESSAGES: dict[str, Message] = {
    "alive": None,
    "failed": DecodingFailed(traceback="Traceback: a bug of ours", is_import=False),
    "decoded": SourceDecoded(num_segments=7),
    "rejected": SegmentRejected(segment=2, error=TooShortError(TASK.uri, "too short")),
    "all rejected": SegmentRejected(segment=None, error=DecodeError(TASK.uri, "broken")),
    "clip": a_clip(),
}


@contextmanager
def pipe() -> Iterator[tuple[Connection, Connection]]:
    reading, writing = os.pipe()
    with (
        Connection(reading, writable=False) as reader,
        Connection(writing, readable=False) as other,
    ):
        yield reader, other


def written(message: Message) -> bytes:
    """A message as it goes through the pipe."""
    with pipe() as (reader, writer):
        send_message(writer, message)
        return os.read(reader.fileno(), 2**16)


def received(content: bytes) -> Message:
    """What is made of some bytes after which nothing comes."""
    with pipe() as (reader, writer):
        os.write(writer.fileno(), content)
        writer.close()
        return receive_message(reader, REQUEST, limit_seconds=5)


def described(message: Message) -> object:
    """A message as values that can be compared."""
    if isinstance(message, Clip):
        tensors = message.frames.tobytes(), message.waveform.tobytes()
        span = message.sound_first_frame, message.sound_stop_frame
        return message.key, message.source, message.segment, message.sample_rate, span, tensors
    if isinstance(message, SegmentRejected):
        return message.segment, type(message.error), str(message.error)
    return message


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a message and what follows it."""
    end = 4 + int.from_bytes(content[:4], "little")
    return json.loads(content[4:end]), content[end:]


def with_header(header: bytes, rest: bytes) -> bytes:
    return struct.pack("<I", len(header)) + header + rest


def clip_with(**changes: object) -> bytes:
    """A clip's message that says something else of it."""
    header, rest = split(written(a_clip()))
    return with_header(json.dumps({**header, **changes}).encode(), rest)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_arrives_as_it_was_sent(name: str) -> None:
    assert described(received(written(MESSAGES[name]))) == described(MESSAGES[name])


@pytest.mark.parametrize("error", [DecodeError, MissingSoundError, SilentSoundError, TooShortError])
def test_every_error_of_decoding_arrives(error: type[DecodeError]) -> None:
    sent = SegmentRejected(segment=1, error=error(TASK.uri, "why"))

    assert described(received(written(sent))) == described(sent)


def test_a_clip_larger_than_the_pipe_arrives_and_may_be_written_to() -> None:
    clip = a_clip(15, channels=40)
    with pipe() as (reader, writer):
        thread = threading.Thread(target=send_message, args=(writer, clip))
        thread.start()
        arrived = receive_message(reader, REQUEST, limit_seconds=5)
        thread.join()

    assert clip.num_bytes > 2**17
    assert isinstance(arrived, Clip)
    assert described(arrived) == described(clip)
    assert arrived.frames.flags.writeable


def test_a_clip_without_a_sample_arrives() -> None:
    clip = a_clip()
    silent = Clip(
        **{name: getattr(clip, name) for name in clip.__slots__}
        | {"sample_rate": 1, "frames": clip.frames[:1], "waveform": np.zeros((1, 0), np.float32)}
        | {"sound_stop_frame": 1}
    )

    assert described(received(written(silent))) == described(silent)


def test_whose_clip_it_is_the_parent_knows_by_itself() -> None:
    arrived = received(clip_with(source="/etc/passwd", digest="f" * 64, fps=120))

    assert isinstance(arrived, Clip)
    assert arrived.source == TASK.uri
    assert arrived.key == ClipKey(source_digest=TASK.digest, start_frame=30, fps=10)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_mutilated_message_is_another_that_could_be_or_none(name: str) -> None:
    whole = written(MESSAGES[name])
    header, rest = split(whole)
    others = [written(message) for message in MESSAGES.values()]
    num_refused = 0
    for seed in range(500):
        random = Random(f"{name} {seed}")
        match seed % 3:
            case 0:
                content = damaged(whole, random, others)
            case 1:
                content = with_header(hostile_json(header, random), rest)
            case _:
                text = json.dumps(hostile_value(header, random))
                content = with_header(text.encode(), rest)
        try:
            arrived = received(content[: 2**16])  # as much as the pipe takes
        except (ValueError, EOFError):
            num_refused += 1
            continue
        if isinstance(arrived, Clip):
            assert arrived.frames.shape[1:] == (3, 8, 8)
            assert len(arrived.frames) <= 15
            assert arrived.key.source_digest == TASK.digest
    assert num_refused > 200


@pytest.mark.parametrize(
    "changes",
    [
        {"frames": [16, 3, 8, 8], "waveform": [2, 1600]},
        {"frames": [0, 3, 8, 8], "waveform": [2, 0]},
        {"frames": [12, 3, 8, 2**40]},
        {"frames": [2**40, 3, 8, 8]},
        {"frames": [12, 3, 8]},
        {"frames": [True, 3, 8, 8]},
        {"frames": "12388"},
        {"waveform": [2**31, 1200]},
        {"waveform": [257, 1200]},
        {"waveform": [2, 1201]},
        {"waveform": []},
        {"sample_rate": 0},
        {"sample_rate": 2**40},
        {"segment": -1},
        {"segment": 2**40},
        {"segment": 2},
        {"start_frame": 31},
        {"sound_stop_frame": 13},
        {"sound_first_frame": 13},
        {"sound_first_frame": -1},
        {"kind": "picture"},
        {"kind": None},
    ],
)
def test_a_clip_that_was_not_asked_for_is_refused_before_room_is_made_for_it(
    changes: dict[str, object],
) -> None:
    content = clip_with(**changes)

    tracemalloc.start()
    with pytest.raises(ValueError, match="its "):
        received(content)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 2**20


@pytest.mark.parametrize("num_segments", [-1, 2**40, 1.5, None, "7", True])
def test_a_source_has_as_many_segments_as_it_can(num_segments: object) -> None:
    header = json.dumps({"kind": "decoded", "num_segments": num_segments}).encode()

    with pytest.raises(ValueError, match="its num_segments"):
        received(with_header(header, b""))


@pytest.mark.parametrize("error", ["DecoderCrashedError", "SystemExit", "", None, [], "a" * 1000])
def test_an_error_that_decoding_does_not_raise_is_refused(error: object) -> None:
    value = {"kind": "rejected", "segment": None, "error": error, "reason": ""}

    with pytest.raises(ValueError, match="its error"):
        received(with_header(json.dumps(value).encode(), b""))


@pytest.mark.parametrize("content", [b"\xff\xff\xff\xff", struct.pack("<I", 2**17 + 1)])
def test_a_header_beyond_measure_is_refused_unread(content: bytes) -> None:
    with pytest.raises(ValueError, match="its header has"):
        received(content)


@pytest.mark.parametrize("text", [b"[" * 50_000, b"[]", b"1", b"", b"\xff", b"NaN"])
def test_a_header_that_is_none_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        received(with_header(text, b""))


def test_half_a_character_becomes_a_question_mark() -> None:
    value = {"kind": "failed", "traceback": "caf\udce9", "is_import": False}

    arrived = received(with_header(json.dumps(value).encode(), b""))

    assert arrived == DecodingFailed(traceback="caf?", is_import=False)


@pytest.mark.parametrize("is_import", [None, 1, "true", []])
def test_a_failure_says_plainly_whether_a_module_is_missing(is_import: object) -> None:
    value = {"kind": "failed", "traceback": "", "is_import": is_import}

    with pytest.raises(ValueError, match="its is_import"):
        received(with_header(json.dumps(value).encode(), b""))


def test_the_last_line_of_a_failure_is_its_error() -> None:
    failed = DecodingFailed(traceback="Traceback:\n  File\nKeyError: 'x'\n", is_import=False)

    assert failed.last_line == "KeyError: 'x'"
    assert DecodingFailed(traceback="", is_import=False).last_line == ""


class LookedEnoughError(Exception):
    pass


def test_a_look_around_ends_a_wait_however_long_its_limit() -> None:
    num_looks = 0

    def look() -> None:
        nonlocal num_looks
        num_looks += 1
        if num_looks == 3:
            raise LookedEnoughError

    with pipe() as (reader, _), pytest.raises(LookedEnoughError):
        receive_message(reader, REQUEST, limit_seconds=60, look=look)


def test_it_looks_around_when_there_is_nothing_to_wait_for_too() -> None:
    looks: list[None] = []
    with pipe() as (reader, writer):
        send_message(writer, a_clip())
        receive_message(reader, REQUEST, limit_seconds=5, look=lambda: looks.append(None))

    assert len(looks) >= 3  # the header's length, the header, the pictures, the sound


def test_only_signs_of_life_and_faults_come_before_anything_is_asked() -> None:
    with pipe() as (reader, writer):
        send_message(writer, None)
        assert receive_message(reader, None, limit_seconds=5) is None
        send_message(writer, a_clip())
        with pytest.raises(ValueError, match="before anything was asked"):
            receive_message(reader, None, limit_seconds=5)


@pytest.mark.parametrize("num_bytes", [0, 3, 100, 3000])
def test_a_message_that_stops_anywhere_is_waited_for_no_longer_than_the_limit(
    num_bytes: int,
) -> None:
    with pipe() as (reader, writer):
        os.write(writer.fileno(), written(a_clip())[:num_bytes])
        with pytest.raises(TimeoutError):
            receive_message(reader, REQUEST, limit_seconds=0.05)
        writer.close()
        with pytest.raises((EOFError, ValueError)):
            receive_message(reader, REQUEST, limit_seconds=0.05)


class Payload:
    """What a process that was taken over would like its parent to unpickle."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.proof}",)


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    body = pickle.dumps((Payload(proof), []))
    for content in (body, struct.pack("!i", len(body)) + body, with_header(body, b"")):
        with pytest.raises((ValueError, EOFError)):
            received(content)
    assert not proof.exists()

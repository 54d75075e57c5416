"""A decoder in a child process survives what its sources do to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from latents.clip import Clip, ClipKey, ClipSpec, WindowSpec
from latents.errors import DecodeError, DecoderCrashedError, DecodeTimeoutError
from pipeline.decode import (
    DecodeEvent,
    SegmentRejected,
    SoundPolicy,
    SourceDecoded,
    SourceTask,
    decode_source,
)
from pipeline.isolation import IsolatedDecoder
from pipeline.scene_clips import SceneRef

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {
    "clip_spec": ClipSpec(size=32, segment_seconds=2, tail_frames=15),
    "window_spec": WindowSpec(frames=8),
    "sound": SoundPolicy(),
}


def task(uri: str, *, skip: frozenset[int] = frozenset(), seconds: int = 1) -> SourceTask:
    scene = SceneRef(seed=0, index=0, seconds=seconds)
    return SourceTask(uri=uri, path=None, scene=scene, digest="0" * 64, skip_segments=skip)


def some_clip(segment: int, num_frames: int = 2) -> Clip:
    return Clip(
        key=ClipKey(source_digest="0" * 64, start_frame=20 * segment, fps=10),
        source="somewhere",
        segment=segment,
        frames=np.full((num_frames, 3, 8, 8), segment, np.uint8),
        waveform=np.zeros((1, 1600), np.float32),
        sample_rate=8000,
        sound_first_frame=0,
        sound_stop_frame=num_frames,
    )


def misbehave(source: SourceTask, *, on_progress, **_: object) -> Iterator[DecodeEvent]:
    """Stands in for `decode_source` in the child: gives clips, then does what its URI says."""
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
        case "work slowly":
            for _ in range(8):
                time.sleep(0.1)
                on_progress()
        case "fail":
            raise ZeroDivisionError("a bug of ours")
        case "reject":
            yield SegmentRejected(segment=None, error=DecodeError(source.uri, "no picture"))
    yield SourceDecoded(num_segments=int(num_clips or 0))


def count_clips(source: SourceTask, **_: object) -> Iterator[DecodeEvent]:
    """Gives large clips and notes each in the file that its URI names."""
    for segment in range(50):
        with Path(source.uri).open("a") as notes:
            notes.write(".")
        yield some_clip(segment, num_frames=10_000)
    yield SourceDecoded(num_segments=50)


@pytest.fixture
def unruly(monkeypatch: pytest.MonkeyPatch) -> Iterator[IsolatedDecoder]:
    """A decoder whose child runs `misbehave` with half a second for each clip."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with IsolatedDecoder(
        time_limit_seconds=0.5, decode_function="test_isolation:misbehave"
    ) as decoder:
        yield decoder


def decode(decoder: IsolatedDecoder, source: SourceTask) -> list[DecodeEvent]:
    return list(decoder.decode(source, **OPTIONS))


def is_usable(decoder: IsolatedDecoder) -> bool:
    return decode(decoder, task("nothing")) == [SourceDecoded(num_segments=0)]


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_clips_are_those_of_decoding_in_process() -> None:
    source = task("scenes:0:0:4", seconds=4)

    with IsolatedDecoder() as decoder:
        events = [*decode(decoder, source), *decode(decoder, source)]

    expected = list(decode_source(source, **OPTIONS)) * 2
    assert [type(event) for event in events] == [type(event) for event in expected]
    for clip, wanted in zip(events, expected, strict=True):
        if isinstance(clip, Clip):
            assert (clip.key, clip.segment) == (wanted.key, wanted.segment)
            np.testing.assert_array_equal(clip.frames, wanted.frames)
            np.testing.assert_array_equal(clip.waveform, wanted.waveform)
            # torch.from_numpy warns of arrays that it may not write to.
            assert clip.frames.flags.writeable


def test_a_crash_is_charged_to_the_running_source_alone(unruly: IsolatedDecoder) -> None:
    rejected, end = decode(unruly, task("segfault"))

    assert rejected.segment is None
    assert isinstance(rejected.error, DecoderCrashedError)
    assert str(rejected.error) == "segfault: the decoder's process was killed by SIGSEGV"
    assert end == SourceDecoded(num_segments=0)
    assert is_usable(unruly)


def test_an_exit_is_a_crash_and_its_last_words_are_told(unruly: IsolatedDecoder) -> None:
    rejected, _ = decode(unruly, task("exit"))

    assert isinstance(rejected.error, DecoderCrashedError)
    assert rejected.error.reason == (
        "the decoder's process exited with status 3; it last said: [h264 @ 0x1] the last words"
    )
    # What one source made FFmpeg say is not told of the next.
    rejected, _ = decode(unruly, task("segfault"))
    assert rejected.error.reason.endswith("SIGSEGV")


def test_a_hanging_decoder_is_killed(unruly: IsolatedDecoder) -> None:
    started = time.monotonic()
    rejected, end = decode(unruly, task("hang"))

    assert time.monotonic() - started < 30
    assert rejected.segment is None
    assert isinstance(rejected.error, DecodeTimeoutError)
    assert "nothing for 0.5 s" in str(rejected.error)
    assert end == SourceDecoded(num_segments=0)
    assert is_usable(unruly)


@pytest.mark.parametrize(
    ("skip", "charged"), [(frozenset(), 2), (frozenset({2, 3}), 4), (frozenset({0}), 2)]
)
def test_segments_decoded_before_a_crash_stay_and_the_next_is_charged(
    unruly: IsolatedDecoder, skip: frozenset[int], charged: int
) -> None:
    *clips, rejected, end = decode(unruly, task("2 clips, then segfault", skip=skip))

    assert [clip.segment for clip in clips] == [0, 1]
    assert rejected.segment == charged
    assert end == SourceDecoded(num_segments=charged + 1)


def test_slow_work_that_shows_progress_is_left_alone(unruly: IsolatedDecoder) -> None:
    assert decode(unruly, task("work slowly")) == [SourceDecoded(num_segments=0)]


def test_time_that_the_consumer_takes_is_not_the_decoder_s(unruly: IsolatedDecoder) -> None:
    events = unruly.decode(task("2 clips, then end"), **OPTIONS)
    first = next(events)
    time.sleep(0.7)

    assert [first.segment, next(events).segment] == [0, 1]
    assert list(events) == [SourceDecoded(num_segments=2)]


def test_a_rejection_comes_through_with_its_error(unruly: IsolatedDecoder) -> None:
    rejected, _ = decode(unruly, task("reject"))

    assert isinstance(rejected.error, DecodeError)
    assert str(rejected.error) == "reject: no picture"


def test_our_own_fault_is_raised_with_its_traceback(unruly: IsolatedDecoder) -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a bug of ours"):
        decode(unruly, task("1 clips, then fail"))

    assert is_usable(unruly)


def test_a_decoder_that_cannot_start_says_why() -> None:
    with (
        IsolatedDecoder(decode_function="no_such_module:decode") as decoder,
        pytest.raises(RuntimeError, match="No module named 'no_such_module'"),
    ):
        decode(decoder, task("anything"))


def test_closing_the_iterator_early_leaves_the_decoder_usable(unruly: IsolatedDecoder) -> None:
    events = unruly.decode(task("2 clips, then hang"), **OPTIONS)
    next(events)
    events.close()

    assert is_usable(unruly)


def test_a_new_source_may_be_begun_before_the_last_was_ended(unruly: IsolatedDecoder) -> None:
    abandoned = unruly.decode(task("2 clips, then end"), **OPTIONS)
    next(abandoned)

    assert is_usable(unruly)
    assert [event for event in abandoned if isinstance(event, Clip)] != []


def test_taking_no_more_than_the_last_event_keeps_the_child(unruly: IsolatedDecoder) -> None:
    for _ in range(2):
        events = unruly.decode(task("nothing"), **OPTIONS)
        next(events)
        child = unruly._idle
        assert child is not None
        events.close()
        assert child.is_alive()
        assert unruly._idle is child


def test_clips_that_nobody_takes_hold_the_decoder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    notes = tmp_path / "notes"
    with IsolatedDecoder(decode_function="test_isolation:count_clips") as decoder:
        events = decoder.decode(task(str(notes)), **OPTIONS)
        next(events)
        time.sleep(0.3)

        # One is taken, one waits in the pipe.
        assert len(notes.read_text()) == 2


def test_ctrl_c_does_not_reach_the_child(unruly: IsolatedDecoder) -> None:
    assert is_usable(unruly)
    assert unruly._idle is not None
    pid = unruly._idle._process.pid

    assert os.getpgid(pid) != os.getpgid(0)
    os.kill(pid, signal.SIGINT)
    assert is_usable(unruly)
    assert unruly._idle._process.pid == pid


def test_close_ends_the_child_even_in_the_middle_of_a_source(unruly: IsolatedDecoder) -> None:
    events = unruly.decode(task("1 clips, then hang"), **OPTIONS)
    next(events)
    (child,) = unruly._busy

    unruly.close()

    assert not is_running(child._process.pid)
    assert is_usable(unruly)


def test_the_child_dies_with_its_parent_while_it_decodes() -> None:
    program = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "import test_isolation as t\n"
        "decoder = t.IsolatedDecoder(decode_function='test_isolation:misbehave')\n"
        "events = decoder.decode(t.task('1 clips, then hang'), **t.OPTIONS); next(events)\n"
        "print(next(iter(decoder._busy))._process.pid, flush=True)\n"
        "next(events)\n"
    )
    paths = [str(Path(__file__).parent), str(ROOT)]
    with subprocess.Popen(
        [sys.executable, "-c", program, *paths],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()

    deadline = time.monotonic() + 20
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)


def test_threads_decode_side_by_side_with_a_decoder_each() -> None:
    results: dict[int, list[DecodeEvent]] = {}

    def work(index: int) -> None:
        with IsolatedDecoder() as decoder:
            results[index] = decode(decoder, task(f"scenes:0:{index}:1"))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    expected, _ = decode_source(task("scenes:0:0:1"), **OPTIONS)
    for index in range(3):
        clip, end = results[index]
        np.testing.assert_array_equal(clip.frames, expected.frames)
        assert end == SourceDecoded(num_segments=1)


def test_the_child_never_loads_torch_and_scenes_load_no_decoder() -> None:
    program = (
        "import sys\n"
        "import pipeline.decode_child\n"
        "from pipeline.decode import *\n"
        "from pipeline.scene_clips import SceneRef\n"
        "from latents.clip import ClipSpec, WindowSpec\n"
        "task = SourceTask(uri='', path=None, digest='',\n"
        "                  scene=SceneRef(seed=0, index=0, seconds=1))\n"
        "list(decode_source(task, clip_spec=ClipSpec(size=8), window_spec=WindowSpec(frames=8),\n"
        "                   sound=SoundPolicy()))\n"
        "print(*{'torch', 'av', 'decord', 'PIL', 'ray'} & set(sys.modules))\n"
    )

    output = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert output.stdout.strip() == ""

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

from latents.clip import Clip, ClipSpec, WindowSpec
from latents.errors import DecodeError, DecoderCrashedError, DecodeTimeoutError
from pipeline.decode import (
    DecodeEvent,
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


def start(function: str, *, time_limit_seconds: float = 60) -> IsolatedDecoder:
    return IsolatedDecoder(
        time_limit_seconds=time_limit_seconds, decode_function=f"unruly_decode:{function}"
    )


@pytest.fixture(scope="module", autouse=True)
def stand_ins() -> Iterator[None]:
    """The child can import the functions that stand in for `decode_source`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        yield


@pytest.fixture(scope="module")
def unruly(stand_ins: None) -> Iterator[IsolatedDecoder]:
    """A decoder that does what a source's URI says. Shared: no test may leave it unusable."""
    with start("misbehave") as decoder:
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


def test_a_hanging_decoder_is_killed() -> None:
    with start("misbehave", time_limit_seconds=0.5) as decoder:
        started = time.monotonic()
        rejected, end = decode(decoder, task("hang"))

        assert time.monotonic() - started < 30
        assert rejected.segment is None
        assert isinstance(rejected.error, DecodeTimeoutError)
        assert "nothing for 0.5 s" in str(rejected.error)
        assert end == SourceDecoded(num_segments=0)
        assert is_usable(decoder)


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


def test_slow_work_that_shows_progress_is_left_alone() -> None:
    with start("misbehave", time_limit_seconds=1) as decoder:
        assert decode(decoder, task("work slowly")) == [SourceDecoded(num_segments=0)]

        # Nor does the time count that the consumer takes.
        events = decoder.decode(task("2 clips, then end"), **OPTIONS)
        first = next(events)
        time.sleep(1.2)
        assert [first.segment, next(events).segment] == [0, 1]
        assert list(events) == [SourceDecoded(num_segments=2)]


def test_a_rejection_comes_through_with_its_error(unruly: IsolatedDecoder) -> None:
    rejected, _ = decode(unruly, task("reject"))

    assert isinstance(rejected.error, DecodeError)
    assert str(rejected.error) == "reject: no picture"


def test_what_is_no_answer_is_charged_to_its_source_and_never_unpickled(
    unruly: IsolatedDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    clip, rejected, end = decode(unruly, task("1 clips, then pickle"))

    assert (clip.segment, rejected.segment) == (0, 1)
    assert isinstance(rejected.error, DecoderCrashedError)
    assert "the decoder's process gave what is no answer: its header" in str(rejected.error)
    assert end == SourceDecoded(num_segments=2)
    assert list(tmp_path.iterdir()) == []
    assert is_usable(unruly)


def test_a_decoder_that_stops_in_the_middle_of_a_message_is_killed() -> None:
    with start("misbehave", time_limit_seconds=0.5) as decoder:
        rejected, _ = decode(decoder, task("stop in the middle"))

        assert isinstance(rejected.error, DecodeTimeoutError)
        assert is_usable(decoder)


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


def test_clips_that_nobody_takes_hold_the_decoder_back(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    with start("count_clips") as decoder:
        events = decoder.decode(task(str(notes)), **OPTIONS)
        next(events)
        time.sleep(0.3)

        # One is taken, and one waits in the pipe.
        assert len(notes.read_text()) <= 2


def test_signals_meant_for_the_job_do_not_stop_the_child(unruly: IsolatedDecoder) -> None:
    assert is_usable(unruly)
    assert unruly._idle is not None
    pid = unruly._idle._process.pid

    assert os.getpgid(pid) != os.getpgid(0)
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
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
        "decoder = t.start('misbehave')\n"
        "events = decoder.decode(t.task('1 clips, then hang'), **t.OPTIONS); next(events)\n"
        "print(next(iter(decoder._busy))._process.pid, flush=True)\n"
        "next(events)\n"
    )
    paths = [str(Path(__file__).parent), str(ROOT)]
    with subprocess.Popen(
        [sys.executable, "-c", program, *paths], stdout=subprocess.PIPE
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

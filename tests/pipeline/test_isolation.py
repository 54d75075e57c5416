"""A decoder in a child process survives what its sources do to it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from latents.clip import Clip, ClipSpec, WindowSpec
from latents.errors import (
    DecodeError,
    DecoderCrashedError,
    DecoderFaultError,
    DecoderMemoryError,
    DecoderStartError,
    DecodeTimeoutError,
    WorkerDiedError,
)
from pipeline import decode_process
from pipeline.decode import (
    DecodeEvent,
    SoundPolicy,
    SourceDecoded,
    SourceTask,
    decode_source,
)
from pipeline.isolation import DecodeLimits, IsolatedDecoder
from pipeline.scene_clips import SceneRef
from tests.pipeline.unruly_decode import NOTES

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {
    "clip_spec": ClipSpec(size=32, segment_seconds=2, tail_frames=15),
    "window_spec": WindowSpec(frames=8),
    "sound": SoundPolicy(),
}


def task(uri: str, *, skip: frozenset[int] = frozenset(), seconds: int = 1) -> SourceTask:
    scene = SceneRef(seed=0, index=0, seconds=seconds)
    return SourceTask(uri=uri, path=None, scene=scene, digest="0" * 64, skip_segments=skip)


def start(
    function: str,
    *,
    time_seconds: float = 60,
    memory_bytes: int = 0,
    attempts: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
) -> IsolatedDecoder:
    limits = DecodeLimits(time_seconds=time_seconds, memory_bytes=memory_bytes, attempts=attempts)
    return IsolatedDecoder(
        limits=limits, should_stop=should_stop, decode_function=f"unruly_decode:{function}"
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


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where children that start from now on note the backend of each attempt."""
    monkeypatch.setenv(NOTES, str(tmp_path / "notes"))
    return tmp_path / "notes"


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
    with start("misbehave", time_seconds=0.5) as decoder:
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

    assert [clip.segment for clip in clips] == sorted({0, 1} - skip)
    assert rejected.segment == charged
    assert rejected.error.reason.endswith(
        f"; what lies behind segment {charged} could not be reached"
    )
    assert end == SourceDecoded(num_segments=charged + 1)


def test_slow_work_that_shows_progress_is_left_alone() -> None:
    with start("misbehave", time_seconds=1) as decoder:
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
    with start("misbehave", time_seconds=0.5) as decoder:
        rejected, _ = decode(decoder, task("stop in the middle"))

        assert isinstance(rejected.error, DecodeTimeoutError)
        assert is_usable(decoder)


@pytest.mark.parametrize(
    ("deed", "line"),
    [
        ("memory error", "MemoryError: no room for a picture"),
        ("attribute error", "AttributeError: 'NoneType' object has no attribute 'thread_count'"),
    ],
)
def test_a_fault_of_ours_or_of_a_library_is_charged_with_its_last_line(
    unruly: IsolatedDecoder, deed: str, line: str
) -> None:
    clip, rejected, end = decode(unruly, task(f"1 clips, then {deed}"))

    assert (clip.segment, rejected.segment) == (0, 1)
    assert isinstance(rejected.error, DecoderFaultError)
    assert rejected.error.reason.startswith(f"the decoder failed: {line}; ")
    assert end == SourceDecoded(num_segments=2)
    assert is_usable(unruly)


def test_a_missing_module_stops_the_job_and_is_told(unruly: IsolatedDecoder) -> None:
    with pytest.raises(DecoderStartError, match="No module named 'av'"):
        decode(unruly, task("1 clips, then import error"))

    assert is_usable(unruly)


def test_a_decoder_that_cannot_start_says_why() -> None:
    with (
        IsolatedDecoder(decode_function="no_such_module:decode") as decoder,
        pytest.raises(DecoderStartError, match="No module named 'no_such_module'"),
    ):
        decode(decoder, task("anything"))


@pytest.mark.parametrize(("num_killed", "starts"), [(2, True), (3, False)])
def test_a_child_that_is_killed_while_it_starts_is_started_again(
    num_killed: int, starts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[subprocess.Popen[bytes]] = []

    def popen(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        begun.append(subprocess.Popen(*arguments, **options))
        if len(begun) <= num_killed:
            begun[-1].kill()
        return begun[-1]

    patched = SimpleNamespace(**{**vars(subprocess), "Popen": popen})
    monkeypatch.setattr(decode_process, "subprocess", patched)
    with start("misbehave") as decoder:
        if starts:
            assert is_usable(decoder)
        else:
            with pytest.raises(DecoderStartError, match="killed by SIGKILL"):
                decode(decoder, task("1 clips"))
    assert len(begun) == 3


@pytest.mark.parametrize("deed", ["grow", "grow under signs of life"])
def test_a_decoder_that_runs_away_with_memory_is_killed_and_both_figures_are_told(
    deed: str,
) -> None:
    limit = 300
    with start("misbehave", memory_bytes=limit * 2**20) as decoder:
        rejected, end = decode(decoder, task(deed))

        assert isinstance(rejected.error, DecoderMemoryError)
        told = re.fullmatch(
            r"the decoder held (\d+) MiB of memory, over the 300 MiB of run.memory_limit_bytes, "
            r"and was killed",
            rejected.error.reason,
        )
        assert told is not None
        assert limit <= int(told[1]) < 10 * limit
        assert end == SourceDecoded(num_segments=0)
        assert is_usable(decoder)


def test_a_decoder_killed_from_outside_is_told_as_such_and_is_no_verdict_on_the_source(
    unruly: IsolatedDecoder,
) -> None:
    rejected, _ = decode(unruly, task("be killed"))

    assert isinstance(rejected.error, WorkerDiedError)
    assert rejected.error.reason == (
        "the decoder's process was killed by SIGKILL, as the system does when memory runs out"
    )


def test_a_child_killed_once_from_outside_costs_nothing(notes: Path) -> None:
    with start("misbehave", attempts=2) as decoder:
        events = decoder.decode(task("4 clips, then hang once"), **OPTIONS)
        first = next(events)
        (child,) = decoder._busy
        os.kill(child.process_id, signal.SIGKILL)
        rest = list(events)

    assert [first.segment, *(clip.segment for clip in rest[:-1])] == [0, 1, 2, 3]
    assert rest[-1] == SourceDecoded(num_segments=4)
    assert notes.read_text().split() == ["decord", "decord"]


def test_what_decord_does_not_survive_is_decoded_by_pyav(notes: Path) -> None:
    with start("misbehave", attempts=2) as decoder:
        *clips, end = decode(decoder, task("2 clips, then crash unless it is PyAV"))

    assert [clip.segment for clip in clips] == [0, 1]
    assert end == SourceDecoded(num_segments=2)
    assert notes.read_text().split() == ["decord", "pyav"]


@pytest.mark.parametrize("deed", ["segfault", "exit", "memory error"])
@pytest.mark.parametrize("attempts", [1, 3])
def test_attempts_at_a_segment_are_bounded(notes: Path, deed: str, attempts: int) -> None:
    with start("misbehave", attempts=attempts) as decoder:
        *clips, rejected, end = decode(decoder, task(f"2 clips, then {deed}"))

    assert [clip.segment for clip in clips] == [0, 1]
    assert rejected.segment == 2
    assert end == SourceDecoded(num_segments=3)
    assert notes.read_text().split() == ["decord", *["pyav"] * (attempts - 1)]


def test_a_source_that_comes_out_bit_by_bit_comes_out_whole(notes: Path) -> None:
    with start("misbehave", attempts=2) as decoder:
        *clips, end = decode(decoder, task("0 clips, then one clip an attempt"))

    assert [clip.segment for clip in clips] == [0, 1, 2, 3]
    assert end == SourceDecoded(num_segments=4)
    assert len(notes.read_text().split()) == 4


@pytest.mark.parametrize("deed", ["hang", "stop in the middle"])
def test_a_request_to_stop_ends_a_hang_within_a_second(deed: str) -> None:
    stop = threading.Event()
    with start("misbehave", should_stop=stop.is_set) as decoder:
        events = decoder.decode(task(f"1 clips, then {deed}"), **OPTIONS)
        next(events)
        (child,) = decoder._busy
        threading.Timer(0.3, stop.set).start()
        started = time.monotonic()

        # No end of the source: what was not decoded is left for another run.
        assert list(events) == []

        assert 0.3 <= time.monotonic() - started < 1.3
        assert not is_running(child.process_id)
        stop.clear()
        assert is_usable(decoder)


def test_a_request_to_stop_is_seen_while_a_child_starts() -> None:
    with start("misbehave", should_stop=lambda: True) as decoder:
        assert decode(decoder, task("2 clips, then end")) == []
        assert (decoder._idle, decoder._busy) == (None, set())


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
    pid = unruly._idle.process_id

    assert os.getpgid(pid) != os.getpgid(0)
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    assert is_usable(unruly)
    assert unruly._idle.process_id == pid


def test_close_ends_the_child_even_in_the_middle_of_a_source(unruly: IsolatedDecoder) -> None:
    events = unruly.decode(task("1 clips, then hang"), **OPTIONS)
    next(events)
    (child,) = unruly._busy

    unruly.close()

    assert not is_running(child.process_id)
    assert is_usable(unruly)


def test_the_child_dies_with_its_parent_while_it_decodes() -> None:
    program = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "import test_isolation as t\n"
        "decoder = t.start('misbehave')\n"
        "events = decoder.decode(t.task('1 clips, then hang'), **t.OPTIONS); next(events)\n"
        "print(next(iter(decoder._busy)).process_id, flush=True)\n"
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

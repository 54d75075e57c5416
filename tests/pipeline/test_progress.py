"""What a run shows of itself: its figures as text, and how busy its stages are."""

from __future__ import annotations

import io
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import pytest
from rich.console import Console

from latents.clip import ClipKey
from pipeline.decode import SourceDecoded, SourceTask
from pipeline.encoded import EncodedClip
from pipeline.engine_local import LocalEngine
from pipeline.figures import Figures, figures_from_json
from pipeline.figures_text import view_lines
from pipeline.job import ClipTensors, EncodeJob, LatentScale
from pipeline.live_view import open_view
from pipeline.metrics import prometheus_text
from pipeline.settings import IngestSettings
from pipeline.stage_clock import Stage, StageClock, StageTime, StageTimes
from pipeline.stop_request import StopRequest
from tests.pipeline.test_run import encoded, video


def stage(name: Stage, busy: float, waiting: float) -> StageTime:
    return StageTime(stage=name, busy_seconds=busy, waiting_seconds=waiting)


FIGURES = Figures(
    seconds=20.0,
    num_total=40,
    num_done=10,
    num_clips=12,
    num_windows=300,
    num_images=1500,
    num_quarantined=4,
    causes={"DecodeError": 3, "TooShortError": 1},
    stages={
        "decode": stage("decode", 30.0, 10.0),
        "encode": stage("encode", 8.0, 32.0),
        "commit": stage("commit", 1.0, 19.0),
        "gpu": stage("gpu", 15.0, 5.0),
    },
)


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_the_view_of_some_figures() -> None:
    assert view_lines(FIGURES, verb="encoded", unit="sources") == [
        "encoded 10/40 sources, 12 clips, 0.60 clips/s, 15.0 windows/s, "
        "4 quarantined (25 %: 3 x DecodeError, 1 x TooShortError), 20 s, 60 s left",
        "decode 75 % busy, 25 % waiting; encode 20 % busy, 80 % waiting; "
        "commit 5 % busy, 95 % waiting; GPU 25 % waiting",
    ]


def test_the_view_before_anything_is_done_has_no_eta_and_no_shares() -> None:
    figures = Figures(
        seconds=0.0,
        num_total=40,
        num_done=0,
        num_clips=0,
        num_windows=0,
        num_images=0,
        num_quarantined=0,
        causes={},
        stages={},
    )
    assert view_lines(figures, verb="encoded", unit="sources") == [
        "encoded 0/40 sources, 0 clips, 0.00 clips/s, 0.0 windows/s, 0 s"
    ]


def test_a_run_that_is_asked_to_stop_says_how_to_end_it_at_once() -> None:
    stopping = figures_from_json(FIGURES.to_json() | {"is_stopping": True})
    *_, last = view_lines(stopping, verb="encoded", unit="sources")
    assert last == (
        "stopping: what is in hand is finished and committed; asked again, it stops at once"
    )


def test_without_a_terminal_a_line_comes_every_ten_seconds_and_at_the_end() -> None:
    clock, written = Clock(), io.StringIO()
    console = Console(file=written)
    with open_view(verb="encoded", unit="sources", console=console, clock=clock) as view:
        for clock.seconds in (1.0, 9.9, 10.0, 12.0, 20.0):
            view.show(FIGURES)
        view.end(FIGURES)
    assert [line[:22] for line in written.getvalue().splitlines()] == ["encoded 10/40 sources,"] * 3


def test_a_terminal_shows_a_bar_and_the_figures() -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=200)
    with open_view(verb="encoded", unit="sources", console=console) as view:
        view.show(FIGURES)
    assert "0.60 clips/s" in written.getvalue()
    assert "GPU 25 % waiting" in written.getvalue()


def test_figures_that_were_written_are_read_again() -> None:
    assert figures_from_json(FIGURES.to_json()) == FIGURES


@pytest.mark.parametrize(
    "change",
    [{"num_clips": "many"}, {"seconds": float("nan")}, {"causes": 3}, {"stages": {"decode": {}}}],
    ids=str,
)
def test_what_is_no_figures_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"run|number|time"):
        figures_from_json(FIGURES.to_json() | change)


def test_prometheus_gets_each_metric_once_with_its_labels() -> None:
    lines = prometheus_text(FIGURES, run="r").splitlines()
    assert 'mmldm_clips_total{run="r"} 12.0' in lines
    assert 'mmldm_quarantined_total{run="r",cause="DecodeError"} 3.0' in lines
    assert 'mmldm_stage_busy_seconds_total{run="r",stage="gpu"} 15.0' in lines
    assert lines.count("# TYPE mmldm_quarantined_total counter") == 1


def test_a_clock_tells_busy_from_waiting_also_in_the_middle_of_work() -> None:
    now = Clock()
    clock = StageClock("decode", clock=now)
    now.seconds = 2.0
    with clock.busy():
        now.seconds = 5.0
        assert clock.take() == stage("decode", 3.0, 2.0)
        now.seconds = 6.0
    now.seconds = 10.0
    assert clock.take() == stage("decode", 1.0, 4.0)


def test_what_threads_share_is_busy_while_one_of_them_is() -> None:
    now = Clock()
    clock = StageClock("gpu", clock=now)
    with clock.busy():
        now.seconds = 1.0
        with clock.busy():
            now.seconds = 2.0
        now.seconds = 3.0
    now.seconds = 4.0
    assert clock.take() == stage("gpu", 3.0, 1.0)


def test_the_times_of_workers_add_up() -> None:
    times = StageTimes()
    for busy in (1.0, 2.0):
        times.add(stage("encode", busy, 0.5))
    assert times.totals() == {"encode": stage("encode", 3.0, 1.0)}


def test_the_share_of_a_stage_that_sleeps_is_right() -> None:
    clock = StageClock("decode")

    def work() -> None:
        for _ in range(5):
            with clock.busy():
                time.sleep(0.06)
            time.sleep(0.02)

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    assert clock.take().busy_share == pytest.approx(0.75, abs=0.1)


class SleepyProducer:
    """Gives three clips, each after a while."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def produce(self, task: SourceTask) -> Iterator[ClipTensors | SourceDecoded]:
        for start_frame in range(3):
            time.sleep(0.15)
            yield ClipTensors(
                key=ClipKey(source_digest=task.digest, start_frame=start_frame, fps=10),
                source=task.uri,
                segment=start_frame,
                sample_rate=100,
                loudness_dbfs=-20.0,
                sound_first_frame=0,
                sound_stop_frame=16,
                tensors={},
                fields=(),
            )
        yield SourceDecoded(num_segments=3)

    def close(self) -> None:
        pass


def sleepy_encode(clip: ClipTensors) -> EncodedClip:
    """Takes a third of what decoding takes."""
    time.sleep(0.05)
    return replace(encoded(0), key=clip.key)


def test_an_engine_tells_how_busy_its_stages_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.engine_local.ProduceClips", SleepyProducer)
    monkeypatch.setattr("pipeline.engine_local.load_stage", lambda job, halt: sleepy_encode)
    monkeypatch.setattr("pipeline.engine_local.CLOCK_SECONDS", 0.1)
    job = EncodeJob(
        settings=IngestSettings(),
        computed=frozenset(),
        device="cuda",
        cache_url="nowhere",
        kl_vae="",
        latent_scale=LatentScale(factor=1.0, shift=0.0),
        modal_encoders=None,
    )
    times = StageTimes()

    engine = LocalEngine(num_workers=1)
    for event in engine.run(job, [video(0)], StopRequest(drain_seconds=60)):
        if isinstance(event, StageTime):
            times.add(event)

    shares = {stage: time.busy_share for stage, time in times.totals().items()}
    assert shares["decode"] == pytest.approx(0.75, abs=0.1)
    assert shares["encode"] == pytest.approx(0.25, abs=0.1)
    assert shares["gpu"] == pytest.approx(shares["encode"], abs=0.02)


def test_ray_counts_what_a_run_has_grown_by(monkeypatch: pytest.MonkeyPatch) -> None:
    ray_metrics = pytest.importorskip("pipeline.ray_metrics", exc_type=ImportError)
    values: dict[tuple[str, str], float] = defaultdict(float)

    class Kept:
        def __init__(self, name: str, *, description: str, tag_keys: tuple[str, ...]) -> None:
            self._name = name

        def inc(self, value: float, *, tags: dict[str, str]) -> None:
            values[self._name, "".join(tags.values())] += value

        def set(self, value: float, *, tags: dict[str, str]) -> None:
            values[self._name, "".join(tags.values())] = value

    monkeypatch.setattr(ray_metrics, "Counter", Kept)
    monkeypatch.setattr(ray_metrics, "Gauge", Kept)
    metrics = ray_metrics.RayMetrics()
    metrics.publish(replace(FIGURES, num_clips=5, causes={}))
    metrics.publish(FIGURES)

    assert values["mmldm_clips", ""] == 12
    assert values["mmldm_quarantined", "DecodeError"] == 3
    assert values["mmldm_stage_busy_seconds", "decode"] == 30.0
    assert values["mmldm_sources", ""] == 40

"""Counting a run while it goes on, and when too many failures stop it."""

from __future__ import annotations

import numpy as np
import pytest

from latents.clip import ClipKey, WindowSpec
from latents.errors import DecodeError, FailureBudgetError, TooShortError
from pipeline.decode import SourceTask
from pipeline.encoded import EncodedClip
from pipeline.run import BUDGET_IN_A_ROW, BUDGET_MIN_SOURCES, Outcome
from pipeline.scene_clips import SceneRef
from pipeline.stages import ClipRejected


def video(number: int) -> SourceTask:
    return SourceTask(
        uri=f"/videos/{number}", path=f"/videos/{number}", scene=None, digest=f"{number:064x}"
    )


def scene(number: int) -> SourceTask:
    reference = SceneRef(seed=0, index=number, seconds=4)
    return SourceTask(
        uri=f"scenes:0:{number}:4", path=None, scene=reference, digest=f"{number:064x}"
    )


def encoded(number: int, *, start_frame: int = 0) -> EncodedClip:
    return EncodedClip(
        key=ClipKey(source_digest=f"{number:064x}", start_frame=start_frame, fps=10),
        segment=0,
        tensors={"kl.video": np.zeros((1, 8, 1, 1), np.float16)},
        channel_sums={},
        grid=WindowSpec().grid(0, 16),
        sample_rate=100,
        loudness_dbfs=-20.0,
        sound_first_frame=0,
        sound_stop_frame=16,
        device="cpu",
        encode_seconds=0.1,
        num_kl_images=17,
    )


def fail(outcome: Outcome, task: SourceTask) -> None:
    error = DecodeError(task.uri, "no picture")
    outcome.reject(ClipRejected(task=task, segment=None, stage="decode", error=error))
    outcome.finish(task)


def succeed(outcome: Outcome, number: int) -> None:
    outcome.accept(encoded(number))
    outcome.finish(video(number))


def test_clips_images_and_opened_videos_are_counted() -> None:
    outcome = Outcome()
    succeed(outcome, 0)
    outcome.accept(encoded(1))
    outcome.finish(scene(1))
    assert (outcome.tally.num_clips, outcome.tally.num_images) == (2, 34)
    assert (outcome.tally.num_done, outcome.num_videos_opened) == (2, 1)


def test_a_clip_that_comes_in_two_parts_counts_once() -> None:
    outcome = Outcome(in_two_parts={str(encoded(0).key)})
    outcome.accept(encoded(0))
    assert outcome.tally.num_clips == 0
    outcome.accept(encoded(0))
    outcome.accept(encoded(0, start_frame=100))
    assert outcome.tally.num_clips == 2


def test_so_many_failures_in_a_row_stop_the_run() -> None:
    outcome = Outcome()
    for number in range(BUDGET_IN_A_ROW - 1):
        fail(outcome, video(number))
    with pytest.raises(FailureBudgetError, match=rf"{BUDGET_IN_A_ROW} x DecodeError"):
        fail(outcome, video(BUDGET_IN_A_ROW))


def test_more_than_half_of_many_stop_the_run_though_none_are_in_a_row() -> None:
    outcome = Outcome()
    for number in range(0, BUDGET_MIN_SOURCES, 2):
        fail(outcome, video(number))
        succeed(outcome, number + 1)
    with pytest.raises(FailureBudgetError, match="101 of 201 sources failed"):
        fail(outcome, video(BUDGET_MIN_SOURCES))


def test_a_source_of_which_some_clip_was_made_has_not_failed() -> None:
    outcome = Outcome()
    for number in range(2 * BUDGET_IN_A_ROW):
        error = TooShortError(video(number).uri, "its end is short")
        outcome.accept(encoded(number))
        outcome.reject(ClipRejected(task=video(number), segment=1, stage="decode", error=error))
        outcome.finish(video(number))
    assert (outcome.num_failed, outcome.tally.num_failures) == (0, 2 * BUDGET_IN_A_ROW)

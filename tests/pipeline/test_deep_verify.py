"""Clips made again from their sources agree with what is stored, or it is said which do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from latents.cache.snapshot import load_snapshot
from latents.models.kl_vae import KLVAE
from pipeline.deep_verify import Recomputed, deep_verify, deep_verify_stage, lenient
from pipeline.originals import SourceClips
from tests.pipeline.small_jobs import (
    NUM_SCENES,
    SmallCache,
    SmallJob,
)

pytestmark = pytest.mark.usefixtures("decode_in_process")


def verify(cache: SmallCache, job: SmallJob, *, num_clips: int = NUM_SCENES) -> list[Recomputed]:
    current = cache.ref("current")
    clips = SourceClips(load_snapshot(cache.layout, current.commit), lenient(job.settings))
    stage = deep_verify_stage(
        job.settings, job.encoders, fields=current.recipes, device="cpu", cache=cache.layout
    )
    found = deep_verify(cache.layout, clips, stage, num_clips=num_clips)
    clips.close()
    return found


def test_clips_made_again_agree_with_an_intact_cache(cache: SmallCache, job: SmallJob) -> None:
    found = verify(cache, job)

    assert len(found) == 6 * NUM_SCENES
    assert {one.problem for one in found} == {None}
    # On one thread of one machine they are the same to the last bit.
    assert {one.distance for one in found} == {0.0}
    assert {one.field: one.tolerance for one in found} == {
        "clip.video": 0.0,
        "clip.audio": 0.0,
        "kl.video": 1e-3,
        "kl.audio": 1e-3,
        "perceptual.video": 1e-3,
        "perceptual.audio": 1e-3,
    }


def test_it_is_always_the_same_clips_that_are_made_again(cache: SmallCache, job: SmallJob) -> None:
    one, two = ({r.clip for r in verify(cache, job, num_clips=count)} for count in (1, 2))
    assert (len(one), len(two)) == (1, 2)
    assert one < two


@pytest.mark.parametrize(("noise", "is_within"), [(1e-5, True), (0.1, False)])
def test_a_field_that_comes_out_beyond_its_tolerance_is_named(
    noise: float,
    is_within: bool,
    cache: SmallCache,
    job: SmallJob,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encode = KLVAE.encode
    monkeypatch.setattr(KLVAE, "encode", lambda self, images: encode(self, images) * (1 + noise))

    found = {one.field: one for one in verify(cache, job, num_clips=1)}

    assert found["clip.video"].problem is None
    assert (found["kl.video"].problem is None) == is_within
    if not is_within:
        assert found["kl.video"].distance == pytest.approx(noise, rel=0.01)
        assert "more than the 1e-03 recorded" in str(found["kl.video"].problem)


def test_a_source_that_is_gone_cannot_be_made_again(
    tmp_path: Path, job: SmallJob, video: Path
) -> None:
    cache = SmallCache(tmp_path / "cache")
    cache.ingest(job, str(video))
    video.unlink()

    found = verify(cache, job)

    assert {one.problem for one in found} == {"it cannot be made again: the source is gone"}
    assert {(one.source, one.distance) for one in found} == {(str(video), None)}

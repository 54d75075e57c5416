"""Ray schedules: what it loses is tried again, and nothing is doubled."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latents.cache.inspect import inspect_cache
from latents.cache.layout import find_cache
from latents.cache.snapshot import load_snapshot
from latents.cache.verify import verify_cache
from latents.clip import Clip
from latents.config import load_config
from pipeline import engine_ray
from pipeline.engine_ray import MAX_ATTEMPTS, RayEngine
from pipeline.settings import IngestSettings

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_CLIPS = 3


@pytest.fixture(scope="module")
def engine() -> Iterator[RayEngine]:
    import ray

    engine = RayEngine(num_workers=2, in_flight_bytes=1)  # the least: two clips
    engine.start()
    yield engine
    ray.shutdown()


def ingest(cache: Path, kl_vae: Path, engine: Any) -> Any:
    from latents.cache.layout import create_cache
    from latents.models.kl_vae import load_kl_vae
    from pipeline.ingest import ingest
    from pipeline.sources import find_sources

    overrides = ["clip.size=64", "window.stride=16", f'kl_vae.source="{kl_vae}"']
    return ingest(
        find_sources([f"scenes:0:{NUM_CLIPS}:2"]),
        layout=create_cache(cache),
        settings=load_config(IngestSettings, kind="ingest", overrides=overrides),
        encoder=load_kl_vae(str(kl_vae)).identity,
        levels=("kl",),
        engine=engine,
        device="cpu",
    )


def num_rows(cache: Path) -> int:
    rows: int = load_snapshot(find_cache(cache)).latents.num_rows
    return rows


def test_a_clip_whose_encoder_dies_is_encoded_by_another(
    tmp_path: Path, small_kl_vae: Path, engine: RayEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.engine_local import LocalEngine

    marker = tmp_path / "died"
    parent = engine_ray.EncodeActor

    class DiesOnce(parent):  # type: ignore[misc, valid-type]
        def encode(self, clip: Clip) -> Any:
            if not marker.exists():
                marker.touch()
                os._exit(1)
            return parent.encode(self, clip)

    monkeypatch.setattr(engine_ray, "EncodeActor", DiesOnce)
    result = ingest(tmp_path / "ray", small_kl_vae, engine)
    assert marker.exists()
    assert (result.num_clips_encoded, result.num_quarantined) == (NUM_CLIPS, 0)
    ingest(tmp_path / "local", small_kl_vae, LocalEngine(num_workers=1))
    ray, local = (inspect_cache(find_cache(tmp_path / name)) for name in ("ray", "local"))
    assert ray.levels["kl"].content_digest == local.levels["kl"].content_digest


def test_a_source_whose_decoder_dies_is_decoded_again_and_nothing_is_doubled(
    tmp_path: Path, small_kl_vae: Path, engine: RayEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "died"
    parent = engine_ray.DecodeActor

    class DiesAfterItsClip(parent):  # type: ignore[misc, valid-type]
        def decode(self, task: Any) -> Iterator[Any]:
            for event in parent.decode(self, task):
                yield event
                if isinstance(event, Clip) and not marker.exists():
                    marker.touch()
                    os._exit(1)

    monkeypatch.setattr(engine_ray, "DecodeActor", DiesAfterItsClip)
    result = ingest(tmp_path / "c", small_kl_vae, engine)
    assert marker.exists()
    assert result.num_clips_encoded == NUM_CLIPS
    assert num_rows(tmp_path / "c") == 2 * NUM_CLIPS
    assert verify_cache(find_cache(tmp_path / "c")) == []


def test_a_clip_that_always_kills_its_encoder_is_given_up_after_some_attempts(
    tmp_path: Path, small_kl_vae: Path, engine: RayEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = tmp_path / "attempts"
    parent = engine_ray.EncodeActor

    class DiesOnTheFirstScene(parent):  # type: ignore[misc, valid-type]
        def encode(self, clip: Clip) -> Any:
            if clip.source == "scenes:0:0:2":
                with attempts.open("a") as file:
                    file.write("x")
                os._exit(1)
            return parent.encode(self, clip)

    monkeypatch.setattr(engine_ray, "EncodeActor", DiesOnTheFirstScene)
    result = ingest(tmp_path / "c", small_kl_vae, engine)
    assert attempts.read_text() == "x" * MAX_ATTEMPTS
    assert (result.num_clips_encoded, result.num_quarantined) == (NUM_CLIPS - 1, 1)
    (event,) = load_snapshot(find_cache(tmp_path / "c")).open_quarantine()
    assert (event["error_class"], event["source"]) == ("WorkerDiedError", "scenes:0:0:2")

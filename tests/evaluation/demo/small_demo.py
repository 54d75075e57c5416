"""A demo on two seconds of a few small scenes, with models that train for a few steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from evaluation.demo.plan import DemoPlan, Training
from evaluation.demo.run import DemoResult, run_demo
from latents.clip import ClipSpec, WindowSpec
from pipeline.engine_local import LocalEngine
from pipeline.run import Engine
from pipeline.settings import IngestSettings, KLVAESettings, RunSettings
from training.autoencoder_run import AutoencoderRunSettings, ModelSettings
from training.dit.config import DiTConfig
from training.dit.settings import DiTRunSettings, ValidationSettings
from training.optim import OptimisationSettings

_FEW = OptimisationSettings(steps=4, batch_size=2, ema_decay=0.5, checkpoint_steps=2)
_MODEL = ModelSettings(decoder_channels=8, coarse_blocks=1, fine_blocks=1)
_DIT = DiTConfig(depth=1, width=32, num_heads=2, context_tokens=2, context_width=8, video_size=2)


def small_plan(kl_vae: Path, *, num_clips: int = 2) -> DemoPlan:
    """Frames of 32 x 32 pixels, everything from nothing, one sample of each task."""
    return DemoPlan(
        ingest=IngestSettings(
            clip=ClipSpec(size=32),
            window=WindowSpec(stride=2),
            kl_vae=KLVAESettings(source=str(kl_vae)),
            run=RunSettings(workers=1, device="cpu"),
        ),
        training=Training(
            autoencoder=AutoencoderRunSettings(optimisation=_FEW, model=_MODEL),
            dit=DiTRunSettings(
                model=_DIT,
                optimisation=_FEW,
                validation=ValidationSettings(every_steps=2, num_windows=2, draws=1, batch_size=2),
            ),
            init=None,
            num_threads=1,
        ),
        num_clips=num_clips,
        seconds=2,
        num_samples=1,
        num_reported=1,
    )


def local_engine() -> Engine:
    """One worker, in process."""
    return LocalEngine(num_workers=1)


def small_demo(
    out: Path,
    plan: DemoPlan,
    said: list[str],
    *,
    clips: Path | None = None,
    open_engine: Callable[[], Engine] = local_engine,
) -> DemoResult:
    """Runs it; what it says is added to ``said``."""
    return run_demo(
        out, clips=clips, plan=plan, device="cpu", open_engine=open_engine, say=said.append
    )

"""Small models, their cache and their samples, and reports of them."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evaluation.report.trained import TrainedModels
from evaluation.report.write import ReportResult, write_report
from evaluation.sampling.cached_windows import windows_of_cache
from evaluation.sampling.models import model_digests
from evaluation.sampling.run import SampleRequest, write_samples
from latents.cache.reader import CachedLevel, open_cache
from tests.evaluation.sampling.small_models import SmallModels, make_models
from tests.pipeline.small_jobs import SmallCache
from training.dit.sample import SamplingSettings

SCENES = "scenes:0:8:1"
"""Ten frames each. The sixth and the last of them belong to the validation split."""
HELD_OUT = ("scenes:0:5:1", "scenes:0:7:1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reported:
    """Small models with their cache, and samples of each task."""

    cache: Path
    kl_vae: Path
    models: SmallModels
    samples: Path

    @property
    def shown(self) -> TrainedModels:
        return TrainedModels(
            autoencoder=self.models.sources.autoencoder,
            dit=str(self.models.dit),
            samples=(self.samples,),
        )

    def level(self, name: Any = "kl") -> CachedLevel:
        return open_cache(self.cache, level=name)

    def report(self, out: Path, models: TrainedModels | None = None) -> ReportResult:
        return write_report(
            self.cache,
            out,
            kl_vae=str(self.kl_vae),
            num_clips=1,
            device="cpu",
            num_threads=1,
            models=models or self.shown,
        )

    def page(self, out: Path, **changes: Any) -> str:
        self.report(out, replace(self.shown, **changes))
        return out.read_text()


def make_reported(folder: Path, kl_vae: Path) -> Reported:
    models = make_models(folder / "models", kl_vae)
    cache = folder / "cache"
    SmallCache(cache).run(models.job, SCENES)
    reported = Reported(cache=cache, kl_vae=kl_vae, models=models, samples=folder / "samples")
    clips = reported.level("perceptual").clips.clip_keys()
    write(reported, reported.samples, "svg", num=1)
    write(reported, reported.samples, "a2v", clips=[f"{clips[0]}:1"])
    write(reported, reported.samples, "v2a", clips=[clips[1]])
    return reported


def write(
    reported: Reported, out: Path, task: Any, *, num: int = 1, clips: Sequence[str] = ()
) -> None:
    """Samples of a task, in three steps."""
    models, trained = reported.models, reported.models.trained
    given = windows_of_cache(str(reported.cache), clips, task, trained=trained) if clips else []
    write_samples(
        trained,
        models.decoder,
        out,
        request=SampleRequest(
            task=task, num=len(given) or num, settings=SamplingSettings(num_steps=3)
        ),
        given=given,
        made_by=model_digests(models.dit, models.sources),
    )


def note(folder: Path, *lines: Mapping[str, Any]) -> Path:
    """Writes what a training run has noted."""
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def section(page: str, title: str) -> str:
    """What a page shows below a heading."""
    return page.split(f"<h2>{title}</h2>")[1].split("<h2>")[0]


def contents(text: str, media_type: str) -> list[bytes]:
    """What is inside a page, in order."""
    found = re.findall(f'src="data:{media_type};base64,([^"]+)"', text)
    return [base64.b64decode(one, validate=True) for one in found]


def stills(strip: bytes, *, size: int = 32, gap: int = 2) -> NDArray[np.uint8]:
    """Pictures of a strip, (row, still, 3, size, size)."""
    pixels = np.asarray(Image.open(io.BytesIO(strip)).convert("RGB"))
    step = size + gap
    rows = [pixels[top : top + size] for top in range(0, pixels.shape[0], step)]
    return np.stack(
        [
            [row[:, left : left + size].transpose(2, 0, 1) for left in range(0, row.shape[1], step)]
            for row in rows
        ]
    )

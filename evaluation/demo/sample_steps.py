"""Steps of a demo that sample its DiT and show everything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evaluation.demo.model_steps import ModelFolders
from evaluation.demo.plan import DemoPlan
from evaluation.demo.steps import Steps
from evaluation.report.contents import choose_evenly
from evaluation.report.trained import TrainedModels
from evaluation.report.write import ReportResult, count_shown, is_report_of, write_report
from evaluation.sampling.cached_windows import windows_of_cache
from evaluation.sampling.conditions import (
    GIVEN_FIELDS,
    GIVING_TASKS,
    SILENT_BELOW_DBFS,
    GivenWindow,
    GivingTask,
)
from evaluation.sampling.models import ModelSources, load_window_decoder, model_digests
from evaluation.sampling.run import SampleRequest, write_samples
from latents.cache.layout import CacheLayout
from latents.cache.reader import CachedClip, CachedLevel, open_cache
from latents.cache.splits import clips_of_split
from pipeline.progress import Tally, show_progress
from pipeline.recorded import recorded_encoding
from training.diffusion.tasks import Task
from training.dit.files import load_dit


def sample_all_tasks(
    folders: ModelFolders, layout: CacheLayout, plan: DemoPlan, *, device: str, steps: Steps
) -> None:
    """Samples from nothing, from sound, and from pictures; those that are there stay."""
    with steps.step(f"sample sounding videos -> {folders.samples}"):
        sampling = _Sampling(folders, kl_vae=plan.ingest.kl_vae.source, device=device)
        recipes = sampling.trained.trained_on.recipes
        level = open_cache(layout.url, level="perceptual", recipes=recipes)
        sampling.write("svg", [], num=plan.num_samples)
        for task in GIVING_TASKS:
            windows = _windows_to_go_by(level, task, plan)
            if windows:
                given = windows_of_cache(layout.url, windows, task, trained=sampling.trained)
                sampling.write(task, given, num=len(given))
            else:
                steps.note(f"{task}: every clip is silent, so there is nothing to go by")


class _Sampling:
    """A DiT and what turns its samples into files."""

    def __init__(self, folders: ModelFolders, *, kl_vae: str, device: str) -> None:
        self.trained = load_dit(folders.dit, device=device)
        sources = ModelSources(autoencoder=str(folders.autoencoder), kl_vae=kl_vae, vocoder=None)
        recipes, config = self.trained.trained_on.recipes, self.trained.model.config
        encoding = recorded_encoding(recipes, model=str(folders.dit))
        self._decoder = load_window_decoder(config, encoding, sources, device=device)
        self._made_by = model_digests(folders.dit, sources)
        self._out = folders.samples

    def write(self, task: Task, given: Sequence[GivenWindow], *, num: int) -> None:
        """Samples of one task."""
        with show_progress(f"sampled {task}", num, unit="videos") as report:
            write_samples(
                self.trained,
                self._decoder,
                self._out,
                request=SampleRequest(task=task, num=num),
                given=given,
                made_by=self._made_by,
                on_sample=lambda done: report(Tally(num_done=done)),
            )


def report_on(
    folders: ModelFolders,
    layout: CacheLayout,
    out: Path,
    plan: DemoPlan,
    *,
    device: str,
    steps: Steps,
) -> None:
    """One page of all of it; where nothing has changed since, it is kept."""
    cache, num_clips, kl_vae = Path(layout.url), plan.num_reported, plan.ingest.kl_vae.source
    models = TrainedModels(
        autoencoder=str(folders.autoencoder),
        dit=str(folders.dit),
        samples=(folders.samples,),
        validation_share=plan.training.dit.data.validation_share,
    )
    with steps.step(f"report -> {out}"):
        if is_report_of(out, cache, num_clips=num_clips, kl_vae=kl_vae, models=models):
            steps.note("all is as it was when this report was written; kept")
            return
        num_shown = count_shown(cache, num_clips=num_clips)
        with show_progress("compared", num_shown, unit="clips") as report:
            result = write_report(
                cache,
                out,
                kl_vae=kl_vae,
                num_clips=num_clips,
                device=device,
                num_threads=plan.ingest.run.num_workers,
                models=models,
                on_clip=lambda done, total: report(Tally(num_done=done, num_clips=done)),
            )
        _tell(result, steps)


def _windows_to_go_by(level: CachedLevel, task: GivingTask, plan: DemoPlan) -> list[str]:
    """The middle windows of some clips, of held-out sources where there are such."""
    share = plan.training.dit.data.validation_share
    for clips in (clips_of_split(level, "validation", validation_share=share), level.clips):
        usable = [clip for clip in clips if task != "a2v" or _is_heard(clip)]
        if usable:
            chosen: Sequence[CachedClip] = choose_evenly(usable, plan.num_samples)
            return [f"{clip.clip}:{clip.num_windows // 2}" for clip in chosen]
    return []


def _is_heard(clip: CachedClip) -> bool:
    loudness = clip.rows[GIVEN_FIELDS["a2v"]].loudness_dbfs
    return loudness is None or loudness >= SILENT_BELOW_DBFS


def _tell(result: ReportResult, steps: Steps) -> None:
    if result.mean_psnr_db is not None and result.mean_mel_error_db is not None:
        steps.note(
            f"{len(result.clips)} clips beside their reconstruction: PSNR "
            f"{result.mean_psnr_db:.1f} dB, mel error {result.mean_mel_error_db:.1f} dB; "
            f"{result.num_samples} samples"
        )

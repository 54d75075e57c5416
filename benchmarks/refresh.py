"""Measure what regeneration costs after an encoder update, beside what it could cost at least.

Videos are synthesised and ingested; then the modal encoders change, and the perceptual level is
made anew from the ``kl`` level. ``over_bare_encoder`` compares that with the same encoders on the
same windows in RAM, with as many threads and nothing else; both without the start of the process.
``speedup`` compares it with ingesting again from the videos.

    python benchmarks/refresh.py --json
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from record import write_result
from torch import Tensor

from latents.cache.layout import CacheLayout, create_cache
from latents.cache.reader import open_cache
from latents.models.kl_vae import load_kl_vae
from latents.models.kl_vae_files import save_autoencoder
from latents.models.modal_encoder_files import (
    load_modal_encoders,
    random_modal_encoders,
    save_modal_encoders,
)
from pipeline.cli_settings import named_encoders
from pipeline.engine_local import LocalEngine
from pipeline.ingest import ingest
from pipeline.load_stage import configure_torch
from pipeline.refresh import refresh
from pipeline.run import JobResult
from pipeline.settings import AutoencoderSettings, IngestSettings, KLVAESettings, RunSettings
from pipeline.sources import find_sources
from pipeline.synth import synthesise

LIBRARIES = ("torch", "pyarrow", "av", "decord", "diffusers")
KL_GMAC_PER_IMAGE = 136.4
"""Stable Diffusion's KL-VAE encoder at 256x256, convolutions, linear layers and attention."""
MODAL_GMAC_PER_WINDOW = 56.85 + 14.56
"""The paper's video and audio encoder without their condition pyramids."""


def main() -> None:
    """Measure, and write benchmarks/results/refresh.json."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--num-clips", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each video")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one line on standard output")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="mmldm-refresh-"))
    try:
        figures = measure(work, arguments)
    finally:
        shutil.rmtree(work)
    write_result("refresh", figures, libraries=LIBRARIES, as_line=arguments.json)


def measure(work: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """All figures."""
    settings = IngestSettings(
        autoencoder=AutoencoderSettings(source=str(save_encoders(work / "before", seed=1))),
        run=RunSettings(workers=arguments.workers, device="cpu"),
    )
    configure_torch("fp32")
    videos = work / "videos"
    synthesise(videos, num_clips=arguments.num_clips + 1, seconds=arguments.seconds, seed=0)
    *most, one_more = sorted(videos.glob("*.mp4"))
    layout = create_cache(work / "cache")
    ingested = run_ingest(layout, most, settings)
    updated = with_encoders(settings, save_encoders(work / "after", seed=2))
    bare_seconds, num_windows = bare_encoder(layout, updated, num_threads=arguments.workers)
    refreshed = run_refresh(layout, updated)
    again_seconds = run_ingest(create_cache(work / "again"), most, updated).seconds
    decoder = replace(updated, kl_vae=KLVAESettings(source=str(other_decoder(work / "decoder"))))
    same_encoder = run_refresh(layout, decoder)
    one_more_clip = run_ingest(layout, [*most, one_more], updated)
    return {
        "num_clips": ingested.num_clips_encoded,
        "num_windows": num_windows,
        "workers": arguments.workers,
        "ingest_again_seconds": round(again_seconds, 3),
        "refresh_seconds": round(refreshed.seconds, 3),
        "bare_encoder_seconds": round(bare_seconds, 3),
        "kl_images": refreshed.num_kl_images,
        "videos_opened": refreshed.num_videos_opened,
        "clips_refreshed": refreshed.num_clips_encoded,
        "over_bare_encoder": round(refreshed.seconds / bare_seconds, 3),
        "speedup": round(again_seconds / refreshed.seconds, 1),
        "decoder_update_encodes": same_encoder.num_clips_encoded,
        "one_more_clip_encodes": one_more_clip.num_clips_encoded,
        "paper_size_speedup_in_macs": paper_size(ingested, num_windows),
    }


def save_encoders(folder: Path, *, seed: int) -> Path:
    """Tiny modal encoders of a seed."""
    encoders = random_modal_encoders(seed)
    save_modal_encoders(folder, encoders.video, encoders.audio)
    return folder


def other_decoder(folder: Path) -> Path:
    """The bundled KL-VAE with another decoder, as after fine-tuning."""
    autoencoder = load_kl_vae("tiny").autoencoder
    with torch.no_grad():
        for parameter in autoencoder.decoder.parameters():
            parameter.mul_(1.01)
    save_autoencoder(autoencoder, folder)
    return folder


def with_encoders(settings: IngestSettings, folder: Path) -> IngestSettings:
    """The settings with other modal encoders."""
    return replace(settings, autoencoder=AutoencoderSettings(source=str(folder)))


def run_ingest(layout: CacheLayout, videos: list[Path], settings: IngestSettings) -> JobResult:
    """Ingests into the levels ``kl`` and ``perceptual``."""
    return ingest(
        find_sources([str(video) for video in videos]),
        layout=layout,
        settings=settings,
        encoders=named_encoders(settings, ("kl", "perceptual")),
        levels=("kl", "perceptual"),
        engine=LocalEngine(num_workers=settings.run.num_workers),
        device="cpu",
    )


def run_refresh(layout: CacheLayout, settings: IngestSettings) -> JobResult:
    """Refreshes all sources on record."""
    return refresh(
        None,
        layout=layout,
        settings=settings,
        encoders=named_encoders(settings, ("kl", "perceptual")),
        levels=("kl", "perceptual"),
        engine=LocalEngine(num_workers=settings.run.num_workers),
        device="cpu",
    )


def bare_encoder(
    layout: CacheLayout, settings: IngestSettings, *, num_threads: int
) -> tuple[float, int]:
    """Seconds for all windows in RAM through the encoders alone, and how many windows."""
    encoders = load_modal_encoders(settings.autoencoder.source)
    clips = list(clips_in_ram(layout))
    waiting = iter(clips)
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                clip = next(waiting, None)
            if clip is None:
                return
            videos, audios = clip
            encoders.encode_video(videos)
            encoders.encode_audio(audios)

    threads = [threading.Thread(target=work) for _ in range(num_threads)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started, sum(len(videos) for videos, _ in clips)


def clips_in_ram(layout: CacheLayout) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows of each clip's pictures and sound as the modal encoders read them."""
    level = open_cache(layout.url, level="kl")
    scale = load_kl_vae("tiny").scaling_factor
    for clip in level:
        row = clip.rows["kl.audio"]
        assert row.window_first_frame is not None
        assert row.window_stride is not None
        assert row.window_frames is not None
        frames, sounds = (
            torch.from_numpy(level.read(clip, field)).chunk(2, dim=1)[0].float() * scale
            for field in ("kl.video", "kl.audio")
        )
        starts = (row.window_first_frame + i * row.window_stride for i in range(len(sounds)))
        yield torch.stack([frames[s : s + row.window_frames] for s in starts]), sounds


def paper_size(ingested: JobResult, num_windows: int) -> float:
    """Multiply-adds of ingesting again over those of refreshing, with the paper's models."""
    modal = num_windows * MODAL_GMAC_PER_WINDOW
    return round((ingested.num_kl_images * KL_GMAC_PER_IMAGE + modal) / modal, 1)


if __name__ == "__main__":
    main()

"""What is encoded again after each kind of change, and what leaves: every cell of the table."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latents.cache import removal
from latents.cache.reader import open_cache
from latents.fields import LEVELS, Level
from latents.models.kl_vae import load_kl_vae
from latents.models.kl_vae_files import save_autoencoder
from pipeline.plan import Reason
from pipeline.synth import synthesise
from tests.pipeline.small_jobs import (
    ALL_LEVELS,
    DecodesInProcess,
    Done,
    SmallCache,
    SmallJob,
    make_autoencoder,
)

NUM_VIDEOS = 2
NUM_FRAMES = 20
"""Of each video; at a stride of 16 there is one window."""

CLIP, KL, PERCEPTUAL = (LEVELS[level] for level in ALL_LEVELS)
CLIP_VIDEO, KL_VIDEO, VIDEO = "clip.video", "kl.video", "perceptual.video"
KL_AUDIO, AUDIO = "kl.audio", "perceptual.audio"
KEPT: tuple[Level, ...] = ALL_LEVELS
NOT_KEPT: tuple[Level, ...] = ("kl", "perceptual")


@pytest.fixture(autouse=True)
def _decode_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.job.IsolatedDecoder", DecodesInProcess)


@dataclass(frozen=True, kw_only=True, slots=True)
class Models:
    """Encoders, and others that differ from them in one thing."""

    kl_vae: Path
    other_kl_vae: Path
    tuned_decoder: Path
    """The first with another decoder."""
    autoencoder: Path
    other_video_encoder: Path
    other_audio_encoder: Path
    other_parts: Path
    """The encoders of the first among other projectors, heads, discriminators and averages."""
    larger_latents: Path
    """For pictures of 64 x 64."""
    shorter_windows: Path
    """For windows of 8 frames."""


@pytest.fixture(scope="module")
def models(
    tmp_path_factory: pytest.TempPathFactory, small_kl_vae: Path, other_kl_vae: Path
) -> Models:
    folder = tmp_path_factory.mktemp("models")
    tuned = load_kl_vae(str(small_kl_vae))
    with torch.no_grad():
        tuned.autoencoder.decoder.conv_out.bias += 0.2
        tuned.autoencoder.post_quant_conv.bias += 0.2
    save_autoencoder(tuned.autoencoder, folder / "tuned")
    return Models(
        kl_vae=small_kl_vae,
        other_kl_vae=other_kl_vae,
        tuned_decoder=folder / "tuned",
        autoencoder=make_autoencoder(folder / "first", others=other_parts(0)),
        other_video_encoder=make_autoencoder(folder / "video", video_seed=1),
        other_audio_encoder=make_autoencoder(folder / "audio", audio_seed=1),
        other_parts=make_autoencoder(folder / "parts", others=other_parts(1)),
        larger_latents=make_autoencoder(folder / "size", latent_size=8),
        shorter_windows=make_autoencoder(folder / "frames", frames=8),
    )


def other_parts(number: float) -> dict[str, Tensor]:
    names = ("projectors.video", "unet.conv_in", "discriminator.conv", "heads.text", "ema.video")
    return {f"{name}.weight": torch.full((2, 2), number) for name in names}


def make_videos(folder: Path, *, seed: int = 1, num_videos: int = NUM_VIDEOS) -> Path:
    synthesise(
        folder,
        num_clips=num_videos,
        seconds=NUM_FRAMES / 10,
        seed=seed,
        fps=10,
        height=64,
        width=96,
    )
    (folder / "clips.jsonl").unlink()
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nobody changes these."""
    return make_videos(tmp_path_factory.mktemp("made") / "videos")


def base_job(models: Models, levels: tuple[Level, ...] = KEPT) -> SmallJob:
    return SmallJob(kl_vae=models.kl_vae, autoencoder=models.autoencoder, levels=levels)


@pytest.fixture(scope="module")
def ingested(
    tmp_path_factory: pytest.TempPathFactory, videos: Path, models: Models
) -> dict[bool, Path]:
    """Caches of the videos, with and without the clip level; to be copied."""
    root = tmp_path_factory.mktemp("ingested")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.job.IsolatedDecoder", DecodesInProcess)
        for levels in (KEPT, NOT_KEPT):
            job = base_job(models, levels)
            SmallCache(root / "-".join(levels)).ingest(job, str(videos))
    return {levels is KEPT: root / "-".join(levels) for levels in (KEPT, NOT_KEPT)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A change, and what follows from it where all levels are kept."""

    change: Callable[[SmallJob, Models], SmallJob]
    makes: tuple[str, ...]
    images: int = 0
    """KL images of each clip."""
    opens: bool = False
    """Whether videos are opened though the clip level is kept."""
    reason: Reason = "new settings"


def setting(*overrides: str, autoencoder: str = "autoencoder") -> Callable[..., SmallJob]:
    """Other settings, with an autoencoder that can read what comes of them."""

    def change(job: SmallJob, models: Models) -> SmallJob:
        return replace(job, overrides=overrides, autoencoder=getattr(models, autoencoder))

    return change


def encoder(**models_by_role: str) -> Callable[..., SmallJob]:
    """Other weights."""

    def change(job: SmallJob, models: Models) -> SmallJob:
        return replace(job, **{role: getattr(models, n) for role, n in models_by_role.items()})

    return change


CELLS = {
    "mel": Cell(change=setting("mel.name=audioldm16k"), makes=(KL_AUDIO, AUDIO), images=1),
    "size": Cell(
        change=setting("clip.size=64", autoencoder="larger_latents"),
        makes=(CLIP_VIDEO, KL_VIDEO, VIDEO),
        images=NUM_FRAMES,
        opens=True,
    ),
    "fit": Cell(
        change=setting("clip.fit=crop"),
        makes=(CLIP_VIDEO, KL_VIDEO, VIDEO),
        images=NUM_FRAMES,
        opens=True,
    ),
    "fps": Cell(  # 16 frames, one window
        change=setting("clip.fps=8"), makes=(*CLIP, *KL, *PERCEPTUAL), images=16 + 1, opens=True
    ),
    "frames": Cell(  # windows at 0 and 8
        change=setting("window.frames=8", "window.stride=8", autoencoder="shorter_windows"),
        makes=(KL_AUDIO, *PERCEPTUAL),
        images=2,
    ),
    "stride": Cell(change=setting("window.stride=4"), makes=(KL_AUDIO, *PERCEPTUAL), images=2),
    "KL-VAE encoder": Cell(
        change=encoder(kl_vae="other_kl_vae"),
        makes=(*KL, *PERCEPTUAL),
        images=NUM_FRAMES + 1,
        reason="new encoder",
    ),
    "KL-VAE decoder": Cell(change=encoder(kl_vae="tuned_decoder"), makes=()),
    "projectors, heads, UNet, discriminator, average": Cell(
        change=encoder(autoencoder="other_parts"), makes=()
    ),
    "video encoder": Cell(
        change=encoder(autoencoder="other_video_encoder"),
        makes=(VIDEO,),
        reason="new encoder",
    ),
    "audio encoder": Cell(
        change=encoder(autoencoder="other_audio_encoder"),
        makes=(AUDIO,),
        reason="new encoder",
    ),
}


@pytest.mark.parametrize("is_kept", [True, False], ids=["clip kept", "clip not kept"])
@pytest.mark.parametrize("name", CELLS)
def test_a_change_of_settings_or_weights_makes_these_fields_and_no_others(
    name: str, is_kept: bool, ingested: dict[bool, Path], models: Models, tmp_path: Path
) -> None:
    cell = CELLS[name]
    cache = SmallCache(shutil.copytree(ingested[is_kept], tmp_path / "cache"))
    job = cell.change(base_job(models, KEPT if is_kept else NOT_KEPT), models)

    done = cache.refresh(job)

    made = [field for field in cell.makes if is_kept or field not in CLIP]
    assert done.made == dict.fromkeys(made, NUM_VIDEOS)
    assert done.result.num_kl_images == cell.images * NUM_VIDEOS
    # Without the clip level, KL latents are made from the videos.
    opens = cell.opens or (not is_kept and cell.images > 0)
    assert done.result.num_videos_opened == (NUM_VIDEOS if opens else 0)
    assert done.left == ()
    plans = done.planned.plan.fields.values()
    reasons = {reason for one in plans for reason in (*one.to_encode, *one.num_uncut)}
    # Windows of another length or size need other encoders too.
    assert reasons <= {cell.reason, "new encoder"}
    assert (cell.reason in reasons) == bool(made)
    for level in job.levels:
        assert len(open_cache(cache.layout.url, level=level)) == NUM_VIDEOS


def test_going_back_to_settings_that_were_left_makes_and_opens_nothing(
    ingested: dict[bool, Path], models: Models, tmp_path: Path
) -> None:
    cache = SmallCache(shutil.copytree(ingested[False], tmp_path / "cache"))
    job = base_job(models, NOT_KEPT)
    cache.refresh(replace(job, overrides=("clip.fps=8",)))

    done = cache.refresh(job)

    assert (done.made, done.result.num_videos_opened) == ({}, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Videos of its own, their cache, and what they are ingested with."""

    folder: Path
    cache: SmallCache
    job: SmallJob

    def ingest(self, **options: bool) -> Done:
        return self.cache.ingest(self.job, str(self.folder), **options)

    def videos(self) -> list[Path]:
        return sorted(self.folder.glob("*.mp4"))


@pytest.fixture(params=[KEPT, NOT_KEPT], ids=["clip kept", "clip not kept"])
def corpus(request: pytest.FixtureRequest, videos: Path, models: Models, tmp_path: Path) -> Corpus:
    folder = Path(shutil.copytree(videos, tmp_path / "videos"))
    made = Corpus(
        folder=folder,
        cache=SmallCache(tmp_path / "cache"),
        job=base_job(models, request.param),
    )
    made.ingest()
    return made


@pytest.fixture(scope="module")
def other_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video with other bytes than all others."""
    folder = make_videos(tmp_path_factory.mktemp("other") / "videos", seed=2, num_videos=1)
    (video,) = folder.glob("*.mp4")
    return video


def every_field(job: SmallJob, num_clips: int) -> dict[str, int]:
    return {field: num_clips for level in job.levels for field in LEVELS[level]}


def test_new_source_files_give_new_rows_at_every_level(corpus: Corpus, other_video: Path) -> None:
    shutil.copy(other_video, corpus.folder / "new.mp4")

    done = corpus.ingest()

    assert done.made == every_field(corpus.job, 1)
    assert done.result.num_kl_images == NUM_FRAMES + 1
    assert (done.result.num_videos_opened, done.left) == (1, ())


def test_where_a_source_s_bytes_change_that_clip_is_made_and_the_old_one_leaves(
    corpus: Corpus, other_video: Path
) -> None:
    changed, _ = corpus.videos()
    (before,) = (row["digest"] for row in sources(corpus) if row["uri"] == str(changed))
    shutil.copy(other_video, changed)

    done = corpus.ingest()

    assert done.made == every_field(corpus.job, 1)
    assert done.result.num_videos_opened == 1
    assert done.left == (f"changed {before}",)
    for level in corpus.job.levels:
        assert len(open_cache(corpus.cache.layout.url, level=level)) == NUM_VIDEOS


def sources(corpus: Corpus) -> list[dict[str, str]]:
    return list(corpus.cache.committed(-1)["sources"])


def test_a_clip_whose_bytes_another_source_still_has_stays(
    corpus: Corpus, other_video: Path
) -> None:
    changed, _ = corpus.videos()
    shutil.copy(changed, corpus.folder / "copy.mp4")
    assert corpus.ingest().made == {}
    shutil.copy(other_video, changed)

    done = corpus.ingest()

    assert done.made == every_field(corpus.job, 1)
    assert done.left == ()
    assert len(open_cache(corpus.cache.layout.url, level="kl")) == NUM_VIDEOS + 1


def test_a_source_that_is_removed_leaves_when_the_cache_is_pruned(corpus: Corpus) -> None:
    gone, _ = corpus.videos()
    (digest,) = (row["digest"] for row in sources(corpus) if row["uri"] == str(gone))
    gone.unlink()
    assert corpus.ingest().left == ()

    done = corpus.ingest(prune=True)

    assert (done.made, done.result.num_videos_opened) == ({}, 0)
    assert sorted(done.left) == [f"pruned {gone}", f"pruned {digest}"]
    for level in corpus.job.levels:
        assert len(open_cache(corpus.cache.layout.url, level=level)) == NUM_VIDEOS - 1


def test_a_source_that_is_dropped_leaves_and_does_not_come_back(corpus: Corpus) -> None:
    dropped, _ = corpus.videos()
    removal.drop(corpus.cache.layout, [str(dropped)], run={})

    done = corpus.ingest()

    assert (done.made, done.left, done.result.num_dropped) == ({}, (), 1)
    for level in corpus.job.levels:
        assert len(open_cache(corpus.cache.layout.url, level=level)) == NUM_VIDEOS - 1

    removal.readmit(corpus.cache.layout, [str(dropped)], run={})
    assert corpus.ingest().made == every_field(corpus.job, 1)


def test_labels_captions_and_splits_change_rows_of_annotations_alone(corpus: Corpus) -> None:
    listed = corpus.folder / "clips.jsonl"
    first, second = corpus.videos()

    def ingest(*said: dict[str, str]) -> Done:
        lines = [{"file": file.name} | one for file, one in zip((first, second), said, strict=True)]
        listed.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return corpus.cache.ingest(corpus.job, str(corpus.folder), str(listed))

    ingest({"label": "rain", "split": "train"}, {"label": "train"})
    done = ingest({"label": "rain", "split": "test", "caption": "It rains."}, {"label": "train"})

    assert (done.made, done.left, done.result.num_videos_opened) == ({}, (), 0)
    (row,) = done.rows["annotations"]
    assert (row["label"], row["caption"], row["split"]) == ("rain", "It rains.", "test")


def test_a_renamed_file_is_noted_alone(corpus: Corpus) -> None:
    old, _ = corpus.videos()
    old.rename(corpus.folder / "renamed.mp4")

    done = corpus.ingest()

    assert (done.made, done.left, done.result.num_videos_opened) == ({}, (), 0)
    assert [row["uri"] for row in done.rows["sources"]] == [str(corpus.folder / "renamed.mp4")]
    assert corpus.ingest(prune=True).left == (f"pruned {old}",)
    assert len(open_cache(corpus.cache.layout.url, level="kl")) == NUM_VIDEOS


def test_a_touched_file_is_noted_alone(corpus: Corpus) -> None:
    touched, _ = corpus.videos()
    os.utime(touched, ns=(1, 1))

    done = corpus.ingest()

    assert (done.made, done.left, done.result.num_videos_opened) == ({}, (), 0)
    assert [(row["uri"], row["mtime_ns"]) for row in done.rows["sources"]] == [(str(touched), 1)]


def test_a_file_that_was_touched_is_decoded_by_a_refresh_that_does_not_look_first(
    corpus: Corpus,
) -> None:
    for video in corpus.videos():
        os.utime(video, ns=(1, 1))

    done = corpus.cache.refresh(replace(corpus.job, overrides=("clip.fit=crop",)))

    assert (done.made[KL_VIDEO], done.result.num_quarantined) == (NUM_VIDEOS, 0)


def test_a_change_that_kept_size_and_time_is_found_by_hashing_again(corpus: Corpus) -> None:
    changed, _ = corpus.videos()
    stat = changed.stat()
    content = bytearray(changed.read_bytes())
    content[content.index(b"mdat") + 40] ^= 1
    changed.write_bytes(content)
    os.utime(changed, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert corpus.ingest().made == {}

    done = corpus.ingest(rehash=True)

    assert done.made == every_field(corpus.job, 1)
    assert [line.split()[0] for line in done.left] == ["changed"]

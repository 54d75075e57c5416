"""Windows of videos to go by: decoded and encoded as the latents were that a DiT was trained on."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import cast

from evaluation.sampling.conditions import (
    GIVEN_FIELDS,
    GivenWindow,
    GivingTask,
    given_latents,
    require_sound,
)
from evaluation.sampling.decode import Sound
from evaluation.sampling.models import ModelSources
from latents.clip import loudness_dbfs
from latents.errors import ModelError, SourceError
from latents.fields import LEVELS, to_compute
from latents.recipe import recipe_differences
from pipeline.decode import SegmentRejected, SoundPolicy
from pipeline.encode_stage import EncodeClip
from pipeline.job import ClipTensors, DecodeClips, ProducerEvent, SourceUnread
from pipeline.load_stage import load_stage
from pipeline.planned_job import encode_job
from pipeline.recipes import perceptual_recipes
from pipeline.recorded import RecordedEncoding
from pipeline.source_hashing import hash_sources
from pipeline.source_rows import source_task
from pipeline.sources import HashedSource, Source, UnreadableSource
from training.dit.config import DiTConfig
from training.dit.files import TrainedDiT

_SOUND: dict[GivingTask, SoundPolicy] = {
    "a2v": SoundPolicy(missing="quarantine", silent="keep"),
    # Pictures whose sound is to be made need have none.
    "v2a": SoundPolicy(missing="silence", silent="keep"),
}


def windows_of_files(
    sources: Sequence[Source],
    task: GivingTask,
    *,
    trained: TrainedDiT,
    encoding: RecordedEncoding,
    models: ModelSources,
    device: str,
) -> list[GivenWindow]:
    """The first window of each source, decoded and encoded as an ingest would.

    Args:
        sources: Videos or scenes, each given once for each time it is named.
        task: Says what is encoded of it.
        trained: The DiT that is to go by it.
        encoding: How its latents were made.
        models: Where the encoders are.
        device: Where they run.

    Raises:
        SourceError: A source cannot be read, or no window of it has what the task needs.
        ConfigError: The sound of a window is silence, and a2v goes by sound.
        ModelError: The encoders are others than those of the DiT's latents, or this version
            encodes in another way.
    """
    settings = encoding.settings(
        kl_vae=models.kl_vae, autoencoder=models.autoencoder, sound=_SOUND[task], device=device
    )
    field = GIVEN_FIELDS[task]
    found = perceptual_recipes(settings, encoding.encoders)[field]
    wanted = trained.trained_on.recipes[field]
    if found.digest != wanted.digest:
        raise ModelError(
            "this version does not encode files as the DiT's latents were encoded; they differ "
            f"in: {'; '.join(recipe_differences(wanted, found))}. Give clips of the DiT's cache "
            "with --cache and --clip, or use the version that made them"
        )
    computed = frozenset(to_compute([field], LEVELS["clip"]))
    job = encode_job(settings, encoding.encoders, computed=computed, device=device, cache_url="")
    encode = load_stage(job)
    hashed = hash_sources(sources, {}, num_threads=1)
    config = trained.model.config
    with closing(DecodeClips(settings)) as decoder:
        return [
            _of_clip(_first_clip(decoder, one, task), task, encode, encoding, config)
            for one in hashed
        ]


def _first_clip(
    decoder: DecodeClips, source: HashedSource | UnreadableSource, task: GivingTask
) -> ClipTensors:
    if isinstance(source, UnreadableSource):
        raise SourceError(f"{source.source.uri}: {source.reason}")
    problem = "it holds no clip"
    decoding = source_task(source, skip_segments=frozenset(), fields=(GIVEN_FIELDS[task],))
    # Closed, so that no more of a long video is decoded than is needed.
    with closing(cast(Generator[ProducerEvent, None, None], decoder.produce(decoding))) as events:
        for event in events:
            if isinstance(event, ClipTensors):
                return event
            if isinstance(event, SegmentRejected | SourceUnread):
                problem = event.error.reason
    wanted = "its sound" if task == "a2v" else "its pictures"
    raise SourceError(
        f"{source.source.uri}: {problem}; {task} goes by {wanted}. Name another video"
    )


def _of_clip(
    clip: ClipTensors,
    task: GivingTask,
    encode: EncodeClip,
    encoding: RecordedEncoding,
    config: DiTConfig,
) -> GivenWindow:
    clip_spec, rate = encoding.kl.clip, clip.sample_rate
    grid = encoding.kl.window.grid(clip.sound_first_frame, clip.sound_stop_frame)
    stop = grid.first_frame + grid.frames
    frames, waveform = clip.tensors["clip.video"], clip.tensors["clip.audio"]
    first_sample = clip_spec.first_sample(grid.first_frame, rate)
    last_sample = first_sample + clip_spec.num_samples(grid.frames, rate)
    sound = Sound(waveform=waveform[:, first_sample:last_sample], sample_rate=rate)
    if task == "a2v":
        require_sound(clip.source, loudness_dbfs(sound.waveform))
    first_window = replace(
        clip,
        # Sound stays whole: at a window's end, resampling looks beyond it.
        tensors={"clip.video": frames[:stop], "clip.audio": waveform},
        sound_stop_frame=stop,
    )
    (field,) = clip.fields
    moments = encode(first_window).tensors[field]
    return GivenWindow(
        name=clip.source,
        digest=f"file {clip.key}:0",
        latents=given_latents(task, moments, config),
        frames=frames[grid.first_frame : stop],
        sound=sound,
    )

"""Files of samples: what is in them, that they repeat, and that a run goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from evaluation.sampling import run
from evaluation.sampling.conditions import GivenWindow, GivingTask
from evaluation.sampling.decode import WindowDecoder
from evaluation.sampling.file_windows import windows_of_files
from evaluation.sampling.run import SampleRequest, WrittenSamples, require_possible, write_samples
from latents.errors import ConfigError, ModelError
from pipeline.sources import find_sources
from tests.evaluation.sampling.conftest import make_video, tone
from tests.evaluation.sampling.small_models import FRAMES, NUM_SAMPLES, SmallModels
from training.diffusion.guidance import GuidanceScales
from training.diffusion.pair import Latents
from training.dit.sample import SamplingSettings, sample_latents

FEW_STEPS = SamplingSettings(num_steps=3)
SVG = SampleRequest(task="svg", num=2, settings=FEW_STEPS)


def write(
    models: SmallModels,
    out: Path,
    request: SampleRequest = SVG,
    *,
    decoder: WindowDecoder | None = None,
    given: tuple[GivenWindow, ...] = (),
    made_by: dict[str, Any] | None = None,
    on_sample: Callable[[int], None] = lambda done: None,
) -> WrittenSamples:
    return write_samples(
        models.trained,
        decoder or models.decoder,
        out,
        request=request,
        given=given,
        made_by=made_by or {},
        on_sample=on_sample,
    )


def given_by(models: SmallModels, video: Path, task: GivingTask) -> GivenWindow:
    (window,) = windows_of_files(
        find_sources([str(video)]),
        task,
        trained=models.trained,
        encoding=models.encoding,
        models=models.sources,
        device="cpu",
    )
    return window


def contents(written: WrittenSamples) -> list[bytes]:
    return [path.read_bytes() for path in written.files]


def pictures_of(path: Path) -> NDArray[np.uint8]:
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def sound_of(path: Path) -> NDArray[np.float32]:
    with av.open(str(path)) as container:
        return np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=1)


def test_a_sample_is_a_video_of_one_window_with_its_sound(
    models: SmallModels, tmp_path: Path
) -> None:
    written = write(models, tmp_path)

    assert [path.name for path in written.files] == ["svg_s0_00000.mp4", "svg_s0_00001.mp4"]
    with av.open(str(written.files[1])) as container:
        (video,), (audio,) = container.streams.video, container.streams.audio
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert (video.average_rate, video.frames) == (Fraction(10), FRAMES)
        assert (video.width, video.height) == (32, 32)
        assert (audio.rate, audio.channels) == (22050, 1)
        assert audio.duration is not None
        assert audio.time_base == Fraction(1, 22050)
        assert audio.duration == NUM_SAMPLES


def test_pictures_are_those_that_were_decoded(models: SmallModels, tmp_path: Path) -> None:
    latents = sample_latents(models.trained, "svg", seed=0, indices=[0], settings=FEW_STEPS)

    written = write(models, tmp_path, replace(SVG, num=1))

    wanted = models.decoder.frames(latents.video[0]).transpose(0, 2, 3, 1).astype(int)
    # Chroma is halved and x264 rounds: noise of a random decoder comes back roughly.
    assert np.abs(pictures_of(written.files[0]).mean((1, 2)) - wanted.mean((1, 2))).max() < 4


def test_equal_seeds_give_equal_bytes_at_any_batch_size(
    models: SmallModels, tmp_path: Path
) -> None:
    first = contents(write(models, tmp_path / "a", replace(SVG, num=3)))
    second = contents(write(models, tmp_path / "b", replace(SVG, num=3, batch_size=3)))

    assert first == second
    assert len(set(first)) == 3


def test_another_seed_gives_other_samples_beside_the_first(
    models: SmallModels, tmp_path: Path
) -> None:
    first, other = (contents(write(models, tmp_path, replace(SVG, seed=seed))) for seed in (0, 1))

    assert not set(first) & set(other)
    assert len(list(tmp_path.glob("*.mp4"))) == 4


def test_eta_is_keyed_too(models: SmallModels, tmp_path: Path) -> None:
    request = replace(SVG, settings=replace(FEW_STEPS, eta=1.0))

    first, again = (contents(write(models, tmp_path / name, request)) for name in "ab")

    assert first == again
    assert first != contents(write(models, tmp_path / "without"))


def test_a_run_keeps_what_is_there_and_makes_what_is_missing(
    models: SmallModels, tmp_path: Path
) -> None:
    first = write(models, tmp_path)
    first.files[0].write_bytes(b"kept")
    wanted = first.files[1].read_bytes()
    first.files[1].unlink()
    told: list[int] = []

    again = write(models, tmp_path, replace(SVG, num=3), on_sample=told.append)

    assert again.files[0].read_bytes() == b"kept"
    assert again.files[1].read_bytes() == wanted
    assert (again.num_kept, told) == (1, [1, 2, 3])


def test_an_interrupted_run_leaves_whole_files_and_goes_on(
    models: SmallModels, tmp_path: Path
) -> None:
    def interrupt(done: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(models, tmp_path / "out", on_sample=interrupt)
    left = {path.name for path in (tmp_path / "out").iterdir()}
    resumed = contents(write(models, tmp_path / "out"))

    assert left == {"svg_s0.json", "svg_s0_00000.mp4"}
    assert resumed == contents(write(models, tmp_path / "undisturbed"))


@pytest.mark.parametrize(
    ("request_", "made_by"),
    [
        (replace(SVG, settings=SamplingSettings(num_steps=4)), {"dit": "a"}),
        (replace(SVG, settings=replace(FEW_STEPS, eta=0.5)), {"dit": "a"}),
        (
            replace(SVG, settings=replace(FEW_STEPS, scales=GuidanceScales(video=2.0, audio=2.0))),
            {"dit": "a"},
        ),
        (SVG, {"dit": "b"}),
    ],
)
def test_samples_of_other_models_or_settings_are_not_mixed(
    request_: SampleRequest, made_by: dict[str, Any], models: SmallModels, tmp_path: Path
) -> None:
    write(models, tmp_path, made_by={"dit": "a"})

    with pytest.raises(ConfigError, match="were made otherwise"):
        write(models, tmp_path, request_, made_by=made_by)


def test_a2v_keeps_the_sound_and_makes_the_pictures(
    models: SmallModels, video: Path, tmp_path: Path
) -> None:
    given = given_by(models, video, "a2v")
    make_video(tmp_path / "high.mp4", tone(1.0, 4000)[None])
    request = SampleRequest(task="a2v", num=1, settings=FEW_STEPS)

    (path,) = write(models, tmp_path / "a", request, given=(given,)).files
    other = given_by(models, tmp_path / "high.mp4", "a2v")
    (other_path,) = write(models, tmp_path / "b", request, given=(other,)).files

    assert given.sound is not None
    sound, wanted = sound_of(path)[:, :17640], given.sound.waveform
    assert np.corrcoef(sound.ravel(), wanted.ravel())[0, 1] > 0.99
    # The pictures go by the sound, and are not those of the file.
    assert not np.array_equal(pictures_of(path), pictures_of(other_path))
    assert given.frames is not None
    assert np.abs(pictures_of(path).transpose(0, 3, 1, 2).astype(int) - given.frames).mean() > 20


def test_v2a_keeps_the_pictures_and_makes_the_sound(
    models: SmallModels, video: Path, tmp_path: Path
) -> None:
    given = given_by(models, video, "v2a")
    request = SampleRequest(task="v2a", num=1, settings=FEW_STEPS)

    (path,) = write(models, tmp_path, request, given=(given,)).files

    assert given.frames is not None
    pictures = pictures_of(path).transpose(0, 3, 1, 2).astype(int)
    assert np.abs(pictures - given.frames).mean() < 6
    with av.open(str(path)) as container:
        assert container.streams.audio[0].rate == 22050


def test_each_sample_goes_by_its_own_window(
    models: SmallModels, video: Path, tmp_path: Path
) -> None:
    make_video(tmp_path / "high.mp4", tone(1.0, 4000)[None])
    low, high = (given_by(models, path, "a2v") for path in (video, tmp_path / "high.mp4"))
    request = SampleRequest(task="a2v", num=2, settings=FEW_STEPS)

    both = write(models, tmp_path / "both", request, given=(low, high))
    same = write(models, tmp_path / "same", request, given=(high, high))
    both.files[1].unlink()
    resumed = write(models, tmp_path / "both", request, given=(low, high))

    assert resumed.files[1].read_bytes() == same.files[1].read_bytes()
    assert not np.array_equal(pictures_of(both.files[0]), pictures_of(same.files[0]))


class Recorder:
    """A decoder that notes what it is asked for."""

    def __init__(self, decoder: WindowDecoder) -> None:
        self._decoder = decoder
        self.asked: list[tuple[str, torch.Tensor]] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._decoder, name)
        if name == "fps":
            return found

        def noted(tensor: torch.Tensor) -> Any:
            self.asked.append((name, tensor))
            return found(tensor)

        return noted


@pytest.mark.parametrize("task", ["a2v", "v2a"])
@pytest.mark.parametrize("has_kl_means", [True, False])
def test_a_window_without_pictures_and_sound_is_shown_by_its_best_latents(
    has_kl_means: bool, task: GivingTask, models: SmallModels, video: Path, tmp_path: Path
) -> None:
    given = replace(given_by(models, video, task), frames=None, sound=None)
    latent = given.latents.audio[0] if task == "a2v" else given.latents.video[0]
    size, num = (32, 1) if task == "a2v" else (4, FRAMES)
    kl_means = torch.ones(num, 4, size, size)
    if has_kl_means:
        given = replace(given, kl_means=kl_means)
    recorder = Recorder(models.decoder)

    write(
        models,
        tmp_path,
        SampleRequest(task=task, num=1, settings=FEW_STEPS),
        given=(given,),
        decoder=recorder,  # type: ignore[arg-type]  # a stand-in
    )

    asked = dict(recorder.asked)
    name = "sound" if task == "a2v" else "frames"
    name, wanted = (f"kl_{name}", kl_means) if has_kl_means else (name, latent)
    assert torch.equal(asked[name], wanted)
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("request_", "num_given", "problem"),
    [
        (SVG, 1, "svg samples from nothing, but 1 windows were given"),
        (replace(SVG, task="a2v"), 1, "2 samples were asked for, and 1 windows given"),
        (replace(SVG, task="v2a"), 0, "2 samples were asked for, and 0 windows given"),
        (replace(SVG, num=0), 0, "both must be >= 1"),
        (replace(SVG, settings=SamplingSettings(num_steps=1001)), 0, "in 1 ... 1000 steps"),
        (replace(SVG, settings=SamplingSettings(eta=1.5)), 0, "eta is 1.5"),
        (
            replace(
                SVG,
                settings=SamplingSettings(
                    guidance="condition", scales=GuidanceScales(video=2.0, audio=2.0)
                ),
            ),
            0,
            "svg has none",
        ),
    ],
)
def test_what_cannot_be_sampled_is_refused(
    request_: SampleRequest, num_given: int, problem: str, models: SmallModels
) -> None:
    with pytest.raises(ConfigError, match=problem):
        require_possible(request_, models.trained, num_given=num_given)


def test_values_that_are_not_finite_are_refused(
    models: SmallModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = Latents(video=torch.full((1, 16, 2, 2), torch.nan), audio=torch.zeros(1, 16, 8, 8))
    monkeypatch.setattr(run, "sample_latents", lambda *_, **__: nothing)

    with pytest.raises(ModelError, match="sample 0 holds values that are not finite"):
        write(models, tmp_path)
    assert not list(tmp_path.glob("*.mp4*"))


def test_a_folder_that_cannot_be_written_is_named(models: SmallModels, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConfigError, match="cannot be written there"):
        write(models, tmp_path / "file" / "out")

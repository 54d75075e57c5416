"""The scenes: same seed, same scene; and what is heard is what is seen."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from numpy.typing import NDArray

from latents.clip import loudness_dbfs
from pipeline.scenes.catalogue import SCENE_LABELS, make_scene, split_of
from pipeline.scenes.rain import Rain
from pipeline.scenes.scene import RENDERER_VERSION, Scene
from pipeline.scenes.siren import Siren
from pipeline.scenes.surf import Surf
from pipeline.scenes.train import Train

SAMPLE_RATE = 16000
SIZE = 64


def scene_of(label: str, *, block: int = 0, seconds: float = 4.0) -> Scene:
    return make_scene(7, 9 * block + SCENE_LABELS.index(label), seconds=seconds)


def picture(scene: Scene, time_seconds: float, size: int = SIZE) -> NDArray[np.float32]:
    return scene.frame(time_seconds, height=size, width=size).astype(np.float32)


def loudness_of_parts(waveform: NDArray[np.float32], part_seconds: float) -> NDArray[np.float64]:
    """Root mean square of consecutive parts of the mean channel."""
    mono = waveform.mean(axis=0, dtype=np.float64)
    length = round(part_seconds * SAMPLE_RATE)
    parts = mono[: len(mono) // length * length].reshape(-1, length)
    return np.asarray(np.sqrt(np.mean(parts * parts, axis=1)))


def correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    return float(np.corrcoef(first, second)[0, 1])


def test_every_block_of_nine_holds_all_nine_labels() -> None:
    labels = [make_scene(1, index, seconds=1.0).label for index in range(9, 18)]

    assert len(SCENE_LABELS) == 9
    assert sorted(labels) == sorted(SCENE_LABELS)


@pytest.mark.parametrize("label", SCENE_LABELS)
def test_same_seed_and_index_give_the_same_scene(label: str) -> None:
    first, second = scene_of(label), scene_of(label)

    assert first.events == second.events
    assert np.array_equal(picture(first, 1.3), picture(second, 1.3))
    assert np.array_equal(first.waveform(SAMPLE_RATE), second.waveform(SAMPLE_RATE))


@pytest.mark.parametrize("label", SCENE_LABELS)
def test_another_index_of_the_same_class_looks_and_sounds_different(label: str) -> None:
    first, second = scene_of(label), scene_of(label, block=1)

    assert np.abs(picture(first, 1.0) - picture(second, 1.0)).mean() > 2
    assert not np.array_equal(first.waveform(SAMPLE_RATE), second.waveform(SAMPLE_RATE))


@pytest.mark.parametrize("label", SCENE_LABELS)
def test_a_picture_depends_on_its_time_only(label: str) -> None:
    scene = scene_of(label, seconds=1.0)
    slow = list(scene.frames(fps=5, height=SIZE, width=SIZE))
    fast = list(scene.frames(fps=10, height=SIZE, width=SIZE))

    assert (len(slow), len(fast)) == (5, 10)
    assert np.array_equal(np.stack(slow), np.stack(fast[::2]))
    assert np.array_equal(slow[3], scene.frame(3 / 5, height=SIZE, width=SIZE))


@pytest.mark.parametrize("label", SCENE_LABELS)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 57), (90, 40), (8, 8)])
def test_pictures_have_the_size_asked_for(label: str, height: int, width: int) -> None:
    frame = next(scene_of(label).frames(fps=10, height=height, width=width))

    assert frame.shape == (height, width, 3)
    assert frame.dtype == np.uint8
    assert frame.flags.c_contiguous


@pytest.mark.parametrize("label", SCENE_LABELS)
def test_a_small_picture_is_the_large_one_seen_from_afar(label: str) -> None:
    scene = scene_of(label)
    large = picture(scene, 0.9, 4 * SIZE)
    averaged = large.reshape(SIZE, 4, SIZE, 4, 3).mean(axis=(1, 3))

    # Edges are softened over 1.5 pixels of either size, which the mean over 4 x 4 is not.
    assert np.abs(averaged - picture(scene, 0.9)).mean() < 3.0


@pytest.mark.parametrize("label", SCENE_LABELS)
def test_the_picture_moves(label: str) -> None:
    scene = scene_of(label)
    frames = np.stack(list(scene.frames(fps=5, height=SIZE, width=SIZE))).astype(np.float32)

    assert np.abs(np.diff(frames, axis=0)).mean() > 0.1


def test_a_length_that_floats_cannot_hold_gets_no_frame_too_many() -> None:
    scene = make_scene(0, 0, seconds=1.1)  # 1.1 * 10 is 11.000000000000002

    assert sum(1 for _ in scene.frames(fps=10, height=8, width=8)) == 11


@pytest.mark.parametrize("block", range(3))
@pytest.mark.parametrize("label", SCENE_LABELS)
def test_sound_is_stereo_healthy_and_never_clips(label: str, block: int) -> None:
    waveform = scene_of(label, block=block).waveform(SAMPLE_RATE)

    assert waveform.shape == (2, 4 * SAMPLE_RATE)
    assert waveform.dtype == np.float32
    assert np.abs(waveform).max() < 1
    # The range of normal programme material; ambience alone is at -60.
    assert -28 < loudness_dbfs(waveform) < -13


@pytest.mark.parametrize("label", SCENE_LABELS)
def test_no_part_of_the_sound_is_digital_silence(label: str) -> None:
    parts = loudness_of_parts(scene_of(label).waveform(SAMPLE_RATE), 0.05)

    assert parts.min() > 1e-4


@pytest.mark.parametrize("sample_rate", [8000, 22050, 44100])
def test_sound_has_the_sample_rate_asked_for(sample_rate: int) -> None:
    waveform = scene_of("xylophone", seconds=1.5).waveform(sample_rate)

    assert waveform.shape == (2, round(1.5 * sample_rate))


@pytest.mark.parametrize("label", SCENE_LABELS)
def test_events_are_ascending_and_within_the_scene(label: str) -> None:
    times = [event.time_seconds for event in scene_of(label).events]

    assert times
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] < 4.0


@pytest.mark.parametrize("block", range(3))
@pytest.mark.parametrize(
    "label", ["bouncing_ball", "pendulum", "xylophone", "fireworks", "train", "bird"]
)
def test_an_event_is_heard_within_20_ms(label: str, block: int) -> None:
    scene = scene_of(label, block=block)
    mono = scene.waveform(SAMPLE_RATE).mean(axis=0, dtype=np.float64)
    # The second difference lifts the onset above the low tail of the event before.
    onset = np.diff(mono, n=2) ** 2
    reach = round(0.02 * SAMPLE_RATE)
    rises = []
    for event in scene.events:
        at = round(event.time_seconds * SAMPLE_RATE)
        if reach < at < len(onset) - reach:
            rises.append(onset[at : at + reach].mean() / onset[at - reach : at].mean())

    # A few events fall into the sound of another one.
    assert np.mean(np.asarray(rises) > 2) >= 0.75
    assert np.median(rises) > 4


@pytest.mark.parametrize("block", range(3))
@pytest.mark.parametrize("label", ["bouncing_ball", "pendulum", "xylophone", "fireworks", "bird"])
def test_loud_onsets_have_an_event(label: str, block: int) -> None:
    scene = scene_of(label, block=block)
    step = 0.01
    parts = loudness_of_parts(scene.waveform(SAMPLE_RATE), step)
    rise = np.diff(parts, prepend=parts[0])
    loudest = (np.argsort(rise)[-3:] + 0.5) * step
    events = np.asarray([event.time_seconds for event in scene.events])

    distance = np.abs(loudest[:, None] - events[None, :]).min(axis=1)

    assert distance.max() < 0.03


def test_the_picture_changes_most_at_a_stroke() -> None:
    scene = scene_of("xylophone")
    stroke = next(event.time_seconds for event in scene.events if event.time_seconds > 1)
    before = np.abs(picture(scene, stroke - 0.02) - picture(scene, stroke - 0.07)).mean()
    across = np.abs(picture(scene, stroke + 0.02) - picture(scene, stroke - 0.03)).mean()

    assert across > 1.5 * before


@pytest.mark.parametrize("block", range(3))
def test_rain_is_as_loud_as_it_is_dense(block: int) -> None:
    scene = scene_of("rain", block=block, seconds=8.0)
    assert isinstance(scene.subject, Rain)
    loudness = loudness_of_parts(scene.waveform(SAMPLE_RATE), 0.25)
    middles = (np.arange(len(loudness)) + 0.5) * 0.25
    # Visible: drops in the air or rings on the lake.
    visible = [
        sum(-0.55 < time - drop.time_seconds < 0.7 for drop in scene.subject.drops)
        for time in middles
    ]

    assert correlation(loudness, np.asarray(visible, np.float64)) > 0.75


@pytest.mark.parametrize("block", range(3))
def test_surf_is_as_loud_as_its_foam_is_high(block: int) -> None:
    scene = scene_of("surf", block=block, seconds=6.0)
    assert isinstance(scene.subject, Surf)
    loudness = loudness_of_parts(scene.waveform(SAMPLE_RATE), 0.2)
    frames = islice(scene.frames(fps=10, height=SIZE, width=SIZE), 1, None, 2)
    sea = [frame[SIZE * 3 // 5 :].astype(np.float64) for frame in frames]
    white = np.asarray([pixels.min(axis=-1).mean() for pixels in sea])

    # The three sheets lag 0.18 s behind one another, the sound follows the nearest.
    assert correlation(loudness, white) > 0.7


@pytest.mark.parametrize("block", range(4))
def test_the_pitch_of_a_siren_follows_its_hue(block: int) -> None:
    scene = scene_of("siren", block=block, seconds=5.0)
    assert isinstance(scene.subject, Siren)
    siren = scene.subject
    mono = scene.waveform(SAMPLE_RATE).mean(axis=0, dtype=np.float64)
    times = np.arange(0.1, 4.9, 0.1)
    times = times[siren.level(times) > 0.9]
    pitches, colours = [], []
    for time in times:
        start = round((time - 0.04) * SAMPLE_RATE)
        part = mono[start : start + round(0.08 * SAMPLE_RATE)]
        spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), 8192))
        pitches.append(np.log2(spectrum.argmax() * SAMPLE_RATE / 8192))
        frame = picture(scene, float(time))
        x, y, reach = (round(SIZE * part) for part in (siren.x, siren.y, 0.5 * siren.size))
        colours.append(frame[y - reach : y + reach, x - reach : x + reach].mean(axis=(0, 1)))
    lowest = colours[int(np.argmin(pitches))]
    away = np.asarray([np.linalg.norm(colour - lowest) for colour in colours])

    assert max(pitches) - min(pitches) > 0.7  # octaves
    assert correlation(np.asarray(pitches), away) > 0.8


def test_a_train_is_heard_on_the_side_where_it_is() -> None:
    scene = scene_of("train", seconds=6.0)
    assert isinstance(scene.subject, Train)
    passage = scene.subject.passages[0]
    waveform = scene.waveform(SAMPLE_RATE).astype(np.float64)
    reach = scene.subject.length / 2 + 0.6
    times = passage.middle_time + np.asarray([-1, 1]) * reach / abs(passage.velocity)
    later = float(times[1])
    part = waveform[:, round((later - 0.1) * SAMPLE_RATE) : round((later + 0.1) * SAMPLE_RATE)]
    left, right = np.sqrt(np.mean(part * part, axis=1))

    assert (right > left) == (passage.velocity > 0)


@pytest.mark.parametrize("block", range(3))
def test_a_train_is_loudest_while_it_is_in_the_picture(block: int) -> None:
    scene = scene_of("train", block=block, seconds=8.0)
    assert isinstance(scene.subject, Train)
    loudness = loudness_of_parts(scene.waveform(SAMPLE_RATE), 0.1)
    times = np.asarray((np.arange(len(loudness)) + 0.5) * 0.1, np.float64)
    away = np.min([np.abs(p.centre(times) - 0.5) for p in scene.subject.passages], axis=0)
    near = away < scene.subject.length / 2
    far = away > scene.subject.length / 2 + 0.45

    assert np.median(loudness[near]) > 2 * np.median(loudness[far])


GOLDEN = {
    "bouncing_ball": ((96.9, 68.3, 94.9), -20.8),
    "rain": ((41.0, 48.2, 76.7), -22.5),
    "pendulum": ((171.4, 211.8, 180.8), -20.6),
    "fireworks": ((46.5, 51.4, 89.7), -19.8),
    "siren": ((154.3, 113.8, 169.7), -19.0),
    "surf": ((48.5, 92.3, 116.0), -17.8),
    "xylophone": ((167.8, 169.3, 165.9), -20.1),
    "train": ((142.1, 141.5, 152.3), -20.3),
    "bird": ((181.7, 166.3, 178.1), -17.5),
}
"""Of version 1: mean colour at 0.7 s, loudness of 2 s in dBFS; seed 0, 64 x 64, 16 kHz."""


@pytest.mark.parametrize("label", SCENE_LABELS)
def test_a_renderer_version_always_draws_the_same(label: str) -> None:
    scene = make_scene(0, SCENE_LABELS.index(label), seconds=2.0)
    colour, loudness = GOLDEN[label]

    # The last bits of sine and exponential differ between processors: tenths of a level.
    assert RENDERER_VERSION == 1
    assert picture(scene, 0.7).mean(axis=(0, 1)) == pytest.approx(colour, abs=0.3)
    assert loudness_dbfs(scene.waveform(16000)) == pytest.approx(loudness, abs=0.1)


def test_splits_are_stable_and_about_80_10_10() -> None:
    counts = Counter(split_of(3, index) for index in range(2000))

    assert [split_of(3, index) for index in range(4)] == [split_of(3, i) for i in range(4)]
    # Three standard deviations of a binomial share of 2000 are below 0.03.
    assert counts["train"] / 2000 == pytest.approx(0.8, abs=0.03)
    assert counts["validation"] / 2000 == pytest.approx(0.1, abs=0.03)
    assert counts["test"] / 2000 == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize(("seed", "index", "seconds"), [(-1, 0, 1.0), (0, -1, 1.0), (0, 0, 0.0)])
def test_arguments_out_of_range_are_refused(seed: int, index: int, seconds: float) -> None:
    with pytest.raises(ValueError, match="must be >= 0"):
        make_scene(seed, index, seconds=seconds)


@pytest.mark.parametrize("label", SCENE_LABELS)
def test_a_scene_survives_pickling(label: str) -> None:
    scene = scene_of(label)

    assert pickle.loads(pickle.dumps(scene)) == scene


def test_drawing_needs_numpy_only() -> None:
    code = (
        "import sys, pipeline.scenes.catalogue\n"
        "heavy = {'torch', 'av', 'PIL', 'scipy', 'decord'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr

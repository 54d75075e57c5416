"""Samples on a page: which, beside what, and what is said of them."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.report.media import read_mp4, strip_png
from evaluation.report.page_samples import EXPECTATION, samples_section
from evaluation.report.played import ClipWindows, PlayedWindow
from evaluation.report.samples import (
    SampleFile,
    SamplesContents,
    ShownSample,
    ShowSample,
    choose_shown,
    find_samples,
)
from latents.cache.snapshot import load_snapshot
from latents.clip import Clip
from latents.errors import ConfigError
from pipeline.originals import Originals, Unavailable
from tests.evaluation.report.conftest import Report
from tests.evaluation.report.reported import Reported, contents, section, stills


@pytest.fixture
def folder(reported: Reported, tmp_path: Path) -> Path:
    """A copy of the samples, to be changed."""
    return Path(shutil.copytree(reported.samples, tmp_path / "samples"))


@contextmanager
def showing(reported: Reported) -> Iterator[ShowSample]:
    level, recorded = reported.level(), reported.models.encoding.kl
    snapshot = load_snapshot(level.layout, level.commit)
    with closing(Originals(level.layout, snapshot, recorded)) as originals:
        windows = ClipWindows(level, recorded, originals, reported.models.decoder)
        yield ShowSample(level, windows, originals)


def shown(reported: Reported, folder: Path, task: str) -> ShownSample:
    (sample,) = [sample for sample in find_samples([folder]) if sample.task == task]
    with showing(reported) as show:
        return show(sample)


def set_condition(folder: Path, task: str, digest: str) -> None:
    record = folder / f"{task}_s0.json"
    found = json.loads(record.read_text())
    found["conditions"][0]["digest"] = digest
    record.write_text(json.dumps(found))


def test_samples_are_in_the_page_as_they_were_written(reported: Reported, report: Report) -> None:
    text = section(report.page, "Samples")
    files = [reported.samples / f"{task}_s0_00000.mp4" for task in ("svg", "a2v", "v2a")]

    videos = contents(text, "video/mp4")

    assert [videos[0], videos[2], videos[4]] == [path.read_bytes() for path in files]
    assert len(videos) == 5
    assert report.result.num_samples == 3
    assert EXPECTATION in text
    assert "All 3 there are; none was picked" in text
    assert "made by another DiT" not in text


def test_given_and_sampled_stand_side_by_side(report: Report) -> None:
    text = section(report.page, "Samples")

    assert text.index("Given: its sound") < text.index("Sampled: pictures")
    assert text.index("Given: its pictures") < text.index("Sampled: sound")
    assert text.count('data-sound="given"') == text.count('data-sound="sample"') == 2


def test_the_window_of_a_source_is_its_own_pictures_and_sound(reported: Reported) -> None:
    level, clip = reported.level(), reported.level().clips[0]
    with closing(originals_of(reported)) as originals:
        windows = ClipWindows(
            level, reported.models.encoding.kl, originals, reported.models.decoder
        )
        found, whole = windows.original(clip, 1), originals.find(clip)

    assert isinstance(found, PlayedWindow)
    assert isinstance(whole, Clip)
    # Window 1 of 4 frames at 10 fps begins with the third frame, 0.2 s later.
    assert np.array_equal(found.frames, whole.frames[2:6])
    first, rate = round(0.2 * whole.sample_rate), whole.sample_rate
    stop = first + round(0.4 * rate)
    assert np.array_equal(found.sound.waveform, whole.waveform[:, first:stop])


def originals_of(reported: Reported) -> Originals:
    level = reported.level()
    snapshot = load_snapshot(level.layout, level.commit)
    return Originals(level.layout, snapshot, reported.models.encoding.kl)


def test_stills_of_what_is_sampled_stand_below_those_of_what_is_given(
    reported: Reported, folder: Path
) -> None:
    sample = shown(reported, folder, "a2v")

    strip = stills(sample.strip)

    frames, _, _ = read_mp4((folder / "a2v_s0_00000.mp4").read_bytes())
    assert strip.shape == (2, 4, 3, 32, 32)
    assert np.array_equal(strip[1], frames)
    assert sample.given is not None
    assert not isinstance(sample.given.window, Unavailable)


def test_the_mel_of_a_sample_ends_with_its_pictures(reported: Reported, folder: Path) -> None:
    mel = Image.open(io.BytesIO(shown(reported, folder, "svg").sample.mel))

    # 4 frames at 10 fps are 8820 samples of 22050 Hz: 34 hops of 256.
    assert mel.size == (34, 80)


def test_where_the_source_is_gone_the_window_is_decoded(
    reported: Reported, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Originals, "find", lambda *_: Unavailable(reason="the source is gone"))

    sample = shown(reported, folder, "v2a")

    assert sample.given is not None
    assert sample.given.is_decoded
    # Both go by the same KL latents, decoded by the same KL-VAE.
    found, wanted = (
        read_mp4(video)[0]
        for video in (sample.given.window.video, sample.sample.video)  # type: ignore[union-attr]
    )
    assert np.array_equal(found, wanted)
    page = samples_section(SamplesContents(shown=(sample,), num_samples=1, num_of_another_dit=None))
    assert "Given: its pictures, from its KL latents" in page


@pytest.mark.parametrize(
    ("digest", "words"),
    [
        ("1234abcd clip 0 window 0", "given as a file"),
        ("cached 0123-00000000-10:0", "this cache does not hold the window"),
        ("cached nonsense", "this cache does not hold the window"),
    ],
)
def test_what_is_not_in_the_cache_is_not_shown(
    reported: Reported, folder: Path, digest: str, words: str
) -> None:
    set_condition(folder, "a2v", digest)

    sample = shown(reported, folder, "a2v")

    page = samples_section(SamplesContents(shown=(sample,), num_samples=1, num_of_another_dit=None))
    assert page.count("<video") == 1
    assert words in page
    assert "Play both" not in page


def test_a_window_beyond_its_clip_is_not_shown(reported: Reported, folder: Path) -> None:
    clip = reported.level().clips[0]
    set_condition(folder, "a2v", f"cached {clip.clip}:{clip.num_windows}")

    sample = shown(reported, folder, "a2v")

    assert sample.given is not None
    assert isinstance(sample.given.window, Unavailable)


def test_the_first_eight_of_each_task_are_shown(folder: Path) -> None:
    for index in range(1, 11):
        shutil.copy(folder / "svg_s0_00000.mp4", folder / f"svg_s0_{index:05d}.mp4")

    chosen = choose_shown(find_samples([folder]))

    names = [sample.path.name for sample in chosen]
    assert names == [
        *(f"svg_s0_{index:05d}.mp4" for index in range(8)),
        "a2v_s0_00000.mp4",
        "v2a_s0_00000.mp4",
    ]


def test_samples_of_several_folders_are_shown_by_task(folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))

    found = find_samples([folder, other])

    assert [(sample.task, sample.path.parent) for sample in found] == [
        (task, parent) for task in ("svg", "a2v", "v2a") for parent in (folder, other)
    ]


def test_samples_of_another_dit_are_told(reported: Reported, folder: Path, tmp_path: Path) -> None:
    record = folder / "svg_s0.json"
    found = json.loads(record.read_text())
    found["made_by"]["dit"] = "0" * 64
    record.write_text(json.dumps(found))

    page = reported.page(tmp_path / "report.html", samples=(folder,))

    assert "1 of those shown were made by another DiT than the one above" in page


def test_a_folder_without_samples_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no sample")

    with pytest.raises(ConfigError, match="holds no samples"):
        find_samples([tmp_path])
    with pytest.raises(ConfigError, match="cannot be read"):
        find_samples([tmp_path / "none"])


def test_samples_of_which_nothing_is_on_record_are_refused(folder: Path) -> None:
    (folder / "svg_s0.json").unlink()

    with pytest.raises(ConfigError, match=r"svg_s0.json is no record of svg_s0_00000.mp4"):
        find_samples([folder])


def test_a_file_that_is_no_video_is_named(reported: Reported, folder: Path) -> None:
    (folder / "svg_s0_00000.mp4").write_bytes(b"not a video")

    with pytest.raises(ConfigError, match=r"svg_s0_00000.mp4 is no video with sound"):
        shown(reported, folder, "svg")


def test_large_stills_are_made_smaller() -> None:
    rows = [np.full((3, 3, 256, 512), value, np.uint8) for value in (10, 200)]

    pictures = strip_png(rows)

    image = Image.open(io.BytesIO(pictures))
    assert image.size == (3 * 256 + 2 * 2, 2 * 128 + 2)
    assert image.getpixel((0, 0)) == (10, 10, 10, 255)
    assert image.getpixel((257, 0)) == (0, 0, 0, 0)


def test_a_sample_file_knows_its_number(reported: Reported) -> None:
    found: SampleFile = find_samples([reported.samples])[1]

    clip = reported.level("perceptual").clips[0].clip
    assert replace(found, made_by=None) == SampleFile(
        path=reported.samples / "a2v_s0_00000.mp4",
        record=reported.samples / "a2v_s0.json",
        task="a2v",
        seed=0,
        index=0,
        made_by=None,
        given=f"{clip}:1",
        given_digest=f"cached {clip}:1",
    )

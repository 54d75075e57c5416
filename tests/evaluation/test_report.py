from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import mmldm
from evaluation.report.contents import choose_evenly, group_causes, scene_label
from evaluation.report.figures import bar_edges, histogram
from evaluation.report.media import mp4_bytes
from evaluation.report.write import ReportResult, is_report_of, write_report
from latents.cache.layout import create_cache
from latents.cache.reader import CachedClip, open_cache
from latents.errors import CacheError, ConfigError, ModelError
from latents.fields import Level
from latents.models.kl_vae import load_kl_vae
from latents.models.kl_vae_files import save_autoencoder
from pipeline.cli_settings import named_encoders
from pipeline.engine_local import LocalEngine
from pipeline.ingest import ingest
from pipeline.scenes.catalogue import make_scene
from pipeline.settings import IngestSettings
from pipeline.sources import find_sources
from pipeline.synth import synthesise


def make_cache(
    root: Path, sources: list[str], settings: IngestSettings, levels: tuple[Level, ...] = ("kl",)
) -> Path:
    layout = create_cache(root)
    ingest(
        find_sources(sources),
        layout=layout,
        settings=settings,
        encoders=named_encoders(settings, levels),
        levels=levels,
        engine=LocalEngine(num_workers=1),
        device="cpu",
    )
    return root


def report_on(cache: Path, out: Path, kl_vae: Path, *, num_clips: int = 8) -> ReportResult:
    return write_report(
        cache, out, kl_vae=str(kl_vae), num_clips=num_clips, device="cpu", num_threads=1
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, small_settings: IngestSettings) -> Path:
    """Two scenes of 2 s, and a file that is no video."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "<broken>.mp4").write_bytes(b"not a video")
    return make_cache(
        folder / "cache", ["scenes:0:2:2", str(folder / "<broken>.mp4")], small_settings
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    result: ReportResult
    page: str

    def contents(self, media_type: str) -> list[bytes]:
        """What is inside the page, in order."""
        found = re.findall(f'src="data:{media_type};base64,([^"]+)"', self.page)
        return [base64.b64decode(one, validate=True) for one in found]


@pytest.fixture(scope="module")
def report(cache: Path, small_kl_vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("report") / "new folder" / "report.html"
    return Report(result=report_on(cache, path, small_kl_vae), page=path.read_text())


def played(content: bytes) -> tuple[list[NDArray[np.uint8]], int, int]:
    """Pictures of an mp4, and the number and rate of its waveform samples."""
    with av.open(io.BytesIO(content)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(io.BytesIO(content)) as container:
        blocks = list(container.decode(audio=0))
    return pictures, sum(block.samples for block in blocks), blocks[0].sample_rate


def test_the_page_refers_to_nothing_outside_itself(report: Report) -> None:
    text = re.sub(r"base64,[^\"]+", "", report.page)

    assert not re.search(r"https?:|//[a-z]|@import|url\(|<link|<iframe", text)
    assert set(re.findall(r'\b(?:src|href|poster)="([^":;]*)', text)) == {"data"}


def test_every_clip_stands_beside_its_reconstruction(report: Report) -> None:
    videos, mels = report.contents("video/mp4"), report.contents("image/png")

    assert len(videos) == len(mels) == 4
    for video in videos:
        pictures, num_samples, sample_rate = played(video)
        assert len(pictures) == 20
        assert pictures[0].shape == (64, 64, 3)
        assert sample_rate == 22050
        # AAC pads the end to a whole frame of 1024 samples and may keep its priming.
        assert 44100 <= num_samples <= 44100 + 3 * 1024
    for mel in mels:
        # 20 frames are covered by windows 0..16 and 4..20: 44100 samples, 172 hops.
        assert Image.open(io.BytesIO(mel)).size == (172, 80)


def test_the_source_of_a_scene_is_rendered_again(report: Report) -> None:
    titles = re.findall(r"<header><b>([^<]+)</b>", report.page)
    index = titles.index("rain")
    pictures, _, _ = played(report.contents("video/mp4")[2 * index])

    scene = make_scene(0, 1, seconds=2).frame(0, height=64, width=64)
    difference = np.abs(pictures[0].astype(int) - scene.astype(int))
    # H.264 with subsampled colour.
    assert difference.mean() < 8


def test_figures_are_those_of_the_page(report: Report) -> None:
    result = report.result
    figures = [(clip.psnr_db, clip.mel_error_db) for clip in result.clips]

    assert len(figures) == 2
    for psnr, error in figures:
        assert psnr is not None
        assert error is not None
        # An untrained KL-VAE is far off, but not beyond the range of values.
        assert 0 < psnr < 25
        assert 1 < error < 100
        assert f"PSNR <b>{psnr:.1f} dB</b>" in report.page
        assert f"mel error <b>{error:.1f} dB</b>" in report.page
    assert result.mean_psnr_db == pytest.approx(np.mean([psnr for psnr, _ in figures]))
    assert result.mean_mel_error_db == pytest.approx(np.mean([error for _, error in figures]))


def test_counts_and_digests_are_in_the_page(report: Report, cache: Path) -> None:
    level = open_cache(cache, level="kl")

    assert '<div class="card tile"><b>2</b><span>clips</span>' in report.page
    assert f"<b>{level.num_windows}</b><span>windows to train on</span>" in report.page
    assert "<b>4.0 s</b><span>pictures and sound</span>" in report.page
    for digest in level.recipes.values():
        assert digest[:12] in report.page
    assert f"Commit {level.commit} of " in report.page


def test_quarantine_is_shown_with_its_cause_and_escaped(report: Report) -> None:
    table = report.page[report.page.index("<h2>Quarantine</h2>") :]

    assert "DecodeError" in table
    assert "<code>&lt;broken&gt;.mp4</code>" in table
    assert "<broken>" not in report.page


def test_equal_caches_give_equal_pages(
    cache: Path, report: Report, small_kl_vae: Path, tmp_path: Path
) -> None:
    report_on(cache, tmp_path / "again.html", small_kl_vae)

    assert (tmp_path / "again.html").read_text() == report.page
    assert [path.name for path in tmp_path.iterdir()] == ["again.html"]


def test_a_report_knows_its_cache(cache: Path, report: Report, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert not is_report_of(page, cache, num_clips=8)
    page.write_text(report.page)

    assert is_report_of(page, cache, num_clips=8)
    assert not is_report_of(page, cache, num_clips=7)


def test_a_foreign_kl_vae_is_refused(cache: Path, other_kl_vae: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="name the KL-VAE that made the cache") as caught:
        report_on(cache, tmp_path / "report.html", other_kl_vae)

    assert str(other_kl_vae) in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_fine_tuned_decoder_is_accepted(
    cache: Path, report: Report, small_kl_vae: Path, tmp_path: Path
) -> None:
    kl_vae = load_kl_vae(str(small_kl_vae))
    with torch.no_grad():
        kl_vae.autoencoder.decoder.conv_out.bias += 0.2
    save_autoencoder(kl_vae.autoencoder, tmp_path / "tuned")

    result = report_on(cache, tmp_path / "report.html", tmp_path / "tuned")

    assert result.mean_psnr_db != report.result.mean_psnr_db


def test_without_its_source_a_clip_is_shown_alone(
    small_settings: IngestSettings, small_kl_vae: Path, tmp_path: Path
) -> None:
    synthesise(tmp_path / "videos", num_clips=1, seconds=2, seed=0, height=64, width=64)
    cache = make_cache(tmp_path / "cache", [str(tmp_path / "videos")], small_settings)
    (video,) = (tmp_path / "videos").glob("*.mp4")
    video.unlink()

    result = report_on(cache, tmp_path / "report.html", small_kl_vae)

    page = (tmp_path / "report.html").read_text()
    assert page.count("<video") == 1
    assert "the source is gone" in page
    assert "bouncing ball" in page
    assert result.mean_psnr_db is None
    assert [clip.psnr_db for clip in result.clips] == [None]


def test_a_source_with_other_bytes_is_not_taken_for_the_clip(
    small_settings: IngestSettings, small_kl_vae: Path, tmp_path: Path
) -> None:
    synthesise(tmp_path / "videos", num_clips=1, seconds=2, seed=0, height=64, width=64)
    cache = make_cache(tmp_path / "cache", [str(tmp_path / "videos")], small_settings)
    (video,) = (tmp_path / "videos").glob("*.mp4")
    video.write_bytes(b"something else")

    report_on(cache, tmp_path / "report.html", small_kl_vae)

    assert "has changed since it was ingested" in (tmp_path / "report.html").read_text()


def test_where_the_clip_level_is_kept_no_source_is_needed(
    small_settings: IngestSettings, small_kl_vae: Path, tmp_path: Path
) -> None:
    synthesise(tmp_path / "videos", num_clips=1, seconds=2, seed=0, height=64, width=64)
    cache = make_cache(
        tmp_path / "cache", [str(tmp_path / "videos")], small_settings, levels=("clip", "kl")
    )
    before = report_on(cache, tmp_path / "with.html", small_kl_vae)
    (video,) = (tmp_path / "videos").glob("*.mp4")
    video.unlink()

    after = report_on(cache, tmp_path / "without.html", small_kl_vae)

    assert (tmp_path / "without.html").read_text().count("<video") == 2
    assert before.clips == after.clips


def test_a_cache_without_latents_says_what_to_do(
    small_settings: IngestSettings, small_kl_vae: Path, tmp_path: Path
) -> None:
    cache = make_cache(tmp_path / "cache", ["scenes:0:1:2"], small_settings, levels=("clip",))

    with pytest.raises(CacheError, match="--levels kl"):
        report_on(cache, tmp_path / "report.html", small_kl_vae)


def test_a_folder_is_not_overwritten(cache: Path, small_kl_vae: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        report_on(cache, tmp_path, small_kl_vae)


def test_the_command_prints_json(
    cache: Path, small_kl_vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.html"
    arguments = ["--cache", str(cache), "--out", str(out), "--kl-vae", str(small_kl_vae)]

    assert mmldm.main(["report", *arguments, "--num-clips", "1", "--json"]) == 0

    printed = json.loads(capsys.readouterr().out)
    assert printed["path"] == str(out)
    assert printed["clips"][0]["psnr_db"] == printed["mean_psnr_db"]
    assert set(printed["clips"][0]) == {"clip", "psnr_db", "mel_error_db"}
    assert out.read_text().count("<video") == 2


def test_clips_are_chosen_evenly_over_the_keys() -> None:
    clips = [CachedClip(clip=str(number), rows={}) for number in range(10)]

    assert [clip.clip for clip in choose_evenly(clips, 3)] == ["1", "5", "8"]
    assert choose_evenly(clips, 99) == tuple(clips)


def test_causes_are_grouped_and_the_most_frequent_comes_first() -> None:
    def event(error: str, number: int) -> dict[str, str]:
        return {"error_class": error, "stage": "decode", "source": f"{number}", "message": "bad"}

    causes = group_causes(
        [event("TooShortError", 0), *(event("DecodeError", number) for number in range(5))]
    )

    assert [(cause.error_class, cause.count) for cause in causes] == [
        ("DecodeError", 5),
        ("TooShortError", 1),
    ]
    assert causes[0].examples == (("0", "bad"), ("1", "bad"), ("2", "bad"))


@pytest.mark.parametrize(
    ("uri", "label"),
    [
        ("scenes:0:10:4", "rain"),
        ("/videos/clip_00006_xylophone.mp4", "xylophone"),
        ("/videos/clip_00006_holiday.mp4", None),
        ("/videos/rain.mp4", None),
    ],
)
def test_scenes_are_labelled_by_their_name(uri: str, label: str | None) -> None:
    assert scene_label(uri) == label


@pytest.mark.parametrize(
    "values", [[4.0], [4.0, 4.0], [0.0], [-31.2, -12.9, -88.0], [1.0, 1000.0], [2.0, 2.001]]
)
def test_bars_hold_all_values_and_are_few(values: list[float]) -> None:
    edges = bar_edges(values)

    assert edges[0] <= min(values)
    assert max(values) < edges[-1]
    assert 5 <= len(edges) - 1 <= 14


def test_bars_are_as_high_as_their_counts() -> None:
    svg = histogram([1.0, 1.1, 1.2, 9.0], unit="s")

    heights = [float(height) for height in re.findall(r'class="bar"[^>]* height="([^"]+)"', svg)]
    drawn = [height for height in heights if height]
    assert drawn[0] / drawn[1] == pytest.approx(3)


def test_sound_of_many_channels_and_an_odd_rate_is_played() -> None:
    frames = np.zeros((10, 3, 16, 16), np.uint8)
    surround = np.zeros((6, 37800), np.float32)

    pictures, num_samples, sample_rate = played(
        mp4_bytes(frames, fps=10, waveform=surround, sample_rate=37800)
    )

    assert (len(pictures), sample_rate) == (10, 44100)
    assert num_samples >= 44100

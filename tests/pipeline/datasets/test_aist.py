"""AIST++: labels from the names of the files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.datasets.aist import Dance, dance_of_name
from pipeline.source_entries import Annotation
from pipeline.sources import find_sources


def test_a_name_says_what_is_danced() -> None:
    wanted = Dance(
        genre="BR",
        situation="BM",
        camera="01",
        dancers=("04",),
        music="BR0",
        choreography="01",
    )
    assert dance_of_name("gBR_sBM_c01_d04_mBR0_ch01") == wanted
    assert dance_of_name("gBR_sBM_c01_d04_mBR0_ch01_clip_3") == wanted


def test_a_group_has_several_dancers() -> None:
    dance = dance_of_name("gWA_sGR_cAll_d01_d02_d03_mWA3_ch04")
    assert dance is not None
    assert dance.dancers == ("01", "02", "03")
    assert dance.camera == "All"


@pytest.mark.parametrize("name", ["", "sSH_c01_v0", "gBR_sBM_c1_d04_mBR0_ch01", "dance"])
def test_another_name_says_nothing(name: str) -> None:
    assert dance_of_name(name) is None


def test_the_genre_is_the_label_and_the_folder_the_split(tmp_path: Path) -> None:
    for name in ("train/gBR_sBM_c01_d04_mBR0_ch01.mp4", "test/gJB_sFM_c02_d07_mJB5_ch10_1.mp4"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "other.mp4").write_bytes(b"x")
    other, test, train = find_sources([f"aist:{tmp_path}"])
    assert other.annotation is None
    assert train.annotation == Annotation(
        label="break",
        caption="break dance, situation BM, camera 01, dancer 04, music BR0, choreography 01",
        split="train",
    )
    assert test.annotation is not None
    assert (test.annotation.label, test.annotation.split) == ("ballet jazz", "test")

"""The stand-in for torchaudio's native extension, with fakes and with what is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from latents.torchaudio_stub import install_torchaudio_stub

REPOSITORY = Path(__file__).resolve().parents[2]
LOADABLE = Path(torch.__file__).parent / "lib" / "libc10.so"


@pytest.fixture
def torchaudio_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake torchaudio ahead of any installed one, not yet imported and without libraries."""
    package = tmp_path / "torchaudio"
    (package / "lib").mkdir(parents=True)
    (package / "_extension.py").write_text("IS_REAL = True\n")
    (package / "__init__.py").write_text(
        "from . import _extension\nfrom torchaudio._extension import fail_if_no_align\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    imported = [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]
    for name in (*imported, "torchaudio._extension"):
        monkeypatch.setitem(sys.modules, name, None)  # so that undoing removes what we add
        del sys.modules[name]
    return package


def test_an_extension_that_cannot_load_is_replaced(torchaudio_folder: Path) -> None:
    (torchaudio_folder / "lib" / "_torchaudio.abi3.so").write_bytes(b"not a library")

    assert install_torchaudio_stub()

    stub = sys.modules["torchaudio._extension"]
    assert stub._IS_TORCHAUDIO_EXT_AVAILABLE is False
    assert stub._IS_ALIGN_AVAILABLE is False
    assert stub._check_cuda_version() is None


def test_a_second_library_that_cannot_load_is_noticed_too(torchaudio_folder: Path) -> None:
    (torchaudio_folder / "lib" / "_torchaudio.abi3.so").symlink_to(LOADABLE)
    (torchaudio_folder / "lib" / "libtorchaudio.abi3.so").write_bytes(b"not a library")

    assert install_torchaudio_stub()


def test_installing_twice_reports_the_stub_twice(torchaudio_folder: Path) -> None:
    (torchaudio_folder / "lib" / "_torchaudio.abi3.so").write_bytes(b"not a library")
    install_torchaudio_stub()
    stub = sys.modules["torchaudio._extension"]

    assert install_torchaudio_stub()
    assert sys.modules["torchaudio._extension"] is stub


@pytest.mark.skipif(not LOADABLE.exists(), reason="this torch has no libc10.so to stand for one")
def test_an_extension_that_loads_is_left_alone(torchaudio_folder: Path) -> None:
    (torchaudio_folder / "lib" / "_torchaudio.abi3.so").symlink_to(LOADABLE)
    (torchaudio_folder / "lib" / "libtorchaudio.abi3.so").symlink_to(LOADABLE)
    (torchaudio_folder / "lib" / "libtorchaudio_sox.so").write_bytes(b"not loaded on import")

    assert not install_torchaudio_stub()
    assert "torchaudio._extension" not in sys.modules


def test_a_torchaudio_built_without_extension_is_left_alone(torchaudio_folder: Path) -> None:
    assert not install_torchaudio_stub()
    assert "torchaudio._extension" not in sys.modules


def test_an_imported_torchaudio_is_left_alone(
    torchaudio_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (torchaudio_folder / "lib" / "_torchaudio.abi3.so").write_bytes(b"not a library")
    monkeypatch.setitem(sys.modules, "torchaudio", pytest)

    assert not install_torchaudio_stub()
    assert "torchaudio._extension" not in sys.modules


def test_an_absent_torchaudio_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torchaudio", raising=False)
    monkeypatch.delitem(sys.modules, "torchaudio._extension", raising=False)
    monkeypatch.setattr("latents.torchaudio_stub.find_spec", lambda name: None)

    assert not install_torchaudio_stub()


def test_a_function_that_needs_the_extension_says_so(torchaudio_folder: Path) -> None:
    (torchaudio_folder / "lib" / "_torchaudio.abi3.so").write_bytes(b"not a library")
    install_torchaudio_stub()

    @sys.modules["torchaudio._extension"].fail_if_no_align
    def forced_align() -> None: ...

    with pytest.raises(RuntimeError, match="forced_align needs its native extension"):
        forced_align()


USE_EVERYTHING = """
from latents.torchaudio_stub import install_torchaudio_stub
install_torchaudio_stub()
import torch, torchaudio
assert torchaudio.functional.resample(torch.zeros(441), 44100, 22050).shape == (221,)
from diffusers import AutoencoderKL
from transformers import SpeechT5HifiGan
assert install_torchaudio_stub() == hasattr(torchaudio._extension, "_is_stub_of_latents")
"""


@pytest.mark.slow
def test_torchaudio_diffusers_and_transformers_import_after_it() -> None:
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    command = [sys.executable, "-c", USE_EVERYTHING]
    subprocess.run(command, cwd=REPOSITORY, check=True, timeout=120)

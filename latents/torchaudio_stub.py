"""Lets torchaudio be imported where its native extension cannot be loaded.

torchaudio's wheels are linked against CUDA. Beside a CPU-only torch the shared library does not
load, ``import torchaudio`` raises, and so do diffusers and transformers, which probe for it.
Everything this project uses of torchaudio is pure Python, so there a stand-in for the module
that loads the library is enough.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_EXTENSION = "torchaudio._extension"
_MARK = "_is_stub_of_latents"


def install_torchaudio_stub() -> bool:
    """Stand in for torchaudio's native extension where it is installed and cannot be loaded.

    Call it before the first import of torchaudio, diffusers or transformers in a process; calling
    it again costs nothing. It changes nothing where torchaudio is absent, already imported, or
    has an extension that loads. With the stub, what needs the extension (forced alignment, the
    CUDA decoder) says so when it is used; everything else runs in Python.

    Returns:
        Whether the stub is in place.
    """
    if _EXTENSION in sys.modules or "torchaudio" in sys.modules:
        return hasattr(sys.modules.get(_EXTENSION), _MARK)
    spec = find_spec("torchaudio")
    if spec is None or spec.origin is None or _extension_loads(Path(spec.origin).parent / "lib"):
        return False
    sys.modules[_EXTENSION] = _stub()
    return True


def _extension_loads(folder: Path) -> bool:
    """Whether torchaudio's own import would get past its shared libraries in this folder."""
    libraries = [
        path
        for stem in ("_torchaudio", "libtorchaudio")
        for path in sorted(folder.glob(f"{stem}.*"))
        if path.suffix in (".so", ".pyd")
    ]
    try:
        for path in libraries:
            torch.ops.load_library(path)  # type: ignore[no-untyped-call]  # torch annotates it not
    except OSError:
        return False
    return True


def _stub() -> ModuleType:
    module = module_from_spec(ModuleSpec(_EXTENSION, loader=None))
    vars(module).update(
        {
            _MARK: True,
            "_IS_TORCHAUDIO_EXT_AVAILABLE": False,
            "_IS_ALIGN_AVAILABLE": False,
            "_check_cuda_version": lambda: None,
            "_load_lib": lambda name: False,
            "fail_if_no_align": _fail_when_called,
        }
    )
    return module


def _fail_when_called(function: Callable[..., Any]) -> Callable[..., Any]:
    """Replace a function that needs the extension by one that says so."""

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError(
            f"torchaudio's {function.__name__} needs its native extension, which does not load "
            "beside this build of torch. Install the torchaudio wheel made for it."
        )

    return fail

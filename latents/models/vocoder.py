"""Waveforms from log mels without any trained weights: Griffin-Lim."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from latents.mel import MelSpec, check_log_mel, mel_basis
from latents.torchaudio_stub import install_torchaudio_stub

_MOMENTUM = 0.99
_NUM_NNLS_UPDATES = 30


def griffin_lim(log_mel: Tensor, spec: MelSpec, *, num_iterations: int = 32) -> Tensor:
    """Waveform, float32 (sample,) at ``spec.sample_rate``, whose log mel is close to this one.

    It has column * hop_length samples: every whole hop of the waveform that the mel
    (num_mels, column) was made from. Phases start at zero, so equal mels give equal waveforms.

    Source: Perraudin, Balazs and Sondergaard, "A fast Griffin-Lim algorithm", WASPAA 2013.

    Args:
        log_mel: Natural-log mel magnitudes, float32.
        spec: The mel's specification.
        num_iterations: Phase updates; 32 to 64 are usual.

    Raises:
        ValueError: The mel is not of this specification, or ``num_iterations`` is below 1.
    """
    check_log_mel(log_mel, spec)
    if num_iterations < 1:
        raise ValueError(f"num_iterations is {num_iterations}; it must be >= 1")
    install_torchaudio_stub()
    # Here, not at the top: torchaudio may only be imported once the stub has been considered.
    from torchaudio.functional import griffinlim

    magnitude = mel_to_magnitude(log_mel.exp(), spec)
    # torchaudio centres column t at sample t * hop, the mel at (t + 1/2) * hop: the waveform is
    # half a hop late there. Repeated edge columns make room for that and for its reflection.
    edge = -(-spec.n_fft // (2 * spec.hop_length))
    padded = functional.pad(magnitude[None], (edge, edge), mode="replicate")[0]
    waveform: Tensor = griffinlim(
        padded,
        window=torch.hann_window(spec.win_length, device=log_mel.device),
        n_fft=spec.n_fft,
        hop_length=spec.hop_length,
        win_length=spec.win_length,
        power=1.0,
        n_iter=num_iterations,
        momentum=_MOMENTUM,
        length=(padded.shape[1] - 1) * spec.hop_length,
        rand_init=False,
    )
    first = edge * spec.hop_length - spec.hop_length // 2
    return waveform[first : first + log_mel.shape[1] * spec.hop_length].clone()


def mel_to_magnitude(mel: Tensor, spec: MelSpec) -> Tensor:
    """Non-negative magnitudes (n_fft / 2 + 1, column) whose mel is this one (num_mels, column).

    Of the many solutions it takes one near the least-norm one: the pseudo-inverse cut at zero,
    then multiplicative updates of the least-squares error (Lee and Seung, NIPS 2000, Theorem 1),
    which keep magnitudes non-negative. What no mel filter covers is zero.
    """
    basis = mel_basis(spec).to(mel.device)
    magnitude = (_pseudo_inverse(spec).to(mel.device) @ mel).clamp(min=1e-8)
    target = basis.T @ mel
    for _ in range(_NUM_NNLS_UPDATES):
        magnitude = magnitude * target / (basis.T @ (basis @ magnitude) + 1e-12)
    return magnitude


@lru_cache(maxsize=8)
def _pseudo_inverse(spec: MelSpec) -> Tensor:
    inverse: Tensor = torch.linalg.pinv(mel_basis(spec).double())
    return inverse.float()

"""What one KL-VAE makes of two refs' latents: decoded pictures beside each other and the clip."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from evaluation.drift.probes import ProbedField, evenly_spaced
from evaluation.reconstruction import ImageDecoder, psnr_db, reconstruct_frames
from evaluation.report.compare import window_grid
from latents.cache.reader import read_tensor
from latents.cache.rows import LatentRow, latent_row
from latents.errors import ModelError
from pipeline.recorded import Recorded, read_recorded
from pipeline.sound_images import mel_images

PICTURES_PER_CLIP = 8
"""Frames, or windows' mel images, decoded of each clip and field: a probe need not see all."""

Pictures = NDArray[np.uint8]
"""RGB (picture, 3, height, width)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedSide:
    """One ref's means as pictures."""

    original_psnr_db: float | None
    """Against the clip itself, mean over the clips."""
    absence: str | None
    """Why it is not there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedDrift:
    """What one KL-VAE makes of both refs' means."""

    num_pictures: int
    """Looked at in each ref, spread evenly over the probe clips; of sound they are mel images."""
    psnr_db: float | None
    """Of B's pictures against A's, mean over the clips, 100 where equal; None where only one of
    them was decoded."""
    a: DecodedSide
    b: DecodedSide


class CompareDecodings:
    """Decodes both refs' means of a field of the ``kl`` level with one KL-VAE.

    Args:
        decoder: The KL-VAE.
        name: What it is called, for messages.
        weights: Digest of its encoder's weights. Latents that other weights made mean nothing to
            it, and are not decoded.
        latent_channels: Channels of the latents that it decodes.
        anyway: Decode those as well.
        num_threads: Pictures decoded at a time; it changes no figure.
        on_clip: Called after each clip of each field.
    """

    def __init__(
        self,
        decoder: ImageDecoder,
        *,
        name: str,
        weights: str,
        latent_channels: int,
        anyway: bool = False,
        num_threads: int = 1,
        on_clip: Callable[[], None] = lambda: None,
    ) -> None:
        self._decoder, self._name, self._weights = decoder, name, weights
        self._latent_channels, self._anyway = latent_channels, anyway
        self._num_threads, self._on_clip = num_threads, on_clip

    def __call__(self, a: ProbedField, b: ProbedField) -> DecodedDrift:
        """Compares the probes of one field.

        Raises:
            ModelError: The KL-VAE's encoder made neither side's latents, or they have another
                number of channels than it decodes.
            DamagedError: A tensor is not what the log says.
        """
        self._require_fit(a, b)
        side_a, side_b = self._side(a), self._side(b)
        num_pictures, distances_db = 0, []
        for row_a, row_b in zip(a.probes, b.probes, strict=True):
            positions = evenly_spaced(row_a.shape[0], PICTURES_PER_CLIP)
            pictures_a, pictures_b = side_a.show(row_a, positions), side_b.show(row_b, positions)
            if pictures_a is not None and pictures_b is not None:
                distances_db.append(psnr_db(pictures_a, pictures_b))
            num_pictures += len(positions)
            self._on_clip()
        return DecodedDrift(
            num_pictures=num_pictures,
            psnr_db=_mean(distances_db),
            a=side_a.result(),
            b=side_b.result(),
        )

    def _require_fit(self, *sides: ProbedField) -> None:
        if not any(map(self._fits, sides)):
            found = " and ".join(f"{_weights(side)[:12]} in {side.ref.name!r}" for side in sides)
            raise ModelError(
                f"{self._name}: the encoder of this KL-VAE has weights {self._weights[:12]}, but "
                f"{sides[0].recipe.field} was encoded with {found}, and one's latents mean nothing "
                "to the other's decoder; name the KL-VAE of either with --kl-vae, or have them "
                "decoded all the same with --decode-anyway"
            )
        num_channels = sides[0].probes[0].shape[1] // 2
        if num_channels != self._latent_channels:
            raise ModelError(
                f"{self._name}: this KL-VAE decodes latents of {self._latent_channels} channels, "
                f"but those of {sides[0].recipe.field} have {num_channels}; name another with "
                "--kl-vae"
            )

    def _fits(self, side: ProbedField) -> bool:
        return self._anyway or _weights(side) == self._weights

    def _side(self, side: ProbedField) -> _Side:
        if self._fits(side):
            return _Side(side, decode=self._decode, absence=None)
        return _Side(
            side,
            decode=None,
            absence=f"it was encoded with weights {_weights(side)[:12]}, and {self._name} has "
            f"{self._weights[:12]}; --decode-anyway decodes it all the same",
        )

    def _decode(self, moments: NDArray[Any]) -> Pictures:
        return reconstruct_frames(self._decoder, moments, num_threads=self._num_threads)


class _Side:
    """One ref's pictures of a field, and how far they are from the clips.

    Args:
        probed: The field.
        decode: Moments to pictures. None decodes nothing.
        absence: Why not.
    """

    def __init__(
        self,
        probed: ProbedField,
        *,
        decode: Callable[[NDArray[Any]], Pictures] | None,
        absence: str | None,
    ) -> None:
        self._probed, self._decode, self._absence = probed, decode, absence
        self._originals = _clip_rows(probed)
        self._distances_db: list[float] = []

    def show(self, row: LatentRow, positions: Sequence[int]) -> Pictures | None:
        """Some pictures of a clip; None where this side is not decoded."""
        if self._decode is None:
            return None
        pictures = self._decode(_slices(self._probed, row, positions))
        if row.clip in self._originals:
            self._note_distance(self._original(row, self._originals[row.clip], positions), pictures)
        return pictures

    def result(self) -> DecodedSide:
        """What was found."""
        if not self._distances_db and self._absence is None:
            self._absence = "the clip level of these clips is not kept"
        return DecodedSide(original_psnr_db=_mean(self._distances_db), absence=self._absence)

    def _note_distance(self, original: Pictures, pictures: Pictures) -> None:
        if original.shape == pictures.shape:
            self._distances_db.append(psnr_db(original, pictures))
        else:  # another KL-VAE may give other sizes
            self._absence = (
                f"the clips' pictures are {_size(original)}, the decoded ones {_size(pictures)}"
            )

    def _original(self, row: LatentRow, clip_row: LatentRow, positions: Sequence[int]) -> Pictures:
        """What the encoder was given."""
        if row.field == "kl.video":
            return _slices(self._probed, clip_row, positions)
        assert clip_row.sample_rate is not None
        images = mel_images(
            read_tensor(self._probed.ref.layout, clip_row),
            sample_rate=clip_row.sample_rate,
            grid=replace(window_grid(row), num_windows=positions[-1] + 1),
            clip_spec=self._recorded.clip,
            mel=self._recorded.mel,
        )
        drawn: Pictures = images[list(positions)].numpy()
        return drawn

    @cached_property
    def _recorded(self) -> Recorded:
        ref = self._probed.ref
        return read_recorded(
            ref.layout,
            video_recipe=ref.pinned.recipes["kl.video"],
            audio_recipe=ref.pinned.recipes["kl.audio"],
        )


def _clip_rows(probed: ProbedField) -> Mapping[str, LatentRow]:
    """Rows of what the probes were made from, where the cache keeps it."""
    (parent,) = probed.recipe.parents
    rows = probed.ref.snapshot.rows_of(parent.digest)
    wanted = pa.array([row.clip for row in probed.probes], pa.string())
    kept = rows.filter(pc.is_in(rows["clip"], value_set=wanted)).to_pylist()
    return {record["clip"]: latent_row(record) for record in kept}


def _slices(probed: ProbedField, row: LatentRow, positions: Sequence[int]) -> NDArray[Any]:
    layout = probed.ref.layout
    return np.concatenate([read_tensor(layout, row, at, at + 1) for at in positions])


def _weights(side: ProbedField) -> str:
    """Digest of the weights of the encoder that made a field."""
    table: dict[str, Any] = dict(side.recipe.specification)
    weights: str = table["kl_vae"]["weights"]
    return weights


def _size(pictures: Pictures) -> str:
    return f"{pictures.shape[2]}x{pictures.shape[3]}"


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None

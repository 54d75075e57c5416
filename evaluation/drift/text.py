"""A drift in words and numbers, for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from evaluation.drift.compare import Drift, DriftSide, FieldDrift
from evaluation.drift.posteriors import PosteriorDrift

if TYPE_CHECKING:  # pictures bring torch, which words do not need
    from evaluation.drift.pictures import DecodedDrift

NUM_NAMED = 3
"""Clips named where there may be many."""


def drift_lines(drift: Drift) -> Iterator[str]:
    """The lines that ``mmldm cache diff`` writes."""
    a, b = drift.a.ref, drift.b.ref
    yield f"{a} (commit {drift.a.commit}) -> {b} (commit {drift.b.commit})"
    yield f"{drift.num_clips_in_both} clips in both"
    for side in (drift.a, drift.b):
        yield from _only_lines(side)
    for name, field in drift.fields.items():
        yield from _field_lines(name, field, a, b)
        if field.unmeasured:
            yield f"  not measured  {field.unmeasured}"
        if field.posterior:
            yield f"  measured      on {field.num_probes} clips"
            yield from _posterior_lines(field.posterior, a, b)
        if field.decoded:
            yield from _decoded_lines(field.decoded, a, b)


def _only_lines(side: DriftSide) -> Iterator[str]:
    if side.only_clips:
        named = ", ".join(side.only_clips[:NUM_NAMED])
        more = ", ..." if len(side.only_clips) > NUM_NAMED else ""
        yield f"{len(side.only_clips)} clips only in {side.ref}: {named}{more}"
    if side.only_fields:
        yield f"fields only in {side.ref}: {', '.join(side.only_fields)}"


def _field_lines(name: str, field: FieldDrift, a: str, b: str) -> Iterator[str]:
    is_same = field.recipe_a == field.recipe_b
    made_by = field.recipe_a[:12] + (" in both" if is_same else f" -> {field.recipe_b[:12]}")
    yield f"{name}  recipe {made_by}"
    yield from (f"  differs       {difference}" for difference in field.differences)
    yield (
        f"  clips         {field.num_clips_in_both} in both, {field.num_equal} of them with equal "
        f"bytes; {field.num_clips_only_a} only in {a}, {field.num_clips_only_b} only in {b}"
    )


def _posterior_lines(posterior: PosteriorDrift, a: str, b: str) -> Iterator[str]:
    if posterior.relative_l2 is None or posterior.worst_relative_l2 is None:
        yield f"  means         all zero in {a}"
    else:
        yield (
            f"  means         relative L2 {posterior.relative_l2:.4g}, at most "
            f"{posterior.worst_relative_l2:.4g} (clip {posterior.worst_clip})"
        )
    yield (
        f"  posteriors    KL({a} || {b}) {posterior.kl_ab_nats_per_value:.4g}, "
        f"KL({b} || {a}) {posterior.kl_ba_nats_per_value:.4g} nats per value"
    )
    shifts = " ".join(f"{channel.shift_in_stds:+.3f}" for channel in posterior.channels)
    ratios = " ".join(f"{channel.std_ratio:.3f}" for channel in posterior.channels)
    yield f"  channel mean  {shifts}  (moved by, in standard deviations of {a})"
    yield f"  channel std   {ratios}  (times that of {a})"


def _decoded_lines(decoded: DecodedDrift, a: str, b: str) -> Iterator[str]:
    yield f"  decoded       {decoded.num_pictures} pictures"
    if decoded.psnr_db is not None:
        yield f"    {b} to {a}: PSNR {decoded.psnr_db:.2f} dB"
    for ref, side in ((a, decoded.a), (b, decoded.b)):
        if side.original_psnr_db is not None:
            yield f"    {ref} to the clips: PSNR {side.original_psnr_db:.2f} dB"
        if side.absence:
            yield f"    {ref} to the clips: none, since {side.absence}"

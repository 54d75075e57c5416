"""The figures of a run as people read them."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.figures import Figures

_NUM_CAUSES = 3


def progress_text(figures: Figures, *, verb: str, unit: str) -> str:
    """How far a run is, how fast, and how long it will go on."""
    parts = [f"{verb} {figures.num_done}/{figures.num_total} {unit}"]
    parts += [f"{figures.num_clips} clips, {rates_text(figures)}"]
    if figures.num_quarantined:
        parts.append(quarantine_text(figures))
    parts.append(f"{figures.seconds:.0f} s")
    if figures.eta_seconds is not None and figures.num_done < figures.num_total:
        parts.append(f"{figures.eta_seconds:.0f} s left")
    return ", ".join(parts)


def rates_text(figures: Figures) -> str:
    """Clips and windows a second since the run began."""
    return f"{figures.clips_per_second:.2f} clips/s, {figures.windows_per_second:.1f} windows/s"


def quarantine_text(figures: Figures) -> str:
    """How many were given up, which share that is, and why."""
    share = f"{100 * figures.quarantine_rate:.0f} %"
    return f"{figures.num_quarantined} quarantined ({share}: {causes_text(figures.causes)})"


def causes_text(causes: Mapping[str, int]) -> str:
    """The most frequent classes of errors."""
    most = sorted(causes.items(), key=lambda cause: (-cause[1], cause[0]))[:_NUM_CAUSES]
    return ", ".join(f"{count} x {name}" for name, count in most)


def stages_text(figures: Figures) -> str:
    """Which share of their time the stages work, and which they wait; empty before the first."""
    shares = [
        f"{stage} {100 * time.busy_share:.0f} % busy, {100 - 100 * time.busy_share:.0f} % waiting"
        for stage, time in figures.stages.items()
        if stage != "gpu"
    ]
    if figures.gpu_wait is not None:
        shares.append(f"GPU {100 * figures.gpu_wait:.0f} % waiting")
    return "; ".join(shares)


def stopping_text(figures: Figures) -> str:
    """What a run that was asked to end does, and how it is ended at once; else empty."""
    if not figures.is_stopping:
        return ""
    return "stopping: what is in hand is finished and committed; asked again, it stops at once"


def view_lines(figures: Figures, *, verb: str, unit: str) -> list[str]:
    """What a terminal shows of a run."""
    lines = (
        progress_text(figures, verb=verb, unit=unit),
        stages_text(figures),
        stopping_text(figures),
    )
    return [line for line in lines if line]

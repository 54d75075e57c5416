"""The figures of a run as Prometheus and Ray count them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from pipeline.figures import Figures


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One value of one metric."""

    name: str
    kind: Literal["counter", "gauge"]
    """A counter only grows while its run goes on."""
    description: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


def metrics_of(figures: Figures) -> Iterator[Metric]:
    """All metrics, those of one name one after the other."""
    counts = {
        "mmldm_sources_done_total": ("Sources or tasks that are done.", figures.num_done),
        "mmldm_clips_total": ("Clips that were encoded.", figures.num_clips),
        "mmldm_windows_total": ("Windows of these clips.", figures.num_windows),
        "mmldm_images_total": ("Frames and mel images that were encoded.", figures.num_images),
    }
    for name, (description, count) in counts.items():
        yield Metric(name=name, kind="counter", description=description, value=count)
    for cause, count in sorted(figures.causes.items()):
        yield Metric(
            name="mmldm_quarantined_total",
            kind="counter",
            description="Clips and sources that were given up, by class of error.",
            value=count,
            labels={"cause": cause},
        )
    for state in ("busy", "waiting"):
        for stage, time in figures.stages.items():
            yield Metric(
                name=f"mmldm_stage_{state}_seconds_total",
                kind="counter",
                description=f"Seconds for which workers of a stage were {state}.",
                value=time.busy_seconds if state == "busy" else time.waiting_seconds,
                labels={"stage": stage},
            )
    yield Metric(
        name="mmldm_sources",
        kind="gauge",
        description="Sources or tasks there are.",
        value=figures.num_total,
    )
    yield Metric(
        name="mmldm_run_seconds",
        kind="gauge",
        description="Seconds since the run began.",
        value=figures.seconds,
    )


def prometheus_text(figures: Figures, *, run: str) -> str:
    """All metrics in Prometheus' text format, for the textfile collector of its node exporter."""
    lines = []
    for name, group in groupby(metrics_of(figures), key=lambda metric: metric.name):
        metrics = list(group)
        lines += [f"# HELP {name} {metrics[0].description}", f"# TYPE {name} {metrics[0].kind}"]
        for metric in metrics:
            labels = ",".join(
                f'{key}="{value}"' for key, value in {"run": run, **metric.labels}.items()
            )
            lines.append(f"{name}{{{labels}}} {float(metric.value)!r}")
    return "\n".join(lines) + "\n"

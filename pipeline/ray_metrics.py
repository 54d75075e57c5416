"""The figures of a run as Ray's metrics, which Ray exports to Prometheus with its own."""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge

from pipeline.figures import Figures
from pipeline.metrics import Metric, metrics_of


class RayMetrics:
    """Counters and gauges named ``mmldm_*``, made once Ray is in use; Ray writes ``ray_`` before.

    Ray appends ``_total`` to the name of a counter by itself.
    """

    def __init__(self) -> None:
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._counted: dict[tuple[str, tuple[str, ...]], float] = {}

    def publish(self, figures: Figures) -> None:
        """Brings Ray's values to these."""
        for metric in metrics_of(figures):
            if metric.kind == "gauge":
                self._set(metric)
            else:
                self._raise(metric)

    def _set(self, metric: Metric) -> None:
        if metric.name not in self._gauges:
            self._gauges[metric.name] = Gauge(
                metric.name, description=metric.description, tag_keys=tuple(metric.labels)
            )
        self._gauges[metric.name].set(metric.value, tags=dict(metric.labels))

    def _raise(self, metric: Metric) -> None:
        if metric.name not in self._counters:
            self._counters[metric.name] = Counter(
                metric.name.removesuffix("_total"),
                description=metric.description,
                tag_keys=tuple(metric.labels),
            )
        key = metric.name, tuple(metric.labels.values())
        grown = metric.value - self._counted.get(key, 0.0)
        if grown > 0:
            self._counters[metric.name].inc(grown, tags=dict(metric.labels))
            self._counted[key] = metric.value

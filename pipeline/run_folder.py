"""The folder of a run: what it is, how it goes and how it ended, for whoever looks meanwhile.

Nothing in it is part of a cache, and nothing is read from it but by `pipeline.status`.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from pathlib import Path
from typing import Literal

from latents.durable import partial_path, reason
from pipeline.figures import Figures
from pipeline.metrics import prometheus_text

_log = logging.getLogger(__name__)

RUN_FILE = "run.json"
LINES_FILE = "progress.jsonl"
METRICS_FILE = "metrics.prom"

State = Literal["running", "ended", "interrupted", "failed"]


def runs_folder(cache_url: str) -> Path:
    """Where the runs on a cache are: in its folder, or in this user's where it has none."""
    if "://" in cache_url:
        return Path.home() / ".cache" / "mmldm" / "runs"
    return Path(cache_url).absolute() / "runs"


class RunFolder:
    """Written by the driver of one run. What cannot be written is said once, and the run goes on.

    ::

        run.json         purpose, cache, host, process, start
        progress.jsonl   a line of figures every few seconds, and a last one
        metrics.prom     the same in Prometheus' text format

    Args:
        cache_url: The cache that is written to.
        purpose: What the run does.
        unit: What its tasks are called.
    """

    def __init__(self, cache_url: str, *, purpose: str, unit: str) -> None:
        started = time.gmtime()
        host, pid = socket.gethostname(), os.getpid()
        name = f"{time.strftime('%Y%m%dT%H%M%SZ', started)}-{host}-{pid}"
        self.path = _unused(runs_folder(cache_url), name)
        self._has_failed = False
        is_url = "://" in cache_url
        run = {
            "purpose": purpose,
            "cache": cache_url if is_url else str(Path(cache_url).absolute()),
            "unit": unit,
            "host": host,
            "pid": pid,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", started),
        }
        try:
            self.path.mkdir(parents=True)
            self._write(RUN_FILE, json.dumps(run) + "\n")
        except OSError as error:
            self._fail(error)

    def note(self, figures: Figures, *, state: State = "running", error: str = "") -> None:
        """Adds a line, and puts the metrics at what they are now."""
        if self._has_failed:
            return
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "state": state,
            "error": error,
            **figures.to_json(),
        }
        try:
            with (self.path / LINES_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self._write(METRICS_FILE, prometheus_text(figures, run=self.path.name))
        except OSError as fault:
            self._fail(fault)

    def _write(self, name: str, text: str) -> None:
        # Aside and renamed, because others read meanwhile; not synced, because after a power cut
        # nobody needs it.
        aside = partial_path(self.path)
        aside.write_text(text, encoding="utf-8")
        aside.rename(self.path / name)

    def _fail(self, error: OSError) -> None:
        self._has_failed = True
        _log.warning("%s: the run's figures are not noted (%s)", self.path, reason(error))


def _unused(folder: Path, name: str) -> Path:
    """A process can run twice within a second."""
    path, number = folder / name, 2
    while path.exists():
        path, number = folder / f"{name}-{number}", number + 1
    return path

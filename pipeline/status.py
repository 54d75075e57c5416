"""How a run stands, from its folder alone: also of one that is over, or was killed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from latents.cache.drivers import running_drivers
from latents.cache.layout import find_cache
from latents.durable import reason
from latents.errors import CacheError, ConfigError
from pipeline.figures import Figures, figures_from_json
from pipeline.figures_text import view_lines
from pipeline.run_folder import LINES_FILE, RUN_FILE, runs_folder

MARK_SECONDS = 60.0
"""By so much the clocks of a cache's storage and of a driver may differ."""

State = Literal["running", "ended", "interrupted", "failed", "killed"]
_STATES: tuple[State, ...] = ("running", "ended", "interrupted", "failed")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    """A run as its folder tells of it."""

    path: Path
    purpose: str
    cache: str
    unit: str
    host: str
    pid: int
    started: str
    """UTC, as ``2026-01-31T12:00:00Z``."""
    state: State
    """``killed``: it never said that it ended, and its process is gone."""
    error: str
    """Why it was interrupted or failed."""
    time: str | None
    """Of the last figures; None before the first."""
    figures: Figures | None


def find_run(named: str) -> Path:
    """The folder of a run, or of the newest run on a cache.

    Args:
        named: A run's folder, a cache's folder, or a cache's URL.

    Raises:
        ConfigError: It is neither.
    """
    if "://" not in named and (Path(named) / RUN_FILE).is_file():
        return Path(named)
    folder = runs_folder(named)
    runs = [path.parent for path in folder.glob(f"*/{RUN_FILE}")]
    if "://" in named:
        runs = [path for path in runs if _read_run(path)["cache"] == named]
    if not runs:
        raise ConfigError(
            f"{named} is no run's folder, and {folder} holds no run on a cache of this name; name "
            "a cache, or a folder below its runs/"
        )
    return max(runs, key=lambda path: (path / RUN_FILE).stat().st_mtime_ns)


def read_status(path: Path) -> RunStatus:
    """How the run in a folder stands.

    Raises:
        CacheError: Its files cannot be read, or are none that a run writes.
    """
    run = _read_run(path)
    line = _last_line(path)
    state: State = line["state"] if line else "running"
    if state == "running" and not _is_running(run):
        state = "killed"
    return RunStatus(
        path=path,
        purpose=run["purpose"],
        cache=run["cache"],
        unit=run["unit"],
        host=run["host"],
        pid=run["pid"],
        started=run["started"],
        state=state,
        error=line["error"] if line else "",
        time=line["time"] if line else None,
        figures=line["figures"] if line else None,
    )


def status_lines(status: RunStatus) -> list[str]:
    """A status as people read it, with what to do next."""
    lines = [
        f"{status.state}: {status.purpose} of {status.cache}",
        f"process {status.pid} on {status.host}, started {status.started}",
    ]
    if status.figures is not None:
        lines += view_lines(status.figures, verb="encoded", unit=status.unit)
        lines.append(f"as of {status.time}")
    if status.error:
        lines.append(f"it said: {status.error}")
    return [*lines, *_next_steps(status)]


def status_json(status: RunStatus) -> dict[str, Any]:
    """A status for `json.dumps`."""
    return {
        "run": str(status.path),
        "purpose": status.purpose,
        "cache": status.cache,
        "host": status.host,
        "pid": status.pid,
        "started": status.started,
        "state": status.state,
        "error": status.error,
        "time": status.time,
        "figures": status.figures.to_json() if status.figures else None,
        "next": _next_steps(status),
    }


def _next_steps(status: RunStatus) -> list[str]:
    steps = {
        "running": f"`kill {status.pid}` on {status.host} ends it after what is in hand",
        "ended": "",
        "interrupted": f"run the same `mmldm {status.purpose}` again; it goes on from there",
        "failed": f"mend the cause and run the same `mmldm {status.purpose}` again",
        "killed": f"what was committed is safe; run the same `mmldm {status.purpose}` again",
    }
    found = [steps[status.state]] if steps[status.state] else []
    if status.figures is not None and status.figures.num_quarantined:
        found.append(f"why clips were given up: mmldm cache quarantine ls --cache {status.cache}")
    return found


def _read_run(path: Path) -> dict[str, Any]:
    texts = ("purpose", "cache", "unit", "host", "started")
    try:
        run = json.loads((path / RUN_FILE).read_bytes())
        if not all(isinstance(run[name], str) for name in texts) or type(run["pid"]) is not int:
            raise ValueError("a field has another kind of value than runs write")
        datetime.fromisoformat(run["started"])
    except OSError as error:
        raise CacheError(f"{path / RUN_FILE} cannot be read ({reason(error)})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CacheError(
            f"{path / RUN_FILE} is no file of a run ({error}); name another"
        ) from error
    return dict(run)


def _last_line(path: Path) -> Mapping[str, Any] | None:
    """The last whole line: what follows the last line's end is being written, or never was."""
    try:
        written = (path / LINES_FILE).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CacheError(f"{path / LINES_FILE} cannot be read ({reason(error)})") from error
    whole, end, _ = written.rpartition(b"\n")
    if not end:
        return None
    try:
        line = json.loads(whole.rpartition(b"\n")[2])
        figures = figures_from_json(line)
        if line["state"] not in _STATES or not isinstance(line["error"], str):
            raise ValueError("its state is none that runs have")
        return {**line, "figures": figures, "time": str(line["time"])}
    except (ValueError, KeyError, TypeError) as error:
        raise CacheError(
            f"{path / LINES_FILE}: the last line is none of a run ({error}); name another run"
        ) from error


def _is_running(run: Mapping[str, Any]) -> bool:
    """Whether the driver is there; it holds a mark in its cache for as long as it is."""
    started = datetime.fromisoformat(run["started"]).astimezone(UTC).timestamp()
    try:
        drivers = running_drivers(find_cache(run["cache"]))
    except CacheError:
        return False
    return any(
        (driver.host, driver.pid) == (run["host"], run["pid"])
        # A process number comes again; what began after the run is another process.
        and driver.started_seconds <= started + MARK_SECONDS
        for driver in drivers
    )

"""The command as a Ray job: submitted to a cluster's job server, it works on that cluster."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from latents.cache.layout import create_cache
from latents.cache.verify import verify_cache
from latents.models.kl_vae_files import WEIGHTS_FILE
from tests.pipeline.crash_job import digest_of
from tests.pipeline.small_cluster import JOB, OBJECT_STORE_BYTES, local_digest, scenes
from tests.pipeline.small_jobs import SMALL

pytestmark = [pytest.mark.ray, pytest.mark.soak, pytest.mark.timeout(600)]

BIN = Path(sys.executable).parent
NUM_CLIPS = 24
START_SECONDS = 120
CODE = "runtime_resources/py_modules_files/*"
"""Where a node keeps packages, below its session's folder."""


def free_ports(num_ports: int) -> list[int]:
    with bound_sockets(num_ports) as sockets:
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def bound_sockets(num_sockets: int) -> Iterator[list[socket.socket]]:
    sockets = [socket.socket() for _ in range(num_sockets)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    yield sockets
    for one in sockets:
        one.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class JobServer:
    """Of a cluster of one node."""

    address: str
    folder: Path
    """Where the cluster keeps its files."""
    node_folder: Path
    """Where the node's workers keep theirs."""


@pytest.fixture
def job_server(tmp_path: Path) -> Iterator[JobServer]:
    """Ends with the test."""
    folder = tempfile.mkdtemp(prefix="ray-")  # sockets lie in it, whose names must be short
    node_folder = tmp_path / "node"
    node_folder.mkdir()
    port, dashboard, agent = free_ports(3)
    head = subprocess.Popen(
        [
            BIN / "ray",
            *("start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"),
            *(f"--port={port}", f"--dashboard-port={dashboard}", f"--temp-dir={folder}"),
            f"--dashboard-agent-listen-port={agent}",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
        ],
        env=os.environ
        | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "TMPDIR": str(node_folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        address = f"http://127.0.0.1:{dashboard}"
        await_server(address, head)
        yield JobServer(address=address, folder=Path(folder), node_folder=node_folder)
    finally:
        head.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            head.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def await_server(address: str, head: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and head.poll() is None:
        with suppress(OSError), urllib.request.urlopen(f"{address}/api/version", timeout=5):
            return
        time.sleep(0.5)
    raise AssertionError("Ray's job server did not start")


def submit(address: str, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "ray", "job", "submit", "--address", address, "--", *command],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
    )


def test_an_ingest_that_is_submitted_as_a_job_gives_what_it_gives_here(
    tmp_path: Path, small_kl_vae: Path, job_server: JobServer
) -> None:
    cache = tmp_path / "job"
    job = replace(JOB, kl_vae=small_kl_vae)
    overrides = [f"--set={one}" for one in (*SMALL, *job.overrides)]
    options = ["--cache", str(cache), "--kl-vae", str(small_kl_vae), "--engine", "ray", "--json"]

    done = submit(job_server.address, ["mmldm", "ingest", scenes(NUM_CLIPS), *options, *overrides])

    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [one for one in done.stdout.splitlines() if one.startswith('{"num_sources"')]
    assert json.loads(line)["num_clips_encoded"] == NUM_CLIPS
    assert digest_of(cache) == local_digest(tmp_path / "local", NUM_CLIPS, job=job)
    assert verify_cache(create_cache(cache)) == []
    # The workers ran the code that travelled, with the weights that travelled.
    assert len(list(job_server.folder.glob(f"session_2*/{CODE}/pipeline/job.py"))) == 1
    (weights,) = job_server.node_folder.glob(f"mmldm-weights-*/*/{WEIGHTS_FILE}")
    assert weights.read_bytes() == (small_kl_vae / WEIGHTS_FILE).read_bytes()

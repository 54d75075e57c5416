"""The node that an actor runs on, for messages and for the driver's book of who died where."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import ray.util

from latents.errors import ConfigError, DecoderStartError, JobError, ModelError

INSTALL = "install there what this command runs with, mmldm[pipeline] and the same versions"


def node_id() -> str:
    """Ray's id of this node."""
    found: str = ray.get_runtime_context().get_node_id()
    return found


def node_name() -> str:
    """Host and address of this node."""
    address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return f"{socket.gethostname()} ({address})"


@contextmanager
def naming_node() -> Iterator[None]:
    """Faults of a node's installation say which node it is.

    Raises:
        JobError: A package is missing, a model cannot be loaded, or no process can be started.
    """
    try:
        yield
    except ImportError as error:
        raise JobError(f"node {node_name()} lacks a package: {error}; {INSTALL}") from error
    except (ModelError, ConfigError, DecoderStartError) as error:
        raise type(error)(f"node {node_name()}: {error}") from error

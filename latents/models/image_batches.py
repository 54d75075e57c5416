"""Pictures through a model in batches of one fixed shape; beside a GPU, copies overlap the work."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

Compute = Callable[[Tensor], Tensor]


class Copies(Protocol):
    """Takes batches to a device and results back. Used for one call, by one thread."""

    def upload(self, batch: Tensor) -> Tensor:
        """Begins to copy a batch; it may be used once `wait_for` has returned it."""

    def wait_for(self, uploaded: Tensor) -> Tensor:
        """The batch, for the work that is begun from now on."""

    def download(self, result: Tensor) -> Tensor:
        """Begins to copy a result; it may be read after `finish`."""

    def finish(self) -> None:
        """Waits for every result."""


class ImageBatches:
    """Runs a model over pictures in batches of one shape, of which the last is filled up.

    Beside a GPU batches are copied through pinned memory on streams of their own: while one is
    computed, the next goes there and the former comes back. Threads take turns to begin their
    work, so that one batch at a time needs the GPU's memory, however many threads there are.

    Args:
        batch_size: Pictures of a batch.
        device: Where the model is.
    """

    def __init__(self, *, batch_size: int, device: torch.device) -> None:
        self.batch_size, self._device = batch_size, device
        is_cuda = device.type == "cuda"
        self._turn: contextlib.AbstractContextManager[object] = (
            threading.Lock() if is_cuda else contextlib.nullcontext()
        )

    def map(self, inputs: Tensor, compute: Compute) -> Tensor:
        """The results for all inputs (batch, ...), in order, on the inputs' device.

        Args:
            inputs: As many as there are; at least one.
            compute: Called with channels-last batches of ``batch_size`` on the model's device.
        """
        is_overlapped = self._device.type == "cuda" and inputs.device.type == "cpu"
        copies: Copies = (
            OverlappedCopies(self._device)
            if is_overlapped
            else PlainCopies(self._device, back=inputs.device)
        )
        with self._turn:
            results = begin(inputs, compute, batch_size=self.batch_size, copies=copies)
        copies.finish()
        return torch.cat(results).contiguous()


def begin(inputs: Tensor, compute: Compute, *, batch_size: int, copies: Copies) -> list[Tensor]:
    """Begins all work; the results may be read once the copies are finished.

    The next batch is under way before one is computed, and no more than these two are there.
    """
    parts = [inputs[start : start + batch_size] for start in range(0, len(inputs), batch_size)]
    results = []
    ahead = copies.upload(parts[0])
    for number, part in enumerate(parts, start=1):
        batch = ahead
        if number < len(parts):
            ahead = copies.upload(parts[number])
        whole = _filled(copies.wait_for(batch), batch_size)
        results.append(copies.download(compute(whole)[: len(part)]))
    return results


def _filled(batch: Tensor, batch_size: int) -> Tensor:
    if len(batch) < batch_size:
        filling = batch.new_zeros((batch_size - len(batch), *batch.shape[1:]))
        batch = torch.cat([batch, filling])
    return batch.contiguous(memory_format=torch.channels_last)


class PlainCopies:
    """Copies that are done when they are asked for; none at all where all is on one device.

    Args:
        device: Where the model is.
        back: Where results go.
    """

    def __init__(self, device: torch.device, *, back: torch.device) -> None:
        self._device, self._back = device, back

    def upload(self, batch: Tensor) -> Tensor:
        """The batch on the model's device."""
        return batch.to(self._device)

    def wait_for(self, uploaded: Tensor) -> Tensor:
        """The batch."""
        return uploaded

    def download(self, result: Tensor) -> Tensor:
        """The result where it is wanted."""
        return result.to(self._back)

    def finish(self) -> None:
        """Nothing is under way."""


class OverlappedCopies:
    """Copies through pinned memory on two streams of their own, one each way.

    The pinned memory is torch's own, which it gives out again once the copy is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._up = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # it has no types
        self._down = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # it has no types
        self._arrivals: dict[int, torch.cuda.Event] = {}

    def upload(self, batch: Tensor) -> Tensor:
        """Begins to copy a batch; it may be used once `wait_for` has returned it."""
        pinned = batch.contiguous().pin_memory()
        with torch.cuda.stream(self._up):
            uploaded = pinned.to(self._device, non_blocking=True)
        self._arrivals[id(uploaded)] = self._up.record_event()
        return uploaded

    def wait_for(self, uploaded: Tensor) -> Tensor:
        """The batch, for the work that is begun from now on."""
        work = torch.cuda.current_stream(self._device)
        work.wait_event(self._arrivals.pop(id(uploaded)))
        uploaded.record_stream(work)
        return uploaded

    def download(self, result: Tensor) -> Tensor:
        """Begins to copy a result; it may be read after `finish`."""
        self._down.wait_stream(torch.cuda.current_stream(self._device))
        pinned = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
        with torch.cuda.stream(self._down):
            pinned.copy_(result, non_blocking=True)
        result.record_stream(self._down)
        return pinned

    def finish(self) -> None:
        """Waits for every result."""
        self._down.synchronize()

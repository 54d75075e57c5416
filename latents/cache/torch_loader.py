"""Batches of windows for torch: read by the worker processes of a `DataLoader`, in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from latents.cache.batches import GlobalBatches
from latents.cache.loader import Batch, read_batch, require_same_windows
from latents.cache.windows import Windows
from latents.errors import LatentError

TensorBatch = dict[str, Tensor]
"""``step`` (), ``epochs`` and ``windows`` (window,), and each field (window, ...)."""


class WindowDataset(IterableDataset[TensorBatch]):
    """Whole batches in order of step, for a `DataLoader` with ``batch_size=None``.

    Worker w of W reads steps w, w + W and so on, and a `DataLoader` takes from its workers in turn:
    what it gives is in order of step, whatever W is.

    Args:
        windows: To take them from; goes to each worker.
        batches: Which.
        first_step: Where to begin.
        stop_step: Where to end, before this one; None: never.

    Raises:
        ValueError: The batches are of another number of windows.
    """

    def __init__(
        self,
        windows: Windows,
        batches: GlobalBatches,
        *,
        first_step: int = 0,
        stop_step: int | None = None,
    ) -> None:
        require_same_windows(windows, batches)
        self._windows, self._batches = windows, batches
        self._first, self._stop = first_step, stop_step

    def __iter__(self) -> Iterator[TensorBatch]:
        worker = get_worker_info()
        offset, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        first = self._first + offset
        steps = (
            count(first, stride)
            if self._stop is None
            else range(first, max(first, self._stop), stride)
        )
        for step in steps:
            yield _tensors(read_batch(self._windows, self._batches, step))


class WindowDataLoader:
    """Batches that worker processes read ahead; iterating again goes on after the last one given.

    It is a `torch.utils.data.DataLoader` with three differences. Its state counts what was given
    and not what was read ahead. An error of a worker is raised as what it is. And torch's own
    random numbers are left as they are, so that a resumed run draws what the first would have.

    Args:
        windows: To take them from; goes to each worker.
        batches: Which.
        first_step: Where to begin.
        stop_step: Where to end, before this one; None: never.
        num_workers: Processes; 0: this one.
        prefetch: Batches that each worker reads ahead.
        pin_memory: Give tensors in memory that a GPU copies from directly.
        start_method: How workers start; None: as Python does by default. A cache in a bucket needs
            ``spawn``.

    Raises:
        ValueError: The batches are of another number of windows.
    """

    def __init__(
        self,
        windows: Windows,
        batches: GlobalBatches,
        *,
        first_step: int = 0,
        stop_step: int | None = None,
        num_workers: int = 0,
        prefetch: int = 2,
        pin_memory: bool = False,
        start_method: Literal["fork", "spawn", "forkserver"] | None = None,
    ) -> None:
        require_same_windows(windows, batches)
        self._windows, self._batches = windows, batches
        self._step, self._stop = first_step, stop_step
        self._num_workers = num_workers
        self._prefetch = prefetch
        self._pin_memory = pin_memory
        self._start_method = start_method

    def __iter__(self) -> Iterator[TensorBatch]:
        dataset = WindowDataset(
            self._windows, self._batches, first_step=self._step, stop_step=self._stop
        )
        for batch in self._loader(dataset):
            if isinstance(batch, LatentError):
                raise batch
            self._step = int(batch["step"]) + 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Where to go on: after the last batch given, whatever was read ahead."""
        return self._batches.state_at(self._step)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on from a position the next time that it is iterated.

        Args:
            state: Of `state_dict`, be it of other numbers of ranks and workers.

        Raises:
            ConfigError: It is of other batches than these; says how they differ.
        """
        self._step = self._batches.step_in(state)

    def _loader(self, dataset: WindowDataset) -> DataLoader[TensorBatch | LatentError]:
        has_workers = self._num_workers > 0
        return DataLoader(
            _WithErrors(dataset),
            batch_size=None,
            num_workers=self._num_workers,
            prefetch_factor=self._prefetch if has_workers else None,
            pin_memory=self._pin_memory,
            multiprocessing_context=self._start_method if has_workers else None,
            # It draws the workers' seed from this one and not from torch's own.
            generator=torch.Generator(),
        )


class _WithErrors(IterableDataset[TensorBatch | LatentError]):
    """Gives an error instead of raising it: torch would raise one with another message, or type."""

    def __init__(self, dataset: WindowDataset) -> None:
        self._dataset = dataset

    def __iter__(self) -> Iterator[TensorBatch | LatentError]:
        try:
            yield from self._dataset
        except LatentError as error:
            yield error


def _tensors(batch: Batch) -> TensorBatch:
    return {
        "step": torch.tensor(batch.step),
        "epochs": torch.from_numpy(batch.epochs),
        "windows": torch.from_numpy(batch.windows),
        **{name: torch.from_numpy(array) for name, array in batch.arrays.items()},
    }

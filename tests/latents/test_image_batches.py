"""Batches have one shape and keep their order, and copies are under way while work is done."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from latents.models.image_batches import ImageBatches, PlainCopies, begin

CPU = torch.device("cpu")


class NotedCopies(PlainCopies):
    """Says what is asked of it, by the first number of a batch."""

    def __init__(self) -> None:
        super().__init__(CPU, back=CPU)
        self.notes: list[str] = []

    def upload(self, batch: Tensor) -> Tensor:
        self.notes.append(f"upload {int(batch[0, 0, 0, 0])}")
        return super().upload(batch)

    def wait_for(self, uploaded: Tensor) -> Tensor:
        self.notes.append(f"wait {int(uploaded[0, 0, 0, 0])}")
        return super().wait_for(uploaded)

    def download(self, result: Tensor) -> Tensor:
        self.notes.append(f"download {len(result)}")
        return super().download(result)


def numbered(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8).clone()


def doubled(batch: Tensor) -> Tensor:
    return batch.float() * 2


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_results_come_in_order_whatever_the_size_of_a_batch(count: int) -> None:
    inputs = numbered(count)
    for batch_size in (1, 2, 4, 16):
        batches = ImageBatches(batch_size=batch_size, device=CPU)
        assert torch.equal(batches.map(inputs, doubled), inputs.float() * 2)


def test_every_batch_has_one_shape_and_the_last_is_filled_with_zeros() -> None:
    seen: list[Tensor] = []

    def compute(batch: Tensor) -> Tensor:
        seen.append(batch)
        return batch

    ImageBatches(batch_size=4, device=CPU).map(numbered(6), compute)
    assert [tuple(batch.shape) for batch in seen] == [(4, 3, 8, 8)] * 2
    assert seen[1][:, 0, 0, 0].tolist() == [4, 5, 0, 0]
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch in seen)


def test_the_next_batch_is_under_way_before_one_is_computed_and_no_more_than_that() -> None:
    copies = NotedCopies()

    def compute(batch: Tensor) -> Tensor:
        copies.notes.append("compute")
        return batch

    begin(numbered(5), compute, batch_size=2, copies=copies)
    assert copies.notes == [
        "upload 0",
        *("upload 2", "wait 0", "compute", "download 2"),
        *("upload 4", "wait 2", "compute", "download 2"),
        *("wait 4", "compute", "download 1"),
    ]


def test_on_the_cpu_threads_work_side_by_side() -> None:
    both_are_here = threading.Barrier(2, timeout=5)
    batches = ImageBatches(batch_size=1, device=CPU)

    def compute(batch: Tensor) -> Tensor:
        both_are_here.wait()
        return batch

    def encode() -> None:
        batches.map(numbered(1), compute)

    other = threading.Thread(target=encode)
    other.start()
    encode()
    other.join()
    assert not both_are_here.broken


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 16, 100])
def test_overlapped_copies_lose_and_mix_nothing(count: int) -> None:
    inputs = torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8)
    batches = ImageBatches(batch_size=16, device=torch.device("cuda"))

    def slow(batch: Tensor) -> Tensor:
        noise = torch.randn(2048, 2048, device="cuda")
        for _ in range(10):
            noise = noise @ noise / 2048
        return batch.float() * 2 + noise.sum() * 0

    found = batches.map(inputs, slow)
    assert found.device.type == "cpu"
    assert torch.equal(found, inputs.float() * 2)


@pytest.mark.gpu
def test_pictures_on_the_gpu_stay_there() -> None:
    batches = ImageBatches(batch_size=4, device=torch.device("cuda"))
    found = batches.map(numbered(6).cuda(), doubled)
    assert found.device.type == "cuda"
    assert torch.equal(found.cpu(), numbered(6).float() * 2)


@pytest.mark.gpu
def test_threads_that_share_a_gpu_get_their_own_results() -> None:
    batches = ImageBatches(batch_size=16, device=torch.device("cuda"))
    inputs = [torch.full((50, 3, 64, 64), number, dtype=torch.uint8) for number in range(8)]
    found: dict[int, Tensor] = {}

    def encode(number: int) -> None:
        found[number] = batches.map(inputs[number], doubled)

    threads = [threading.Thread(target=encode, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[number], inputs[number].float() * 2) for number in range(8))

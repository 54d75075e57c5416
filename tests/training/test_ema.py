"""The moving average of a module's parameters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from training.ema import ExponentialMovingAverage


def _module(value: float = 0.0, *, width: int = 2) -> nn.Linear:
    module = nn.Linear(width, 1)
    _set(module, value)
    return module


def _set(module: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)


def _average(ema: ExponentialMovingAverage) -> float:
    value: float = ema.state_dict()["average.bias"].item()
    return value


def test_an_update_keeps_the_decays_share_of_the_average() -> None:
    module = _module(1.0)
    ema = ExponentialMovingAverage(module, decay=0.75, warm_up=False)

    _set(module, 5.0)
    ema.update(module)
    assert _average(ema) == 0.75 * 1 + 0.25 * 5

    _set(module, 0.0)
    ema.update(module)
    assert _average(ema) == 0.75 * 2


def test_the_decay_grows_from_a_tenth_to_its_value() -> None:
    module = _module()
    ema = ExponentialMovingAverage(module, decay=0.5)
    decays = []
    for _ in range(12):
        decays.append(ema.next_decay)
        ema.update(module)

    assert decays[:3] == [1 / 10, 2 / 11, 3 / 12]
    assert decays[7:] == [8 / 17, 0.5, 0.5, 0.5, 0.5]


def test_the_average_is_float32_whatever_the_parameters_are() -> None:
    module = _module(1.0).to(torch.bfloat16)
    ema = ExponentialMovingAverage(module, decay=0.999, warm_up=False)

    _set(module, 2.0)
    ema.update(module)

    # In bfloat16 1.001 would be 1.
    assert _average(ema) == pytest.approx(1.001, abs=1e-7)


def test_a_module_is_given_the_averages() -> None:
    module, other = _module(1.0), _module(9.0).to(torch.float64)
    ema = ExponentialMovingAverage(module)

    ema.copy_to(other)

    assert other.weight.tolist() == [[1.0, 1.0]]
    assert other.weight.dtype == torch.float64


def test_a_module_has_its_own_parameters_again_afterwards_even_after_an_error() -> None:
    module = _module(1.0)
    ema = ExponentialMovingAverage(module)
    _set(module, 2.0)

    within = []

    def fail() -> None:
        with ema.applied_to(module):
            within.append(module.bias.item())
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()

    assert within == [1.0]
    assert module.bias.item() == 2.0
    assert _average(ema) == 1.0


def test_updates_take_no_gradient_and_leave_the_module_as_it_is() -> None:
    module = _module(1.0)
    ema = ExponentialMovingAverage(module)
    _set(module, 2.0)

    ema.update(module)

    assert module.bias.item() == 2.0
    assert not any(tensor.requires_grad for tensor in ema.state_dict().values())


def _drift(module: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))


def _run(ema: ExponentialMovingAverage, module: nn.Module, steps: range) -> dict[str, Tensor]:
    for step in steps:
        _drift(module, step)
        ema.update(module)
    return ema.state_dict()


def test_a_resumed_average_is_that_of_a_run_that_never_stopped() -> None:
    whole = _module()
    expected = _run(ExponentialMovingAverage(whole, decay=0.9), whole, range(20))

    module = _module()
    saved = _run(ExponentialMovingAverage(module, decay=0.9), module, range(7))
    resumed = ExponentialMovingAverage(_module(3.0), decay=0.9)
    resumed.load_state_dict(saved)
    found = _run(resumed, module, range(7, 20))

    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert found["num_updates"].item() == 20


def test_a_state_is_its_owners_alone() -> None:
    module = _module(1.0)
    ema = ExponentialMovingAverage(module)
    state = ema.state_dict()

    _set(module, 2.0)
    ema.update(module)

    assert state["average.bias"].item() == 1.0


@pytest.mark.parametrize("change", ["shape", "missing", "count", "extra"])
def test_a_state_of_another_module_is_refused(change: str) -> None:
    ema = ExponentialMovingAverage(_module())
    state = ExponentialMovingAverage(_module(width=3 if change == "shape" else 2)).state_dict()
    if change == "missing":
        del state["average.bias"]
    if change == "count":
        del state["num_updates"]
    if change == "extra":
        state["average.other"] = torch.zeros(1)

    with pytest.raises(ValueError, match="of another module"):
        ema.load_state_dict(state)


def test_a_module_of_other_parameters_is_refused() -> None:
    ema = ExponentialMovingAverage(_module())

    with pytest.raises(ValueError, match="other parameters"):
        ema.update(nn.Sequential(_module()))


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decays_that_average_nothing_are_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="decay is"):
        ExponentialMovingAverage(_module(), decay=decay)

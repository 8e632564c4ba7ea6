from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from helios.functional.tree import clone, first_difference
from helios.optim import Average, average
from tests.optim.runs import Tensors, make_params, storages, versions


def trajectory(updates: int) -> Iterator[Tensors]:
    for k in range(updates):
        yield make_params(seed=k + 1)


def natively(updates: int, **options: Any) -> list[Tensors]:
    """The averages of torch over the trajectory."""
    model = torch.nn.ParameterDict(
        {path.replace(".", "_"): torch.nn.Parameter(p) for path, p in make_params().items()}
    )
    averaged = AveragedModel(model, **options)
    history = []
    for params in trajectory(updates):
        with torch.no_grad():
            for path, p in params.items():
                model[path.replace(".", "_")].copy_(p)
        averaged.update_parameters(model)
        mean = averaged.module
        history.append({path: mean[path.replace(".", "_")].detach().clone() for path in params})
    return history


def functional(rule: Average, updates: int, *, donate: bool = False) -> list[Tensors]:
    mean = rule.init(make_params())
    history = []
    for count, params in enumerate(trajectory(updates)):
        mean = rule.update(mean, params, count, donate=donate)
        history.append(clone(mean))
    return history


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999, 1.0])
def test_an_exponential_average_equals_that_of_torch(decay: float, donate: bool) -> None:
    expected = natively(6, multi_avg_fn=get_ema_multi_avg_fn(decay))
    assert first_difference(functional(average(decay), 6, donate=donate), expected) is None


@pytest.mark.parametrize("donate", [False, True])
def test_an_average_of_equal_weights_equals_that_of_torch(donate: bool) -> None:
    assert first_difference(functional(average(None), 20, donate=donate), natively(20)) is None


def test_an_average_of_equal_weights_is_the_mean() -> None:
    mean = functional(average(None), 8)[-1]["scale"]
    values = [params["scale"].double() for params in trajectory(8)]
    assert mean.item() == pytest.approx((sum(values) / 8).item(), rel=1e-6)  # type: ignore[union-attr]  # a tensor


@pytest.mark.parametrize("decay", [None, 0.9])
def test_up_to_the_start_it_is_the_parameters(decay: float | None) -> None:
    history = functional(average(decay, start=3), 6)
    assert first_difference(history[:4], list(trajectory(4))) is None
    assert first_difference(history[4], make_params(seed=5)) is not None


@pytest.mark.parametrize("decay", [None, 0.9])
def test_what_has_no_mean_is_copied(decay: float | None) -> None:
    rule = average(decay)
    mean = rule.init({"n": torch.tensor(0), "on": torch.tensor(False), "w": torch.zeros(1)})
    for count in range(3):
        now = {"n": torch.tensor(count), "on": torch.tensor(True), "w": torch.ones(1)}
        mean = rule.update(mean, now, count)
    assert (mean["n"].item(), mean["on"].item()) == (2, True)


def test_the_first_average_shares_no_storage_with_the_parameters() -> None:
    params = make_params()
    assert not storages(average().init(params)) & storages(params)


@pytest.mark.parametrize("count", [0, 3])
def test_an_undonated_update_leaves_its_arguments(count: int) -> None:
    arguments = (make_params(seed=0), make_params(seed=1))
    before, old = clone(arguments), versions(arguments)
    result = average(0.5).update(*arguments, count)
    assert first_difference(arguments, before) is None
    assert versions(arguments) == old
    assert not storages(result) & storages(arguments)


@pytest.mark.parametrize("count", [0, 3])
def test_a_donated_update_overwrites_the_average_alone(count: int) -> None:
    mean, params = make_params(seed=0), make_params(seed=1)
    before = clone(params)
    assert average(0.5).update(mean, params, count, donate=True) is mean
    assert first_difference(params, before) is None
    assert not storages(mean) & storages(params)


def test_an_average_is_a_value() -> None:
    assert average(0.5) == average(0.5) != average(0.5, evaluate=False)
    assert pickle.loads(pickle.dumps(average(None, start=2))) == average(None, start=2)
    assert repr(average()) == "Average(decay=0.999, start=0, evaluate=True, every=1)"


@pytest.mark.parametrize("decay", [-0.1, 1.1, math.nan])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=r"decay: received .* expected a number from 0 to 1"):
        average(decay)


def test_a_start_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="start: received -1; expected at least 0"):
        average(start=-1)


@pytest.mark.parametrize("decay", [None, 0.9])
@pytest.mark.parametrize("donate", [False, True])
def test_a_cadence_averages_every_so_many_updates(decay: float | None, donate: bool) -> None:
    history = [{"w": torch.randn(3)} for _ in range(12)]
    sparse, plain = average(decay, start=2, every=3), average(decay)
    mean = sparse.init(history[0])
    for count, params in enumerate(history):
        mean = sparse.update(mean, params, count, donate=donate)
    chosen = history[2::3]  # after updates 3, 6, 9 and 12
    expected = plain.init(chosen[0])
    for count, params in enumerate(chosen):
        expected = plain.update(expected, params, count)
    assert first_difference(mean, expected) is None


def test_the_weights_of_a_cadence_are_those_of_its_updates() -> None:
    weights = [average(None, start=2, every=2).weight(count) for count in range(7)]
    assert weights == [1.0, 1.0, 1.0, 0.0, 1 / 2, 0.0, 1 / 3]


def test_a_cadence_of_no_update_is_refused() -> None:
    with pytest.raises(ValueError, match="every: received 0; expected at least 1"):
        average(every=0)

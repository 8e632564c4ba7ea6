"""Stacked states, and those of the members."""

from __future__ import annotations

import pytest
import torch

import helios
from helios.errors import StateMismatchError
from helios.functional.loss import Loss
from helios.functional.metrics import Mean
from helios.functional.stacked import (
    each,
    loss_metrics,
    member_state,
    stack,
    stack_carries,
    unstack,
)
from tests import zoo


def trained(name, seed):
    model = zoo.Noisy(name)
    plan = helios.Plan(accumulation_steps=2)
    step, state = helios.make_step(model, plan), helios.init_state(model, seed)
    for batch in zoo.classes(3):
        state = step(state, batch)
    assert state.carry.metrics
    assert state.window_iter == 1
    return state


def test_stacked_states_are_those_of_the_members():
    states = [trained(name, seed) for seed, name in enumerate("abc")]
    carry = stack_carries([state.carry for state in states])
    together = helios.TrainingState(**states[0].dict(), carry=carry)
    for k, state in enumerate(states):
        assert helios.first_difference(member_state(together, k).carry, state.carry) is None


def test_what_is_taken_out_has_memory_of_its_own():
    state = helios.TrainingState(carry=stack_carries([trained(n, 0).carry for n in "ab"]))
    before = state.carry.params["net.0.weight"].clone()
    member_state(state, 1).carry.params["net.0.weight"].zero_()
    assert torch.equal(state.carry.params["net.0.weight"], before)


def test_trees_are_stacked_and_taken_apart():
    trees = [{"a": torch.full((2,), k), "b": {"c": k, "d": k > 0}} for k in range(3)]
    assert all(
        helios.first_difference(unstack(stack(trees), k), tree) is None
        for k, tree in enumerate(trees)
    )


def test_trees_of_other_names_are_refused():
    with pytest.raises(StateMismatchError, match=r"differ in \['b', 'c'\]"):
        stack([{"a": 1, "b": 2}, {"a": 1, "c": 2}])


def test_metrics_are_counted_for_each_member():
    values = {
        "mean": torch.tensor([1.0, 2.0]),
        "each": torch.tensor([[True, False, True], [False, False, True]]),
        "own": Mean(torch.tensor([2.0, 4.0]), 2),
        "number": 3.0,
    }
    found = each(loss_metrics("loss", Loss(torch.tensor([5.0, 6.0]), None, values), 3), 2)
    assert found[0] == {"loss": 5.0, "mean": 1.0, "each": 2 / 3, "own": 1.0, "number": 3.0}
    assert found[1] == {"loss": 6.0, "mean": 2.0, "each": 1 / 3, "own": 2.0, "number": 3.0}
    weighted = Loss(torch.tensor([5.0, 6.0]), torch.tensor([2.0, 0.0]))
    first, second = each(loss_metrics("loss", weighted, 3), 2)
    assert first == {"loss": 2.5}
    assert second["loss"] != second["loss"]

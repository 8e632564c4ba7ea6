from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from helios.errors import StateMismatchError
from helios.functional.transformation import Transformation
from helios.functional.tree import clone, first_difference
from helios.optim import SGD, AdamW, chain, clip_by_global_norm, clip_by_value, rates
from tests.optim.runs import functional, make_grads, make_params, storages, versions


class Scaled:
    """A gradient transformation with a state: it counts what it has seen."""

    def init(self, params: Any) -> Any:
        return {"seen": torch.zeros(())}

    def apply(self, grads: Any, state: Any, params: Any, *, donate: bool = False) -> Any:
        seen = state["seen"] + 1
        return {path: g * seen for path, g in grads.items()}, {"seen": seen}


@pytest.mark.parametrize("donate", [False, True])
def test_a_chain_is_the_native_clips_and_then_the_native_optimizer(donate: bool) -> None:
    params = make_params()
    grads = make_grads(params, 4)
    own = {path: torch.nn.Parameter(p.clone()) for path, p in params.items()}
    optimizer = torch.optim.AdamW(own.values())
    expected = []
    for step_grads in grads:
        for path, p in own.items():
            p.grad = step_grads[path].clone()
        torch.nn.utils.clip_grad_value_(own.values(), 1.0)
        torch.nn.utils.clip_grad_norm_(own.values(), 1.0)
        optimizer.step()
        expected.append({path: p.detach().clone() for path, p in own.items()})
    rule = chain(value=clip_by_value(1.0), norm=clip_by_global_norm(1.0), adamw=AdamW())
    assert first_difference(functional(rule, params, grads, donate=donate)[0], expected) is None


@pytest.mark.parametrize("donate", [False, True])
def test_the_state_of_a_part_is_passed_on(donate: bool) -> None:
    params = make_params()
    _, state = functional(
        chain(s=Scaled(), sgd=SGD()), params, make_grads(params, 3), donate=donate
    )
    assert state["s"]["seen"] == 3


def test_an_undonated_update_leaves_its_arguments() -> None:
    params = make_params()
    rule = chain(s=Scaled(), clip=clip_by_value(0.1), adamw=AdamW())
    arguments = (make_grads(params, 1)[0], rule.init(params), params)
    before, old = clone(arguments), versions(arguments)
    result = rule.update(*arguments)
    assert first_difference(arguments, before) is None
    assert versions(arguments) == old
    assert not storages(result) & storages(arguments)


def test_a_donated_update_returns_the_objects_it_was_given() -> None:
    params = make_params()
    rule = chain(clip=clip_by_value(0.1), adamw=AdamW())
    state = rule.init(params)
    new, new_state = rule.update(make_grads(params, 1)[0], state, params, donate=True)
    assert new is params
    assert new_state is state


def test_the_state_is_by_name() -> None:
    rule = chain(clip=clip_by_value(0.1), adamw=AdamW())
    assert list(rule.init(make_params())) == ["clip", "adamw"]


def test_an_optimizer_alone_is_a_chain() -> None:
    assert list(chain(sgd=SGD()).init(make_params())) == ["sgd"]


def test_a_chain_is_a_transformation() -> None:
    assert isinstance(chain(sgd=SGD()), Transformation)


def test_a_chain_in_a_chain_is_an_optimizer() -> None:
    rule = chain(clip=clip_by_value(1.0), inner=chain(sgd=SGD()))
    assert list(rule.init(make_params())["inner"]) == ["sgd"]


def test_a_chain_has_the_learning_rate_of_its_optimizer() -> None:
    rule = chain(clip=clip_by_value(1.0), sgd=SGD(lr=rates.exponential(1.0, 0.5)))
    assert rule.learning_rate(2) == 0.25


def test_a_chain_is_copied_with_its_parts() -> None:
    rule = chain(clip=clip_by_value(1.0), sgd=SGD())
    assert repr(copy.deepcopy(rule)) == repr(rule)


def test_a_chain_is_printed_as_it_is_written() -> None:
    rule = chain(clip=clip_by_value(1.0), sgd=SGD(lr=0.1))
    assert repr(rule) == "chain(clip=clip_by_value(limit=1.0), sgd=SGD(lr=0.1))"


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"clip": clip_by_value(1.0)},
        {"one": SGD(), "two": SGD()},
        {"sgd": SGD(), "clip": clip_by_value(1.0)},
    ],
)
def test_anything_but_one_optimizer_at_the_end_is_refused(parts: Any) -> None:
    with pytest.raises(ValueError, match="expected exactly one optimizer, as the last part"):
        chain(**parts)


@pytest.mark.parametrize("part", [1.0, torch.optim.SGD, clip_by_value, None])
def test_what_is_no_part_is_refused(part: Any) -> None:
    with pytest.raises(TypeError, match="clip: received"):
        chain(clip=part, sgd=SGD())


def test_the_state_of_another_chain_is_refused() -> None:
    state = chain(sgd=SGD()).init(make_params())
    with pytest.raises(StateMismatchError, match=r"\['sgd'\]; expected .* \['clip', 'sgd'\]"):
        chain(clip=clip_by_value(1.0), sgd=SGD()).update({}, state, make_params())

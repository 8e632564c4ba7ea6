"""One contract, over every named optimizer in several configurations."""

from __future__ import annotations

import copy
import inspect
import io
from typing import Any

import optree
import pytest
import torch

from helios.functional.transformation import Transformation
from helios.functional.tree import clone, first_difference, leaves
from helios.optim import NAMED, TorchOptimizer, rates
from tests.optim.runs import (
    MATRICES,
    MIXED,
    Tensors,
    functional,
    make_grads,
    make_params,
    native,
    storages,
    versions,
    without,
)

CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.01, "maximize": True}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("SGD", {"momentum": 0.9, "nesterov": True, "foreach": True}),
    ("SGD", {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9, "dampening": 0.5, "foreach": True}),
    ("SGD", {"fused": True}),
    ("SGD", {"momentum": 0.9, "dampening": 0.5, "fused": True}),
    ("Adam", {}),
    ("Adam", {"amsgrad": True, "weight_decay": 0.1}),
    ("Adam", {"foreach": True, "maximize": True}),
    ("Adam", {"fused": True, "amsgrad": True}),
    ("AdamW", {}),
    ("AdamW", {"foreach": True, "amsgrad": True}),
    ("AdamW", {"fused": True}),
    ("Adagrad", {}),
    ("Adagrad", {"initial_accumulator_value": 0.5, "lr_decay": 0.1}),
    ("Adagrad", {"foreach": True, "initial_accumulator_value": 0.5}),
    ("Adagrad", {"fused": True, "initial_accumulator_value": 0.5}),
    ("RMSprop", {}),
    ("RMSprop", {"momentum": 0.9, "centered": True}),
    ("RMSprop", {"momentum": 0.9, "centered": True, "foreach": True}),
    ("NAdam", {}),
    ("NAdam", {"decoupled_weight_decay": True, "weight_decay": 0.1, "foreach": True}),
    ("RAdam", {}),
    ("RAdam", {"foreach": True, "maximize": True}),
    ("Adamax", {}),
    ("Adamax", {"foreach": True, "weight_decay": 0.1}),
    ("Adadelta", {}),
    ("Adadelta", {"foreach": True, "rho": 0.5}),
    ("Rprop", {}),
    ("Rprop", {"foreach": True, "etas": (0.4, 1.3)}),
    ("ASGD", {}),
    ("ASGD", {"t0": 2.0, "foreach": True}),
    ("Adafactor", {}),
    ("Adafactor", {"foreach": True, "weight_decay": 0.1}),
    ("Muon", {}),
    ("Muon", {"nesterov": False, "adjust_lr_fn": "match_rms_adamw"}),
]

pytestmark = pytest.mark.parametrize(
    ("name", "options"),
    CASES,
    ids=[f"{n}-{'-'.join(f'{k}={v}' for k, v in o.items())}" for n, o in CASES],
)


def params_of(name: str) -> Tensors:
    return make_params(MATRICES if name == "Muon" else MIXED)


def grads_of(params: Tensors) -> list[Tensors]:
    """Six updates; in the fourth, the first parameter has no gradient."""
    grads = make_grads(params, 6)
    grads[3] = without(grads[3], next(iter(params)))
    return grads


def first_gradient_late(params: Tensors) -> list[Tensors]:
    """Five updates; the first parameter has its first gradient in the third."""
    path = next(iter(params))
    grads = make_grads(params, 5)
    return [without(g, path) if k < 2 else g for k, g in enumerate(grads)]


def test_every_update_equals_the_native_optimizer(name: str, options: dict[str, Any]) -> None:
    params = params_of(name)
    grads = grads_of(params)
    expected = native(getattr(torch.optim, name), params, grads, **options)
    assert first_difference(functional(NAMED[name](**options), params, grads)[0], expected) is None


def test_donated_equals_undonated(name: str, options: dict[str, Any]) -> None:
    params = params_of(name)
    grads = grads_of(params)
    optimizer = NAMED[name](**options)
    pure = functional(optimizer, params, grads)
    assert first_difference(functional(optimizer, params, grads, donate=True), pure) is None


def test_a_late_first_gradient_is_as_in_the_native_optimizer(
    name: str, options: dict[str, Any]
) -> None:
    params = params_of(name)
    grads = first_gradient_late(params)
    optimizer = NAMED[name](**options)
    if options.get("fused") and options.get("momentum"):
        # torch's fused SGD cannot start one parameter after another: neither can the adapter.
        with pytest.raises(TypeError, match="expected Tensor as element 0"):
            native(torch.optim.SGD, params, grads, **options)
        with pytest.raises(TypeError, match="expected Tensor as element 0"):
            functional(optimizer, params, grads)
        return
    expected = native(getattr(torch.optim, name), params, grads, **options)
    assert first_difference(functional(optimizer, params, grads)[0], expected) is None
    assert first_difference(functional(optimizer, params, grads, donate=True)[0], expected) is None


def test_undonated_arguments_keep_bits_and_versions(name: str, options: dict[str, Any]) -> None:
    params = params_of(name)
    grads = make_grads(params, 2)
    optimizer = NAMED[name](**options)
    state = optimizer.init(params)
    for step_grads in grads:
        arguments = (step_grads, state, params)
        before, old = clone(arguments), versions(arguments)
        result = optimizer.update(*arguments)
        assert first_difference(arguments, before) is None
        assert versions(arguments) == old
        params, state = result


def test_undonated_results_share_no_storage(name: str, options: dict[str, Any]) -> None:
    params = params_of(name)
    grads = make_grads(params, 2)
    optimizer = NAMED[name](**options)
    state = optimizer.init(params)
    assert not storages(state) & storages(params)
    for step_grads in grads:
        result = optimizer.update(step_grads, state, params)
        assert not storages(result) & storages((step_grads, state, params))
        tensors = [x for x in leaves(result) if isinstance(x, torch.Tensor)]
        assert len(storages(result)) == len(tensors)
        params, state = result


def test_the_structure_of_the_state_never_changes(name: str, options: dict[str, Any]) -> None:
    params = params_of(name)
    optimizer = NAMED[name](**options)
    state = optimizer.init(params)
    spec, kinds = structure(state)
    grads = first_gradient_late(params)
    if options.get("fused"):
        grads = grads[2:]  # see test_a_late_first_gradient_is_as_in_the_native_optimizer
    for step_grads in grads:
        params, state = optimizer.update(step_grads, state, params)
        assert structure(state) == (spec, kinds)


def test_a_saved_run_goes_on_as_if_it_had_not_stopped(name: str, options: dict[str, Any]) -> None:
    params = params_of(name)
    grads = grads_of(params)
    expected, expected_state = functional(NAMED[name](**options), params, grads)
    half, state = functional(NAMED[name](**options), params, grads[:3])
    file = io.BytesIO()
    torch.save((half[-1], state), file)
    file.seek(0)
    params, state = torch.load(file, weights_only=True)
    resumed = NAMED[name](**options)
    for step_grads in grads[3:]:
        params, state = resumed.update(step_grads, state, params, donate=True)
    assert first_difference((params, state), (expected[-1], expected_state)) is None


def test_one_object_serves_two_runs_in_turn(name: str, options: dict[str, Any]) -> None:
    optimizer = NAMED[name](**options)
    starts = [params_of(name), clone(params_of(name))]
    grads = [make_grads(starts[0], 4, seed=1), make_grads(starts[1], 4, seed=2)]
    alone = [functional(optimizer, p, g)[0][-1] for p, g in zip(starts, grads, strict=True)]
    runs = [(p, optimizer.init(p)) for p in starts]
    for k in range(4):
        for which in (0, 1):
            params, state = runs[which]
            runs[which] = optimizer.update(grads[which][k], state, params, donate=k != 2)
    assert first_difference([params for params, _ in runs], alone) is None


def test_a_rate_equals_setting_lr_before_every_native_step(
    name: str, options: dict[str, Any]
) -> None:
    params = params_of(name)
    grads = grads_of(params)
    rate = rates.cosine(0.1, 6, end=0.01)
    options = {**options, "lr": rate}
    expected = native(
        getattr(torch.optim, name), params, grads, rate=rate, **{**options, "lr": rate(0)}
    )
    optimizer = NAMED[name](**options)
    assert first_difference(functional(optimizer, params, grads, donate=True)[0], expected) is None


def test_a_deep_copy_holds_no_tensors(name: str, options: dict[str, Any]) -> None:
    params = params_of(name)
    grads = grads_of(params)
    optimizer = NAMED[name](**options)
    expected = functional(optimizer, params, grads, donate=True)[0]
    copied = copy.deepcopy(optimizer)
    assert not any(isinstance(x, torch.Tensor) for x in leaves(vars(copied)))
    assert first_difference(functional(copied, params, grads, donate=True)[0], expected) is None


def test_the_name_has_the_options_and_defaults_of_torch(name: str, options: dict[str, Any]) -> None:
    ours = inspect.signature(NAMED[name]).parameters
    theirs = inspect.signature(getattr(torch.optim, name)).parameters
    assert {n: p.default for n, p in ours.items()} == {
        n: p.default for n, p in theirs.items() if n != "params"
    }
    assert NAMED[name]().lr == theirs["lr"].default
    assert set(options) <= set(ours)


def test_it_is_a_transformation(name: str, options: dict[str, Any]) -> None:
    assert isinstance(NAMED[name](**options), Transformation)
    assert isinstance(NAMED[name](**options), TorchOptimizer)


def structure(state: Any) -> tuple[Any, list[Any]]:
    values, spec = optree.tree_flatten(state, none_is_leaf=True, namespace="helios")
    return spec, [
        (x.shape, x.dtype, x.stride()) if isinstance(x, torch.Tensor) else type(x) for x in values
    ]

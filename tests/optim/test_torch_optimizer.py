from __future__ import annotations

import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from helios.errors import StateMismatchError
from helios.functional.tree import clone, first_difference
from helios.optim import SGD, AdamW, Muon, TorchOptimizer
from tests.optim.runs import functional, make_grads, make_params, native


class Halving(torch.optim.Optimizer):
    """Not of torch: one slot is a number, one is None, one a copy of the parameter."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # without a closure
        [group] = self.param_groups
        for p in group["params"]:
            if p.grad is None:
                continue
            slots = self.state[p]
            if not slots:
                slots.update(half=1.0, steps=0, nothing=None, origin=p.clone())
            slots["half"] /= 2
            slots["steps"] += 1
            slots["origin"] = slots["origin"] + 1  # replaced, not updated in place
            p.add_(p.grad * slots["half"] + slots["origin"], alpha=-group["lr"])


class Counting(torch.optim.SGD):
    """Keeps a number in the group, as optimizers outside of torch do."""

    def step(self, closure: Any = None) -> Any:
        self.param_groups[0]["k"] = self.param_groups[0].get("k", 0) + 1
        return super().step(closure)


def test_a_class_outside_of_torch_equals_itself() -> None:
    params = make_params()
    grads = make_grads(params, 4)
    expected = native(Halving, params, grads)
    for donate in (False, True):
        history, state = functional(TorchOptimizer(Halving), params, grads, donate=donate)
        assert first_difference(history, expected) is None
        assert state["slots"]["scale"]["steps"] == 4
        assert state["slots"]["scale"]["nothing"] is None


def test_sparse_adam_equals_the_native_optimizer() -> None:
    params = make_params({"table": (5, 2)})
    grads = [{"table": g["table"].to_sparse(1)} for g in make_grads(params, 3)]
    expected = native(torch.optim.SparseAdam, params, grads)
    optimizer = TorchOptimizer(torch.optim.SparseAdam)
    assert first_difference(functional(optimizer, params, grads)[0], expected) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64])
def test_every_dtype_equals_the_native_optimizer(dtype: torch.dtype) -> None:
    params = {path: p.to(dtype) for path, p in make_params().items()}
    params["single"] = torch.ones(3)
    grads = make_grads(params, 3)
    expected = native(torch.optim.AdamW, params, grads)
    assert first_difference(functional(AdamW(), params, grads)[0], expected) is None


def test_a_tensor_rate_is_passed_through() -> None:
    params = make_params()
    grads = make_grads(params, 3)
    lr = torch.tensor(0.1)
    expected = native(torch.optim.AdamW, params, grads, lr=torch.tensor(0.1))
    assert first_difference(functional(AdamW(lr=lr), params, grads)[0], expected) is None


def test_without_a_rate_the_class_has_its_own() -> None:
    assert TorchOptimizer(torch.optim.Adadelta).lr == 1.0


def test_a_parameter_that_cannot_have_a_gradient_is_left_alone() -> None:
    params = {"w": torch.ones(2), "steps": torch.tensor(3)}
    grads = {"w": torch.ones(2)}
    for donate in (False, True):
        given = clone(params)
        new, state = AdamW().update(grads, AdamW().init(given), given, donate=donate)
        assert new["steps"] == 3
        assert state["slots"]["steps"] == {}


def test_no_gradient_at_all_changes_nothing_but_the_count() -> None:
    params = make_params()
    optimizer = AdamW(weight_decay=0.5)
    state = optimizer.init(params)
    new, new_state = optimizer.update({}, state, params)
    assert first_difference(new, params) is None
    assert first_difference(new_state, {**state, "count": 1}) is None


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("donate", [False, True])
def test_a_gradient_of_none_is_no_gradient(fused: bool, donate: bool) -> None:
    params = make_params()
    optimizer = AdamW(weight_decay=0.5, fused=fused)
    state = optimizer.init(params)
    expected = {**clone(state), "count": 1}
    none: Any = dict.fromkeys(params)
    new, new_state = optimizer.update(none, state, clone(params), donate=donate)
    assert first_difference((new, new_state), (params, expected)) is None


def test_the_gradients_of_the_parameters_themselves_are_untouched() -> None:
    params = {"w": torch.nn.Parameter(torch.ones(2))}
    params["w"].grad = mine = torch.full((2,), 7.0)
    optimizer = SGD()
    optimizer.update({"w": torch.ones(2)}, optimizer.init(params), params, donate=True)
    assert params["w"].grad is mine
    assert mine.tolist() == [7.0, 7.0]


def test_a_donated_update_returns_the_objects_it_was_given() -> None:
    params = {"w": torch.nn.Parameter(torch.ones(2))}
    optimizer = AdamW()
    state, parameter = optimizer.init(params), params["w"]
    new, new_state = optimizer.update({"w": torch.ones(2)}, state, params, donate=True)
    assert new is params
    assert new_state is state
    assert new["w"] is parameter


def test_a_donated_update_is_seen_by_autograd() -> None:
    params = {"w": torch.nn.Parameter(torch.ones(2))}
    loss = (params["w"] ** 2).sum()
    optimizer = SGD()
    optimizer.update({"w": torch.ones(2)}, optimizer.init(params), params, donate=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_donated_update_keeps_no_gradient_alive() -> None:
    params = make_params()
    optimizer = AdamW()
    state = optimizer.init(params)
    grads = make_grads(params, 1)[0]
    gone = [weakref.ref(g) for g in grads.values()]
    optimizer.update(grads, state, params, donate=True)
    del grads
    gc.collect()
    assert [ref() for ref in gone] == [None] * len(gone)


def test_an_undonated_update_leaves_the_donated_binding() -> None:
    params = make_params()
    grads = make_grads(params, 3)
    optimizer = AdamW()
    state = optimizer.init(params)
    expected = functional(AdamW(), params, grads)[0][-1]
    optimizer.update(grads[0], state, params, donate=True)
    fork = optimizer.update(grads[1], state, params)
    optimizer.update(grads[1], state, params, donate=True)
    assert first_difference((params, state), fork) is None
    optimizer.update(grads[2], state, params, donate=True)
    assert first_difference(params, expected) is None


def test_new_memory_under_the_same_parameter_is_noticed() -> None:
    params = {"w": torch.nn.Parameter(torch.ones(2))}
    optimizer = SGD(lr=1.0)
    state = optimizer.init(params)
    optimizer.update({"w": torch.ones(2)}, state, params, donate=True)
    params["w"].data = torch.full((2,), 5.0)
    optimizer.update({"w": torch.ones(2)}, state, params, donate=True)
    assert params["w"].tolist() == [4.0, 4.0]


def test_a_failed_donated_update_is_not_gone_back_to() -> None:
    params = {"a": torch.ones(2), "b": torch.ones(3)}
    optimizer = SGD(lr=1.0)
    state = optimizer.init(params)
    optimizer.update({}, state, params, donate=True)
    with pytest.raises(ValueError, match="grads"):
        optimizer.update({"a": torch.ones(2), "b": torch.ones(2)}, state, params, donate=True)
    optimizer.update({"b": torch.ones(3)}, state, params, donate=True)
    assert params["a"].tolist() == [1.0, 1.0]
    assert params["b"].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad])
def test_fused_kernels_see_a_gradient_of_other_strides(
    cls: type[torch.optim.Optimizer], donate: bool
) -> None:
    params = {"w": torch.ones(3, 4), "v": torch.ones(2, 8)}
    strange = {"w": torch.arange(12.0).reshape(4, 3).t(), "v": torch.tensor(2.0).expand(2, 8)}
    plain = {path: g.contiguous() for path, g in strange.items()}
    expected = native(cls, params, [plain], lr=0.1, fused=True)[-1]
    optimizer = TorchOptimizer(cls, lr=0.1, fused=True)
    new, _ = optimizer.update(strange, optimizer.init(params), params, donate=donate)
    assert first_difference(new, expected) is None


def test_fused_kernels_see_slots_that_were_restored_in_other_strides() -> None:
    image = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    params = {"w": image}
    grads = [{"w": torch.randn(2, 3, 4, 4)} for _ in range(2)]
    optimizer = AdamW(fused=True)
    first, state = optimizer.update(grads[0], optimizer.init(params), params)
    expected, _ = optimizer.update(grads[1], state, first)
    slots = state["slots"]["w"]
    state["slots"]["w"] = {name: slot.contiguous() for name, slot in slots.items()}
    assert first_difference(optimizer.update(grads[1], state, first)[0], expected) is None


def test_it_works_under_no_grad() -> None:
    params = make_params()
    grads = make_grads(params, 2)
    expected = functional(AdamW(), params, grads)[0]
    with torch.no_grad():
        assert first_difference(functional(AdamW(), params, grads)[0], expected) is None


def test_it_is_pickled_without_its_binding() -> None:
    params = make_params()
    optimizer = AdamW(lr=0.5)
    optimizer.update({}, optimizer.init(params), params, donate=True)
    assert repr(pickle.loads(pickle.dumps(optimizer))) == "AdamW(lr=0.5)"
    assert len(pickle.dumps(optimizer)) < 300


def test_lbfgs_is_refused() -> None:
    with pytest.raises(TypeError, match="LBFGS, whose step needs a closure"):
        TorchOptimizer(torch.optim.LBFGS)


def test_a_class_that_is_no_optimizer_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a subclass of"):
        TorchOptimizer(torch.nn.Linear)  # type: ignore[arg-type]  # the mistake under test


def test_an_optimizer_object_is_refused_with_the_fix() -> None:
    native_sgd = torch.optim.SGD([torch.zeros(1)])
    with pytest.raises(TypeError, match="pass the class, SGD"):
        TorchOptimizer(native_sgd)  # type: ignore[arg-type]  # the mistake under test


def test_an_unknown_option_is_answered_with_those_there_are() -> None:
    with pytest.raises(TypeError, match="'decay'; expected one of: lr, betas, eps, weight_decay"):
        AdamW(decay=0.1)


def test_a_value_that_torch_refuses_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        AdamW(lr=-1.0)


def test_differentiable_is_refused() -> None:
    with pytest.raises(ValueError, match="differentiable: received True"):
        SGD(differentiable=True)


def test_numbers_in_the_parameter_group_are_refused() -> None:
    with pytest.raises(TypeError, match="Counting: its step changes 'k' in the parameter group"):
        TorchOptimizer(Counting).init({"w": torch.ones(2)})


def test_no_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="received 0 parameters"):
        SGD().init({})


def test_muon_refuses_a_vector() -> None:
    with pytest.raises(ValueError, match="2D parameters"):
        Muon().init({"bias": torch.zeros(3)})


def test_the_state_of_other_parameters_is_refused() -> None:
    state = SGD().init({"w": torch.ones(2)})
    with pytest.raises(StateMismatchError, match="differ in 'v', 'w'"):
        SGD().update({}, state, {"v": torch.ones(2)})


@pytest.mark.parametrize(
    ("grad", "error", "message"),
    [
        ({"v": torch.ones(2)}, ValueError, "the path 'v'; expected paths of floating-point"),
        ({"w": torch.ones(3)}, ValueError, r"received torch.float32\(3,\) on cpu"),
        ({"w": torch.ones(2).double()}, ValueError, r"received torch.float64\(2,\) on cpu"),
        ({"w": 1.0}, TypeError, "received float; expected a tensor"),
    ],
)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("donate", [False, True])
def test_a_gradient_that_does_not_fit_is_refused(
    grad: Any, error: type[Exception], message: str, fused: bool, donate: bool
) -> None:
    params = {"w": torch.ones(2)}
    optimizer = SGD(fused=fused)
    with pytest.raises(error, match=message):
        optimizer.update(grad, optimizer.init(params), params, donate=donate)


def test_a_hook_on_all_optimizers_sees_every_update():
    seen, optimizer, params = [], AdamW(lr=0.1), make_params()
    state = optimizer.init(params)
    handle = register_optimizer_step_post_hook(
        lambda optimizer, args, kwargs: seen.append(type(optimizer).__name__)
    )
    try:
        for grads in make_grads(params, 3):
            optimizer.update(grads, state, params, donate=True)
    finally:
        handle.remove()
    assert seen == ["AdamW"] * 3


def test_a_profiler_sees_every_update():
    with torch.profiler.profile() as profile:
        functional(AdamW(lr=0.1), make_params(), make_grads(make_params(), 3), donate=True)
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["Optimizer.step#AdamW.step"] >= 3

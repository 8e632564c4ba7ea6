from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from helios.functional.tree import clone, first_difference
from helios.optim import GradientTransformation, clip_by_global_norm, clip_by_value
from tests.optim.runs import Tensors, make_grads, make_params, storages, versions

NORMS = [(1.0, 2.0), (1e6, 2.0), (0.5, 1.0), (0.5, math.inf), (0.0, 2.0), (1, 3)]


def gradients(dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> Tensors:
    grads = make_grads(make_params(), 1)[0]
    return {path: g.to(dtypes[k % len(dtypes)]) for k, (path, g) in enumerate(grads.items())}


def natively(grads: Tensors, clip: Any, *arguments: float) -> Tensors:
    params = [torch.zeros_like(g).requires_grad_() for g in grads.values()]
    for p, g in zip(params, grads.values(), strict=True):
        p.grad = g.clone()
    clip(params, *arguments)
    return {path: p.grad for path, p in zip(grads, params, strict=True) if p.grad is not None}


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize(("max_norm", "norm_type"), NORMS)
def test_the_global_norm_is_clipped_as_by_torch(
    max_norm: float, norm_type: float, donate: bool
) -> None:
    grads = gradients()
    expected = natively(grads, torch.nn.utils.clip_grad_norm_, max_norm, norm_type)
    clip = clip_by_global_norm(max_norm, norm_type)
    assert first_difference(clip.apply(grads, {}, {}, donate=donate)[0], expected) is None


def test_the_global_norm_is_over_every_dtype() -> None:
    grads = gradients((torch.float32, torch.bfloat16, torch.float64))
    expected = natively(grads, torch.nn.utils.clip_grad_norm_, 1.0)
    assert first_difference(clip_by_global_norm(1.0).apply(grads, {}, {})[0], expected) is None


def test_a_norm_that_is_not_finite_is_treated_as_by_torch() -> None:
    grads = {**gradients(), "scale": torch.tensor(math.inf)}
    expected = natively(grads, torch.nn.utils.clip_grad_norm_, 1.0)
    assert first_difference(clip_by_global_norm(1.0).apply(grads, {}, {})[0], expected) is None


@pytest.mark.parametrize("donate", [False, True])
def test_values_are_clipped_as_by_torch(donate: bool) -> None:
    grads = {**gradients((torch.float32, torch.float64)), "nan": torch.tensor([math.nan, 5.0])}
    expected = natively(grads, torch.nn.utils.clip_grad_value_, 0.5)
    assert (
        first_difference(clip_by_value(0.5).apply(grads, {}, {}, donate=donate)[0], expected)
        is None
    )


@pytest.mark.parametrize("clip", [clip_by_global_norm(0.1), clip_by_value(0.1)])
class TestEveryClip:
    def test_is_a_gradient_transformation(self, clip: Any) -> None:
        assert isinstance(clip, GradientTransformation)

    def test_keeps_no_state(self, clip: Any) -> None:
        assert clip.init(make_params()) == {}

    def test_of_no_gradients_gives_none(self, clip: Any) -> None:
        assert clip.apply({}, {}, {}) == ({}, {})

    def test_undonated_leaves_the_gradients(self, clip: Any) -> None:
        grads = gradients()
        before, old = clone(grads), versions(grads)
        clipped, _ = clip.apply(grads, {}, {})
        assert first_difference(grads, before) is None
        assert versions(grads) == old
        assert not storages(clipped) & storages(grads)

    def test_donated_works_in_place(self, clip: Any) -> None:
        grads = gradients()
        assert clip.apply(grads, {}, {}, donate=True)[0] is grads


@pytest.mark.parametrize("bad", [-1.0, math.nan])
def test_a_bound_below_zero_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="max_norm: received"):
        clip_by_global_norm(bad)
    with pytest.raises(ValueError, match="limit: received"):
        clip_by_value(bad)


def test_a_norm_type_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="norm_type: received 0"):
        clip_by_global_norm(1.0, 0)


def test_a_clip_is_printed_as_it_is_written() -> None:
    assert repr(clip_by_global_norm(1.0)) == "clip_by_global_norm(max_norm=1.0, norm_type=2.0)"

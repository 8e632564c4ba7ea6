"""The function behind an optimizer, called by hand, against the optimizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helios.functional.tree import clone, first_difference
from helios.optim.forms import FORMS, SAME_BITS_TOGETHER
from tests.optim.test_contract import CASES

ONES = [(name, options) for name, options in CASES if getattr(torch.optim, name) in FORMS]


@pytest.mark.parametrize(("name", "options"), ONES)
def test_a_form_has_the_bits_of_the_optimizer(name: str, options: dict[str, Any]):
    cls = getattr(torch.optim, name)
    draw = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=draw) for shape in ((3, 4), (4,), ())]
    native = cls(params, **options)

    def step() -> list[torch.Tensor]:
        grads = [torch.randn(p.shape, generator=draw) for p in params]
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.clone()
        native.step()
        return grads

    step()  # makes the state
    form, group = FORMS[cls], native.param_groups[0]
    own, slots = clone(params), [clone(dict(native.state[p])) for p in params]
    lists, named = form.lists(slots), form.options(group)
    for _ in range(4):
        with torch.no_grad():
            form.function(own, step(), *lists, **named)
    assert all(torch.equal(a, b) for a, b in zip(own, params, strict=True))
    for a, b in zip(slots, params, strict=True):
        assert first_difference(a, dict(native.state[b])) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        (name, {k: v for k, v in options.items() if k not in ("foreach", "fused")})
        for name, options in ONES
        if getattr(torch.optim, name) in SAME_BITS_TOGETHER
    ],
)
def test_together_has_the_bits_of_one_by_one(name: str, options: dict[str, Any], dtype):
    draw = torch.Generator().manual_seed(0)
    one = [torch.randn(n, generator=draw, dtype=dtype) for n in (1, 7, 8, 333, 4096)]
    two = clone(one)
    cls = getattr(torch.optim, name)
    natives = cls(one, foreach=False, **options), cls(two, foreach=True, **options)
    for scale in (1.0, 1e-3, 1e3, 0.0, 1e-30) * 3:
        for a, b in zip(one, two, strict=True):
            a.grad = torch.randn(a.shape, generator=draw, dtype=dtype) * scale
            b.grad = a.grad.clone()
        for native in natives:
            native.step()
    states = [
        [dict(native.state[p]) for p in native.param_groups[0]["params"]] for native in natives
    ]
    assert first_difference(one, two) is None
    assert first_difference(*states) is None

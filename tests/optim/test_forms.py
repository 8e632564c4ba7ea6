"""The function behind an optimizer, called by hand, against the optimizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helios.functional.tree import clone, first_difference
from helios.optim.forms import FORMS
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

"""The short ways of some operators have the values of vmap, and its gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from helios.functional import shortcuts
from helios.functional.shortcuts import Shortcuts


@pytest.fixture
def taken(monkeypatch):
    """Count the calls that take a short way."""
    counted = []

    def counting(way):
        def call(*args, **kwargs):
            value = way(*args, **kwargs)
            counted.append(value is not None)
            return value

        return call

    ways = {function: counting(way) for function, way in shortcuts._WAYS.items()}
    monkeypatch.setattr(shortcuts, "_WAYS", ways)
    return counted


def draw(*size, seed=0, dtype=torch.float64):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def compare(function, tensors, in_dims):
    """Compare values and gradients under vmap, with and without the short ways."""

    def within(*given):
        with Shortcuts():
            return function(*given)

    found = []
    for run in (function, within):
        leaves = [t.clone().requires_grad_() for t in tensors]
        out = torch.func.vmap(run, in_dims=in_dims)(*leaves)
        weights = draw(*out.shape, seed=7)
        found.append((out, *torch.autograd.grad((out * weights).sum(), leaves)))
    for expected, received in zip(*found, strict=True):
        torch.testing.assert_close(received, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("outputs", [2, 40])
@pytest.mark.parametrize("common", [False, True])
def test_linear(taken, outputs, common):
    x = draw(5, 4) if common else draw(3, 5, 4)
    tensors = [x, draw(3, outputs, 4, seed=1), draw(3, outputs, seed=2)]
    compare(F.linear, tensors, (None if common else 0, 0, 0))
    assert taken == [True]


def test_the_gradient_of_a_weight_has_the_layout_of_the_weight():
    weight, x = draw(3, 40, 4).requires_grad_(), draw(5, 4)

    def run(w, b):
        with Shortcuts():
            return F.linear(x, w, b).sum()

    [grad] = torch.autograd.grad(torch.func.vmap(run)(weight, draw(3, 40)).sum(), weight)
    assert grad.is_contiguous()


@pytest.mark.parametrize(
    ("sizes", "in_dims"),
    [
        ([(3, 2, 5, 4), (3, 6, 4), (3, 6)], (0, 0, 0)),  # more dimensions
        ([(3, 4), (3, 6, 4), (3, 6)], (0, 0, 0)),  # fewer
        ([(3, 5, 4), (6, 4), (6,)], (0, None, None)),  # one weight for all
        ([(3, 5, 4), (3, 6, 4), (6,)], (0, 0, None)),  # one bias for all
    ],
)
def test_a_linear_layer_in_another_form_is_left_to_vmap(taken, sizes, in_dims):
    compare(F.linear, [draw(*size, seed=k) for k, size in enumerate(sizes)], in_dims)
    assert taken == [False]


def test_a_linear_layer_without_a_bias(taken):
    compare(F.linear, [draw(3, 5, 4), draw(3, 6, 4, seed=1)], (0, 0))
    assert taken == [False]


@pytest.mark.parametrize("labels", [[0, 1, 2, 3, 0], [0, -100, 2, 1, -100]])
def test_cross_entropy(taken, labels):
    target = torch.tensor(labels)
    compare(lambda x: F.cross_entropy(x, target), [draw(3, 5, 4)], (0,))
    compare(lambda x: F.cross_entropy(x, target.abs() % 4, ignore_index=2), [draw(3, 5, 4)], (0,))
    assert taken == [True, True]


def test_cross_entropy_of_nothing_is_nan(taken):
    with Shortcuts():
        out = torch.func.vmap(lambda x: F.cross_entropy(x, torch.tensor([-100])))(draw(2, 1, 3))
    assert taken == [True]
    assert out.isnan().all()


@pytest.mark.parametrize(
    "options",
    [
        {"reduction": "sum"},
        {"label_smoothing": 0.1},
        {"weight": torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)},
    ],
)
def test_a_cross_entropy_in_another_form_is_left_to_vmap(taken, options):
    target = torch.tensor([0, 1, 2, 3, 0])
    compare(lambda x: F.cross_entropy(x, target, **options), [draw(3, 5, 4)], (0,))
    assert taken == [False]


def test_targets_that_are_probabilities_are_left_to_vmap(taken):
    target = draw(5, 4, seed=3).softmax(1)
    compare(lambda x: F.cross_entropy(x, target), [draw(3, 5, 4)], (0,))
    assert taken == [False]


def test_other_transforms_inside_are_left_to_vmap(taken):
    def function(x, w, b):
        return torch.func.grad(lambda v: F.linear(v, w, b).square().sum())(x).sum()

    compare(function, [draw(3, 5, 4), draw(3, 6, 4, seed=1), draw(3, 6, seed=2)], (0, 0, 0))
    assert taken == [False]


def test_outside_of_vmap_nothing_is_taken(taken):
    with Shortcuts():
        out = F.linear(draw(5, 4), draw(6, 4), draw(6))
    assert torch.equal(out, F.linear(draw(5, 4), draw(6, 4), draw(6)))
    assert taken == [False]

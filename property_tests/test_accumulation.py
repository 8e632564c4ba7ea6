"""P10: k micro-batches are one batch, whatever their sizes and weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import helios
from property_tests.cases import ENGINES, few

SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=5)


class Sums(helios.Model):
    """Returns a masked sum and its weight, in float64."""

    def setup(self, fast_init=False):
        self.net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
        self.optimizer = helios.optim.SGD(lr=0.5)

    def loss(self, batch):
        x, y, mask = batch
        errors = F.mse_loss(self.net(x), y, reduction="none").squeeze(1) * mask
        return helios.Loss(errors.sum(), weight=mask.sum())


def data(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    total = sum(sizes)
    mask = (torch.rand(total, generator=generator) < 0.7).double()
    mask[0] = 1
    columns = (
        torch.randn(total, 3, generator=generator, dtype=torch.float64),
        torch.randn(total, 1, generator=generator, dtype=torch.float64),
        mask,
    )
    return columns, list(zip(*(c.split(sizes) for c in columns), strict=True))


def greatest_error(a, b):
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@few
@given(SIZES, st.integers(0, 999), st.sampled_from(ENGINES))
def test_ragged_and_masked_micro_batches_equal_one_batch(sizes, seed, engine):
    model = Sums("sums")
    state = helios.init_state(model, seed)
    whole, parts = data(sizes, seed)
    once = helios.make_step(model, engine=engine)(state, whole)
    plan = helios.Plan(accumulation_steps=len(sizes))
    step = helios.make_step(model, plan, engine=engine)
    for part in parts:
        state = step(state, part)
    assert state.current_iteration == once.current_iteration == 1
    assert greatest_error(state.carry.params, once.carry.params) < 1e-12


@few
@given(SIZES, st.integers(0, 999))
def test_a_wrong_weight_could_not_hide(sizes, seed):
    """The control of the test above: a mean of means is told from the mean."""
    model = Sums("sums")
    state = helios.init_state(model, seed)
    whole, parts = data(sizes, seed)
    grads = helios.make_step(model)(state, whole).carry.params
    means = [helios.make_step(model)(state, p).carry.params for p in parts if p[2].sum() > 0]
    mean_of_means = {n: sum(m[n] for m in means) / len(means) for n in grads}
    weights = {float(p[2].sum()) for p in parts} - {0.0}
    if len(weights) > 1:
        assert greatest_error(mean_of_means, grads) > 1e-12


@few
@given(st.integers(1, 5), st.integers(0, 99))
def test_an_unweighted_window_is_the_mean_of_its_micro_batches(window, seed):
    model = Sums("sums")
    model.prepare(0)
    model.loss = lambda batch: F.mse_loss(model.net(batch[0]), batch[1])
    state = helios.init_state(model, seed)
    _, parts = data([3] * window, seed)
    params = {n: p.clone().requires_grad_() for n, p in state.carry.params.items()}
    losses = [F.mse_loss(_run(params, x), y) for x, y, _ in parts]
    grads = torch.autograd.grad(sum(losses) / window, list(params.values()))
    expected = {n: (p - 0.5 * g).detach() for (n, p), g in zip(params.items(), grads, strict=True)}
    step = helios.make_step(model, helios.Plan(accumulation_steps=window))
    for part in parts:
        state = step(state, part)
    assert greatest_error(state.carry.params, expected) < 1e-12


def _run(params, x):
    hidden = torch.tanh(F.linear(x, params["net.0.weight"], params["net.0.bias"]))
    return F.linear(hidden, params["net.2.weight"], params["net.2.bias"])


@few
@given(st.permutations(range(4)), st.integers(0, 99))
def test_the_order_of_micro_batches_changes_rounding_alone(order, seed):
    model = Sums("sums")
    state = helios.init_state(model, seed)
    _, parts = data([2, 3, 1, 4], seed)
    step = helios.make_step(model, helios.Plan(accumulation_steps=4))
    straight = permuted = state
    for index in range(4):
        straight = step(straight, parts[index])
        permuted = step(permuted, parts[order[index]])
    assert greatest_error(straight.carry.params, permuted.carry.params) < 1e-12


@few
@given(st.integers(1, 4), st.integers(1, 9))
def test_a_short_last_window_of_an_epoch_is_divided_by_its_true_weight(window, batches):
    model = Sums("sums")
    state = helios.init_state(model, 0)
    _, parts = data([2] * batches, 7)
    plan = helios.Plan(accumulation_steps=window, batches_per_epoch=batches)
    step = helios.make_step(model, plan)
    expected = state
    for start in range(0, batches, window):
        rest = parts[start : start + window]
        inner = helios.make_step(model, helios.Plan(accumulation_steps=len(rest)))
        for part in rest:
            expected = inner(expected, part)
    for part in parts:
        state = step(state, part)
    assert state.current_iteration == -(-batches // window)
    assert helios.first_difference(state.carry.params, expected.carry.params) is None

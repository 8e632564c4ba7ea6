"""An observed step computes the same bits, and what it tells is what the update was made of."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import helios
from helios.functional.observe import total_norm
from property_tests.cases import ENGINES, MODELS, built, few
from tests.functional.test_compiled import TRACED
from tests.zoo import Line, batches_for


class Notes:
    """Keeps what it is told."""

    def __init__(self, wanted=lambda state: True):
        self.wants = wanted
        self.norm = total_norm
        self.seen = []

    def see(self, state, seen):
        self.seen.append((state.current_iteration, seen))


@few
@given(st.sampled_from(MODELS), st.sampled_from(ENGINES), st.integers(1, 3), st.integers(0, 99))
def test_observed_equals_unobserved(kind, engine, window, seed):
    model, notes = built(kind), Notes()
    plan = helios.Plan(accumulation_steps=window)
    plain = helios.make_step(model, plan, engine=engine)
    observed = helios.make_step(model, plan, engine=engine, observe=notes)
    a = b = helios.init_state(model, seed)
    for batch in batches_for(model, 5, seed=seed):
        a, b = plain(a, batch), observed(b, batch)
    assert helios.first_difference(a, b) is None
    objectives = len(model.objectives())
    updates = 5 // window
    assert [k for k, _ in notes.seen] == [
        k for k in range(1, updates + 1) for _ in range(objectives)
    ]
    assert all(seen.applied for _, seen in notes.seen)


def line():
    model = Line("line", lambda: helios.optim.SGD(lr=0.0))
    model.prepare(0)
    return model


@pytest.mark.parametrize("compile", [False, TRACED])
def test_the_loss_and_the_norm_are_those_of_the_window(compile):
    model, notes = line(), Notes()
    step = helios.make_step(
        model, helios.Plan(accumulation_steps=2), compile=compile, observe=notes
    )
    state = helios.init_state(model, 0)
    batches = batches_for(model, 4)
    for batch in batches:
        state = step(state, batch)
    for update in range(2):
        model.zero_grad()
        losses = [model.loss(batch) for batch in batches[2 * update : 2 * update + 2]]
        losses = [loss[0] if isinstance(loss, tuple) else loss for loss in losses]
        mean = sum(losses) / 2
        mean.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        number, seen = notes.seen[update]
        assert number == update + 1
        assert seen.metric == "loss"
        assert seen.loss() == pytest.approx(mean.item(), rel=1e-6)
        assert float(seen.norm) == pytest.approx(norm.item(), rel=1e-6)


@pytest.mark.parametrize("compile", [False, TRACED])
def test_only_what_is_wanted_is_told(compile):
    model, notes = line(), Notes(lambda state: state.current_iteration == 3)
    step = helios.make_step(model, compile=compile, observe=notes)
    state = helios.init_state(model, 0)
    for batch in batches_for(model, 4):
        state = step(state, batch)
    assert [number for number, _ in notes.seen] == [3]


def test_an_update_that_is_left_out_is_told_as_such():
    model, notes = line(), Notes()
    step = helios.make_step(model, non_finite="skip", observe=notes)
    x, y = batches_for(model, 1)[0]
    step(helios.init_state(model, 0), (x * float("nan"), y))
    [(_, seen)] = notes.seen
    assert not seen.applied


@pytest.mark.parametrize(
    "kinds",
    [
        [torch.float32] * 3,
        [torch.float64],
        [torch.float32, torch.float64],
        [torch.bfloat16] * 2,
        [],
    ],
    ids=str,
)
def test_the_norm_has_the_bits_of_torchs(kinds):
    generator = torch.Generator().manual_seed(4)
    grads = {
        str(index): torch.randn(5, index + 1, generator=generator).to(kind)
        for index, kind in enumerate(kinds)
    }
    expected = torch.nn.utils.get_total_norm(list(grads.values()))
    assert helios.first_difference(total_norm(grads), expected) is None

"""N1: an update that is not finite changes nothing but the count of what was left out."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from torch import nn

import helios
from helios.errors import NonFiniteError
from helios.functional.nonfinite import Deferred
from helios.functional.tree import clone
from helios.optim.rates import linear_warmup
from property_tests.cases import ENGINES
from property_tests.fits import a_share
from tests.zoo import regression

WINDOWS = 3
RATE = linear_warmup(0.5, updates=10)


class _WithGradient(torch.autograd.Function):
    """Zero, with a gradient that is given beside it."""

    @staticmethod
    def forward(x, gradient):
        return torch.zeros_like(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, out):
        return out * 0 + ctx.saved_tensors[0], None


class Poisonable(helios.Model):
    """Adds to its loss, its gradient and its metric what the batch says; draws random numbers."""

    def setup(self, fast_init=False):
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.3), nn.Linear(4, 1))
        self.optimizer = helios.optim.AdamW(lr=RATE)
        self.average = helios.optim.average(decay=0.9)

    def loss(self, batch):
        x, y, loss, gradient, metric = batch
        bias = self.net[2].bias.sum()
        total = F.mse_loss(self.net(x), y) + _WithGradient.apply(bias, gradient) + loss
        return total, {"extra": metric}


class Case(NamedTuple):
    """Where one run is poisoned, and how it is stepped."""

    value: float
    place: str
    window: int
    position: int
    accumulation: int
    donate: bool
    engine: str

    @property
    def at(self) -> int:
        """Return the index of the micro-batch that is poisoned."""
        return self.window * self.accumulation + self.position

    def batches(self, *, poisoned: bool = True) -> list[Any]:
        """Return the micro-batches of all windows."""
        batches = []
        for index, (x, y) in enumerate(regression(WINDOWS * self.accumulation)):
            extra = dict.fromkeys(("loss", "gradient", "metric"), torch.zeros(()))
            if poisoned and index == self.at:
                extra[self.place] = torch.tensor(self.value)
            batches.append((x, y, *extra.values()))
        return batches

    def step(self, **arguments: Any) -> helios.Step:
        """Return the step of the case."""
        plan = helios.Plan(accumulation_steps=self.accumulation)
        return helios.make_step(model(), plan, engine=self.engine, **arguments)


@functools.cache
def model() -> Poisonable:
    return Poisonable("poisonable")


@functools.cache
def _first() -> helios.TrainingState:
    return helios.init_state(model(), 5)


def start() -> helios.TrainingState:
    """Return the same first state every time; the model itself holds that of the last run."""
    return clone(_first())


@st.composite
def cases(draw: st.DrawFn, places: tuple[str, ...] = ("loss", "gradient")) -> Case:
    accumulation = draw(st.integers(1, 4))
    return Case(
        value=draw(st.sampled_from([float("nan"), float("inf"), float("-inf")])),
        place=draw(st.sampled_from(places)),
        window=draw(st.integers(0, WINDOWS - 1)),
        position=draw(st.integers(0, accumulation - 1)),
        accumulation=accumulation,
        donate=draw(st.booleans()),
        engine=draw(st.sampled_from(ENGINES)),
    )


def run(case: Case, step: helios.Step, batches: list[Any]) -> helios.TrainingState:
    state = start()
    for batch in batches:
        state = step(state, batch, donate=case.donate)
    return state


def without_metrics(state: helios.TrainingState) -> helios.TrainingState:
    return replace(state, carry=replace(state.carry, metrics={}))


@a_share(3)
@given(cases())
def test_a_skipped_update_leaves_the_run_as_if_it_had_not_been_applied(case):
    """The oracle raises on what is not finite, and steps over the window by its counters alone."""
    step = case.step()
    expected = start()
    batches = case.batches(poisoned=False)
    for window in range(WINDOWS):
        if window == case.window:
            expected = replace(
                expected,
                current_iteration=expected.current_iteration + 1,
                running_iter=expected.running_iter + 1,
                global_iteration=expected.global_iteration + case.accumulation,
                dataset_iter=expected.dataset_iter + case.accumulation,
                carry=replace(expected.carry, skipped=1),
            )
            continue
        for batch in batches[window * case.accumulation : (window + 1) * case.accumulation]:
            expected = step(expected, batch)
    state = run(case, case.step(non_finite="skip"), case.batches())
    assert helios.first_difference(without_metrics(state), without_metrics(expected)) is None
    assert state.carry.opt_state["loss"]["count"] == WINDOWS - 1


@a_share(3)
@given(cases())
def test_a_skipped_update_passes_its_rate_on(case):
    step, state = case.step(non_finite="skip"), start()
    for index, batch in enumerate(case.batches()):
        before = state.carry.opt_state["loss"]["count"]
        state = step(state, batch, donate=case.donate)
        closes = index % case.accumulation == case.accumulation - 1
        applied = closes and index // case.accumulation != case.window
        assert RATE(state.carry.opt_state["loss"]["count"]) == RATE(before + applied)
        assert state.carry.skipped == (index >= (case.window + 1) * case.accumulation - 1)


@a_share(3)
@given(cases())
def test_by_default_the_update_is_named_and_nothing_is_changed(case):
    step, state = case.step(), start()
    batches, last = case.batches(), (case.window + 1) * case.accumulation - 1
    for batch in batches[:last]:
        state = step(state, batch, donate=case.donate)
    params, digest = clone(state.carry.params), helios.digest(state)
    with pytest.raises(NonFiniteError) as caught:
        step(state, batches[last], donate=case.donate)
    error = caught.value
    assert (error.update, error.global_iteration) == (case.window + 1, last + 1)
    if case.donate and case.engine == "autograd":
        held = {name: p.detach() for name, p in model().named_parameters()}
        assert helios.first_difference(held, params) is None
    elif not case.donate:
        assert helios.digest(state) == digest


@a_share(3)
@given(cases())
def test_a_deferred_check_names_the_same_update_before_the_next_is_applied(case):
    deferred = Deferred()
    step, state = case.step(deferred=deferred), start()
    batches, last = case.batches(), (case.window + 1) * case.accumulation - 1
    next_update = last + case.accumulation
    for batch in batches[:next_update]:
        state = step(state, batch, donate=case.donate)
    with pytest.raises(NonFiniteError) as caught:
        deferred.check() if next_update >= len(batches) else step(state, batches[next_update])
    assert (caught.value.update, caught.value.global_iteration) == (case.window + 1, last + 1)
    deferred.check()


@a_share(3)
@given(cases(places=("metric",)), st.sampled_from(["raise", "skip"]))
def test_a_metric_that_is_not_finite_stops_and_skips_nothing(case, policy):
    state = run(case, case.step(non_finite=policy), case.batches())
    healthy = run(case, case.step(), case.batches(poisoned=False))
    assert helios.first_difference(without_metrics(state), without_metrics(healthy)) is None


@a_share(3)
@given(cases(places=("loss", "gradient", "metric")))
def test_donated_equals_undonated_around_what_is_skipped(case):
    step = case.step(non_finite="skip")
    kept = run(case._replace(donate=False), step, case.batches())
    given_away = run(case._replace(donate=True), step, case.batches())
    assert helios.first_difference(kept, given_away) is None


@a_share(3)
@given(cases(places=("metric",)))
def test_the_policies_compute_the_same_bits_while_all_is_finite(case):
    batches = case.batches(poisoned=False)
    default = run(case, case.step(), batches)
    for arguments in ({"non_finite": "skip"}, {"deferred": Deferred()}):
        other = run(case, case.step(**arguments), batches)
        assert helios.first_difference(default, other) is None

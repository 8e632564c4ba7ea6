"""Which updates a fit observes, and who is told of them."""

from __future__ import annotations

import pytest
import torch

import helios
from helios.functional.observe import total_norm
from helios.functional.schedule import Batch, EpochEnd, Outcome, Stop, Validate, after, schedule
from helios.functional.state import TrainingState, TrainingUnit, begin_batch
from helios.trainer.observing import Observers, may_be_reported
from tests.zoo import Line, batches_for

ITERATION = TrainingUnit.ITERATION


class Notes:
    """Keeps the updates that it is told of."""

    norm = staticmethod(total_norm)

    def __init__(self, every):
        self.every = every
        self.updates = []

    def wants(self, state):
        return state.current_iteration % self.every == 0

    def see(self, state, seen):
        self.updates.append(state.current_iteration)


def observed(observers, updates=6):
    line = Line()
    line.prepare(0)
    step = helios.make_step(line, observe=observers.observer())
    state = helios.init_state(line, 0)
    for batch in batches_for(line, updates):
        state = step(state, batch)


def test_every_member_is_told_of_what_it_wants():
    a, b = Notes(2), Notes(3)
    observed(Observers(helios.Plan(), reports=False, members=(a, b)))
    assert (a.updates, b.updates) == ([2, 4, 6], [3, 6])


def test_the_last_norm_is_that_of_the_last_report():
    observers = Observers(helios.Plan(print_frequency=4))
    observed(observers)
    assert observers.last_update == 4
    assert observers.last_norm is next(iter(observers.last.values())).norm
    assert torch.as_tensor(observers.last_norm) > 0


def test_nobody_is_asked_if_nobody_wants_to_know():
    assert Observers(helios.Plan(), reports=False).observer() is None
    assert Observers(helios.Plan()).last_norm is None


PLANS = {
    "printed": {"print_frequency": 3},
    "by epoch": {},
    "by epoch, validated": {"valid_frequency": 1},
    "by epoch, windows": {"accumulation_steps": 2},
    "by update": {"unit": ITERATION, "total_steps": 12},
    "by update, validated": {"unit": ITERATION, "total_steps": 12, "valid_frequency": 3},
    "by update, windows": {"unit": ITERATION, "total_steps": 12, "accumulation_steps": 3},
    "unknown size": {"batches_per_epoch": None, "accumulation_steps": 2},
}


@pytest.mark.parametrize("case", PLANS)
def test_the_last_update_before_each_report_is_observed(case):
    """Walk the calendar as the loop does."""
    plan = helios.Plan(**{"batches_per_epoch": 5, "total_steps": 3, **PLANS[case]})
    state, last, reports, answer = TrainingState(), True, 0, None
    events = schedule(plan, state)
    while not isinstance(event := events.send(answer), Stop):
        answer = Outcome(available=min(2, 5 - state.dataset_iter))
        if isinstance(event, Batch) and event.update:
            last = may_be_reported(plan, begin_batch(state, update=True))
        settles = isinstance(event, (Validate, EpochEnd)) and plan.print_frequency is None
        if settles or (isinstance(event, Batch) and event.log):
            assert last
            reports += 1
        state = after(plan, state, event)
    assert reports >= 2

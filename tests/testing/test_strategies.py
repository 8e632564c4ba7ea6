"""The public strategies draw what they say, and hypothesis is needed for them alone."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import find, given, settings

import helios
from helios.functional.schedule import Stop
from helios.testing.strategies import model_states, plans, states
from tests import zoo

some = settings(max_examples=50, derandomize=True, database=None, deadline=None)
PLAN = helios.Plan(accumulation_steps=3)
BATCHES = zoo.classes(5)


@pytest.mark.parametrize(
    "has",
    [
        lambda plan: plan.unit is helios.TrainingUnit.EPOCH,
        lambda plan: plan.unit is helios.TrainingUnit.ITERATION,
        lambda plan: plan.batches_per_epoch is None,
        lambda plan: plan.early_stop_cycles is not None,
        lambda plan: plan.accumulation_steps > 1 and plan.chkpt_frequency is not None,
    ],
)
def test_plans_of_every_kind_are_drawn(has):
    assert has(find(plans(), has, settings=settings(derandomize=True, database=None)))


@some
@given(plans(unit=helios.TrainingUnit.EPOCH, finite=False, early_stop=True))
def test_what_was_asked_of_a_plan_is_so(plan):
    assert plan.unit is helios.TrainingUnit.EPOCH
    assert plan.total_steps is None
    assert plan.early_stop_cycles is not None


@some
@given(states(helios.Plan(total_steps=3, batches_per_epoch=4, accumulation_steps=3)))
def test_a_state_of_a_plan_lies_on_its_way(state):
    assert 0 <= state.global_iteration <= 12
    assert state.global_iteration % 4 == state.dataset_iter % 4
    plan = helios.Plan(total_steps=3, batches_per_epoch=4, accumulation_steps=3)
    assert isinstance(list(helios.schedule(plan, state))[-1], Stop)


def test_states_of_data_of_unknown_size_are_drawn_in_several_epochs():
    plan = helios.Plan(total_steps=3)
    quiet = settings(derandomize=True, database=None)
    assert find(states(plan), lambda state: state.global_epoch == 2, settings=quiet)


@some
@given(model_states(zoo.Noisy("noisy"), BATCHES, plan=PLAN))
def test_a_step_after_any_state_of_a_model_is_a_function(state):
    step = helios.make_step(zoo.Noisy("noisy"), PLAN)
    assert step(state, BATCHES[0]) == step(state, BATCHES[0])


def test_states_of_a_model_lie_inside_of_windows_too():
    drawn = model_states(zoo.Noisy("noisy"), BATCHES, plan=PLAN)
    quiet = settings(derandomize=True, database=None)
    assert find(drawn, lambda state: state.window_iter == 2, settings=quiet)


def in_a_process_without_hypothesis(code):
    code = f"import sys; sys.modules['hypothesis'] = None\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_the_check_needs_no_hypothesis():
    done = in_a_process_without_hypothesis("import helios.testing; helios.testing.check_laws")
    assert done.returncode == 0, done.stderr


def test_without_hypothesis_the_strategies_say_what_to_install():
    done = in_a_process_without_hypothesis("import helios.testing.strategies")
    assert "pip install 'helios[testing]'" in done.stderr.splitlines()[-1]


def test_importing_helios_imports_no_testing():
    code = "import sys, helios; sys.exit('helios.testing' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

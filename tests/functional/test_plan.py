from __future__ import annotations

import math
from typing import Any

import pytest

from helios.functional.plan import Plan, closes_window
from helios.functional.state import TrainingState, TrainingUnit

COUNTS = (
    "total_steps",
    "batches_per_epoch",
    "accumulation_steps",
    "valid_frequency",
    "chkpt_frequency",
    "print_frequency",
    "early_stop_cycles",
)
EPOCH, ITERATION = TrainingUnit.EPOCH, TrainingUnit.ITERATION


def test_a_plan_counts_epochs_and_has_no_end_by_default() -> None:
    assert Plan() == Plan(unit=EPOCH, total_steps=None, accumulation_steps=1, save_final=False)


def test_a_plan_is_a_value() -> None:
    plan = Plan(total_steps=3)
    assert hash(plan) == hash(Plan(total_steps=3))
    with pytest.raises(AttributeError):
        plan.total_steps = 4  # type: ignore[misc]


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -1])
def test_counts_below_one_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: received {value}; expected at least 1"):
        make(name, value)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [True, 1.0, "1", math.inf])
def test_counts_that_are_no_int_are_refused(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=rf"^{name}: received {value!r}; expected an int"):
        make(name, value)


@pytest.mark.parametrize("name", [name for name in COUNTS if name != "accumulation_steps"])
def test_counts_may_be_none(name: str) -> None:
    assert getattr(make(name, None), name) is None


def test_accumulation_steps_are_never_none() -> None:
    with pytest.raises(TypeError, match="accumulation_steps: received None; expected an int"):
        make("accumulation_steps", None)


def test_infinity_is_refused_with_what_to_give_instead() -> None:
    with pytest.raises(TypeError, match="None runs until something stops it"):
        make("total_steps", math.inf)


def test_an_empty_epoch_is_refused_as_an_empty_loader() -> None:
    with pytest.raises(ValueError, match=r"training loader is empty.*batch_size and drop_last"):
        Plan(batches_per_epoch=0)


def test_early_stop_needs_validations() -> None:
    with pytest.raises(ValueError, match="early_stop_cycles: received 2 without a valid_freq"):
        Plan(early_stop_cycles=2)


@pytest.mark.parametrize(("name", "value"), [("unit", "epoch"), ("unit", 1), ("save_final", 1)])
def test_other_arguments_of_a_wrong_type_are_refused(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=rf"^{name}: received {value!r}; expected a"):
        make(name, value)


@pytest.mark.parametrize("unit", TrainingUnit)
def test_a_window_closes_when_it_is_full(unit: TrainingUnit) -> None:
    plan = Plan(unit=unit, accumulation_steps=3)
    closes = [closes_window(plan, TrainingState(window_iter=n), last=False) for n in range(3)]
    assert closes == [False, False, True]


def test_the_end_of_an_epoch_closes_a_window_in_epochs_only() -> None:
    state = TrainingState()
    assert closes_window(Plan(unit=EPOCH, accumulation_steps=3), state, last=True)
    assert not closes_window(Plan(unit=ITERATION, accumulation_steps=3), state, last=True)


def test_a_window_fuller_than_the_plan_allows_closes_at_once() -> None:
    assert closes_window(Plan(accumulation_steps=2), TrainingState(window_iter=5), last=False)


def make(name: str, value: object) -> Plan:
    arguments: dict[str, Any] = {name: value}
    if name == "early_stop_cycles":
        arguments["valid_frequency"] = 1
    return Plan(**arguments)

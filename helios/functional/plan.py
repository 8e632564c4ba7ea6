"""A plan: how long a run is and how often things happen in it, as one frozen value."""

from __future__ import annotations

import msgspec

from helios.functional.state import TrainingState, TrainingUnit


class Plan(msgspec.Struct, frozen=True):
    """When things happen in a run.

    Args:
        unit: what ``total_steps``, ``valid_frequency`` and ``chkpt_frequency`` count: updates
            (``ITERATION``) or epochs (``EPOCH``).
        total_steps: where the run ends, in units. None: it goes on until something stops it.
        batches_per_epoch: micro-batches in an epoch. None: only the loader knows.
        accumulation_steps: micro-batches in a window, which makes one update.
        valid_frequency: units from one validation to the next. None: no validation.
        chkpt_frequency: units from one checkpoint to the next. None: none on a cadence.
        print_frequency: updates from one log to the next, whatever the unit. None: no logs.
        early_stop_cycles: validations in a row without improvement that end the run. None: none do.
        save_final: whether the last state of a run is to be on disk, for whatever reason it ends.

    Raises:
        TypeError: if an argument is not of its type; ``bool`` is not an int here.
        ValueError: if a number is less than 1, or ``early_stop_cycles`` has no ``valid_frequency``.

    Example:
        >>> Plan(total_steps=3, batches_per_epoch=10).unit
        <TrainingUnit.EPOCH: 1>
        >>> Plan(batches_per_epoch=0)
        Traceback (most recent call last):
        ...
        ValueError: batches_per_epoch: received 0; expected at least 1: the training loader is \
empty. Check the size of the dataset against batch_size and drop_last
    """

    unit: TrainingUnit = TrainingUnit.EPOCH
    total_steps: int | None = None
    batches_per_epoch: int | None = None
    accumulation_steps: int = 1
    valid_frequency: int | None = None
    chkpt_frequency: int | None = None
    print_frequency: int | None = None
    early_stop_cycles: int | None = None
    save_final: bool = False

    def __post_init__(self) -> None:
        """Check every argument."""
        _check_type("unit", self.unit, TrainingUnit, "a TrainingUnit")
        _check_type("save_final", self.save_final, bool, "a bool")
        _check_count("accumulation_steps", self.accumulation_steps, "")
        for name, advice in _OPTIONAL_COUNTS.items():
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name), advice)
        if self.early_stop_cycles is not None and self.valid_frequency is None:
            raise ValueError(
                f"early_stop_cycles: received {self.early_stop_cycles} without a valid_frequency; "
                "it counts validations, so expected both: give valid_frequency, or leave "
                "early_stop_cycles out"
            )


def closes_window(plan: Plan, state: TrainingState, last: bool) -> bool:
    """Tell whether the next micro-batch is the last of its accumulation window.

    The rule looks at how full the open window is, not at where in the run it is, so a run that
    goes on with other ``accumulation_steps`` has whole windows too.

    Args:
        plan: the plan.
        state: the state before the micro-batch.
        last: whether the micro-batch is the last of its epoch. ``EPOCH`` closes a short window
            there; in ``ITERATION`` windows run on across the ends of epochs.

    Law:
        ``property_tests/test_schedule_windows.py``: windows partition the micro-batches.

    Example:
        >>> plan = Plan(accumulation_steps=4)
        >>> closes_window(plan, TrainingState(window_iter=2), last=False)
        False
        >>> closes_window(plan, TrainingState(window_iter=2), last=True)
        True
    """
    return state.window_iter + 1 >= plan.accumulation_steps or (
        last and plan.unit is TrainingUnit.EPOCH
    )


_OPTIONAL_COUNTS = {
    "total_steps": "; None runs until something stops it",
    "batches_per_epoch": (
        ": the training loader is empty. Check the size of the dataset against batch_size and "
        "drop_last"
    ),
    "valid_frequency": "; None means no validation",
    "chkpt_frequency": "; None means no checkpoints on a cadence",
    "print_frequency": "; None means no logs",
    "early_stop_cycles": "; None means no early stop",
}


def _check_type(name: str, value: object, kind: type, expected: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name}: received {value!r}; expected {expected}")


def _check_count(name: str, value: object, advice: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        hint = advice if advice.startswith(";") else ""
        raise TypeError(f"{name}: received {value!r}; expected an int{hint}")
    if value < 1:
        raise ValueError(f"{name}: received {value}; expected at least 1{advice}")

"""The laws of a model's step, tried on a few batches."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from helios.core.rng import preserved_rng, seed_all
from helios.data import mover
from helios.errors import SerialisationError
from helios.functional.plan import Plan
from helios.functional.rng import fold
from helios.functional.state import TrainingState
from helios.functional.step import Step, make_step
from helios.functional.trainable import init_state
from helios.functional.tree import clone, first_difference, place
from helios.model import Model
from helios.testing.attributes import describe_changes, describe_differences, snapshot
from helios.testing.report import LawResult


class Subject:
    """A model, made anew as often as a law needs it, and the batches it is tried on.

    Args:
        make_model: returns a fresh model.
        batches: micro-batches, in order; each use has a copy of its own.
        plan: where accumulation windows end.
        seed: the seed of the runs.
    """

    def __init__(
        self, make_model: Callable[[], Model], batches: Sequence[Any], plan: Plan, seed: int
    ) -> None:
        self.batches = batches
        self.plan = plan
        self.seed = seed
        self._make = make_model
        self._models: list[Model] = []  # kept: the next one must not have the id of a dead one

    def fresh(self) -> Model:
        """Return a model that is set up as a trainer sets it up.

        Raises:
            TypeError: if ``make_model`` returns no model, or the one it returned before.
        """
        with preserved_rng(fold(self.seed, "session")):
            model = self._make()
            if not isinstance(model, Model):
                raise TypeError(
                    f"make_model: returned {type(model).__name__}; expected a helios.Model"
                )
            if any(model is other for other in self._models):
                raise TypeError(
                    "make_model: returned the same model twice; expected one made anew in each "
                    "call, such as lambda: MyModel('name'): a run that resumes begins with one"
                )
            model.prepare(self.seed)
        self._models.append(model)
        return model

    def batch(self, number: int, model: Model) -> Any:
        """Return a copy of a micro-batch, counted from 0, on the model's device."""
        return mover(model.device)(copy.deepcopy(self.batches[number]))

    def run(
        self,
        model: Model,
        state: TrainingState | None = None,
        *,
        start: int = 0,
        stop: int | None = None,
        donate: bool = False,
        noise: int = 0,
    ) -> list[TrainingState]:
        """Return the states of a run, the one that it begins with first.

        Args:
            model: the model.
            state: where to begin; by default at the first state of a run.
            start: the first micro-batch, counted from 0.
            stop: the one to stop before; by default the end.
            donate: whether the steps are donated. The states returned are copies.
            noise: what Python's and numpy's global generators are seeded with, which no loss may
                draw from.
        """
        stop = len(self.batches) if stop is None else stop
        step = make_step(model, self.plan)
        with preserved_rng(fold(self.seed, "noise", noise)):
            state = init_state(model, self.seed) if state is None else state
            states = [clone(state)]
            for number in range(start, stop):
                state = step(state, self.batch(number, model), donate=donate)
                states.append(clone(state))
        return states


def check_pure(subject: Subject) -> LawResult:
    """Check that a step changes nothing but what it returns."""
    model = subject.fresh()
    step, state = make_step(model, subject.plan), init_state(model, subject.seed)
    for number in range(len(subject.batches)):
        batch = subject.batch(number, model)
        found, state = _changed_by(step, model, state, batch)
        if found:
            return LawResult("pure", False, f"micro-batch {number + 1}: {found}")
    return LawResult("pure", True)


def check_deterministic(subject: Subject) -> LawResult:
    """Check that equal states and batches give equal bits, in the same model and in a fresh one."""
    model = subject.fresh()
    held = snapshot(model, "self")
    first = subject.run(model)
    changed = describe_changes(held, snapshot(model, "self"))
    where = _first_difference(first, subject.run(model))
    if where is not None:
        why = f"the second run of the same model differs in {where}"
        return LawResult("deterministic", False, _because(why, changed))
    other = subject.fresh()
    where = first_difference(first[0], init_state(other, subject.seed))
    if where is not None:
        why = f"{where} of a fresh model differs: setup() is no function of the seed"
        return LawResult("deterministic", False, why)
    where = _first_difference(first, subject.run(other))
    if where is not None:
        why = f"the run of a fresh model differs in {where}"
        return LawResult("deterministic", False, _because(why, changed))
    where = _first_difference(first, subject.run(subject.fresh(), noise=1))
    if where is not None:
        why = f"{where} depends on the global generators of random or numpy; draw from torch's"
        return LawResult("deterministic", False, why)
    return LawResult("deterministic", True)


def check_donated(subject: Subject) -> LawResult:
    """Check that donated steps compute the bits of steps that keep their states."""
    model, donated = subject.fresh(), subject.fresh()
    held = snapshot(model, "self")
    kept = subject.run(model)
    where = _first_difference(kept, subject.run(donated, donate=True))
    if where is None:
        return LawResult("donated", True)
    changed = describe_changes(held, snapshot(model, "self"))
    return LawResult("donated", False, _because(f"a donated run differs in {where}", changed))


def check_resumable(subject: Subject) -> LawResult:
    """Check that a state, as bytes, and a fresh model go on as if nothing had happened."""
    whole = subject.run(subject.fresh())
    for done in range(1, len(subject.batches)):
        model, fresh = subject.fresh(), subject.fresh()
        state = subject.run(model, stop=done)[-1]
        try:
            read = TrainingState.from_bytes(state.to_bytes())
        except SerialisationError as error:
            return LawResult("resumable", False, str(error))
        lost = describe_differences(snapshot(model, "self"), snapshot(fresh, "self"))
        resumed = subject.run(fresh, place(read, fresh.device), start=done)
        where = _first_difference(whole[done:], resumed, done)
        if where is not None:
            why = f"resumed after micro-batch {done}, the run differs in {where}"
            why += f"; lost, as neither parameter nor buffer: {lost}" if lost else ""
            return LawResult("resumable", False, why)
    return LawResult("resumable", True)


def _changed_by(
    step: Step, model: Model, state: TrainingState, batch: Any
) -> tuple[str, TrainingState]:
    """Run a step that is not donated; return what it changed, and the state after it."""
    before = snapshot(model, "self") | snapshot(batch, "batch") | _process()
    kept = clone(state)
    with preserved_rng():
        seed_all(0)
        before |= _generators()
        after = step(state, batch)
        now = snapshot(model, "self") | snapshot(batch, "batch") | _process() | _generators()
    found = describe_changes(before, now)
    where = first_difference(kept, state)
    if where is not None:
        found = f"{found}; " * bool(found) + f"{where} of the state that was given changed"
    return found, after


def _generators() -> dict[str, Any]:
    """Return the global generators; a step puts torch's back, whatever a loss draws from it."""
    held = snapshot(torch.default_generator, "torch's global generator")
    held |= snapshot(random._inst, "Python's global generator random")
    state: Any = np.random.get_state(legacy=False)
    twin = np.random.RandomState()
    twin.set_state(state)
    return held | snapshot(twin, "numpy's global generator numpy.random")


def _process() -> dict[str, Any]:
    return {
        "torch.get_default_dtype()": torch.get_default_dtype(),
        "torch.is_grad_enabled()": torch.is_grad_enabled(),
    }


def _first_difference(a: list[TrainingState], b: list[TrainingState], done: int = 0) -> str | None:
    """Name the first place in which two runs differ, ``done`` micro-batches after their start."""
    for number, (left, right) in enumerate(zip(a, b, strict=True), start=done):
        where = first_difference(left, right)
        if where is not None:
            return f"{where} after micro-batch {number}"
    return None


def _because(why: str, changed: str) -> str:
    return f"{why}; what a run leaves behind: {changed}" if changed else why

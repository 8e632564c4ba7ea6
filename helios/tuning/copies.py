"""What a finder works on: a copy of the model, and an optimizer whose rate is driven."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import msgspec

from helios.errors import ModelError
from helios.functional.loss import Objective
from helios.functional.trainable import custom_step
from helios.model.model import Model

ModelOrFactory = Model | Callable[[], Model]


def copy_of(model: ModelOrFactory) -> Model:
    """Return a copy of a model, set up, or a new one of what makes it.

    Args:
        model: a model, or a function without arguments that returns one.

    Raises:
        TypeError: if it is neither.
        ModelError: if the model has a step of its own.
    """
    if isinstance(model, Model):
        # The trainer of the last run, with its files and locks, is no part of the model.
        trainer = model._trainer
        made = copy.deepcopy(model, {} if trainer is None else {id(trainer): trainer})
    else:
        made = model() if callable(model) else model
    if not isinstance(made, Model):
        raise TypeError(
            f"model: received a {type(made).__name__}; expected a helios.Model, or a function "
            "without arguments that returns one"
        )
    made.prepare()
    if custom_step(made) is not None:
        raise ModelError(
            f"{type(made).__name__} has a step of its own, whose learning rate cannot be driven; "
            "expected a model with a loss or objectives"
        )
    return made


def drive(model: Model, rate: Callable[[int], float]) -> None:
    """Let all optimizers of a model follow a rate; the optimizer objects stay as they are.

    Args:
        model: a copy of the user's.
        rate: the rate as a function of the updates completed.

    Raises:
        ModelError: if an optimizer has no rate to put another one in the place of.
    """
    driven = [
        msgspec.structs.replace(objective, optimizer=_driven(objective, objective.optimizer, rate))
        for objective in model.objectives()
    ]
    model.objectives = lambda: driven  # type: ignore[method-assign]


def _driven(objective: Objective, optimizer: Any, rate: Callable[[int], float]) -> Any:
    made = copy.copy(optimizer)
    if getattr(optimizer, "lr", None) is not None and hasattr(optimizer, "learning_rate"):
        made.lr = rate
    elif hasattr(optimizer, "optimizer"):  # a chain, whose last part has it
        made.optimizer = _driven(objective, optimizer.optimizer, rate)
    else:
        raise ModelError(
            f"the optimizer of {objective.name!r}, {optimizer!r}, has no learning rate that can be "
            "driven; expected one of helios.optim with an lr, alone or in a chain"
        )
    return made

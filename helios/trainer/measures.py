"""What is reported of an update beside its metrics: rates, gradient norms, what was left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from helios.functional.state import Carry, TrainingState
from helios.functional.trainable import custom_step
from helios.functional.transformation import Transformation
from helios.model.model import Model
from helios.trainer.observing import Observers


class Measures:
    """Reads what a log shows of the last update.

    Args:
        model: the model that is trained.
        observers: what has seen the norms of its gradients.
    """

    def __init__(self, model: Model, observers: Observers) -> None:
        self._optimizers = optimizers(model)
        self._observers = observers

    def __call__(self, state: TrainingState) -> dict[str, Any]:
        """Return numbers, or tensors of one element, by tag.

        The rate is the one that the update was made with.

        Args:
            state: the state after the update.
        """
        carry, found = state.carry, {}
        if not isinstance(carry, Carry):
            return {}
        count = max(state.current_iteration - 1 - carry.skipped, 0)
        for name, optimizer in self._optimizers.items():
            of = "" if len(self._optimizers) == 1 else f"/{name}"
            found.update(rates_at(optimizer, count, f"optimizer/learning_rate{of}"))
        seen = self._observers.last
        if self._observers.last_update == state.current_iteration:
            for metric, one in seen.items():
                of = "" if len(seen) == 1 else f"/{metric.removesuffix('_loss')}"
                found[f"optimizer/gradient_norm{of}"] = one.norm
        if carry.scale is not None:
            found["optimizer/loss_scale"] = carry.scale.scale
        if carry.skipped:
            found["optimizer/skipped_updates"] = carry.skipped
        return found


def optimizers(model: Model) -> dict[str, Transformation]:
    """Return the optimizers by their objectives' names; none for a step of the model's own."""
    if custom_step(model) is not None:
        return {}
    return {objective.name: objective.optimizer for objective in model.objectives()}


def rates_at(optimizer: Any, count: int, tag: str) -> dict[str, float]:
    """Return the learning rates of an optimizer by tag; none if it does not tell.

    Args:
        optimizer: the optimizer.
        count: updates completed.
        tag: the tag of a single rate; those of several groups have their names below it.

    Example:
        >>> import helios
        >>> rates_at(helios.optim.SGD(lr=0.5), 3, "rate")
        {'rate': 0.5}
    """
    learning_rate = getattr(optimizer, "learning_rate", None)
    rate = None if learning_rate is None else learning_rate(count)
    if rate is None:
        return {}
    if isinstance(rate, Mapping):
        return {f"{tag}/{name}": float(one) for name, one in rate.items() if one is not None}
    return {tag: float(rate)}

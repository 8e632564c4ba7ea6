"""What the core asks of a model, and the state that a run of it begins with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from helios.functional import accumulate, rng
from helios.functional.binding import bind
from helios.functional.gradients import trained_names
from helios.functional.loss import Objective
from helios.functional.precision import Policy
from helios.functional.state import Carry, TrainingState
from helios.functional.transformation import Tensors


class Averaging(Protocol):
    """An average of the parameters over updates, such as `helios.optim.average` makes."""

    def init(self, params: Tensors) -> Tensors:
        """Return the average before the first update."""
        ...

    def update(
        self, average: Tensors, params: Tensors, count: int, *, donate: bool = False
    ) -> Tensors:
        """Return the average after one more update; ``count`` updates came before it."""
        ...


class Trainable(Protocol):
    """What the core asks of a model, beside being an ``nn.Module``."""

    def prepare(self, seed: int) -> None:
        """Run ``setup()`` if it has not run yet."""
        ...

    def objectives(self) -> Sequence[Objective]:
        """Return the objectives, in the order in which a step folds them."""
        ...

    def init_carry(self) -> Any:
        """Return the first carry of a model with a step of its own; None for the ordinary one."""
        ...

    @property
    def precision(self) -> Policy:
        """Return the precision policy."""
        ...

    @property
    def average(self) -> Averaging | None:
        """Return the average to keep of the parameters, if any."""
        ...


def init_state(model: Any, seed: int = rng.DEFAULT_SEED) -> TrainingState:
    """Return the state of a run before its first micro-batch.

    Args:
        model: a `helios.Model`. Its ``setup()`` is run under a key of the seed, if it has not run
            yet; if it has, its parameters are taken as they are.
        seed: the seed of the run.

    Returns:
        A state that shares no storage with the model.

    Raises:
        ModelError: if the model has no parameters, or no optimizer.
    """
    model.prepare(seed)
    if custom_step(model) is not None:
        carry = model.init_carry()
        if carry is not None:
            return TrainingState(seed=seed, carry=carry)
    params, buffers = bind(model).read()
    trained = trained_names(model)
    average = model.average
    return TrainingState(
        seed=seed,
        carry=Carry(
            params=params,
            buffers=buffers,
            opt_state={
                objective.name: objective.optimizer.init({n: params[n] for n in names})
                for objective, names in trained
            },
            accumulators={objective.name: accumulate.EMPTY for objective, _ in trained},
            scale=model.precision.initial_scale(),
            average=None if average is None else average.init(params),
        ),
    )


def custom_step(model: Any) -> Any:
    """Return the model's own ``step(state, batch)``, None if it has the ordinary one."""
    step = getattr(model, "step", None)
    return None if step is None or getattr(step, "is_default", False) else step

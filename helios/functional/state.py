"""The state of a run, as one frozen value, and the pure transitions of its counters."""

from __future__ import annotations

import enum
from typing import Any

import msgspec
from msgspec.structs import force_setattr, replace

from helios.errors import ConsumedStateError
from helios.functional.metrics import Mean
from helios.functional.precision import LossScale
from helios.functional.rng import DEFAULT_SEED
from helios.functional.transformation import Tensors
from helios.functional.tree import first_difference, register_struct


class TrainingUnit(enum.Enum):
    """Defines the types of units for training steps."""

    ITERATION = 0
    EPOCH = 1

    @classmethod
    def from_str(cls, label: str) -> TrainingUnit:
        """Convert the given string to the corresponding enum value.

        Must be one of "iteration" or "epoch".

        Args:
            label: the label to convert.

        Returns:
            The corresponding value.

        Raises:
            ValueError: if the given value is not one of "iteration" or "epoch".

        Example:
            >>> TrainingUnit.from_str("epoch")
            <TrainingUnit.EPOCH: 1>
        """
        if label == "iteration":
            return cls.ITERATION
        if label == "epoch":
            return cls.EPOCH
        raise ValueError(f"TrainingUnit: received {label!r}; expected 'iteration' or 'epoch'")


@register_struct
class Accumulator(msgspec.Struct, frozen=True, eq=False):
    """The open window of one objective: what its micro-batches have summed up to so far.

    Args:
        grads: sums of gradients by path; empty between windows. A path is missing as long as no
            micro-batch of the window has given it a gradient.
        weight: f64[] or a number, the sum of the weights (samples, tokens, or micro-batches).
        total: f32[] or a number, the sum of the losses, unscaled.
    """

    grads: Tensors = {}
    weight: Any = 0
    total: Any = 0


@register_struct
class Carry(msgspec.Struct, frozen=True, eq=False):
    """Everything that the next step depends on, beside the counters and the seed.

    Args:
        params: every parameter by path, frozen ones included; tied ones once.
        buffers: every buffer by path, those outside of the ``state_dict`` included.
        opt_state: the optimizer state of each objective, by the objective's name.
        accumulators: the open window of each objective, by the objective's name.
        scale: the loss scale, if the precision policy has one.
        average: the average of the parameters by path, if one is asked for.
        metrics: running sums of the training metrics since the last report.
        best: the best validation score so far, None before the first.
        skipped: updates left out so far because a loss or a gradient was not finite, those that the
            loss scale left out included.
    """

    params: Tensors
    buffers: Tensors
    opt_state: dict[str, Any]
    accumulators: dict[str, Accumulator]
    scale: LossScale | None = None
    average: Tensors | None = None
    metrics: dict[str, Mean] = {}
    best: float | None = None
    skipped: int = 0


class _Consumed:
    """What stands in a state for the tensors that a donated step has taken."""

    def _raise(self, *_: Any) -> Any:
        raise ConsumedStateError(_CONSUMED)

    __getitem__ = __iter__ = __len__ = _raise

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python itself asks for these
            raise AttributeError(name)
        return self._raise()


_CONSUMED = (
    "this TrainingState was consumed: it was given to a donated step, which reused its tensors for "
    "the state that it returned. Use the returned state, or call the step without donate=True to "
    "keep this one."
)
CONSUMED: Any = _Consumed()


@register_struct
class TrainingState(msgspec.Struct, frozen=True, eq=False):
    """The training state.

    Counters are Python ints; every field is a value, and nothing in a run that the next step
    depends on is anywhere else. Two states are equal when their counters are, and their tensors
    are bit for bit.

    Args:
        current_iteration: updates done.
        global_iteration: micro-batches done, or in progress.
        global_epoch: the epoch in progress, counted from 1, or the epochs completed.
        validation_cycles: validations done.
        dataset_iter: micro-batches consumed in the epoch in progress.
        early_stop_count: validations in a row without improvement.
        average_iter_time: seconds per micro-batch, compute and data wait. Wall clock: it takes no
            part in `digest`.
        running_iter: updates since the last validation.
        seed: the integer from which every random number of the run is drawn.
        carry: what a step needs beside counters: a `Carry`, or any pytree of a model that
            overrides ``step``.
        window_iter: micro-batches in the open accumulation window, 0 between windows.

    Example:
        >>> state = TrainingState()
        >>> begin_batch(state, update=True).current_iteration
        1
        >>> state.current_iteration
        0
    """

    current_iteration: int = 0
    global_iteration: int = 0
    global_epoch: int = 0
    validation_cycles: int = 0
    dataset_iter: int = 0
    early_stop_count: int = 0
    average_iter_time: float = 0
    running_iter: int = 0
    seed: int = DEFAULT_SEED
    carry: Any = None
    window_iter: int = 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TrainingState):
            return NotImplemented
        return first_difference(self, other) is None

    def __hash__(self) -> int:
        return hash((*_counters(self), self.seed, self.window_iter))

    def to_bytes(self) -> bytes:
        """Serialise this state, exactly; see `helios.functional.serial.to_bytes`."""
        from helios.functional.serial import to_bytes

        return to_bytes(self)

    @classmethod
    def from_bytes(cls, data: bytes, like: TrainingState | None = None) -> TrainingState:
        """Read back what `to_bytes` wrote; see `helios.functional.serial.from_bytes`."""
        from helios.functional.serial import from_bytes

        return from_bytes(data, like=like)

    def dict(self) -> dict[str, int | float]:
        """Return the eight counters by name.

        Example:
            >>> TrainingState(global_epoch=2).dict()["global_epoch"]
            2
        """
        return dict(zip(COUNTERS, _counters(self), strict=True))


COUNTERS = TrainingState.__struct_fields__[:8]
"""The names of the eight counters, in the order of the fields."""


def _counters(state: TrainingState) -> tuple[int | float, ...]:
    return tuple(getattr(state, name) for name in COUNTERS)


def take_carry(state: TrainingState) -> Any:
    """Return ``state.carry``; raise if a donated step has consumed it.

    Raises:
        ConsumedStateError: if the state was given to a donated step before.
    """
    carry = state.carry
    if carry is CONSUMED or (type(carry) is Carry and carry.params is CONSUMED):
        raise ConsumedStateError(_CONSUMED)
    return carry


def consume(state: TrainingState) -> None:
    """Mark ``state`` as consumed: any use of its carry raises from now on.

    Other states with the same `Carry`, such as those before and after a transition of the counters,
    are consumed with it.
    """
    carry = state.carry
    if type(carry) is Carry:
        for field in Carry.__struct_fields__:
            force_setattr(carry, field, CONSUMED)
    force_setattr(state, "carry", CONSUMED)


def start_epoch(state: TrainingState) -> TrainingState:
    """Begin an epoch, or take up the one in progress.

    An epoch is in progress when some of its micro-batches were consumed; its number stays.
    """
    if state.dataset_iter > 0:
        return state
    return replace(state, global_epoch=state.global_epoch + 1)


def begin_batch(state: TrainingState, *, update: bool) -> TrainingState:
    """Advance the counters for a micro-batch, before its loss is computed.

    Args:
        state: the state after the previous micro-batch.
        update: whether this micro-batch is the last of its window.

    Returns:
        The state that the loss, and the hooks around it, see; ``dataset_iter`` is still old.
    """
    if update:
        return replace(
            state,
            global_iteration=state.global_iteration + 1,
            current_iteration=state.current_iteration + 1,
            running_iter=state.running_iter + 1,
            window_iter=0,
        )
    return replace(
        state, global_iteration=state.global_iteration + 1, window_iter=state.window_iter + 1
    )


def end_batch(state: TrainingState) -> TrainingState:
    """Count the micro-batch as consumed."""
    return replace(state, dataset_iter=state.dataset_iter + 1)


def timed(state: TrainingState, seconds: float) -> TrainingState:
    """Count the time of a micro-batch into the average.

    The average is over all micro-batches at first, and then follows the last hundred or so.

    Args:
        state: the state after the step.
        seconds: wall clock from the end of the last micro-batch to the end of this one.
    """
    weight = 1 / min(max(state.global_iteration, 1), 100)
    average = state.average_iter_time
    return replace(state, average_iter_time=average + (seconds - average) * weight)


def end_epoch(state: TrainingState) -> TrainingState:
    """Close the epoch: its micro-batches are all consumed."""
    return replace(state, dataset_iter=0)


def end_validation(state: TrainingState) -> TrainingState:
    """Count a validation, before its score is judged."""
    return replace(state, validation_cycles=state.validation_cycles + 1, running_iter=0)


def score(state: TrainingState, best: float | None) -> TrainingState:
    """Keep the best validation score so far; a carry of a model's own has no place for it."""
    if not isinstance(state.carry, Carry):
        return state
    return replace(state, carry=replace(state.carry, best=best))


def report(state: TrainingState) -> TrainingState:
    """Begin new training metrics: those so far are reported."""
    if not isinstance(state.carry, Carry) or not state.carry.metrics:
        return state
    return replace(state, carry=replace(state.carry, metrics={}))


def judge(state: TrainingState, *, improved: bool) -> TrainingState:
    """Count a validation without improvement, or begin to count anew."""
    return replace(state, early_stop_count=0 if improved else state.early_stop_count + 1)

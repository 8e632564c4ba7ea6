"""What a step does about NaN and infinity, and when the host learns of them.

One fused check looks at the gradients of an update on the device, before they are used. Under
``"raise"`` the update is an error that names it; under ``"skip"`` it is left out whole and counted.
What the check found is read at once, or, with a `Deferred`, while the device is at the next update.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
import torch

from helios.errors import NonFiniteError
from helios.functional.state import Accumulator, TrainingState
from helios.functional.transformation import Tensors

POLICIES = ("raise", "skip")
"""What can be done about an update that is not finite."""


class Deferred:
    """Holds what the checks of a step found until somebody looks.

    With it, a step on a GPU never waits for the device: it sends the result of the check to the
    host, applies the update, and looks at the result before it applies the next one. Whoever owns
    the run calls `check` before anything of the state leaves the memory: before it is logged,
    validated, saved or returned. A bad update is then in the parameters, and in nothing else.

    On the CPU there is nothing to wait for, but the order of things is the same.

    Example:
        >>> deferred = Deferred()
        >>> deferred.check()
    """

    def __init__(self) -> None:
        self._pending: list[_Answer] = []

    def expect(
        self, state: TrainingState, metric: str, window: Accumulator, found: torch.Tensor
    ) -> None:
        """Take what the check of an update found; it is not waited for.

        Args:
            state: the state with the counters of the update.
            metric: the name of the loss among the metrics.
            window: the window that the update closes.
            found: f32[], not 0 if a gradient is NaN or infinite.
        """
        numbers = send(found, window.total, window.weight)
        self._pending.append(_Answer(_Update.of(state, metric), numbers))

    def check(self) -> None:
        """Look at what is held, and forget it. Waits for the device to reach the last update.

        Raises:
            NonFiniteError: if the loss or a gradient of an update was NaN or infinite; of the
                first one, if there are several.
        """
        pending, self._pending = self._pending, []
        for answer in pending:
            found, total, weight = answer.numbers()
            if found or not math.isfinite(total):
                raise _error(answer.update, total, weight, "the loss or a gradient", _APPLIED)


def is_finite(found: torch.Tensor, total: torch.Tensor) -> bool:
    """Tell whether an update is finite. Waits for the device, if there is one to wait for.

    Args:
        found: f32[], not 0 if a gradient is NaN or infinite.
        total: f[], the loss of the window.
    """
    return _read(found) == 0 and math.isfinite(_read(total))


def _read(number: torch.Tensor) -> float:
    """Return f[] on the host. Waits for the device, if there is one to wait for."""
    # tolist() reads the memory of a CPU tensor as it lies there; item() would dispatch an operator.
    value: Any = number.tolist()
    return float(value)


def error(state: TrainingState, metric: str, window: Accumulator, grads: Tensors) -> NonFiniteError:
    """Return the error of an update that was not applied.

    Args:
        state: the state with the counters of the update.
        metric: the name of the loss among the metrics.
        window: the window that the update closes.
        grads: its gradients by path; those that are not finite are named.
    """
    bad = [name for name, grad in grads.items() if not bool(torch.isfinite(grad).all())]
    where = f"{len(bad)} gradient(s) are not finite: {', '.join(bad[:5])}" if bad else "the loss"
    total, weight = float(window.total), float(window.weight)
    return _error(_Update.of(state, metric), total, weight, where, _NOT_APPLIED)


def copied(buffers: Tensors) -> Tensors:
    """Return copies of the buffers as they are before a forward pass."""
    return {name: buffer.clone() for name, buffer in buffers.items()}


def became_non_finite(before: Tensors, after: Tensors) -> bool:
    """Tell whether a forward pass has put NaN or infinity where there was none. Waits likewise.

    What was not finite before, such as an attention mask of ``-inf``, does not count.

    Args:
        before: the buffers before the forward pass, by path.
        after: the buffers after it.
    """
    for name, buffer in after.items():
        if not (buffer.is_floating_point() or buffer.is_complex()):
            continue
        finite = _finite(buffer)
        if finite.all().tolist():
            continue
        old = before.get(name)
        if old is None or old.shape != buffer.shape or (_finite(old) & ~finite).any().tolist():
            return True
    return False


def _finite(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_floating_point() and tensor.itemsize == 1:
        tensor = tensor.float()  # 8-bit formats have hardly any operators
    return torch.isfinite(tensor)


class _Update(msgspec.Struct, frozen=True):
    """Where an update stands in the run, and the loss that it comes from."""

    number: int
    global_iteration: int
    epoch: int
    metric: str

    @classmethod
    def of(cls, state: TrainingState, metric: str) -> _Update:
        return cls(state.current_iteration, state.global_iteration, state.global_epoch, metric)


class _Answer(msgspec.Struct, frozen=True):
    """An update, and how to get at ``(found, total, weight)`` once they have arrived."""

    update: _Update
    numbers: Callable[[], list[float]]


def send(found: torch.Tensor, *others: Any) -> Callable[[], list[float]]:
    """Send numbers to the host, and return what waits for them to arrive.

    Args:
        found: f32[] on the device.
        others: f[] on the device or the CPU, or numbers.
    """
    device = found.device
    if device.type != "cuda":
        values = [_read(x) if isinstance(x, torch.Tensor) else float(x) for x in (found, *others)]
        return lambda: values
    return arriving(torch.stack([_on_device(x, device) for x in (found, *others)]))


def arriving(numbers: torch.Tensor) -> Callable[[], list[float]]:
    """Send numbers of a GPU to the host, and return what waits for them to arrive.

    Args:
        numbers: f64[n] on the device.
    """
    host = torch.empty(len(numbers), dtype=torch.float64, pin_memory=True)
    host.copy_(numbers, non_blocking=True)
    arrived = torch.Event(numbers.device)
    arrived.record(torch.accelerator.current_stream(numbers.device))

    def wait() -> list[float]:
        arrived.synchronize()
        values: list[float] = host.tolist()
        return values

    return wait


def _on_device(number: Any, device: torch.device) -> torch.Tensor:
    """Return a number as f64[] on a device, without waiting for it."""
    if isinstance(number, torch.Tensor) and number.device.type != "cpu":
        return number.to(device, torch.float64, non_blocking=True)
    # A fill is queued like any kernel; copying from ordinary memory would wait for the queue.
    return torch.full((), float(number), dtype=torch.float64, device=device)


_NOT_APPLIED = "No parameter was updated with it. "
_APPLIED = (
    "It was found after the update: the parameters in memory have it applied, and nothing of it "
    "was saved. "
)


def _error(
    update: _Update, total: float, weight: float, where: str, applied: str
) -> NonFiniteError:
    loss = total / weight if weight else float("nan")
    return NonFiniteError(
        f"update {update.number} (global iteration {update.global_iteration}, epoch "
        f"{update.epoch}), {update.metric} = {loss}, window weight {weight}: {where} is NaN or "
        f"infinite. {applied}Replay it from the last checkpoint with helios.replay(), and look at "
        "the batch, the learning rate, and divisions or logarithms in the loss.",
        update=update.number,
        global_iteration=update.global_iteration,
        epoch=update.epoch,
    )

"""Accumulation: gradients and weights are summed over a window and divided once, at its end."""

from __future__ import annotations

import functools
from typing import Any

import torch

from helios.functional.loss import Loss
from helios.functional.state import Accumulator
from helios.functional.transformation import Tensors

EMPTY = Accumulator()
"""The window before its first micro-batch."""


def add(window: Accumulator, loss: Loss, grads: Tensors) -> Accumulator:
    """Count a micro-batch into the window.

    Args:
        window: the window so far.
        loss: the micro-batch's loss; without a weight it counts 1.
        grads: the gradients of the window, this micro-batch included.
    """
    weight: Any = 1 if loss.weight is None else loss.weight
    if isinstance(weight, torch.Tensor):
        weight = weight.clone()  # it may be a tensor of the batch
    if not window.grads and type(window.weight) is int and window.weight == 0:
        return Accumulator(grads, weight, loss.total)
    return Accumulator(grads, window.weight + weight, window.total + loss.total)


def divide(window: Accumulator) -> Tensors:
    """Divide the window's gradients by its weight, in place, and return them.

    A weight that is the number 1 divides nothing, so that one micro-batch with a mean loss has the
    gradients of ``loss.backward()``, bit for bit. A weight of zero gives NaN, which the check for
    finite gradients finds.

    Law:
        k micro-batches equal one batch, to 1e-12 in float64
        (``property_tests/test_accumulation.py``).
    """
    weight: Any = window.weight
    if not isinstance(weight, torch.Tensor) and weight == 1:
        return window.grads
    for group in _by_kind(window.grads):
        torch._foreach_div_(group, _on(group[0].device, weight))
    return window.grads


def _on(device: torch.device, weight: Any) -> torch.Tensor:
    if isinstance(weight, torch.Tensor):
        return weight.to(device)
    # A fill is queued like any kernel; a copy from the host would wait for the queue.
    return torch.full((), weight, dtype=torch.float64, device=device)


def unscale(
    grads: Tensors,
    device: torch.device,
    scale: float,
    *,
    alike: bool = False,
    into: torch.Tensor | None = None,
) -> torch.Tensor:
    """Divide gradients by the loss scale, in place, and check them on the device.

    Args:
        grads: gradients by path.
        device: where to leave the result.
        scale: the loss scale, 1 for none; the bits of finite gradients then stay as they are.
        alike: whether they are known to be of one device and dtype.
        into: (optional) f32[] on the device, to be overwritten with the result and returned.

    Returns:
        f32[], not 0 if any gradient is NaN or infinite.
    """
    found = torch.zeros((), device=device) if into is None else into.zero_()
    inverse = _one(device) if scale == 1.0 else torch.tensor(1.0 / scale, device=device)
    groups = [list(grads.values())] if alike and grads else _by_kind(grads)
    for group in groups:
        torch._amp_foreach_non_finite_check_and_unscale_(group, found, inverse)
    return found


@functools.cache
def _one(device: torch.device) -> torch.Tensor:
    return torch.ones((), device=device)


def _by_kind(grads: Tensors) -> list[list[torch.Tensor]]:
    """Group tensors by device and dtype, for operations over lists."""
    groups: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    for grad in grads.values():
        groups.setdefault((grad.device, grad.dtype), []).append(grad)
    return list(groups.values())

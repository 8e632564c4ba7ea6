"""Accumulation: gradients and weights are summed over a window and divided once, at its end."""

from __future__ import annotations

import functools
import math
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
    if not isinstance(weight, torch.Tensor):
        if weight == 1:
            return window.grads
        weight = torch.tensor(weight, dtype=torch.float64)
    for group in _by_kind(window.grads):
        torch._foreach_div_(group, weight.to(group[0].device))
    return window.grads


def unscale(grads: Tensors, total: torch.Tensor, scale: float) -> bool:
    """Divide gradients by the loss scale, in place, and tell whether they and the loss are finite.

    Args:
        grads: gradients by path.
        total: f[], the unscaled loss of the window.
        scale: the loss scale, 1 for none; the bits of finite gradients then stay as they are.

    Returns:
        False if any gradient or the loss is NaN or infinite. Waits for the device.
    """
    device = total.device
    found = torch.zeros((), device=device)
    inverse = _one(device) if scale == 1.0 else torch.tensor(1.0 / scale, device=device)
    for group in _by_kind(grads):
        torch._amp_foreach_non_finite_check_and_unscale_(group, found, inverse)
    return not found.item() and math.isfinite(total.item())


@functools.cache
def _one(device: torch.device) -> torch.Tensor:
    return torch.ones((), device=device)


def _by_kind(grads: Tensors) -> list[list[torch.Tensor]]:
    """Group tensors by device and dtype, for operations over lists."""
    groups: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    for grad in grads.values():
        groups.setdefault((grad.device, grad.dtype), []).append(grad)
    return list(groups.values())

"""Gradient clipping, as values to put before an optimizer in a `chain`."""

# ruff: noqa: N801 - a value here is written, and printed, as the call that makes it.

from __future__ import annotations

import math

import msgspec
import torch

from helios.functional.transformation import Tensors
from helios.functional.tree import clone
from helios.optim.kinds import grouped

State = dict[str, torch.Tensor]
"""Clipping keeps no state: an empty dict."""


class clip_by_global_norm(msgspec.Struct, frozen=True):
    """Scale the gradients down so that the norm over all of them is at most ``max_norm``.

    Every gradient is multiplied by ``min(1, max_norm / (norm + 1e-6))``. The norm stays on its
    device: nothing waits for it.

    Args:
        max_norm: the largest norm that passes unscaled, at least 0.
        norm_type: the order of the norm, above 0; ``math.inf`` for the largest absolute value.

    Raises:
        ValueError: if an argument is out of its range.

    Law:
        Equal to ``torch.nn.utils.clip_grad_norm_`` bit for bit (``tests/optim/test_clip.py``).

    Example:
        >>> clip = clip_by_global_norm(1.0)
        >>> grads, _ = clip.apply({"w": torch.tensor([3.0, 4.0])}, {}, {})
        >>> grads["w"]
        tensor([0.6000, 0.8000])
    """

    max_norm: float
    norm_type: float = 2.0

    def __post_init__(self) -> None:
        _check_bound("max_norm", self.max_norm)
        if not self.norm_type > 0:
            raise ValueError(f"norm_type: received {self.norm_type!r}; expected a number above 0")

    def init(self, params: Tensors) -> State:
        """Return the empty state."""
        return {}

    def apply(
        self, grads: Tensors, state: State, params: Tensors, *, donate: bool = False
    ) -> tuple[Tensors, State]:
        """Clip; see `GradientTransformation.apply`."""
        clipped: Tensors = grads if donate else clone(grads)
        if not clipped:
            return clipped, state
        with torch.no_grad():
            norm = torch.nn.utils.get_total_norm(list(clipped.values()), float(self.norm_type))
            factor = torch.clamp(float(self.max_norm) / (norm + 1e-6), max=1.0)
            for (tensors,) in grouped(clipped.values()):
                torch._foreach_mul_(tensors, factor.to(tensors[0].device))
        return clipped, state


class clip_by_value(msgspec.Struct, frozen=True):
    """Clamp every element of every gradient to ``[-limit, limit]``.

    Args:
        limit: the largest absolute value, at least 0.

    Raises:
        ValueError: if ``limit`` is negative or NaN.

    Law:
        Equal to ``torch.nn.utils.clip_grad_value_`` bit for bit (``tests/optim/test_clip.py``).

    Example:
        >>> clip_by_value(1.0).apply({"w": torch.tensor([3.0, -0.5])}, {}, {})[0]["w"]
        tensor([ 1.0000, -0.5000])
    """

    limit: float

    def __post_init__(self) -> None:
        _check_bound("limit", self.limit)

    def init(self, params: Tensors) -> State:
        """Return the empty state."""
        return {}

    def apply(
        self, grads: Tensors, state: State, params: Tensors, *, donate: bool = False
    ) -> tuple[Tensors, State]:
        """Clip; see `GradientTransformation.apply`."""
        clipped: Tensors = grads if donate else clone(grads)
        with torch.no_grad():
            for (tensors,) in grouped(clipped.values()):
                torch._foreach_clamp_min_(tensors, -float(self.limit))
                torch._foreach_clamp_max_(tensors, float(self.limit))
        return clipped, state


def _check_bound(name: str, value: float) -> None:
    if math.isnan(value) or value < 0:
        raise ValueError(f"{name}: received {value!r}; expected a number of at least 0")

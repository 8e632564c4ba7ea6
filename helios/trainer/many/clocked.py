"""Adam with the fused kernel, for parameters that have all made the same number of steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from helios.optim.together import fused_adam, fused_adam_of_steps, fused_adamw


def clocked_adam(
    *tensors: list[torch.Tensor], decoupled_weight_decay: bool = False, **options: Any
) -> None:
    """Update parameters in place, like ``torch.optim.adam.adam`` with ``fused=True``.

    The last list holds one tensor over and over: it counts the steps of all, and is counted once.
    Counting those of each parameter takes a fifth of the time of the update.
    """
    tensors[-1][0].add_(1)
    fused_adam_of_steps(*tensors, decoupled_weight_decay=decoupled_weight_decay, **options)


def clocked_adamw(*tensors: list[torch.Tensor], **options: Any) -> None:
    """Update parameters in place, like ``torch.optim.adamw.adamw`` with ``fused=True``."""
    clocked_adam(*tensors, decoupled_weight_decay=True, **options)


CLOCKED: dict[Callable[..., None], Callable[..., None]] = {
    fused_adam: clocked_adam,
    fused_adamw: clocked_adamw,
}
"""What runs in the place of a function of `helios.optim.together`, where steps are the same."""

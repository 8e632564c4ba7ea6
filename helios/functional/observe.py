"""What a step tells of its updates while it makes them: for logs and records. It changes nothing.

Gradients live only inside of a step. Who wants to know how long they are, or what the loss of each
update was, hands an `Observer` to `helios.make_step`.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
import torch

from helios.functional.state import TrainingState
from helios.functional.transformation import Tensors


class Seen(msgspec.Struct, frozen=True):
    """One objective of one update.

    Args:
        metric: the name of its loss among the metrics.
        total: f[], the sum of the losses of the window, on its device.
        weight: f[] or a number, what the window was divided by.
        norm: f[], the 2-norm over all gradients of the window, divided by its weight, before
            clipping, on their device.
        applied: whether the parameters were updated; not if that update was left out.
    """

    metric: str
    total: Any
    weight: Any
    norm: Any
    applied: bool

    def loss(self) -> float:
        """Return the mean loss of the window on the host; waits for the device."""
        weight = float(self.weight)
        return float(self.total) / weight if weight else float("nan")


class Observer(Protocol):
    """Is told of updates.

    Law:
        Observed or not, a step computes the same bits (``property_tests/test_observe.py``).
    """

    def wants(self, state: TrainingState) -> bool:
        """Tell whether to be told of the update that ``state``'s counters are advanced for."""
        ...

    def norm(self, grads: Tensors) -> torch.Tensor:
        """Return f[], the norm of the gradients; `total_norm`, unless they are shards."""
        ...

    def see(self, state: TrainingState, seen: Seen) -> None:
        """Take what an objective of the update was like, before its parameters are updated."""
        ...


def total_norm(grads: Tensors) -> torch.Tensor:
    """Return f[], the 2-norm over all gradients, on their device; 0 if there are none.

    Example:
        >>> total_norm({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])})
        tensor(5.)
    """
    tensors = list(grads.values())
    if not tensors or len({(t.device, t.dtype, t.layout) for t in tensors}) > 1:
        return torch.nn.utils.get_total_norm(tensors)
    # The same operators, without sorting the tensors by kind: a third of the time.
    norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
    return norm

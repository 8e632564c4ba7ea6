"""What a loss function returns, and how it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import torch

from helios.errors import LossError
from helios.functional import metrics
from helios.functional.transformation import Transformation


class Loss(msgspec.Struct, frozen=True, eq=False):
    """A loss as a sum and its weight.

    The gradient of a window is the gradient of the summed totals divided once by the summed
    weights, so that ragged and masked batches count as one large batch would.

    Args:
        total: f[], the sum of the losses, with its graph.
        weight: f[] or a number, what to divide by: samples or tokens counted in ``total``. None
            means that ``total`` is a mean already, and that every micro-batch counts the same.
        metrics: further metrics by name; see `helios.functional.metrics.as_mean`.

    Example:
        >>> Loss(torch.tensor(6.0), weight=3).weight
        3
    """

    total: torch.Tensor
    weight: Any = None
    metrics: Mapping[str, Any] = {}


class Objective(msgspec.Struct, frozen=True, eq=False):
    """A loss, and the optimizer and modules that it trains.

    Args:
        name: names the optimizer state, and the metric ``<name>_loss``. The one objective of an
            ordinary model is named ``"loss"``, and so is its metric.
        loss: ``batch -> tensor | (tensor, metrics) | Loss``.
        optimizer: the update rule.
        modules: the modules whose parameters it trains; None for the whole model. Parameters with
            ``requires_grad=False`` are trained by nothing.
    """

    name: str
    loss: Callable[[Any], Any]
    optimizer: Transformation
    modules: tuple[torch.nn.Module, ...] | None = None

    @property
    def metric(self) -> str:
        """The name under which the loss is recorded."""
        return "loss" if self.name == "loss" else f"{self.name}_loss"


def read_loss(output: Any, name: str = "loss") -> Loss:
    """Turn what a loss function returned into a `Loss`.

    Raises:
        LossError: if it is not a scalar tensor, ``(tensor, metrics)`` or a `Loss`.
    """
    loss = output
    if isinstance(loss, torch.Tensor):
        loss = Loss(loss)
    elif isinstance(loss, tuple) and len(loss) == 2 and isinstance(loss[1], Mapping):
        loss = Loss(loss[0], None, loss[1])
    if not isinstance(loss, Loss) or not isinstance(loss.total, torch.Tensor):
        raise LossError(
            f"{name}: received {_describe(output)}; expected a scalar tensor, (tensor, dict of "
            "metrics), or helios.Loss(total, weight, metrics)"
        )
    if loss.total.ndim != 0:
        raise LossError(
            f"{name}: received a tensor of shape {list(loss.total.shape)}; expected a scalar. "
            "Take its mean(), or return helios.Loss(values.sum(), weight=values.numel())."
        )
    return loss


def check_differentiable(loss: Loss, name: str) -> None:
    """Raise if the loss cannot be differentiated.

    Raises:
        LossError: if it does not require grad.
    """
    if not loss.total.requires_grad:
        raise LossError(
            f"{name}: the loss does not require grad, so nothing can be trained on it. Expected a "
            "tensor computed from the model's parameters; look for .detach(), .item(), "
            "torch.no_grad() or a metric returned in place of the loss."
        )


def loss_metrics(name: str, loss: Loss, samples: int) -> metrics.Metrics:
    """Return what one loss counts into the metrics: itself, and the metrics beside it.

    Args:
        name: the name of the loss among the metrics.
        loss: the loss.
        samples: samples in the batch, the weight of a loss without a weight of its own.
    """
    if loss.weight is None:
        mean = metrics.as_mean(name, loss.total, samples)
    else:
        mean = metrics.as_mean(name, metrics.Mean(loss.total, loss.weight), samples)
    return {name: mean, **{n: metrics.as_mean(n, v, samples) for n, v in loss.metrics.items()}}


def _describe(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(_describe(part) for part in value)})"
    return type(value).__name__

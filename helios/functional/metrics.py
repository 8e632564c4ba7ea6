"""Metrics as sums and weights: merged by addition, divided once, at the end.

A mean of means is wrong as soon as batches differ in size. A `Mean` holds the sum and the weight,
on the device of the values, and nothing is read back to the host before `compute`; what lies in
the memory of the CPU is kept as numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import torch
from torch._C._functorch import is_functorch_wrapped_tensor

from helios.functional.tree import register_struct


@register_struct
class Mean(msgspec.Struct, frozen=True, eq=False):
    """A weighted mean in the making.

    Args:
        total: f64[] or a number, the sum of value times weight.
        weight: f64[] or a number, the sum of the weights.

    Example:
        >>> merge({"a": Mean(3.0, 1)}, {"a": Mean(1.0, 3)})["a"].compute()
        1.0
    """

    total: Any = 0.0
    weight: Any = 0.0

    def compute(self) -> float:
        """Return the mean on the host; NaN if nothing was counted. Waits for the device."""
        weight = float(self.weight)
        return float(self.total) / weight if weight else float("nan")


Metrics = dict[str, Mean]


def merge(a: Mapping[str, Mean], b: Mapping[str, Mean]) -> Metrics:
    """Add two sets of metrics, name by name; a name that only one has is kept.

    Law:
        Associative and commutative with `{}` as the identity, exactly where the sums are
        (``property_tests/test_metrics.py``).
    """
    merged = dict(a)
    for name, mean in b.items():
        old = merged.get(name)
        merged[name] = (
            mean if old is None else Mean(old.total + mean.total, old.weight + mean.weight)
        )
    return merged


def compute(metrics: Mapping[str, Mean]) -> dict[str, float]:
    """Return the means on the host, by name. Waits for the device."""
    return {name: mean.compute() for name, mean in metrics.items()}


def as_mean(name: str, value: Any, samples: int) -> Mean:
    """Turn what a loss function gave for one metric into a `Mean`.

    Args:
        name: the metric's name, for the error.
        value: a `Mean`, taken as it is; f[] or a number, the mean over the batch; or f[n, ...],
            one value per sample, of which every element counts 1.
        samples: samples in the batch, the weight of a value that is a mean over it.

    Raises:
        TypeError: if the value is none of these.
    """
    if isinstance(value, Mean):
        return Mean(_private(value.total), _private(value.weight))
    if isinstance(value, torch.Tensor):
        if value.ndim:
            wide = value.detach().to(torch.float64)
            return Mean(_private(wide.sum()), wide.numel())
        return Mean(_private(value) * samples, samples)
    if isinstance(value, (int, float)):
        return Mean(float(value) * samples, samples)
    if all(hasattr(value, method) for method in ("update", "compute", "reset")):
        raise TypeError(
            f"metric {name!r}: received {type(value).__name__}, an object with a state of its own, "
            "which is no part of the training state; expected it from validation and tests alone. "
            "Leave it out where self.training is true, or return it from valid_step and test_step"
        )
    raise TypeError(
        f"metric {name!r}: received {type(value).__name__}; expected a tensor, a number or a "
        "helios.Mean(total, weight)"
    )


def _private(value: Any) -> Any:
    """Return a sum without its graph, in float64, that shares storage with nothing.

    One in the memory of the CPU becomes a number of Python, which has the same 64 bits: adding two
    of them takes a fiftieth of the time that an operator takes.
    """
    if not isinstance(value, torch.Tensor):
        return value
    if value.is_cpu and value.ndim == 0 and not is_functorch_wrapped_tensor(value):
        number: Any = value.tolist()  # reads the memory as it lies there; nothing is waited for
        return float(number)
    return value.detach().to(torch.float64, copy=True)


def batch_size(batch: Any) -> int:
    """Return the samples in a batch: the first dimension of its first tensor, else 1."""
    if isinstance(batch, torch.Tensor):
        return batch.shape[0] if batch.ndim else 1
    if isinstance(batch, Mapping):
        batch = tuple(batch.values())
    if isinstance(batch, (list, tuple)):
        for part in batch:
            if isinstance(part, torch.Tensor) and part.ndim:
                return part.shape[0]
        for part in batch:
            if isinstance(part, (list, tuple, Mapping)):
                return batch_size(part)
    return 1

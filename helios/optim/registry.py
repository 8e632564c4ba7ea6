"""Optimizers and learning rates by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from helios.core.registry import Registry
from helios.functional.transformation import Transformation
from helios.optim import rates
from helios.optim.named import NAMED

OPTIMIZER_REGISTRY = Registry("optimizer")
"""The optimizers: all of `helios.optim.named`, and those that are registered."""

RATE_REGISTRY = Registry("rate")
"""The learning rates: all of `helios.optim.rates`, and those that are registered."""

for _optimizer in NAMED.values():
    OPTIMIZER_REGISTRY.register(_optimizer)
for _rate in (
    rates.constant,
    rates.linear_warmup,
    rates.cosine,
    rates.cosine_restarts,
    rates.multi_step,
    rates.exponential,
    rates.polynomial,
    rates.one_cycle,
    rates.warmup_cosine,
    rates.joined,
):
    RATE_REGISTRY.register(_rate)


def create_optimizer(type_name: str, *args: Any, **kwargs: Any) -> Transformation:
    """Create a registered optimizer.

    Args:
        type_name: its name, such as ``"AdamW"``.
        args: positional arguments of it.
        kwargs: keyword arguments of it.

    Raises:
        RegistryError: if there is no such optimizer; the message lists those there are.
        TypeError: if it takes no such arguments; the message lists those that it takes.

    Example:
        >>> create_optimizer("AdamW", lr=create_rate("constant", rate=0.1))
        AdamW(lr=constant(rate=0.1))
    """
    optimizer: Transformation = OPTIMIZER_REGISTRY.create(type_name, *args, **kwargs)
    return optimizer


def create_rate(type_name: str, *args: Any, **kwargs: Any) -> Callable[[int], float]:
    """Create a registered learning rate: a function of the updates completed.

    Args:
        type_name: its name, such as ``"cosine"``.
        args: positional arguments of it.
        kwargs: keyword arguments of it.

    Raises:
        RegistryError: if there is no such rate; the message lists those there are.
        TypeError: if it takes no such arguments; the message lists those that it takes.

    Example:
        >>> create_rate("linear_warmup", peak=1.0, updates=4)(1)
        0.25
    """
    rate: Callable[[int], float] = RATE_REGISTRY.create(type_name, *args, **kwargs)
    return rate

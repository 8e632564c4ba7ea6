"""Losses by name: those of ``torch.nn``, and what is registered beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.nn.modules import loss

from helios.core.lookup import LookupRegistry


def _of_torch() -> dict[str, Any]:
    return {
        name: cls
        for name, cls in vars(loss).items()
        if isinstance(cls, type) and name.endswith("Loss") and not name.startswith("_")
    }


LOSS_REGISTRY = LookupRegistry("loss", _of_torch)
"""The losses: the classes of ``torch.nn`` by name, and those that are registered."""


def create_loss(type_name: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
    """Create a loss: a module of ``torch.nn``, or what is registered under the name.

    Args:
        type_name: the name of the class.
        args: positional arguments of it.
        kwargs: keyword arguments of it.

    Raises:
        RegistryError: if there is no such loss; the message lists those there are.
        TypeError: if it takes no such arguments; the message lists those that it takes.

    Example:
        >>> create_loss("CrossEntropyLoss", label_smoothing=0.1)
        CrossEntropyLoss()
    """
    function: Callable[..., Any] = LOSS_REGISTRY.create(type_name, *args, **kwargs)
    return function

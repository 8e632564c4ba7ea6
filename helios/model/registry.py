"""Models and networks by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from helios.core.utils import Registry
from helios.model.model import Model

MODEL_REGISTRY = Registry("model")
"""The registered models."""

NETWORK_REGISTRY = Registry("network")
"""The registered networks: classes of ``nn.Module``, or functions that build one."""


def create_model(type_name: str, *args: Any, **kwargs: Any) -> Model:
    """Create a registered model.

    Args:
        type_name: the name under which its class was registered.
        args: positional arguments of the class.
        kwargs: keyword arguments of the class.

    Raises:
        RegistryError: if there is no such model; the message lists those there are.
        TypeError: if it takes no such arguments; the message lists those that it takes.
    """
    model: Model = MODEL_REGISTRY.create(type_name, *args, **kwargs)
    return model


def create_network(type_name: str, *args: Any, **kwargs: Any) -> nn.Module:
    """Create a registered network.

    Args:
        type_name: the name under which its class, or what builds it, was registered.
        args: positional arguments of it.
        kwargs: keyword arguments of it.

    Raises:
        RegistryError: if there is no such network; the message lists those there are.
        TypeError: if it takes no such arguments; the message lists those that it takes.

    Example:
        >>> @NETWORK_REGISTRY.register
        ... def two_layers(width: int) -> nn.Module:
        ...     return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 2))
        >>> create_network("two_layers", width=4)[2]
        Linear(in_features=4, out_features=2, bias=True)
    """
    network: nn.Module = NETWORK_REGISTRY.create(type_name, *args, **kwargs)
    return network

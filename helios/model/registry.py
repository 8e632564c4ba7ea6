"""Models by name."""

from __future__ import annotations

from typing import Any

from helios.core.utils import Registry
from helios.model.model import Model

MODEL_REGISTRY = Registry("model")
"""The registered models."""


def create_model(type_name: str, *args: Any, **kwargs: Any) -> Model:
    """Create a registered model.

    Args:
        type_name: the name under which its class was registered.
        args: positional arguments of the class.
        kwargs: keyword arguments of the class.

    Raises:
        RegistryError: if there is no such model; the message lists those there are.
    """
    model: Model = MODEL_REGISTRY.get(type_name)(*args, **kwargs)
    return model

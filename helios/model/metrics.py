"""Metrics by name: those of torchmetrics, if it is installed, and what is registered."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from helios.core.lookup import LookupRegistry

_PARTS = ("classification", "regression", "retrieval", "nominal", "text", "aggregation")
"""Where torchmetrics has classes that it has not at its top."""


def _of_torchmetrics() -> dict[str, Any]:
    if importlib.util.find_spec("torchmetrics") is None:
        return {}
    import torchmetrics

    parts = [importlib.import_module(f"torchmetrics.{part}") for part in _PARTS]
    return {
        name: cls
        for part in (*parts, torchmetrics)
        for name, cls in vars(part).items()
        if isinstance(cls, type)
        and issubclass(cls, torchmetrics.Metric)
        and cls is not torchmetrics.Metric
    }


def _advice() -> str:
    if importlib.util.find_spec("torchmetrics") is None:
        return "Those of torchmetrics are found if it is installed: pip install torchmetrics."
    return ""


METRIC_REGISTRY = LookupRegistry("metric", _of_torchmetrics, _advice)
"""The metrics: the classes of torchmetrics by name, and those that are registered."""


def create_metric(type_name: str, *args: Any, **kwargs: Any) -> Any:
    """Create a metric: an object of torchmetrics, or what is registered under the name.

    Args:
        type_name: the name of the class.
        args: positional arguments of it.
        kwargs: keyword arguments of it.

    Raises:
        RegistryError: if there is no such metric; the message lists those there are.
        TypeError: if it takes no such arguments; the message lists those that it takes.

    Example:
        >>> create_metric("MulticlassAccuracy", num_classes=3)
        MulticlassAccuracy()
    """
    return METRIC_REGISTRY.create(type_name, *args, **kwargs)

"""Metrics of torchmetrics in a model: computed over a whole evaluation, not averaged over batches.

torchmetrics is not imported here: what is no object of it is none as long as nobody has.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from msgspec.structs import replace
from torch import nn

from helios.errors import ModelError
from helios.functional.loss import Loss

Objects = dict[str, Any]
"""Metric objects by the names under which a model has returned them."""


def is_metric(value: Any) -> bool:
    """Tell whether a value is a ``torchmetrics.Metric`` or a ``MetricCollection``."""
    library = sys.modules.get("torchmetrics")
    return library is not None and isinstance(value, (library.Metric, library.MetricCollection))


def metrics_of(module: nn.Module) -> list[Any]:
    """Return the metric objects in a module; not those within another one, which sees to them."""
    found: list[Any] = []
    for child in module.children():
        found += [child] if is_metric(child) else metrics_of(child)
    return list({id(metric): metric for metric in found}.values())


@contextlib.contextmanager
def begun_anew(module: nn.Module) -> Iterator[None]:
    """Reset the metric objects of a module for a block, and again after it."""
    for metric in metrics_of(module):
        metric.reset()
    try:
        yield
    finally:
        for metric in metrics_of(module):
            metric.reset()


def separated(output: Any) -> tuple[Any, Objects]:
    """Take the metric objects out of what a loss or a step of an evaluation returned.

    Returns:
        The output without them, and the objects.
    """
    if isinstance(output, Loss):
        rest, objects = separated(output.metrics)
        return (replace(output, metrics=rest), objects) if objects else (output, objects)
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], Mapping):
        rest, objects = separated(output[1])
        return (output[0], rest), objects
    if not isinstance(output, Mapping):
        return output, {}
    objects = {name: value for name, value in output.items() if is_metric(value)}
    return {n: v for n, v in output.items() if n not in objects} if objects else output, objects


def without_samples(objects: Objects) -> bool:
    """Tell whether one of the objects keeps lists of samples, and has none yet."""
    library = sys.modules["torchmetrics"]
    parts = [part for metric in objects.values() for part in metric.modules()]
    return any(
        not part.update_called and any(isinstance(v, list) for v in part.metric_state.values())
        for part in parts
        if isinstance(part, library.Metric)
    )


def computed(objects: Objects, module: nn.Module) -> dict[str, float]:
    """Return the values of metric objects, over all ranks where there are several.

    A collection has its own names.

    Args:
        objects: by name.
        module: which has them.

    Raises:
        ModelError: if one is not in the module, computes something else than numbers, or two
            values have one name.
    """
    values: dict[str, float] = {}
    known = {id(part) for part in module.modules()}
    for name, metric in objects.items():
        if id(metric) not in known:
            raise ModelError(
                f"metric {name!r}: the {type(metric).__name__} is not in the model, and is not "
                "reset with it; assign it in setup(), such as self.accuracy = ..."
            )
        result = metric.compute()
        for key, value in (result if isinstance(result, Mapping) else {name: result}).items():
            if key in values:
                raise ModelError(
                    f"metric {name!r}: there is a {key!r} already; give a MetricCollection a prefix"
                )
            values[key] = _number(key, metric, value)
    return values


@contextlib.contextmanager
def unseen(module: nn.Module) -> Iterator[None]:
    """Put the metric objects back as they were after a block, to the last attribute."""
    memo: dict[int, Any] = {}
    parts = [part for metric in metrics_of(module) for part in metric.modules()]
    before = [{key: _copy(value, memo) for key, value in vars(part).items()} for part in parts]
    held = [list(vars(part).values()) for part in parts]  # as long as their ids are keys
    try:
        yield
    finally:
        held.clear()
        for part, attributes in zip(parts, before, strict=True):
            vars(part).clear()
            vars(part).update(attributes)


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    # What two metrics of a collection share they go on sharing.
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, torch.Tensor):
        memo[id(value)] = value.detach().clone()
    elif type(value) is list:
        memo[id(value)] = [_copy(part, memo) for part in value]
    elif type(value) is dict:
        memo[id(value)] = {key: _copy(part, memo) for key, part in value.items()}
    else:
        return value
    return memo[id(value)]


def _number(name: str, metric: Any, value: Any) -> float:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return float(value.item())
    if isinstance(value, (int, float)):
        return float(value)
    what = f"a tensor of shape {list(value.shape)}" if hasattr(value, "shape") else repr(value)
    raise ModelError(
        f"metric {name!r}: the {type(metric).__name__} computes {what}; expected one number. Give "
        "it an average, such as average='macro', or compute() it in on_validation_end"
    )

"""What an object trains: the networks among its attributes, their parameters, their gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from helios.errors import ModelError


def modules_of(attributes: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Return the modules among some attributes, and in lists, tuples and dicts among them.

    Example:
        >>> sorted(modules_of({"net": nn.Linear(1, 1), "heads": [nn.ReLU()], "lr": 0.1}))
        ['heads.0', 'net']
    """
    return {path: value for path, value in _within(attributes) if isinstance(value, nn.Module)}


def trained(attributes: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the parameters of networks and optimizers among some attributes, each once, by path.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> sgd = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> list(trained({"net": net, "sgd": sgd}))
        ['net.weight']
    """
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()

    def take(path: str, parameter: torch.Tensor) -> None:
        if id(parameter) not in seen:
            seen.add(id(parameter))
            found[path] = parameter

    values = list(_within(attributes))
    for path, value in values:
        if isinstance(value, nn.Module):
            for name, parameter in value.named_parameters():
                take(f"{path}.{name}", parameter)
        elif isinstance(value, nn.Parameter):
            take(path, value)
    for path, value in values:
        if isinstance(value, torch.optim.Optimizer):
            for number, group in enumerate(value.param_groups):
                for index, parameter in enumerate(group["params"]):
                    take(f"{path}.{number}.{index}", parameter)
    return found


def gradients(attributes: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the gradients that the parameters have, by path."""
    return {path: p.grad for path, p in trained(attributes).items() if p.grad is not None}


def put_gradients(attributes: Mapping[str, Any], saved: Mapping[str, torch.Tensor]) -> None:
    """Give the parameters the gradients that they had.

    Args:
        attributes: as for `gradients`.
        saved: by path; what is not in it gets none.

    Raises:
        ModelError: if there is no such parameter.
    """
    if not saved:
        return
    parameters = trained(attributes)
    for path, gradient in saved.items():
        parameter = parameters.get(path)
        if parameter is None or parameter.shape != gradient.shape:
            raise ModelError(
                f"it has a gradient of shape {list(gradient.shape)} at {path!r}, and the model has "
                "no such parameter"
            )
        parameter.grad = gradient.to(parameter.device, copy=True)


def _within(attributes: Mapping[Any, Any], path: str = "", depth: int = 0) -> Iterator[Any]:
    """Yield ``(path, value)`` of attributes and of what is in the containers among them."""
    for name, value in attributes.items():
        where = f"{path}{name}"
        yield where, value
        if depth < _DEPTH and not where.startswith(_NOT_OURS):
            if type(value) in (list, tuple):
                value = dict(enumerate(value))
            if isinstance(value, dict):
                yield from _within(value, f"{where}.", depth + 1)


_DEPTH = 3
_NOT_OURS = ("_modes", "_modules", "_parameters", "_buffers")  # kept by the model itself

"""What a ``torch.optim.Optimizer`` class must be, and which options it takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

REQUIRED = inspect.Parameter.empty


def check_class(cls: Any) -> None:
    """Check that ``cls`` is an optimizer class whose step needs gradients alone.

    Raises:
        TypeError: if it is not a subclass of ``torch.optim.Optimizer``, or if its ``step`` needs a
            closure, as that of LBFGS does.
    """
    if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        hint = f"; pass the class, {type(cls).__name__}" if _is_optimizer(cls) else ""
        raise TypeError(
            f"cls: received {cls!r}; expected a subclass of torch.optim.Optimizer{hint}"
        )
    closure = inspect.signature(cls.step).parameters.get("closure")
    if closure is not None and closure.default is REQUIRED:
        raise TypeError(
            f"cls: received {cls.__name__}, whose step needs a closure that evaluates the loss "
            "again; expected an optimizer that steps on gradients alone, such as AdamW"
        )


def check_options(cls: type[torch.optim.Optimizer], options: Mapping[str, Any]) -> None:
    """Check the names of the options against what the class takes.

    Raises:
        TypeError: if the class takes no such option; the message lists those it takes.
        ValueError: if ``differentiable`` is asked for.
    """
    parameters = option_defaults(cls)
    if parameters is not None:
        unknown = sorted(set(options) - set(parameters))
        if unknown:
            known = ", ".join(parameters)
            raise TypeError(
                f"{cls.__name__}: received the unknown option {', '.join(map(repr, unknown))}; "
                f"expected one of: {known}"
            )
    if options.get("differentiable"):
        raise ValueError(
            "differentiable: received True; expected False: an update is not traced by autograd"
        )


def option_defaults(cls: type[torch.optim.Optimizer]) -> dict[str, Any] | None:
    """Return the class's options with their defaults, or None if it takes any keyword.

    Example:
        >>> option_defaults(torch.optim.RMSprop)["alpha"]
        0.99
    """
    parameters = list(inspect.signature(cls).parameters.values())[1:]  # the first is `params`
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name: p.default for p in parameters}


def _is_optimizer(value: Any) -> bool:
    return isinstance(value, torch.optim.Optimizer)

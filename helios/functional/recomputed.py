"""A forward pass whose activations are not kept, but computed again in the backward pass."""

from __future__ import annotations

import contextlib
import functools
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

_Slots = list[tuple[dict[str, Any], str]]


class Recomputed:
    """The forward of a module, run under ``torch.utils.checkpoint`` in training.

    It is a value in the module's ``forward``: the class of the module, its parameters and their
    names stay as they are, and copies and pickles of the module have it too.

    Args:
        module: the module.
        inner: what computes it, if it is not the forward of its class.
    """

    def __init__(self, module: nn.Module, inner: Any = None) -> None:
        self.module = module
        self.inner = inner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the module."""
        module = self.module
        forward = self.inner or functools.partial(type(module).forward, module)
        if not (module.training and torch.is_grad_enabled()):
            return forward(*args, **kwargs)
        slots = [(m._buffers, key) for m in module.modules() for key in m._buffers]
        if not slots:
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)
        return checkpoint(
            forward,
            *args,
            use_reentrant=False,
            context_fn=lambda: (contextlib.nullcontext(), _AsBefore(slots)),
            **kwargs,
        )


class _AsBefore:
    """Lets a forward pass run again on the buffers that it had, and not change them twice."""

    def __init__(self, slots: _Slots) -> None:
        self._slots = slots
        self._had = [_copy(owner[key]) for owner, key in slots]
        self._now: list[Any] = []

    def __enter__(self) -> None:
        self._now = [owner[key] for owner, key in self._slots]
        for (owner, key), had in zip(self._slots, self._had, strict=True):
            owner[key] = _copy(had)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        exc_traceback: TracebackType | None,
    ) -> None:
        for (owner, key), now in zip(self._slots, self._now, strict=True):
            owner[key] = now


def _copy(buffer: Any) -> Any:
    return buffer.detach().clone() if isinstance(buffer, torch.Tensor) else buffer


def is_recomputed(module: nn.Module) -> bool:
    """Tell whether the forward of a module or of a submodule is computed again."""
    return any(isinstance(vars(part).get("forward"), Recomputed) for part in module.modules())

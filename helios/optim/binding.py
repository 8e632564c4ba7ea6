"""A torch optimizer bound to the tensors of one run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch

from helios.errors import StateMismatchError
from helios.functional.transformation import Tensors
from helios.optim.direct import Direct, observed
from helios.optim.forms import FORMS
from helios.optim.slots import Build, trainable

OptState = dict[str, Any]

_data_ptr = torch.Tensor.data_ptr

ELEMENTWISE = FORMS.keys()
"""Classes to which the strides of a gradient do not matter, unless ``fused``."""


class Binding:
    """An optimizer whose parameters and state *are* the tensors of ``params`` and ``opt_state``.

    Each parameter is represented by a leaf, a detached alias with its own ``.grad``, so that the
    ``.grad`` of a module's parameter is never touched. The alias shares the version counter, so
    autograd still notices an update between a forward and its backward.

    Args:
        build: makes the optimizer.
        opt_state: ``{"count": int, "started": {path: bool}, "slots": {path: {name: value}}}``.
        params: the parameters by path.

    Raises:
        StateMismatchError: if the paths of the two differ.
    """

    def __init__(self, build: Build, opt_state: OptState, params: Tensors) -> None:
        slots, started = opt_state["slots"], opt_state["started"]
        if slots.keys() != params.keys():
            paths = ", ".join(map(repr, sorted(slots.keys() ^ params.keys())))
            raise StateMismatchError(
                f"opt_state: received slots whose paths are not those of params; they differ in "
                f"{paths}. Make it with init(params), or restore it with the parameters"
            )
        self._opt_state, self._params = opt_state, params
        self._slots, self._started = slots, started
        self._pointers = list(map(_data_ptr, params.values()))
        self._leaves = {path: p.detach() for path, p in params.items() if trainable(p)}
        self._paths, self._in_order = list(self._leaves), list(self._leaves.values())
        self._optimizer = build(self._in_order)
        self._group = self._optimizer.param_groups[0]
        fused = bool(self._group.get("fused"))
        self._elementwise = type(self._optimizer) in ELEMENTWISE and not fused
        self._pending: dict[str, frozenset[str]] = {}
        self._has_form = type(self._optimizer) in FORMS
        self._direct: Direct | None = None
        self._bind_slots()

    def _bind_slots(self) -> None:
        optimizer = self._optimizer
        state: defaultdict[torch.Tensor, Any] = defaultdict(dict)
        for path, leaf in self._leaves.items():
            if self._started[path]:
                state[leaf] = self._slots[path]
                if not self._elementwise:
                    _relayout(self._slots[path], leaf)
            else:
                self._pending[path] = frozenset(optimizer.state.get(leaf, {}))
        optimizer.state = state

    def holds(self, opt_state: OptState, params: Tensors) -> bool:
        """Tell whether this binding is to just these objects, still at the same memory."""
        return (
            params is self._params
            and opt_state is self._opt_state
            and opt_state["slots"] is self._slots
            and opt_state["started"] is self._started
            and list(map(_data_ptr, params.values())) == self._pointers
        )

    def step(self, grads: Tensors, lr: Any) -> tuple[Tensors, OptState]:
        """Apply one update in place and return the bound objects.

        Raises:
            ValueError: if ``grads`` has a path, shape, dtype or device that ``params`` has not.
        """
        if lr is not None:
            self._group["lr"] = lr
        whole = list(grads) == self._paths
        try:
            if whole and self._elementwise:
                # The common case: nothing to look up. Assigning checks what is assigned.
                for leaf, grad in zip(self._in_order, grads.values(), strict=True):
                    leaf.grad = grad
            else:
                self._take(grads)
        except (AttributeError, KeyError, RuntimeError, TypeError):
            self._check(grads)
            raise
        if whole and self._has_form and not (self._pending or isinstance(lr, torch.Tensor)):
            self._step(lr)
        else:
            if self._pending:
                self._start(grads)
            self._optimizer.step()
        # Gradients are not kept alive over the next forward.
        for leaf in self._in_order:
            leaf.grad = None
        self._opt_state["count"] += 1
        return self._params, self._opt_state

    def _step(self, lr: Any) -> None:
        """Do what the optimizer's ``step()`` does, all of its state being there."""
        grads: list[Any] = [leaf.grad for leaf in self._in_order]
        if any(grad is None or grad.is_sparse for grad in grads) or observed():
            self._optimizer.step()
            return
        if self._direct is None:
            slots = [self._slots[path] for path in self._paths]
            self._direct = Direct(type(self._optimizer), self._group, self._in_order, slots)
        self._direct(grads, lr)

    def _take(self, grads: Tensors) -> None:
        for path, grad in grads.items():
            leaf = self._leaves[path]
            as_it_is = grad is None or self._elementwise or grad.is_sparse
            leaf.grad = grad if as_it_is else laid_out(grad, leaf)

    def _start(self, grads: Tensors) -> None:
        # At a parameter's first gradient torch makes its state itself, beside what the
        # constructor had made: the first step of SGD with dampening, or of NAdam, is not that of
        # a state of zeros.
        for path in [path for path in self._pending if grads.get(path) is not None]:
            made, slots = self._pending.pop(path), self._slots[path]
            for name in [name for name in slots if name not in made]:
                del slots[name]
            self._optimizer.state[self._leaves[path]] = slots
            self._started[path] = True

    def _check(self, grads: Mapping[str, Any]) -> None:
        for path, grad in grads.items():
            leaf = self._leaves.get(path)
            if leaf is None:
                known = ", ".join(map(repr, self._leaves))
                raise ValueError(
                    f"grads: received the path {path!r}; expected paths of floating-point "
                    f"parameters: {known}"
                )
            if grad is None:
                continue
            if not isinstance(grad, torch.Tensor):
                raise TypeError(
                    f"grads[{path!r}]: received {type(grad).__name__}; expected a tensor. Leave "
                    "the path out of a parameter that has no gradient"
                )
            if _kind(grad) != _kind(leaf):
                raise ValueError(
                    f"grads[{path!r}]: received {_kind(grad)}; expected that of the parameter, "
                    f"{_kind(leaf)}"
                )


def laid_out(grad: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    """Return a gradient in the layout of its parameter."""
    # Autograd's accumulation lays a gradient out as its parameter, and torch relies on that. The
    # fused kernels of the CPU walk a gradient by the strides of its parameter whatever its own
    # are, and would read an expanded one out of bounds; a reduction rounds in the order of memory.
    if grad.shape != leaf.shape or grad.stride() == leaf.stride():
        return grad
    return torch.empty_like(leaf, dtype=grad.dtype, device=grad.device).copy_(grad)


def _kind(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype}{tuple(tensor.shape)} on {tensor.device}"


def _relayout(slots: dict[str, Any], leaf: torch.Tensor) -> None:
    # Slots that were restored from plain row-major bytes.
    for name, value in slots.items():
        if isinstance(value, torch.Tensor) and value.layout is torch.strided:
            slots[name] = laid_out(value, leaf)

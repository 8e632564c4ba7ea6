"""Lending a state's tensors to a module, so that plain PyTorch code computes with them.

``module.parameter.data`` and the module's buffer slots are pointed at tensors of the state. In a
donated run they stay there from step to step, which costs nothing; around a pure step they are lent
and taken back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from helios.errors import ModelError
from helios.functional.transformation import Tensors

_LENT: WeakKeyDictionary[nn.Module, Tensors] = WeakKeyDictionary()
"""Which parameters a module holds now: one entry a module, so that two users cannot disagree."""


class Binding:
    """The places in a module where a state's tensors go.

    Args:
        module: the module; its parameters and buffers are found once, here.

    Raises:
        ModelError: if the module has no parameter, or one that is not materialised.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.parameters: dict[str, nn.Parameter] = dict(module.named_parameters())
        if not self.parameters:
            raise ModelError(
                f"{type(module).__name__} has no parameters; expected networks assigned in "
                "setup(), such as self.net = nn.Linear(4, 2). A module kept in a plain list or "
                "dict is not found: use nn.ModuleList or nn.ModuleDict."
            )
        for name, parameter in self.parameters.items():
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise ModelError(
                    f"parameter {name!r} is lazy and has no shape yet; run one batch through the "
                    "network at the end of setup()"
                )
        self._leaves: dict[tuple[str, ...], tuple[nn.Parameter, ...]] = {}
        # Of torch's own classes, for which autograd's engine needs no one's leave.
        self.is_plain = all(type(p) is nn.Parameter for p in self.parameters.values())
        self.frozen = {n: p for n, p in self.parameters.items() if not p.requires_grad}
        self._slots = _buffer_slots(module)

    def leaves(self, names: tuple[str, ...]) -> tuple[nn.Parameter, ...]:
        """Return the parameters of some paths; the same tuple each time."""
        found = self._leaves.get(names)
        if found is None:
            found = self._leaves[names] = tuple(self.parameters[name] for name in names)
        return found

    def read(self) -> tuple[Tensors, Tensors]:
        """Return private copies of the module's parameters and buffers, by path."""
        params = self._copies()
        buffers = {}
        for name, [(slots, key), *_] in self._slots.items():
            buffer = slots[key]
            if buffer is not None:
                buffers[name] = buffer.detach().clone()
        return params, buffers

    def lend(self, params: Tensors, buffers: Tensors) -> None:
        """Point the module at ``params`` and ``buffers``, unless it holds them already.

        Raises:
            ModelError: if the parameters are not those of the module.
        """
        if _LENT.get(self.module) is not params:
            if params.keys() != self.parameters.keys():
                raise ModelError(
                    "the state was made for another model: its parameters are "
                    f"{sorted(params)[:8]}, the model's are {sorted(self.parameters)[:8]}"
                )
            self._point(params)
            _LENT[self.module] = params
        self.lend_buffers(buffers)

    def lend_buffers(self, buffers: Tensors) -> None:
        """Point the module at ``buffers``, unless it holds them already."""
        for name, owners in self._slots.items():
            tensor = buffers.get(name)
            for slots, key in owners:
                if slots[key] is not tensor:
                    slots[key] = tensor

    def buffers(self, lent: Tensors) -> Tensors:
        """Return the buffers after a forward pass, those updated in place and those reassigned.

        Args:
            lent: the buffers that were lent; returned as they are if none was reassigned.
        """
        changed: Tensors = {}
        for name, owners in self._slots.items():
            slots, key = owners[0]
            now = slots[key]
            if now is not lent.get(name) and now is not None:
                # Reassigned: it may be a view of anything, so the state takes a copy of its own.
                changed[name] = now.detach().clone()
        return {**lent, **changed} if changed else lent

    def parameters_after(self, lent: Tensors, *, every: bool = False) -> Tensors:
        """Return the parameters after user code that may have replaced the data of some.

        Args:
            lent: the parameters that were lent; returned as they are if none was replaced.
            every: look at all of them, as after a hook; a forward pass replaces frozen ones alone.
        """
        changed = {
            name: p.detach().clone()
            for name, p in (self.parameters if every else self.frozen).items()
            if p.data_ptr() != lent[name].data_ptr()
        }
        return {**lent, **changed} if changed else lent

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[None]:
        """Put the module back as it is now when the block ends: data, gradients, buffers."""
        lent = _LENT.get(self.module)
        give_back = self._put_by()
        slots = [(s, k, s[k]) for owners in self._slots.values() for s, k in owners]
        try:
            yield
        finally:
            give_back()
            for owner, key, buffer in slots:
                owner[key] = buffer
            if lent is None:
                _LENT.pop(self.module, None)
            else:
                _LENT[self.module] = lent

    def _copies(self) -> Tensors:
        """Return private copies of the parameters."""
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    def _point(self, params: Tensors) -> None:
        """Point the module's parameters at tensors of the same paths."""
        for name, parameter in self.parameters.items():
            parameter.data = params[name]

    def _put_by(self) -> Callable[[], None]:
        """Take the gradients off the parameters; return what puts all back as it is now."""
        data = [(p, p.data, p.grad) for p in self.parameters.values()]
        for parameter, _, _ in data:
            parameter.grad = None

        def give_back() -> None:
            for parameter, tensor, grad in data:
                parameter.grad = None
                parameter.data = tensor
                parameter.grad = grad

        return give_back

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function that computes with the module's parameters."""
        return function(*args)


_OWN = "_helios_binding"


def bind(module: nn.Module) -> Binding:
    """Return the binding of a module: its own, if `bind_by` gave it one, or a new one.

    Raises:
        ModelError: if it has none of its own, and no parameter, or one that is not materialised.
    """
    return own_binding(module) or Binding(module)


def own_binding(module: nn.Module) -> Binding | None:
    """Return the binding that `bind_by` gave a module; None if it has none."""
    own = module.__dict__.get(_OWN)
    return own if isinstance(own, Binding) else None


def bind_by(binding: Binding) -> None:
    """Let a module have a binding of its own, such as one that lends it parts of its parameters."""
    binding.module.__dict__[_OWN] = binding


@contextlib.contextmanager
def in_mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a module in training or evaluation mode for a block, and every submodule back after it.

    A module that is in the mode already is left alone, with what its submodules are set to.
    """
    if module.training == training:
        yield
        return
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        module.train(not training)
        for submodule, mode in modes:
            submodule.training = mode


def _buffer_slots(
    module: nn.Module,
) -> dict[str, list[tuple[dict[str, torch.Tensor | None], str]]]:
    """Map each buffer's path to every slot that holds it; shared buffers have several slots."""
    found: dict[str, list[tuple[dict[str, torch.Tensor | None], str]]] = {}
    names: dict[int, str] = {}
    for prefix, submodule in module.named_modules():
        slots: Any = submodule._buffers
        for key, buffer in slots.items():
            path = f"{prefix}.{key}" if prefix else key
            name = names.setdefault(id(buffer), path) if buffer is not None else path
            found.setdefault(name, []).append((slots, key))
    return found

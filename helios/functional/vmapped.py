"""One module that computes with the parameters of several: what ``torch.func.vmap`` is used for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch._C import _functorch

from helios.errors import ModelError
from helios.functional.differs import Differs
from helios.functional.shortcuts import Shortcuts
from helios.functional.transformation import Tensors
from helios.functional.tree import flatten, unflatten

_Slots = list[tuple[dict[str, Any], str]]


class Vmapped:
    """Calls functions of a module with the parameters of all members, stacked.

    The module is that of one member. While a function of it runs, each of its parameters and
    buffers stands for those of all members, and each tensor that depends on them has one value for
    every member. What has no tensor in it, such as a Python branch, is done once for all.

    Args:
        module: the module of one member.
        differing: by submodule and name, attributes that are not the same in all members.

    Law:
        Every member gets the values of its own module, up to rounding
        (``property_tests/test_many.py``).
    """

    def __init__(
        self, module: nn.Module, differing: Sequence[tuple[nn.Module, str, Differs]] = ()
    ) -> None:
        places = [*_places(module, "_parameters").values()]
        buffers = _places(module, "_buffers")
        self._count = len(places)
        self._names = list(buffers)
        self._slots = [
            (slots, key, index)
            for index, owners in enumerate([*places, *buffers.values()])
            for slots, key in owners
        ]
        self._first = [owners[0] for owners in buffers.values()]
        self._differing = [(vars(owner), name, value) for owner, name, value in differing]
        self._shortcuts = Shortcuts()
        torch.func.vmap(torch.neg)(torch.zeros(1))  # it registers its rules at its first call

    def __call__(
        self,
        function: Callable[..., Any],
        params: Sequence[torch.Tensor],
        buffers: Tensors,
        *args: Any,
    ) -> tuple[Any, Tensors]:
        """Call a function for all members.

        Args:
            function: of the module; it returns a tree of tensors and other values.
            params: the parameters, ``[members, ...]`` each, in the order of the module's.
            buffers: the buffers, by path; those that the function updates are updated in place.
            args: what the function is given.

        Returns:
            Its tree with ``[members, ...]`` for each tensor, and the buffers after it.

        Raises:
            ModelError: if it does what cannot be done for all members at once.
        """
        tensors = [*params, *(buffers[name] for name in self._names)]
        before = [slots[key] for slots, key, _ in self._slots]
        hidden = [values.get(name, _MISSING) for values, name, _ in self._differing]
        try:
            for values, name, poison in self._differing:
                values[name] = poison
            value, reassigned = self._call(function, args, tensors)
        except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
            if (explained := explain(error, len(tensors[0]))) is None:
                raise
            raise explained from error
        finally:
            for (slots, key, _), own in zip(self._slots, before, strict=True):
                slots[key] = own
            for (values, name, _), own in zip(self._differing, hidden, strict=True):
                values[name] = own
                if own is _MISSING:
                    del values[name]
        if reassigned:  # each may be a view of anything
            buffers = {**buffers, **{name: new.clone() for name, new in reassigned.items()}}
        return value, buffers

    def _call(
        self, function: Callable[..., Any], args: tuple[Any, ...], tensors: list[torch.Tensor]
    ) -> tuple[Any, Tensors]:
        """Return what a function returns, and the buffers that it has reassigned."""
        # What torch.func.vmap does, without its flattening of arguments and results: that takes a
        # hundred microseconds, as long as the loss of a small network.
        members = len(tensors[0])
        reassigned: Tensors = {}
        level = _functorch._vmap_increment_nesting(members, "different")
        try:
            given = [_functorch._add_batch_dim(tensor, 0, level) for tensor in tensors]
            for slots, key, index in self._slots:
                slots[key] = given[index]
            with self._shortcuts:
                value = function(*args)
            parts, structure = flatten(value)
            for i, part in enumerate(parts):
                if isinstance(part, torch.Tensor):
                    parts[i] = _functorch._remove_batch_dim(part, level, members, 0)
            for index, (slots, key) in enumerate(self._first):
                now = slots[key]
                if now is not given[self._count + index] and now is not None:
                    new = _functorch._remove_batch_dim(now.detach(), level, members, 0)
                    reassigned[self._names[index]] = new
        finally:
            _functorch._vmap_decrement_nesting()
        return unflatten(structure, parts), reassigned


_MISSING: Any = object()


def _places(module: nn.Module, kind: str) -> dict[str, _Slots]:
    """Map the path of each parameter or buffer to every slot that holds it."""
    found: dict[str, _Slots] = {}
    names: dict[int, str] = {}
    for path, slots, key in slots_of(module, kind):
        if slots[key] is not None:
            found.setdefault(names.setdefault(id(slots[key]), path), []).append((slots, key))
    return found


def slots_of(module: nn.Module, kind: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield the path, the dict and the key of everything of a kind, such as ``"_buffers"``."""
    for prefix, submodule in module.named_modules():
        slots: dict[str, Any] = getattr(submodule, kind)
        for key in slots:
            yield (f"{prefix}.{key}" if prefix else key), slots, key


_FUNCTION = (
    "it uses a torch.autograd.Function without a rule for vmap. Give it setup_context() and "
    "generate_vmap_rule = True, or a vmap() of its own"
)
_IN_PLACE = (
    "it writes values of the members into a tensor that all have in common. Make a new tensor in "
    "place of `out += ...` or `out[...] = ...`"
)
_GRADIENTS = ("does not require grad", "doesn't require grad")
_INNER = (
    "it takes a gradient of its own, or hooks one. Use torch.func.grad, which all members can do "
    "at once"
)
_ADVICE = {
    "torch.utils.checkpoint": (
        "it computes activations again in the backward pass. Leave torch.utils.checkpoint out"
    ),
    "requires_grad_()": _INNER,
    "item()": "it reads a number out of a tensor, with .item(), float() or int(). Keep it a tensor",
    "data-dependent control flow": (
        "it decides by the value of a tensor, as `if loss > 1:` does, and members may decide "
        "differently. Use torch.where, or a factor of 0 or 1"
    ),
    "autograd.function": _FUNCTION,
    "setup_context": _FUNCTION,
    "does not have vmap support": _FUNCTION,
    "inplace arithmetic": _IN_PLACE,
    "is not possible because": _IN_PLACE,
    "the broadcast shape": _IN_PLACE,
    "dynamic": (
        "it makes a tensor whose shape depends on values, as x[mask] and nonzero() do. Use "
        "torch.where, or a weight of 0"
    ),
    **dict.fromkeys(_GRADIENTS, _INNER),
}


def explain(error: Exception, members: int) -> ModelError | None:
    """Return what to say of a loss that cannot be computed for all at once; None of another.

    Args:
        error: what was raised in its forward or backward pass.
        members: how many there are.
    """
    text = str(error)
    words = text.lower()
    widened = f"the broadcast shape [{members}" in words  # a write without room for the members
    known = ("vmap", "functorch", "torch.utils.checkpoint", *_GRADIENTS)
    if not (widened or any(word in words for word in known)):
        return None
    why = next((advice for key, advice in _ADVICE.items() if key in words), None)
    first = next(iter(text.splitlines()), type(error).__name__)
    return ModelError(
        "the loss cannot be computed for all members at once: "
        f"{why or 'torch.func.vmap cannot do one of its operations'}; or train the members one by "
        f"one. torch says: {first}"
    )

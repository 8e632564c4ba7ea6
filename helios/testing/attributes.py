"""What an object holds, attribute by attribute, so that a change of one can be named."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import random
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from torch import nn

from helios.functional.tree import same_bits

Snapshot = dict[str, Any]
"""A private copy of every value that was found, by its path, such as ``"self.net.0.weight"``."""

_PLAIN = (bool, int, float, complex, str, bytes, type(None), enum.Enum, torch.dtype, torch.device)
_MODULE = frozenset(vars(nn.Module())) - {"training"}
_OPAQUE = ("torch", "helios", "builtins", "functools", "numpy")
_LONGEST = 10_000
_LARGEST = 2**20
_SHOWN = 3


class _Items(NamedTuple):
    """A container by its kind and its number of items; the items have paths of their own."""

    kind: str
    size: int


class _Object(NamedTuple):
    """An object by its class; its attributes have paths of their own."""

    kind: type


class _Drawn(NamedTuple):
    """The state of a random generator."""

    kind: str
    state: Any


class _Same:
    """An object that is not looked into: it is what it was if it is the same object."""

    def __init__(self, value: Any) -> None:
        self.value = value


def snapshot(value: Any, root: str, *, whole: bool = True) -> Snapshot:
    """Copy what an object holds, recursively through attributes, submodules and containers.

    Objects of torch and helios, functions, and what has no attributes are not looked into.

    Args:
        value: the object.
        root: what its path is called.
        whole: whether large arrays (a MiB and more) are copied too; by their address otherwise.

    Example:
        >>> list(snapshot([1, {"a": 2}], "x"))
        ['x', 'x[0]', 'x[1]', "x[1]['a']"]
    """
    found: Snapshot = {}
    _walk(value, root, found, set(), whole)
    if isinstance(value, nn.Module):
        for cls in type(value).__mro__:
            if not _is_opaque(cls):
                for name, held in vars(cls).items():
                    if not name.startswith(("__", "_abc_")) and _is_data(held):
                        _walk(held, f"{cls.__name__}.{name}", found, set(), whole)
    return found


def changes(before: Snapshot, after: Snapshot, *, same_objects: bool = True) -> list[str]:
    """Return the paths whose values differ.

    Args:
        before: a snapshot.
        after: another.
        same_objects: whether both are of one object; of two objects, what was not looked into is
            taken to be equal.
    """
    found: list[str] = []
    for path in [*before, *(path for path in after if path not in before)]:
        if any(path.startswith((f"{known}.", f"{known}[")) for known in found):
            continue
        both = path in before and path in after
        if not (both and _equal(before[path], after[path], same_objects)):
            found.append(path)
    return found


def describe_changes(before: Snapshot, after: Snapshot) -> str:
    """Say what changed, in order, the first few; empty if nothing did.

    Example:
        >>> describe_changes(snapshot([1], "self.seen"), snapshot([1, 2], "self.seen"))
        'self.seen changed from a list of 1 to a list of 2'
    """
    paths = changes(before, after)
    said = [_describe_change(path, before, after) for path in paths[:_SHOWN]]
    more = len(paths) - len(said)
    return "; ".join(said) + (f"; and {more} more" if more else "")


def describe_differences(there: Snapshot, fresh: Snapshot) -> str:
    """Say what one object had and a fresh one has not, the first few; empty if they are alike.

    Example:
        >>> describe_differences(snapshot(3, "self.count"), snapshot(0, "self.count"))
        'self.count was 3 and is 0'
    """
    paths = changes(there, fresh, same_objects=False)
    said = [_describe_difference(path, there, fresh) for path in paths[:_SHOWN]]
    more = len(paths) - len(said)
    return "; ".join(said) + (f"; and {more} more" if more else "")


def _walk(value: Any, path: str, found: Snapshot, above: set[int], whole: bool) -> None:
    if isinstance(value, _PLAIN):
        found[path] = value
    elif isinstance(value, torch.Tensor):
        small = whole or value.nbytes < _LARGEST
        found[path] = value.detach().clone() if small else _Same(value)
        if isinstance(value, nn.Parameter):
            found[f"{path}.requires_grad"] = value.requires_grad
    elif isinstance(value, (np.ndarray, np.generic)):
        found[path] = value.copy() if whole or value.nbytes < _LARGEST else _Same(value)
    elif (state := _generator_state(value)) is not None:
        found[path] = _Drawn(type(value).__name__, state)
    elif isinstance(value, (set, frozenset)):
        found[path] = frozenset(value)
    elif id(value) in above:
        found[path] = _Same(value)
    else:
        parts = list(_parts(value, path))
        if isinstance(value, (Mapping, list, tuple, collections.deque)):
            found[path] = _Items(type(value).__name__, len(value))
        elif parts or _has_attributes(value):
            found[path] = _Object(type(value))
        else:
            found[path] = _said(value)
        for inner, part in parts:
            _walk(part, inner, found, above | {id(value)}, whole)


def _parts(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield what an object holds, with its paths."""
    if isinstance(value, nn.Module):
        for slots in (value._parameters, value._buffers, value._modules):
            for name, held in slots.items():
                yield f"{path}.{name}", held
        private = _is_opaque(type(value))
        for name, held in vars(value).items():
            # Caches of torch's own layers, such as an LSTM's flat weights, are no one's state.
            if (
                name not in _MODULE
                and not (private and name.startswith("_"))
                and name != "_trainer"
            ):
                yield f"{path}.{name}", held
    elif isinstance(value, Mapping):
        if len(value) <= _LONGEST:
            yield from ((f"{path}[{key!r}]", held) for key, held in value.items())
    elif isinstance(value, (list, tuple, collections.deque)):
        if len(value) <= _LONGEST:
            yield from ((f"{path}[{index}]", held) for index, held in enumerate(value))
    elif not _is_opaque(type(value)) and not isinstance(value, type):
        if isinstance(value, msgspec.Struct):
            names = list(value.__struct_fields__)
        elif dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value)]
        else:
            names = list(getattr(value, "__dict__", ()))
        # A slot may be empty.
        yield from ((f"{path}.{n}", getattr(value, n)) for n in names if hasattr(value, n))


def _generator_state(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return repr(value.get_state(legacy=False))
    return None


def _is_opaque(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in _OPAQUE


def _said(value: Any) -> Any:
    """Return the repr of an object without attributes: counters, paths and dates say it there."""
    if not _is_opaque(type(value)):
        with contextlib.suppress(Exception):
            says = repr(value)
            if " at 0x" not in says:
                return says
    return _Same(value)


def _has_attributes(value: Any) -> bool:
    return (
        hasattr(value, "__dict__") and not isinstance(value, type) and not _is_opaque(type(value))
    )


def _is_data(value: Any) -> bool:
    kinds = (int, float, complex, str, bytes, list, dict, set, torch.Tensor, np.ndarray)
    return isinstance(value, (*kinds, collections.deque))


def _equal(a: Any, b: Any, same_objects: bool) -> bool:
    if isinstance(a, _Same) and isinstance(b, _Same):
        return a.value is b.value or (not same_objects and type(a.value) is type(b.value))
    if isinstance(a, (np.ndarray, np.generic)):
        alike = type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape
        return bool(alike and a.tobytes() == b.tobytes())
    return same_bits(a, b)


def _describe_change(path: str, before: Snapshot, after: Snapshot) -> str:
    if path not in before:
        return f"{path} appeared: {_shown(after, path)}"
    if path not in after:
        return f"{path} is gone"
    if isinstance(before[path], _Drawn):
        return f"{path} ({before[path].kind}) drew random numbers"
    old, new = _shown(before, path), _shown(after, path)
    if old == new:
        return f"{path} changed: {old} of other values"
    return f"{path} changed from {old} to {new}"


def _describe_difference(path: str, there: Snapshot, fresh: Snapshot) -> str:
    old, new = _shown(there, path), _shown(fresh, path)
    other = " of other values" if old == new else ""
    return f"{path} was {old} and is {new}{other}"


def _shown(held: Snapshot, path: str) -> str:
    if path not in held:
        return "not there"
    value = held[path]
    if isinstance(value, _Items):
        return f"a {value.kind} of {value.size}"
    if isinstance(value, _Object):
        return f"a {value.kind.__name__}"
    if isinstance(value, _Drawn):
        return f"a {value.kind}"
    if isinstance(value, _Same):
        return f"a {type(value.value).__name__}"
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return f"tensor({value.item()!r})"
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."

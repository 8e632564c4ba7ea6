"""What stands on the stack when a pickle is followed without building anything.

Numbers, strings, booleans and None stand for themselves. A container is only how much is in it, and
how deep; everything else is a name.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from helios.errors import CorruptCheckpointError
from helios.trainer.store.tensors import NAMED_DTYPES, STORAGE_DTYPES

MAX_VALUES = 2**21
"""How many values a content may have, where one that is reached twice counts twice."""

MAX_DEPTH = 200
"""How deep containers may be nested; what walks over a tree by recursion has room for this."""

MAX_INT_BITS = 255 * 8
"""How long an integer may be, with its sign: the longest that ``weights_only`` reads."""

MAX_INT_KEY = 2**60
"""Integers from here on may share their hashes, and a dict of such keys takes quadratic time."""


def refused(reason: str) -> CorruptCheckpointError:
    """Return the error for a file that is not accepted."""
    return CorruptCheckpointError(reason)


def shown(value: object) -> str:
    """Return a value out of a file as one short line that a terminal can take."""
    if isinstance(value, bytes):
        value = value[:60].decode("latin-1")
    if isinstance(value, str):
        value = value[:60]
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class Global(NamedTuple):
    """A name of a module."""

    name: str
    dtype: torch.dtype | None = None  # of a class of storages, or itself


UNTYPED = Global("torch.storage.UntypedStorage")
ORDERED_DICT = Global("collections.OrderedDict")
ENCODE = Global("_codecs.encode")
COMPLEX = Global("builtins.complex")
TENSOR = Global("torch._utils._rebuild_tensor_v2")
TENSOR_OF_DTYPE = Global("torch._utils._rebuild_tensor_v3")
PARAMETER = Global("torch._utils._rebuild_parameter")
STORAGES = frozenset({UNTYPED, *(Global(f"torch.{n}", d) for n, d in STORAGE_DTYPES.items())})
DTYPE_NAMES = frozenset(Global(f"torch.{name}", dtype) for name, dtype in NAMED_DTYPES.items())

GLOBALS: dict[bytes, Global] = {
    b"__builtin__\ncomplex": COMPLEX,  # the second protocol has the names of Python 2
    **{
        "\n".join(name.name.rsplit(".", 1)).encode(): name
        for name in (UNTYPED, ORDERED_DICT, ENCODE, TENSOR, TENSOR_OF_DTYPE, PARAMETER)
    },
    **{
        name.name.replace(".", "\n").encode(): name for name in (STORAGES | DTYPE_NAMES) - {UNTYPED}
    },
}
"""All names that ``torch.save`` writes for builtin types and plain tensors, as it writes them."""


class Storage(NamedTuple):
    """A record of the archive, as the memory of a tensor."""

    key: str
    dtype: torch.dtype | None  # None if the tensor names it
    size: int  # bytes


class Leaf(NamedTuple):
    """A value without parts."""

    kind: str


FLOATS, INTEGERS, A_PARAMETER = Leaf("tensor"), Leaf("tensor of integers"), Leaf("parameter")
BYTES, A_COMPLEX = Leaf("bytes"), Leaf("complex")
_LEAVES = frozenset({int, float, str, bool, type(None), Leaf})


class Tuple(NamedTuple):
    """A tuple: a value, or what a tensor is made from."""

    items: tuple[Any, ...]
    values: int
    depth: int
    plain: bool  # whether it is a value


class Container:
    """A list or a dict: how much is in it, and the keys."""

    __slots__ = ("depth", "keys", "kind", "placed", "values")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.values = 1
        self.depth = 1
        self.keys: set[str | int] | None = None
        self.placed = False  # in another one: it must not grow any more, which rules out cycles


def make_tuple(items: list[Any]) -> Tuple:
    """Return the tuple of some values."""
    if not items:
        return _EMPTY
    values, depth, plain = 1, 1, True
    for item in items:
        if type(item) is Global or type(item) is Storage:
            plain = False
        else:
            count, below = weigh(item)
            values += count
            depth = max(depth, below + 1)
    _check_bounds(values, depth)
    return Tuple(tuple(items), values, depth, plain)


def fill(container: Container, items: list[Any]) -> None:
    """Put values into a container."""
    for item in items:
        count, depth = weigh(item)
        container.values += count
        container.depth = max(container.depth, depth + 1)
    if container.placed:  # by now: it may be among the items
        raise refused("it changes a container that it has put into another one, or into itself")
    _check_bounds(container.values, container.depth)


def set_keys(container: Container, items: list[Any]) -> None:
    """Put keys and values, in turns, into a dict."""
    if container.keys is None:
        container.keys = set()
    for key in items[::2]:
        if type(key) is not str and not (type(key) is int and abs(key) < MAX_INT_KEY):
            raise refused(f"a dict has the key {described(key)}; expected a string or an integer")
        if key in container.keys:
            raise refused(f"a dict has the key {shown(key)} twice")
        container.keys.add(key)
    fill(container, items)


def weigh(value: Any) -> tuple[int, int]:
    """Make a value a part of something; return how many values it is, and its depth."""
    kind = type(value)
    if kind in _LEAVES:
        return 1, 0
    if kind is Container:
        value.placed = True
        return value.values, value.depth
    if kind is Tuple and value.plain:
        return value.values, value.depth
    raise refused(f"it holds {described(value)} as a value")


def described(value: Any) -> str:
    """Return what a value is, for an error."""
    if isinstance(value, Global):
        return f"the name {value.name}"
    if isinstance(value, (Container, Leaf)):
        return f"a {value.kind}"
    if isinstance(value, Tuple):
        return "a tuple"
    return "a storage" if isinstance(value, Storage) else shown(value)


def _check_bounds(values: int, depth: int) -> None:
    if values > MAX_VALUES:
        raise refused(f"it has more than {MAX_VALUES} values")
    if depth > MAX_DEPTH:
        raise refused(f"it is nested more than {MAX_DEPTH} deep")


_EMPTY = Tuple((), 1, 1, True)

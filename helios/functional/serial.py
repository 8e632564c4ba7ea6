"""A state as bytes, and back, exactly.

The format is a magic number, a header in msgpack (the tree, and the dtype, shape and memory order
of every tensor), the raw bits of the tensors, and a digest of all of it. Reading never runs code
and builds no class that is not listed here: what the reader does not know, it refuses.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from typing import Any

import msgspec
import torch
from msgspec.structs import replace

from helios.errors import SerialisationError, StateMismatchError
from helios.functional.metrics import Mean
from helios.functional.precision import LossScale
from helios.functional.state import Accumulator, Carry, TrainingState, take_carry
from helios.functional.tree import leaves_with_paths, map_leaves, place, raw

_MAGIC = b"helios-state\x00"
_SCHEMA = 1
_DIGEST_SIZE = 16
STRUCTS: dict[str, type[msgspec.Struct]] = {
    cls.__name__: cls for cls in (TrainingState, Carry, Accumulator, LossScale, Mean)
}
_DTYPES: dict[str, torch.dtype] = {
    str(value).removeprefix("torch."): value
    for value in vars(torch).values()
    if isinstance(value, torch.dtype)
    and not re.fullmatch(r"torch\.(q.*|bits.*|u?int[1-7])", str(value))
}


class _Tensor(msgspec.Struct, tag="tensor", forbid_unknown_fields=True):
    dtype: str
    shape: list[int]
    order: list[int] | None  # dimensions from the largest stride to the smallest, if not row-major


class _Number(msgspec.Struct, tag="number", forbid_unknown_fields=True):
    kind: str
    text: str  # ints in decimal, floats in hexadecimal: both exact, at any size


class _Plain(msgspec.Struct, tag="plain", forbid_unknown_fields=True):
    value: bool | str | None


class _Bytes(msgspec.Struct, tag="bytes", forbid_unknown_fields=True):
    value: bytes


class _Dict(msgspec.Struct, tag="dict", forbid_unknown_fields=True):
    keys: list[str]
    values: list[_Node]


class _Sequence(msgspec.Struct, tag="sequence", forbid_unknown_fields=True):
    kind: str
    values: list[_Node]


class _Struct(msgspec.Struct, tag="struct", forbid_unknown_fields=True):
    name: str
    values: list[_Node]


_Node = _Tensor | _Number | _Plain | _Bytes | _Dict | _Sequence | _Struct


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    schema: int
    tree: _Node


def to_bytes(state: TrainingState) -> bytes:
    """Serialise a state, exactly: every dtype, NaN payloads, signed zeros, memory order.

    Args:
        state: the state; its tensors may be on any device.

    Returns:
        Bytes that `from_bytes` reads back.

    Raises:
        ConsumedStateError: if the state was given to a donated step.
        SerialisationError: if a leaf is of a type, layout or dtype that the format does not have.

    Law:
        ``from_bytes(to_bytes(state)) == state`` (``property_tests/test_serial.py``).

    Example:
        >>> state = TrainingState(carry={"w": torch.tensor([1.0, float("nan")])})
        >>> from_bytes(to_bytes(state)) == state
        True
    """
    take_carry(state)
    payload: list[Any] = []
    try:
        tree = _encode(state, "", payload)
        header = msgspec.msgpack.encode(_Header(_SCHEMA, tree))
    except RecursionError as error:
        raise SerialisationError("the state is nested too deeply to be serialised") from error
    body = b"".join([_MAGIC, struct.pack("<Q", len(header)), header, *payload])
    return body + hashlib.blake2b(body, digest_size=_DIGEST_SIZE).digest()


def from_bytes(data: bytes, like: TrainingState | None = None) -> TrainingState:
    """Read back what `to_bytes` wrote.

    Args:
        data: the bytes.
        like: (optional) a state of the expected tree, shapes and dtypes, such as `init_state`
            gives; tensors then go to the devices of its own. What comes and goes in a run (open
            windows, running metrics, the best score) need not be in it. Without it they are on the
            CPU.

    Returns:
        A state equal to the one written.

    Raises:
        SerialisationError: if the bytes are not a state, were changed or cut short, or name what
            this version does not know.
        StateMismatchError: if the state is not like ``like``; the message lists the paths.
    """
    body = memoryview(data)[:-_DIGEST_SIZE]
    start = len(_MAGIC) + 8
    if len(data) < start + _DIGEST_SIZE or bytes(body[: len(_MAGIC)]) != _MAGIC:
        raise SerialisationError(
            f"received {len(data)} bytes that do not begin as a serialised state does; expected "
            "what TrainingState.to_bytes() returned"
        )
    if hashlib.blake2b(body, digest_size=_DIGEST_SIZE).digest() != data[-_DIGEST_SIZE:]:
        raise SerialisationError(
            "the digest does not match: the bytes were changed or cut short since they were written"
        )
    (length,) = struct.unpack_from("<Q", body, len(_MAGIC))
    if length > len(body) - start:
        raise SerialisationError(f"the header claims {length} bytes, more than there are")
    try:
        header = msgspec.msgpack.decode(body[start : start + length], type=_Header)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise SerialisationError(f"the header cannot be read: {error}") from error
    if header.schema != _SCHEMA:
        raise SerialisationError(
            f"received schema {header.schema}; this helios reads {_SCHEMA}. Update helios."
        )
    reader = _Reader(body[start + length :])
    state = reader.read(header.tree)
    if reader.at != len(reader.payload):
        raise SerialisationError(f"{len(reader.payload) - reader.at} bytes are left over")
    if not isinstance(state, TrainingState):
        raise SerialisationError(f"received a {type(state).__name__}; expected a TrainingState")
    return state if like is None else replace(state, carry=carry_like(state.carry, like.carry))


def carry_like(carry: Any, like: Any) -> Any:
    """Return a carry on the devices of a fresh one, after checking it against that.

    The open windows, the running metrics and the best score come and go in a run: they are checked
    against the parameters, or not at all.

    Raises:
        StateMismatchError: if paths, shapes or dtypes differ; the message lists them.
    """
    if not isinstance(carry, Carry) or not isinstance(like, Carry):
        return placed_like(carry, like)
    if carry.accumulators.keys() != like.accumulators.keys():
        raise StateMismatchError(
            f"the objectives were {sorted(carry.accumulators)} and are {sorted(like.accumulators)}"
        )
    for window in carry.accumulators.values():
        problems = mismatches(window.grads, {n: like.params.get(n) for n in window.grads})
        if problems:
            raise StateMismatchError(f"the open accumulation window does not fit: {problems[0]}")
    device = next(iter(like.params.values())).device
    transient: dict[str, Any] = {"accumulators": {}, "metrics": {}, "best": None}
    fixed = placed_like(replace(carry, **transient), replace(like, **transient))
    return replace(
        fixed,
        accumulators=place(carry.accumulators, device),
        metrics=place(carry.metrics, device),
        best=carry.best,
    )


def placed_like(tree: Any, like: Any) -> Any:
    """Return ``tree`` on the devices of ``like``, after checking it against that tree.

    Raises:
        StateMismatchError: if paths, shapes or dtypes differ; the message lists them.
    """
    problems = mismatches(tree, like)
    if problems:
        shown = "\n  ".join(problems[:20])
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise StateMismatchError(
            f"the state does not fit this model in {len(problems)} place(s):\n  {shown}{more}\n"
            "Use the model, the optimizer and the dtypes that the state was made with."
        )
    devices = iter([leaf for _, leaf in leaves_with_paths(like)])

    def placed(leaf: Any) -> Any:
        target = next(devices)
        return leaf.to(target.device) if isinstance(leaf, torch.Tensor) else leaf

    return map_leaves(placed, tree)


def mismatches(tree: Any, like: Any) -> list[str]:
    """Return where ``tree`` differs from ``like`` in paths, shapes and dtypes, a sentence each."""
    have, want = dict(leaves_with_paths(tree)), dict(leaves_with_paths(like))
    problems = []
    for path, expected in want.items():
        if path not in have:
            problems.append(f"{path}: missing; expected {_describe(expected)}")
        elif isinstance(expected, torch.Tensor) or isinstance(have[path], torch.Tensor):
            received = _describe(have[path])
            if received != _describe(expected):
                problems.append(f"{path}: received {received}; expected {_describe(expected)}")
    problems += [f"{path}: unexpected {_describe(have[path])}" for path in have if path not in want]
    return problems


def _describe(leaf: Any) -> str:
    if isinstance(leaf, torch.Tensor):
        return f"{str(leaf.dtype).removeprefix('torch.')}{list(leaf.shape)}"
    return type(leaf).__name__


def _encode(node: Any, path: str, payload: list[Any]) -> _Node:
    if isinstance(node, torch.Tensor):
        return _encode_tensor(node, path, payload)
    if node is None or isinstance(node, (bool, str)):
        return _Plain(node)
    if isinstance(node, bytes):
        return _Bytes(node)
    if type(node) is int:
        return _Number("int", str(node))
    if type(node) is float:
        return _Number("float", struct.pack("<d", node).hex())
    if type(node) is dict:
        if not all(type(key) is str for key in node):
            raise SerialisationError(f"{path or 'the state'}: a dict key is not a string")
        values = [_encode(value, f"{path}/{key}", payload) for key, value in node.items()]
        return _Dict(list(node), values)
    if type(node) in (list, tuple):
        values = [_encode(value, f"{path}/{i}", payload) for i, value in enumerate(node)]
        return _Sequence(type(node).__name__, values)
    if STRUCTS.get(type(node).__name__) is type(node):
        fields = type(node).__struct_fields__
        values = [_encode(getattr(node, name), f"{path}/{name}", payload) for name in fields]
        return _Struct(type(node).__name__, values)
    raise SerialisationError(
        f"{path or 'the state'}: received {type(node).__name__}; expected tensors, numbers, "
        "strings, bytes, None, dicts with string keys, lists, tuples, or "
        f"{', '.join(STRUCTS)}"
    )


def _encode_tensor(tensor: torch.Tensor, path: str, payload: list[Any]) -> _Tensor:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if (
        type(tensor) not in (torch.Tensor, torch.nn.Parameter)
        or tensor.layout != torch.strided
        or tensor.device.type == "meta"
        or dtype not in _DTYPES
    ):
        raise SerialisationError(
            f"{path}: received a {type(tensor).__name__} of {tensor.dtype}, {tensor.layout}, on "
            f"{tensor.device}; expected a plain dense tensor"
        )
    shape, order = list(tensor.shape), None
    if not tensor.is_contiguous():
        strides = tensor.stride()
        by_stride = sorted(range(tensor.ndim), key=lambda d: (-strides[d], -shape[d]))
        # Overlapping tensors and those with gaps have no such order, and are written row-major.
        if tensor.permute(by_stride).is_contiguous():
            tensor, order = tensor.permute(by_stride), by_stride
    payload.append(raw(tensor).numpy().data)
    return _Tensor(dtype, shape, order)


class _Reader:
    """Rebuilds a tree from its header, taking the tensors' bits in order."""

    def __init__(self, payload: memoryview) -> None:
        self.payload = payload
        self.at = 0

    def read(self, node: _Node) -> Any:
        if isinstance(node, (_Plain, _Bytes)):
            return node.value
        if isinstance(node, _Number):
            return self._number(node)
        if isinstance(node, _Tensor):
            return self._tensor(node)
        if isinstance(node, _Dict):
            if len(set(node.keys)) != len(node.keys) or len(node.keys) != len(node.values):
                raise SerialisationError("a dict has a key twice, or keys without values")
            return {k: self.read(v) for k, v in zip(node.keys, node.values, strict=True)}
        if isinstance(node, _Sequence):
            values = [self.read(value) for value in node.values]
            return tuple(values) if node.kind == "tuple" else values
        cls = STRUCTS.get(node.name)
        if cls is None or len(node.values) != len(cls.__struct_fields__):
            raise SerialisationError(
                f"received a {node.name!r} of {len(node.values)} fields, which this helios does "
                f"not know; it knows {', '.join(STRUCTS)}. Update helios."
            )
        return cls(*(self.read(value) for value in node.values))

    @staticmethod
    def _number(node: _Number) -> int | float:
        try:
            if node.kind == "int":
                return int(node.text)
            (value,) = struct.unpack("<d", bytes.fromhex(node.text))
        except (ValueError, struct.error) as error:
            raise SerialisationError(f"{node.text!r} is not a {node.kind}") from error
        return float(value)

    def _tensor(self, node: _Tensor) -> torch.Tensor:
        dtype = _DTYPES.get(node.dtype)
        order = list(range(len(node.shape))) if node.order is None else node.order
        if (
            dtype is None
            or min(node.shape, default=0) < 0
            or sorted(order) != list(range(len(node.shape)))
        ):
            raise SerialisationError(f"not a tensor: {node}")
        size = math.prod(node.shape) * dtype.itemsize
        if size > len(self.payload) - self.at:
            raise SerialisationError(f"a tensor claims {size} bytes, more than are left")
        chunk = bytearray(self.payload[self.at : self.at + size])
        self.at += size
        physical = [node.shape[d] for d in order]
        flat = torch.frombuffer(chunk, dtype=dtype) if size else torch.empty(0, dtype=dtype)
        return flat.reshape(physical).permute([order.index(d) for d in range(len(order))])

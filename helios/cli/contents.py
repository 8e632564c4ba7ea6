"""What is in a checkpoint: its tensors, by what they are for, with their shapes and sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch

from helios.errors import CorruptCheckpointError
from helios.trainer.store.fs import Fs
from helios.trainer.store.manifest import Manifest

_KINDS = {
    "params": "parameters",
    "buffers": "buffers",
    "opt_state": "optimizer state",
    "accumulators": "open accumulation window",
    "scale": "loss scale",
    "average": "average of the parameters",
    "metrics": "running metrics",
}
"""The fields of a `helios.functional.state.Carry` that hold tensors."""

_OTHERS = ("rng", "data", "plugins")


class Leaf(msgspec.Struct, frozen=True):
    """A tensor of a checkpoint.

    Args:
        path: where it is, such as ``net.0.weight``.
        dtype: its dtype, such as ``float32``.
        shape: its shape; the whole one, of a sharded tensor.
        elements: how many elements it has.
        bytes: how many bytes they take.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    elements: int
    bytes: int


class Group(msgspec.Struct, frozen=True):
    """The tensors of a checkpoint that are for one thing.

    Args:
        name: what they are for.
        count: how many they are.
        elements: how many elements they have together.
        bytes: how many bytes those take.
        tensors: each of them.
    """

    name: str
    count: int
    elements: int
    bytes: int
    tensors: tuple[Leaf, ...]


def groups(content: Mapping[str, Any], sharded: Mapping[str, Leaf]) -> list[Group]:
    """Return the tensors of a checkpoint, by what they are for; groups without any are left out.

    Args:
        content: what ``read_checkpoint(..., joined=False)`` returned.
        sharded: the tensors for which markers stand; see `sharded_leaves`.

    Raises:
        CorruptCheckpointError: if a marker names none of them.

    Example:
        >>> net = {"w": torch.zeros(2, 3)}
        >>> carry = {"__struct__": "Carry", "params": net, "buffers": {}}
        >>> [(g.name, g.elements, g.bytes) for g in groups({"carry": carry, "model": net}, {})]
        [('parameters', 6, 24)]
    """
    walk = _Walk(sharded)
    carry, found = content["carry"], []
    if isinstance(carry, dict) and carry.get("__struct__") == "Carry":
        found = [_group(title, walk.leaves(carry.get(kind))) for kind, title in _KINDS.items()]
    else:
        found = [_group("carry", walk.leaves(carry))]
    walk.known = frozenset(walk.seen)  # a state_dict shares its tensors with the carry
    found.append(_group("state_dict beside the carry", walk.leaves(content["model"])))
    walk.known = frozenset()
    found += [_group(name, walk.leaves(content.get(name))) for name in _OTHERS]
    return [group for group in found if group.tensors]


def sharded_leaves(fs: Fs, folder: Path, manifest: Manifest) -> dict[str, Leaf]:
    """Return the tensors that are in the parts of a checkpoint, by name, from its index alone.

    Raises:
        CorruptCheckpointError: if the index is none.
        CheckpointError: if it cannot be read.
    """
    if not manifest.files:
        return {}
    # Imported here: it takes half a second, and hardly any checkpoint has parts.
    from helios.trainer.store.sharded import read_index

    index = read_index(fs, folder, manifest)
    return {
        name: _leaf(name, stored.torch_dtype, stored.shape)
        for name, stored in index.tensors.items()
    }


class _Walk:
    """Finds the tensors of trees, and remembers which it has seen."""

    def __init__(self, sharded: Mapping[str, Leaf]) -> None:
        self.sharded = sharded
        self.seen: set[object] = set()
        self.known: frozenset[object] = frozenset()
        self.mark = None
        if sharded:
            from helios.trainer.store.sharded import MARK

            self.mark = MARK

    def leaves(self, node: Any, path: str = "") -> Iterator[Leaf]:
        if isinstance(node, torch.Tensor):
            yield from self._once(node.data_ptr(), _leaf(path, node.dtype, tuple(node.shape)))
        elif isinstance(node, dict) and self.mark is not None and node.keys() == {self.mark}:
            name = node[self.mark]
            if name not in self.sharded:
                raise CorruptCheckpointError(f"its shards lack {str(name)[:80]!r}")
            yield from self._once(name, msgspec.structs.replace(self.sharded[name], path=path))
        elif isinstance(node, (dict, list, tuple)):
            items = node.items() if isinstance(node, dict) else enumerate(node)
            for key, value in items:
                yield from self.leaves(value, f"{path}/{key}" if path else str(key))

    def _once(self, identity: object, leaf: Leaf) -> Iterator[Leaf]:
        if identity not in self.known:
            self.seen.add(identity)
            yield leaf


def _leaf(path: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Leaf:
    elements = math.prod(shape)
    name = str(dtype).removeprefix("torch.")
    return Leaf(path, name, tuple(shape), elements, elements * dtype.itemsize)


def _group(name: str, found: Iterator[Leaf]) -> Group:
    tensors = tuple(found)
    elements, size = sum(leaf.elements for leaf in tensors), sum(leaf.bytes for leaf in tensors)
    return Group(name, len(tensors), elements, size, tensors)

"""Trees of values: registration, paths, bitwise comparison, copies, digests.

States are trees of msgspec structs, dicts, lists and tuples with tensors and numbers as leaves.
Structs are registered with optree, in the namespace ``"helios"``, and with torch's own pytree, so
that both see through them. The two order dict keys differently (optree sorts them, torch keeps
insertion order) and differ on None: leaves of one are never zipped with leaves of the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import optree
import torch
import torch.utils._pytree as torch_pytree

NAMESPACE = "helios"
UNCOMPARED = frozenset({"average_iter_time"})
"""Fields that hold wall clock: they take no part in a digest."""

S = TypeVar("S", bound=type[msgspec.Struct])


def register_struct(cls: S) -> S:
    """Register a msgspec struct as a tree node whose children are its fields, by name.

    Works as a class decorator. Every field is a child, counters too: a static field would have to
    be equal in every tree of a map over several.
    """
    names = cls.__struct_fields__

    def values(node: Any) -> tuple[Any, ...]:
        return tuple(getattr(node, name) for name in names)

    def build(_: Any, children: Any) -> Any:
        return cls(*children)

    optree.register_pytree_node(
        cls,  # type: ignore[arg-type]
        lambda node: (values(node), None, names),
        build,
        path_entry_type=optree.GetAttrEntry,
        namespace=NAMESPACE,
    )
    torch_pytree.register_pytree_node(
        cls,
        lambda node: (list(values(node)), None),
        lambda children, _: cls(*children),
        serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        flatten_with_keys_fn=lambda node: (
            [(torch_pytree.GetAttrKey(n), v) for n, v in zip(names, values(node), strict=True)],
            None,
        ),
    )
    return cls


def leaves(tree: Any) -> list[Any]:
    """Return the leaves of a tree; None counts as one."""
    return optree.tree_leaves(tree, none_is_leaf=True, namespace=NAMESPACE)


def leaves_with_paths(tree: Any) -> list[tuple[str, Any]]:
    """Return ``(path, leaf)`` for every leaf of a tree, such as ``("params/net.0.weight", w)``."""
    paths, values, _ = optree.tree_flatten_with_path(tree, none_is_leaf=True, namespace=NAMESPACE)
    return [("/".join(map(str, path)), leaf) for path, leaf in zip(paths, values, strict=True)]


def flatten(tree: Any) -> tuple[list[Any], optree.PyTreeSpec]:
    """Return the leaves of a tree, and its structure for `unflatten`; None counts as a leaf."""
    return optree.tree_flatten(tree, none_is_leaf=True, namespace=NAMESPACE)


def unflatten(structure: optree.PyTreeSpec, values: list[Any]) -> Any:
    """Return a tree of the given structure with the given leaves."""
    return optree.tree_unflatten(structure, values)


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return a tree of the same structure with ``function`` applied to every leaf."""
    return optree.tree_map(function, tree, none_is_leaf=True, namespace=NAMESPACE)


def clone(tree: Any) -> Any:
    """Copy a tree: fresh containers, fresh storage for every tensor, the same bits and strides."""
    return map_leaves(lambda x: x.detach().clone() if isinstance(x, torch.Tensor) else x, tree)


def place(tree: Any, device: torch.device) -> Any:
    """Return a tree with every tensor on ``device``."""
    return map_leaves(lambda x: x.to(device) if isinstance(x, torch.Tensor) else x, tree)


def raw(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bits of a dense tensor as ``u8[nbytes]`` on the CPU, in row-major order."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    # A dimension of size 1 may have any stride, which a view as bytes would stumble over.
    return plain.as_strided((plain.numel(),), (1,)).view(torch.uint8)


def same_bits(a: Any, b: Any) -> bool:
    """Tell whether two leaves are the same value, tensors and floats bit for bit.

    NaN equals NaN of the same payload, and ``-0.0`` differs from ``0.0``.
    """
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
            return False
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        return bool(torch.equal(raw(a), raw(b)))
    if isinstance(a, float) and isinstance(b, float):
        return a.hex() == b.hex() and (a == b or (a != a and b != b))
    return type(a) is type(b) and bool(a == b)


def first_difference(a: Any, b: Any) -> str | None:
    """Return the path of the first leaf in which two trees differ, or None if they are equal.

    A path that only one of the trees has is a difference. It never raises on tensors.

    Example:
        >>> first_difference({"w": torch.zeros(2)}, {"w": torch.tensor([0.0, -0.0])})
        'w'
    """
    left, right = leaves_with_paths(a), leaves_with_paths(b)
    for (path_a, leaf_a), (path_b, leaf_b) in zip(left, right, strict=False):
        if path_a != path_b:
            return min(path_a, path_b)
        if not same_bits(leaf_a, leaf_b):
            return path_a
    if len(left) != len(right):
        return max(left, right, key=len)[min(len(left), len(right))][0]
    return None


def digest(tree: Any) -> str:
    """Return a hash of a tree's structure and bits, as 32 hexadecimal digits.

    Wall-clock fields take no part, so a replayed state has the digest of the original.

    Example:
        >>> digest({"w": torch.zeros(2)}) == digest({"w": torch.zeros(2)})
        True
        >>> digest({"w": torch.zeros(2)}) == digest({"w": torch.zeros(2, dtype=torch.float64)})
        False
    """
    hasher = hashlib.blake2b(digest_size=16)
    for path, leaf in leaves_with_paths(tree):
        if path.rsplit("/", 1)[-1] in UNCOMPARED:
            continue
        hasher.update(path.encode() + b"\0")
        if isinstance(leaf, torch.Tensor):
            hasher.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
            hasher.update(raw(leaf).numpy().data)
        elif isinstance(leaf, float):
            hasher.update(b"float" + leaf.hex().encode())
        elif leaf is None or isinstance(leaf, (bool, int, str, bytes)):
            hasher.update(f"{type(leaf).__name__}{leaf!r}".encode())
        else:
            raise TypeError(
                f"digest: received {type(leaf).__name__} at {path!r}; expected tensors, numbers, "
                "strings, bytes or None as leaves (a state given to a donated step has none left)"
            )
        hasher.update(b"\0")
    return hasher.hexdigest()

"""Moving batches, of whatever structure, to a device."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import msgspec
import torch
import torch.utils._pytree as torch_pytree


def move_to_device(batch: Any, device: torch.device | str, non_blocking: bool = True) -> Any:
    """Move every tensor of a batch to a device.

    It sees through dicts and other mappings, lists, tuples, named tuples, dataclasses, msgspec
    structs, nodes registered with torch's pytree, and calls ``.to`` on whatever else has it. The
    type of every container is kept; a container in which nothing had to move is not copied.

    Args:
        batch: tensors in any structure. What is no tensor, and has no ``.to``, stays as it is.
        device: the target.
        non_blocking: let copies from page-locked memory to a device run in the background. Copies
            to the CPU always wait: the memory could be read before it is written.

    Returns:
        The batch on the device, which is ``batch`` itself if all of it is there already.

    Example:
        >>> batch = {"x": torch.zeros(2), "name": "a"}
        >>> move_to_device(batch, "cpu") is batch
        True
    """
    target = torch.device(device)
    non_blocking = non_blocking and target.type != "cpu"
    return each_tensor(
        batch,
        lambda tensor: tensor.to(target, non_blocking=non_blocking),
        lambda part: sent(part, target, non_blocking),
    )


def mover(device: torch.device | str) -> Callable[[Any], Any]:
    """Return the function that moves a batch to ``device``.

    For the CPU, where loaders put their batches, it is the identity: a loop that runs there does
    not walk its batches.
    """
    target = torch.device(device)
    if target.type == "cpu":
        return as_it_is
    return functools.partial(move_to_device, device=target)


def pinned(batch: Any) -> Any:
    """Copy every tensor of a batch that is on the CPU to page-locked memory.

    Copies from there to a device run in the background. It needs an accelerator.
    """
    return each_tensor(batch, pinned_tensor, as_it_is)


def pinned_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor to page-locked memory, if it is on the CPU and not there yet."""
    return tensor.pin_memory() if tensor.device.type == "cpu" else tensor


def sent(part: Any, device: torch.device, non_blocking: bool) -> Any:
    """Move what is no tensor, but has a ``.to``, to a device."""
    kind: Any = type(part)
    keyword = {"non_blocking": non_blocking} if _takes_non_blocking(kind) else {}
    return part.to(device, **keyword)


def as_it_is(batch: Any) -> Any:
    """Return a batch, or a part of one, unchanged."""
    return batch


def each_tensor(
    batch: Any, leaf: Callable[[torch.Tensor], Any], other: Callable[[Any], Any]
) -> Any:
    """Apply a function to every tensor of a batch, and keep its structure.

    Args:
        batch: tensors in any structure; see `move_to_device`.
        leaf: what is done with a tensor.
        other: what is done with anything else that has a ``.to``.

    Returns:
        ``batch`` itself if nothing in it was replaced.
    """
    if isinstance(batch, torch.Tensor):
        return leaf(batch)
    if batch is None or isinstance(batch, (str, bytes, int, float, complex)):
        return batch

    def move(part: Any) -> Any:
        return each_tensor(part, leaf, other)

    if callable(getattr(batch, "to", None)) and not isinstance(batch, type):
        return other(batch)
    if isinstance(batch, Mapping):
        return _move_mapping(batch, move)
    if isinstance(batch, msgspec.Struct):
        return _move_fields(batch, batch.__struct_fields__, move, msgspec.structs.force_setattr)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        names = tuple(field.name for field in dataclasses.fields(batch))
        return _move_fields(batch, names, move, object.__setattr__)
    if isinstance(batch, (list, tuple)):
        return _move_sequence(batch, move)
    if type(batch) in torch_pytree.SUPPORTED_NODES:
        leaves, structure = torch_pytree.tree_flatten(batch)
        moved = [move(leaf) for leaf in leaves]
        return batch if _same(leaves, moved) else torch_pytree.tree_unflatten(moved, structure)
    return batch


def _move_mapping(batch: Mapping[Any, Any], move: Callable[[Any], Any]) -> Any:
    moved = {key: move(value) for key, value in batch.items()}
    if _same(list(batch.values()), list(moved.values())):
        return batch
    if type(batch) is dict:
        return moved
    if not isinstance(batch, MutableMapping):
        return type(batch)(moved)  # type: ignore[call-arg]
    result = copy.copy(batch)  # keeps a default factory, an order, attributes
    for key, value in moved.items():
        result[key] = value
    return result


def _move_sequence(batch: Any, move: Callable[[Any], Any]) -> Any:
    moved = [move(part) for part in batch]
    if _same(batch, moved):
        return batch
    if hasattr(batch, "_fields"):
        return type(batch)(*moved)
    if type(batch) is list:
        return moved
    if isinstance(batch, list):
        result = copy.copy(batch)
        result[:] = moved
        return result
    return type(batch)(moved)


def _move_fields(
    batch: Any,
    names: tuple[str, ...],
    move: Callable[[Any], Any],
    assign: Callable[[Any, str, Any], None],
) -> Any:
    # Copied and assigned, not built anew: a constructor may have other arguments than fields.
    present = {name: getattr(batch, name) for name in names if hasattr(batch, name)}
    moved = {name: move(value) for name, value in present.items()}
    if _same(list(present.values()), list(moved.values())):
        return batch
    result = copy.copy(batch)
    for name, value in moved.items():
        assign(result, name, value)
    return result


def _same(parts: Any, moved: list[Any]) -> bool:
    return all(a is b for a, b in zip(parts, moved, strict=True))


@functools.cache
def _takes_non_blocking(kind: type) -> bool:
    try:
        parameters = inspect.signature(kind.to).parameters.values()  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        return False
    return any(p.name == "non_blocking" or p.kind is p.VAR_KEYWORD for p in parameters)

"""What a checkpoint file must be before ``torch.load``, and what must come out of it.

A digest shows that a file is the one that was written, not who wrote it: a hostile file may come
with a digest of its own. `check_archive` decides on the bytes, before torch sees any of them, and
`check_content` on the tree that torch made. Both name what is accepted, so that what they do not
know is refused.

Law:
    Whatever `check_content` accepts, ``torch.save`` writes as a file that `check_archive` accepts,
    and ``torch.load`` reads back bit for bit (``property_tests/test_archive.py``). Only the file
    shows whether it is within the bounds on records and instructions: a writer that checks what it
    wrote, before it gives it its name, never leaves a checkpoint that cannot be read.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import IO, Any

import torch

from helios.trainer.store.archive import scan_archive
from helios.trainer.store.pickles import check_pickle
from helios.trainer.store.symbols import (
    MAX_DEPTH,
    MAX_INT_BITS,
    MAX_INT_KEY,
    MAX_VALUES,
    refused,
    shown,
)
from helios.trainer.store.tensors import DTYPES, MAX_DIMS, is_dense


def check_archive(file: IO[bytes], size: int) -> None:
    """Check a file before ``torch.load`` opens it, without running or building what it holds.

    It is one archive as ``torch.save`` writes it, with nothing before, between or after its
    records, and with one pickle that makes nothing but builtin types and tensors that own the whole
    of their memory.

    Args:
        file: a regular file, open for reading; it is left at its beginning.
        size: its size in bytes.

    Raises:
        CorruptCheckpointError: if it is anything else, or beyond a bound; the message is one line,
            to be put after the name of the file.
        OSError: if the disk fails.
    """
    archive = scan_archive(file, size)
    check_pickle(archive.pickle, archive.storages)
    file.seek(0)


def check_content(content: object, size: int) -> None:
    """Check the tree that came out of a file, or one that is to go into a file.

    Accepted are dicts with strings or integers for keys, lists, tuples, strings, bytes, numbers,
    None, and tensors on the CPU that own the whole of their memory.

    Args:
        content: the tree.
        size: how many bytes its tensors and strings may have together; those of the file.

    Raises:
        CorruptCheckpointError: if the tree holds anything else, or is beyond a bound; the message
            is one line, to be put after the name of the file.
    """
    values = 0
    seen: dict[int, torch.dtype | None] = {}
    pending: list[tuple[Any, int]] = [(content, 0)]
    while pending:
        node, depth = pending.pop()
        values += 1
        if values > MAX_VALUES:
            raise refused(f"it has more than {MAX_VALUES} values")
        children = _children(node)
        if children is not None:
            if depth >= MAX_DEPTH:
                raise refused(f"it is nested more than {MAX_DEPTH} deep")
            pending.extend((child, depth + 1) for child in children)
            continue
        owner, payload = _leaf(node)
        dtype = node.dtype if isinstance(node, torch.Tensor) else None
        if payload and owner not in seen:
            seen[owner] = dtype
            size -= payload
        if size < 0:
            raise refused("its tensors and strings are larger than the file")
        if payload and seen[owner] is not dtype:
            raise refused(f"it holds the same memory as {dtype} and as {seen[owner]}")


def _children(node: Any) -> list[Any] | None:
    """Return what is in a container, None if it is not one."""
    kind = type(node)
    if kind is list or kind is tuple:
        return list(node)
    if kind is not dict and kind is not OrderedDict:
        return None
    for key in node:
        if type(key) is not str and not (type(key) is int and abs(key) < MAX_INT_KEY):
            raise refused(f"a dict has the key {_typed(key)}; expected a string or an integer")
    children = [*node, *node.values()]
    if kind is OrderedDict and vars(node):
        if vars(node).keys() != {"_metadata"}:
            raise refused("an OrderedDict has attributes")
        children.append(vars(node))  # as the pickle has it, a dict of one key
    return children


def _leaf(node: Any) -> tuple[int, int]:
    """Check a value without parts; return what tells its memory from another's, and its bytes."""
    kind = type(node)
    if kind is str:
        return id(node), len(node)
    if kind is bytes:
        if not node:
            raise refused("it holds empty bytes, which torch.load(weights_only=True) does not read")
        return id(node), len(node)
    if kind is int:
        if node.bit_length() >= MAX_INT_BITS:
            raise refused(f"it holds an integer of {node.bit_length()} bits")
        return id(node), 0
    if kind is torch.Tensor or kind is torch.nn.Parameter:
        return _tensor(node)
    if node is not None and kind not in (bool, float, complex):
        raise refused(f"it holds {_typed(node)}, not a builtin type or a tensor")
    return id(node), 0


def _tensor(tensor: torch.Tensor) -> tuple[int, int]:
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided or tensor.is_nested:
        raise refused(f"it holds a tensor of {tensor.layout} on {tensor.device}")
    if tensor.dtype not in DTYPES:
        raise refused(f"it holds a tensor of {tensor.dtype}")
    if vars(tensor) or tensor._backward_hooks or tensor.is_conj() or tensor.is_neg():
        raise refused("it holds a tensor with attributes, hooks, or bits that are yet to be turned")
    storage = tensor.untyped_storage()
    numel, rest = divmod(storage.nbytes(), tensor.dtype.itemsize)
    dense = is_dense(tuple(tensor.shape), tensor.stride(), numel)
    if rest or not dense or tensor.storage_offset() or tensor.ndim > MAX_DIMS:
        raise refused(
            f"a tensor of shape {shown(tuple(tensor.shape))} and strides {shown(tensor.stride())} "
            f"is not the whole of its storage of {numel} elements, each once"
        )
    return storage.data_ptr(), storage.nbytes()


def _typed(value: object) -> str:
    return f"a {type(value).__name__}"

"""The calls by which a pickle makes tensors, bytes and the like, checked and not made."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from helios.trainer.store.symbols import (
    A_COMPLEX,
    A_PARAMETER,
    BYTES,
    COMPLEX,
    DTYPE_NAMES,
    ENCODE,
    FLOATS,
    INTEGERS,
    ORDERED_DICT,
    PARAMETER,
    STORAGES,
    TENSOR,
    TENSOR_OF_DTYPE,
    Container,
    Global,
    Leaf,
    Storage,
    Tuple,
    described,
    refused,
    shown,
)
from helios.trainer.store.tensors import MAX_DIMS, is_dense

_LOCATION = re.compile(r"(?!meta)[a-z]{1,16}(:[0-9]{1,4})?")  # torch loads all onto the CPU


class Rebuild:
    """Checks what a pickle calls, and which storages it uses.

    Args:
        storages: the size in bytes of every record ``data/<key>``, by its key.
        budget: how many bytes the pickle itself has.
    """

    def __init__(self, storages: Mapping[str, int], budget: int) -> None:
        self._storages = storages
        self._budget = budget
        self._dtypes: dict[str, torch.dtype] = {}

    def check_all_used(self) -> None:
        """Refuse a storage that no tensor has."""
        unused = self._storages.keys() - self._dtypes.keys()
        if unused:
            raise refused(f"no tensor has the storage {shown(min(unused))}")

    def storage(self, identity: Any) -> Storage:
        """Take the identity of a storage, and compare it with the record."""
        items = identity.items if type(identity) is Tuple else ()
        if [type(item) for item in items] != [str, Global, str, str, int]:
            raise refused(f"it takes {described(identity)} for a storage")
        tag, cls, key, location, numel = items
        if tag != "storage" or cls not in STORAGES:
            raise refused(f"it takes a {shown(tag)} of {described(cls)} for a storage")
        if not _LOCATION.fullmatch(location):
            raise refused(f"the storage {shown(key)} is on the device {shown(location)}")
        if key not in self._storages:
            raise refused(f"it lacks the record of the storage {shown(key)}")
        size = numel * (1 if cls.dtype is None else cls.dtype.itemsize)
        if numel < 0 or size != self._storages[key]:
            raise refused(
                f"the storage {shown(key)} has {shown(size)} bytes by the pickle and "
                f"{self._storages[key]} in the archive"
            )
        return Storage(key, cls.dtype, size)

    def call(self, function: Any, arguments: Any) -> Any:
        """Return what a call would make."""
        if type(function) is not Global or type(arguments) is not Tuple:
            raise refused(f"it calls {described(function)}")
        items = arguments.items
        kinds = [type(item) for item in items]
        if function is ORDERED_DICT and not items:
            return Container("OrderedDict")
        if function is COMPLEX and kinds == [float, float]:
            return A_COMPLEX
        if function is ENCODE and kinds == [str, str]:
            return self._bytes(*items)
        if function is PARAMETER and len(items) == 3 and items[0] in (FLOATS, INTEGERS):
            _check_flags(*items[1:], items[0])
            return A_PARAMETER
        if function is TENSOR and len(items) == 6:
            return self._tensor(None, *items)
        if function is TENSOR_OF_DTYPE and len(items) == 7 and items[6] in DTYPE_NAMES:
            return self._tensor(items[6].dtype, *items[:6])
        raise refused(f"it calls {function.name} with arguments that torch.save does not write")

    def _bytes(self, text: str, codec: str) -> Leaf:
        """Take bytes, which are written as the string with the same numbers.

        The budget: one long string could be made into bytes any number of times. The codec: python
        imports the module of any other. ``torch.save`` writes empty bytes in a way of their own,
        which ``weights_only`` does not read.
        """
        self._budget -= len(text)
        if codec != "latin1" or not text or self._budget < 0 or max(text) > "\xff":
            raise refused("it encodes a string as torch.save does not")
        return BYTES

    def _tensor(
        self,
        dtype: torch.dtype | None,
        storage: Any,
        offset: Any,
        size: Any,
        stride: Any,
        requires_grad: Any,
        hooks: Any,
    ) -> Leaf:
        """Take a tensor that is its storage, no more and no less."""
        if type(storage) is not Storage or (storage.dtype is None) == (dtype is None):
            raise refused(f"a tensor has {described(storage)} for a storage, or another dtype")
        dtype = dtype or storage.dtype
        assert dtype is not None
        sizes, strides = _axes(size), _axes(stride)
        if len(sizes) != len(strides) or type(offset) is not int or offset != 0:
            raise refused("a tensor does not begin where its storage does, or lacks strides")
        if math.prod(n or 1 for n in sizes) >= 2**63:  # torch multiplies in 64 bits, by 0 last too
            raise refused(f"a tensor has the shape {shown(sizes)}")
        numel, rest = divmod(storage.size, dtype.itemsize)
        if rest or not is_dense(sizes, strides, numel):
            raise refused(
                f"a tensor of shape {shown(sizes)} and strides {shown(strides)} is not the whole "
                f"of its storage of {numel} elements, each once"
            )
        kind = FLOATS if dtype.is_floating_point or dtype.is_complex else INTEGERS
        _check_flags(requires_grad, hooks, kind)
        if self._dtypes.setdefault(storage.key, dtype) is not dtype:
            raise refused(f"the storage {shown(storage.key)} has two dtypes")
        return kind


def _check_flags(requires_grad: Any, hooks: Any, tensor: Leaf) -> None:
    if type(requires_grad) is not bool or (requires_grad and tensor is INTEGERS):
        raise refused(f"a {tensor.kind} has {described(requires_grad)} for requires_grad")
    if type(hooks) is not Container or hooks.kind != "OrderedDict" or hooks.values != 1:
        raise refused("a tensor has hooks")


def _axes(value: Any) -> tuple[int, ...]:
    items = value.items if type(value) is Tuple else (None,)
    if len(items) > MAX_DIMS or any(type(n) is not int or not 0 <= n < 2**63 for n in items):
        raise refused(f"a tensor has {described(value)} for a shape or strides")
    return items

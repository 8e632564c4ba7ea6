"""What users return as a ``state_dict``, as builtin types and tensors that can be loaded again."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from typing import Any

import torch

_DICTS = (dict, OrderedDict, defaultdict, Counter)
_LEAVES = (bool, int, float, complex, str, bytes, type(None), torch.Tensor, torch.nn.Parameter)


def as_plain(value: Any, path: str) -> Any:
    """Return a tree with its dicts as plain ones.

    Args:
        value: the tree; tensors are taken as they are, without their graph.
        path: where it is, for errors.

    Raises:
        TypeError: naming the place of what could be saved but not be loaded again: a number of
            numpy, or an object of another class.

    Example:
        >>> as_plain(OrderedDict(a=[1, (2.0, None)]), "state")
        {'a': [1, (2.0, None)]}
    """
    kind = type(value)
    if kind in _DICTS:
        for key in value:
            if type(key) not in (str, int):
                raise TypeError(
                    f"{path}: received the key {key!r} ({type(key).__name__}); expected strings or "
                    "integers as keys"
                )
        return {key: as_plain(part, f"{path}[{key!r}]") for key, part in value.items()}
    if kind in (list, tuple):
        return kind(as_plain(part, f"{path}[{i}]") for i, part in enumerate(value))
    if kind not in _LEAVES:
        raise TypeError(
            f"{path}: received a {kind.__name__}, which could be saved but not be loaded again; "
            "expected tensors, numbers, strings, bytes, None, and dicts, lists or tuples of them. "
            "Convert it, for numpy with .item() or torch.from_numpy(), or leave it out and make it "
            "anew in setup()."
        )
    return value.detach() if isinstance(value, torch.Tensor) else value

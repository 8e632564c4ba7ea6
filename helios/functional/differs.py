"""What differs between members that are computed as one, and must not be looked at."""

from __future__ import annotations

import types
from typing import Any, NoReturn

import torch

from helios.errors import ModelError
from helios.functional.tree import same_bits


class Differs:
    """Stands for an attribute that is not the same in all members; any use of it raises.

    Args:
        path: the attribute, such as ``"self.smoothing"``.
        values: what two of the members have there.
    """

    def __init__(self, path: str, values: tuple[Any, Any]) -> None:
        object.__setattr__(self, "_says", f"{path} is {values[0]!r} in one and {values[1]!r}")

    def _raise(self, *_: Any, **__: Any) -> NoReturn:
        raise ModelError(
            f"{object.__getattribute__(self, '_says')} in another member: the loss of all members "
            "is computed at once, and may read only what all have in common. Give them the same "
            "value, or train them one by one"
        )

    def __getattr__(self, name: str) -> Any:
        self._raise()

    def __repr__(self) -> str:
        return f"<{object.__getattribute__(self, '_says')} in another member>"

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = _raise
    __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = _raise
    __matmul__ = __rmatmul__ = __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = _raise
    __neg__ = __pos__ = __abs__ = __invert__ = __bool__ = __int__ = __float__ = __index__ = _raise
    __lt__ = __le__ = __gt__ = __ge__ = __len__ = __iter__ = __getitem__ = __contains__ = _raise
    __setattr__ = __call__ = __enter__ = __exit__ = __str__ = __format__ = _raise
    __eq__ = __ne__ = _raise
    __hash__ = object.__hash__


_DEPTH = 6


def alike(a: Any, b: Any, depth: int = _DEPTH) -> bool:
    """Tell whether two values are surely the same; of what cannot be compared, they are not.

    Functions are the same if their code, defaults and closures are; objects, if their classes and
    attributes are.

    Example:
        >>> alike([1, {"a": 2.0}], [1, {"a": 2.0}]), alike(lambda: 1, lambda: 2)
        (True, False)
    """
    if a is b:
        return True
    if type(a) is not type(b) or depth == 0:
        return False
    if isinstance(a, (bool, int, float, complex, str, bytes, torch.Tensor)):
        return same_bits(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(alike(a[key], b[key], depth - 1) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(alike, a, b, [depth - 1] * len(a)))
    if isinstance(a, types.FunctionType):
        return a.__code__ == b.__code__ and all(
            alike(getattr(a, name), getattr(b, name), depth - 1)
            for name in ("__defaults__", "__kwdefaults__", "__closure__")
        )
    if isinstance(a, types.CellType):
        return alike(a.cell_contents, b.cell_contents, depth - 1)
    if isinstance(a, types.MethodType):
        return a.__func__ is b.__func__  # of members, which are compared by themselves
    try:
        compares: Any = type(a).__eq__
        if compares is not object.__eq__:
            return bool(a == b)
        return bool(vars(a)) and alike(vars(a), vars(b), depth - 1)
    except Exception:
        return False

"""Plain values checked against annotations: what a file can hold, and no more."""

from __future__ import annotations

import collections.abc
import types
import typing
from typing import Any, Literal, Union

import msgspec

from helios.errors import ConfigError

_SCALARS = (bool, int, float, str, type(None), Any)
_OF_SEQUENCES = (list, tuple, collections.abc.Sequence, collections.abc.Iterable)
_OF_MAPPINGS = (dict, collections.abc.Mapping)


def as_plain(value: Any, annotation: Any, path: str) -> Any:
    """Return a value as an annotation wants it: a list as a tuple, an int as a float.

    Of a union, only members that a file can hold count; an annotation without one is not checked.

    Args:
        value: of a file.
        annotation: of an argument.
        path: where the value stands, for the error.

    Raises:
        ConfigError: if the value has another type.

    Example:
        >>> as_plain([1, 0.9], tuple[float, float], "betas")
        (1.0, 0.9)
        >>> as_plain("fast", Literal["slow", "safe"], "mode")
        Traceback (most recent call last):
        helios.errors.ConfigError: mode: received 'fast'; expected 'slow' or 'safe'
    """
    kind = _plain(annotation)
    if kind is None:
        return value
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        inner = str(error).rpartition(" - at `$")[2].rstrip("`") if " - at `$" in str(error) else ""
        raise ConfigError(f"{path}{inner}: received {value!r}; expected {_said(kind)}") from None


def _plain(annotation: Any) -> Any:
    """Return the part of an annotation that a file can hold, None if there is none."""
    if annotation is None:
        return type(None)
    if isinstance(annotation, str) or annotation in (typing.Callable, collections.abc.Callable):
        return None
    if any(annotation is scalar for scalar in _SCALARS):
        return annotation
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return annotation if len({type(arg) for arg in args} & {str, int, type(None)}) else None
    if origin in (Union, types.UnionType):
        parts = [part for part in map(_plain, args) if part is not None]
        return Union[tuple(parts)] if parts else None  # noqa: UP007 - a union made of a list
    kind = origin or annotation
    if kind not in (*_OF_SEQUENCES, *_OF_MAPPINGS):
        return None
    if not args:
        return dict if kind in _OF_MAPPINGS else (tuple if kind is tuple else list)
    inner: list[Any] = [arg if arg is ... else _plain(arg) or Any for arg in args]
    if kind in _OF_MAPPINGS:
        return dict[inner[0], inner[1]]  # type: ignore[valid-type]
    return tuple[tuple(inner)] if kind is tuple else list[inner[0]]  # type: ignore[misc, valid-type]


def _said(kind: Any) -> str:
    if kind is type(None):
        return "nothing"
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin in (Union, types.UnionType):
        return " or ".join(map(_said, args))
    return getattr(kind, "__name__", str(kind)) if not args else str(kind)

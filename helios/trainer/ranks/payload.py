"""What is sent to a rank that is spawned: a function and its arguments, pickled."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator
from typing import Any

_OF_MODULES = re.compile(r"\._(?:modules|parameters|buffers)\['([^']+)'\]")


def pack(work: Callable[..., Any], args: tuple[Any, ...]) -> bytes:
    """Pickle a function and its arguments.

    Args:
        work: the function.
        args: its arguments. Tensors are copied, not shared: every rank has its own.

    Raises:
        TypeError: if something cannot be pickled; the message says where it is.
    """
    try:
        return pickle.dumps((work, args), pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # pickling calls methods of the user's
        raise TypeError(_advice(work, args, error)) from error


def _advice(work: Callable[..., Any], args: tuple[Any, ...], error: Exception) -> str:
    roots = [("the function", work), *((type(arg).__name__, arg) for arg in args)]
    for name, value in roots:
        if _problem(value) is not None:
            path, value = _culprit(name, value, set())
            error = _problem(value) or error
            path = _OF_MODULES.sub(r".\1", path)
            break
    else:
        path, value = "args", args
    return (
        f"{path}: received {_shown(value)}, which cannot be sent to the processes of the ranks "
        f"({type(error).__name__}: {error}); expected what pickle takes, such as a function or a "
        "class at the top level of a module, not a lambda, not one within a function, and no open "
        "file, lock or generator. Define it in a module, or make it later, in setup; or start the "
        "script with torchrun, which sends nothing."
    )


def _problem(value: Any) -> Exception | None:
    try:
        pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        return error
    return None


def _culprit(path: str, value: Any, seen: set[int]) -> tuple[str, Any]:
    """Return the innermost part that cannot be pickled, and where it is."""
    seen.add(id(value))
    for name, part in _parts(value):
        if id(part) not in seen and _problem(part) is not None:
            return _culprit(path + name, part, seen)
    return path, value


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    elif isinstance(value, set | frozenset):
        yield from (("", part) for part in value)
    elif not isinstance(value, type):
        yield from _attributes(value)


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    try:
        reduced = value.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
    except Exception:
        return
    if isinstance(reduced, str):
        return
    state = reduced[2] if len(reduced) > 2 else None
    for some in state if isinstance(state, tuple) else (state,):
        if isinstance(some, dict):
            yield from ((f".{name}", part) for name, part in some.items())


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        text = f"an object of {type(value).__qualname__}"
    return text if len(text) <= 200 else f"{text[:200]}..."

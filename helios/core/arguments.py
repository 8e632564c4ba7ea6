"""Arguments by name, checked against what a class or a function takes before it is called."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any


def check_arguments(
    where: str, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Check that a class or a function can be called with some arguments.

    What has no signature that Python can read is not checked.

    Args:
        where: what is called, for the error.
        function: the class or the function.
        args: the positional arguments.
        kwargs: the keyword arguments.

    Raises:
        TypeError: if an argument is unknown, missing, or given twice; the message lists those that
            there are.

    Example:
        >>> check_arguments("'power'", lambda base, exponent: 0, (2,), {"exponnt": 3})
        Traceback (most recent call last):
        TypeError: 'power': received the unknown argument 'exponnt'; expected some of base, exponent. Did you mean 'exponent'?
    """  # noqa: E501 - a message stands on one line
    taken = signature_of(function)
    if taken is None:
        return
    unknown = unknown_keys(taken, kwargs)
    if unknown:
        name = unknown[0]
        raise TypeError(f"{where}: received the unknown argument {name!r}; {choices(name, taken)}")
    try:
        taken.bind(*args, **kwargs)
    except TypeError as error:
        known = ", ".join(names_of(taken)) or "none"
        raise TypeError(f"{where}: {error}; it takes: {known}") from None


def signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    """Return the signature with annotations that are types where they can be, None if none."""
    try:
        return inspect.signature(function, eval_str=True)
    except (NameError, AttributeError, TypeError, SyntaxError):
        pass  # an annotation names what is imported for the type checker alone
    except ValueError:
        return None
    try:
        return inspect.signature(function)
    except (ValueError, TypeError):
        return None


def names_of(signature: inspect.Signature) -> list[str]:
    """Return the names that may be given as keywords."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in signature.parameters.values() if p.kind in kinds]


def unknown_keys(signature: inspect.Signature, keys: Iterable[str]) -> list[str]:
    """Return the keys that are no argument; none are where any keyword is taken."""
    if any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        return []
    known = set(names_of(signature))
    return [key for key in keys if key not in known]


def choices(received: str, known: inspect.Signature | Iterable[str]) -> str:
    """Say what was expected in the place of a name, and which of it was meant, if one is close.

    Example:
        >>> choices("lrr", ["lr", "betas"])
        "expected some of lr, betas. Did you mean 'lr'?"
    """
    names = names_of(known) if isinstance(known, inspect.Signature) else list(known)
    if not names:
        return "expected none"
    close = closest(received, names)
    hint = f". Did you mean {close!r}?" if close else ""
    return f"expected some of {', '.join(names)}{hint}"


def closest(received: Any, names: Iterable[str]) -> str | None:
    """Return the name that was meant, None if none is close; one in other letter case is.

    Example:
        >>> closest("adamw", ["Adam", "AdamW"])
        'AdamW'
    """
    known = list(names)
    alike = [name for name in known if name.lower() == str(received).lower()]
    close = alike or difflib.get_close_matches(str(received), known, n=1)
    return close[0] if close else None

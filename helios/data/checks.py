"""Checks of arguments: an error names the argument, what was received and what was expected."""

from __future__ import annotations

from typing import Any

from helios.errors import DataError


def check_integer(name: str, value: Any, *, at_least: int | None = None) -> None:
    """Check that ``value`` is an int, which a bool is not here, and not below a bound.

    Raises:
        TypeError: if it is not an int.
        ValueError: if it is below ``at_least``.
    """
    expected = "an int" if at_least is None else f"an int of at least {at_least}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: received {value!r} ({type(value).__name__}); expected {expected}")
    if at_least is not None and value < at_least:
        raise ValueError(f"{name}: received {value}; expected {expected}")


def check_flag(name: str, value: Any) -> None:
    """Check that ``value`` is True or False.

    Raises:
        TypeError: if it is neither.
    """
    if not isinstance(value, bool):
        raise TypeError(
            f"{name}: received {value!r} ({type(value).__name__}); expected True or False"
        )


def length_of(dataset: Any, user: str) -> int:
    """Return ``len(dataset)``.

    Raises:
        DataError: if it has none; the message says that ``user`` needs it.
    """
    try:
        return len(dataset)
    except (TypeError, NotImplementedError) as error:
        raise DataError(
            f"{user}: the dataset, a {type(dataset).__name__}, has no length; give its class a "
            "__len__, or derive it from torch.utils.data.IterableDataset if it is a stream"
        ) from error

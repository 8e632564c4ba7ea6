"""Small tools for user code, and the names of their larger neighbours."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from helios.core.environment import get_env_info_str as get_env_info_str
from helios.core.registry import Registry as Registry
from helios.core.safe_load import safe_torch_load as safe_torch_load
from helios.core.scan import update_all_registries as update_all_registries
from helios.core.timing import AverageTimer as AverageTimer

T = TypeVar("T")


class ChdirContext:
    """Change the working directory for a block, and put it back afterwards.

    It can be entered again, also inside of its own block.

    Args:
        target_path: the folder to change to.

    Example:
        >>> with ChdirContext(Path("/")) as previous:
        ...     Path.cwd() == Path("/")
        True
        >>> Path.cwd() == previous
        True
    """

    def __init__(self, target_path: str | os.PathLike[str]) -> None:
        self._target = target_path
        self._previous: list[Path] = []

    def __enter__(self) -> Path:
        """Change the working directory and return the one before it."""
        previous = Path.cwd()
        os.chdir(self._target)
        self._previous.append(previous)
        return previous

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        exc_traceback: TracebackType | None,
    ) -> None:
        os.chdir(self._previous.pop())


def convert_to_list(value: T | list[T] | tuple[T, ...]) -> list[T]:
    """Return a list as it is, a tuple as a list, and anything else as a list of one.

    Example:
        >>> convert_to_list("abc"), convert_to_list((1, 2))
        (['abc'], [1, 2])
    """
    if isinstance(value, list):
        return value
    return list(value) if isinstance(value, tuple) else [value]


def get_from_optional(value: T | None, msg: str | None = None) -> T:
    """Return ``value``, which must not be None.

    Args:
        value: what was set, if all went well.
        msg: (optional) the message of the error: what is missing, and what sets it.

    Raises:
        ValueError: if ``value`` is None.

    Example:
        >>> get_from_optional(0)
        0
    """
    if value is None:
        raise ValueError(msg or "received None; expected a value that was set before")
    return value

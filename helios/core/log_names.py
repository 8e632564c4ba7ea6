"""The names of log files and TensorBoard folders."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

LogNames = dict[str, str | None]
"""``{"log_file": ..., "run_dir": ...}``: names without folders, None for what a run never had."""

_KEYS = ("log_file", "run_dir")
_LONGEST = 255  # bytes, in the names of most file systems
_LONGEST_RUN_NAME = 200  # bytes: the time and a number are to come


def check_run_name(name: Any) -> str:
    """Return a run name that can begin a file name.

    Args:
        name: the name; empty for none.

    Raises:
        TypeError: if it is not a string.
        ValueError: if it has a path separator or a control character, is ``"."`` or ``".."``, or
            is longer than 200 bytes.

    Example:
        >>> check_run_name("digits, second try")
        'digits, second try'
    """
    if not isinstance(name, str):
        raise TypeError(f"run_name: received a {type(name).__name__}; expected a string")
    problem = _problem(name, _LONGEST_RUN_NAME)
    if problem is not None:
        raise ValueError(
            f"run_name: received {name[:_LONGEST_RUN_NAME]!r}, which {problem}; expected a name "
            "that can begin a file name, such as 'digits'"
        )
    return name


def get_default_log_name(run_name: str) -> str:
    """Return ``<run_name>_<month><day>_<hour>-<minute>-<second>``, of the present moment.

    Raises:
        TypeError: if the name is not a string.
        ValueError: if the name cannot begin a file name.
    """
    now = datetime.now().strftime("%b%d_%H-%M-%S")
    return f"{check_run_name(run_name)}_{now}" if run_name else now


def read_log_names(names: Mapping[str, Any] | None) -> LogNames:
    """Return the names that a checkpoint holds, checked.

    Args:
        names: what `Loggers.names` was, None for nothing.

    Raises:
        ValueError: if there is an unknown key, or a name that leads out of its folder.
    """
    known: LogNames = dict.fromkeys(_KEYS)
    for key, name in (names or {}).items():
        if key not in known:
            raise ValueError(f"log names: received {key!r}; expected {' and '.join(_KEYS)}")
        if name is None:
            continue
        problem = _problem(name, _LONGEST) if isinstance(name, str) else "is not a string"
        if problem or not name:
            raise ValueError(
                f"log names: received {name!r} for {key}, which {problem or 'is empty'}; expected "
                "a name without folders"
            )
        known[key] = name
    return known


def claim(run_name: str, log_path: Path | None, run_path: Path | None) -> str:
    """Create a log file and a TensorBoard folder that nobody else has, and return their name.

    Args:
        run_name: what the name begins with.
        log_path: (optional) the folder for ``<name>.log``, created if it is missing.
        run_path: (optional) the folder for the folder ``<name>``, created if it is missing.

    Raises:
        ValueError: if the run name cannot begin a file name.
        OSError: if they cannot be created.
    """
    base = get_default_log_name(run_name)
    for folder in (log_path, run_path):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        name = base if number == 1 else f"{base}_{number}"
        log_file = None if log_path is None else log_path / f"{name}.log"
        try:
            if log_file is not None:
                log_file.touch(exist_ok=False)
            try:
                if run_path is not None:
                    (run_path / name).mkdir()
            except BaseException:
                if log_file is not None:
                    log_file.unlink()
                raise
        except FileExistsError:
            continue
        return name
    raise AssertionError  # pragma: no cover - count() has no end


def _problem(name: str, longest: int) -> str | None:
    """Tell what keeps a name from being one part of a path, None if nothing does."""
    if name in (".", ".."):
        return "is a folder's name for itself or the one above"
    if "/" in name or "\\" in name:
        return "has a path separator"
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        return "has a control character"
    if len(name.encode(errors="replace")) > longest:
        return f"is longer than {longest} bytes"
    return None

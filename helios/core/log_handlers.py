"""The handlers of the logger ``"helios"``: warnings to stderr, everything to a file."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TextIO

NAME = "helios"
"""The name of the logger."""


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what ``sys.stderr`` is at the moment, not to what it was when a run began."""

    def __init__(self) -> None:
        logging.Handler.__init__(self, logging.WARNING)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        raise AttributeError("this handler writes to sys.stderr; set that instead")


class _File(logging.FileHandler):
    """Appends to the log file of a run."""


def attach(log_file: Path | None, rank: int) -> None:
    """Give the logger the handlers of a run, in place of those of any run before it.

    Handlers that others have added stay.

    Args:
        log_file: (optional) where lines of level INFO and above are appended. Its folder exists.
        rank: the rank of this process; only errors are let through on ranks other than 0.

    Raises:
        OSError: if the file cannot be opened; the logger then has no handlers of a run.
    """
    detach()
    handlers: list[logging.Handler] = [_Stderr()]
    if log_file is not None:
        file = _File(log_file, mode="a", encoding="utf-8")
        file.setLevel(logging.INFO)
        handlers.append(file)
    who = f" [rank {rank}]" if rank else ""
    formatter = logging.Formatter(f"[%(asctime)s] [%(levelname)s]{who} %(message)s")
    logger = logging.getLogger(NAME)
    for handler in handlers:
        handler.setFormatter(formatter)
        logger.addHandler(handler)
    logger.setLevel(logging.ERROR if rank else logging.INFO)
    logger.propagate = False  # the root logger would write the lines once more


def detach() -> None:
    """Remove and close the handlers of a run, its own or those that a crashed one has left."""
    logger = logging.getLogger(NAME)
    for handler in list(logger.handlers):
        # By name: after a reload of this module the classes of older handlers are others.
        if type(handler).__module__ == __name__:
            logger.removeHandler(handler)
            handler.close()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


def flush() -> None:
    """Write out what the logger's handlers still hold."""
    for handler in list(logging.getLogger(NAME).handlers):
        handler.flush()

"""The logs of a run: a logger, a log file, and a TensorBoard folder.

A run opens them once with `open_loggers` and closes them at its end, whatever happens. A resumed
run goes on in the file and the folder whose names its checkpoint holds.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from helios.core import log_handlers
from helios.core.distributed import get_rank
from helios.core.log_names import LogNames, claim, read_log_names
from helios.core.log_names import check_run_name as check_run_name
from helios.core.log_names import get_default_log_name as get_default_log_name
from helios.core.tensorboard import TensorboardWriter as TensorboardWriter

_active: Loggers | None = None


class Loggers:
    """The open logs of a run. `open_loggers` makes them; as a context manager they close.

    Attributes:
        logger: the logger, if there is a log file; None if nobody would read its lines.
        writer: the TensorBoard writer, None if TensorBoard is off.
        log_file: the log file, None without one.
        run_dir: the TensorBoard folder, None without one.
        names: what a checkpoint keeps, for `open_loggers` to go on from.
    """

    def __init__(
        self,
        log_file: Path | None,
        run_dir: Path | None,
        names: LogNames,
        writer: TensorboardWriter | None,
    ) -> None:
        self.logger = None if log_file is None else get_root_logger()
        self.writer = writer
        self.log_file = log_file
        self.run_dir = run_dir
        self.names = names
        self.closed = False

    def flush(self) -> None:
        """Write out what is still in memory."""
        if self.closed:
            return
        log_handlers.flush()
        if self.writer is not None:
            self.writer.flush()

    def close(self) -> None:
        """Close the file and the writer, and remove the handlers. Closing again does nothing."""
        global _active
        if self.closed:
            return
        self.closed = True
        try:
            if self.writer is not None:
                self.writer.close()
        finally:
            if _active is self:
                _active = None
                log_handlers.detach()

    def __enter__(self) -> Loggers:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        exc_traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_loggers(
    run_name: str,
    log_path: Path | None = None,
    run_path: Path | None = None,
    resume: Mapping[str, str | None] | None = None,
    purge_step: int | None = None,
    rank: int | None = None,
) -> Loggers:
    """Open the logs of a run. Those of a run that is still open are closed before.

    Warnings go to stderr in any case. Only rank 0 writes files; the others let errors through, to
    stderr.

    Args:
        run_name: what new names begin with: ``<run_name>_<month><day>_<hour>-<minute>-<second>``,
            and a number if somebody has that name.
        log_path: (optional) the folder of the log file, created if it is missing; None for no file.
        run_path: (optional) the folder of the TensorBoard folder, created if it is missing; None
            for no TensorBoard.
        resume: (optional) the ``names`` of the `helios.core.logging.Loggers` of the run to go on
            from. What it did not have, and has now, is new.
        purge_step: (optional) the first step, in updates, that a resumed run logs. TensorBoard
            drops what the run before it logged from there on.
        rank: (optional) the rank of this process; of the process group by default.

    Returns:
        The open logs.

    Raises:
        TypeError: if the run name is not a string.
        ValueError: if the run name cannot begin a file name, or a resumed name leads elsewhere.
        OSError: if a file or folder cannot be written.

    Example:
        >>> with open_loggers("digits") as loggers:
        ...     print(loggers.names)
        {'log_file': None, 'run_dir': None}
    """
    global _active
    close_loggers()
    check_run_name(run_name)
    names = read_log_names(resume)
    rank = get_rank() if rank is None else rank
    if rank != 0:
        log_path = None
    # A run that is resumed without a file or folder keeps its name for the resume after that.
    continues = names["run_dir"] is not None
    if rank == 0:
        names = _named(run_name, log_path, run_path, names)
    log_file = _place(log_path, names["log_file"])
    run_dir = _place(None if rank else run_path, names["run_dir"])
    try:
        log_handlers.attach(log_file, rank)
        writer = None
        if run_path is not None:
            writer = TensorboardWriter(run_dir, purge_step if continues else None)
    except BaseException:
        log_handlers.detach()
        raise
    _active = Loggers(log_file, run_dir, names, writer)
    return _active


def close_loggers() -> None:
    """Close whatever run is open, and remove what a crashed one has left."""
    if _active is not None:
        _active.close()
    log_handlers.detach()


def get_root_logger() -> logging.Logger:
    """Return the logger of runs, named ``"helios"``.

    Outside of a run it is an ordinary logger without handlers.
    """
    return logging.getLogger(log_handlers.NAME)


def get_tensorboard_writer() -> TensorboardWriter | None:
    """Return the TensorBoard writer of the run that is open.

    On ranks other than 0 it writes nothing.

    Returns:
        The writer, None if no run is open or TensorBoard is off.
    """
    return None if _active is None else _active.writer


def _named(
    run_name: str, log_path: Path | None, run_path: Path | None, names: LogNames
) -> LogNames:
    """Return names for all that is on; what has none yet is created."""
    new_log = log_path if names["log_file"] is None else None
    new_run = run_path if names["run_dir"] is None else None
    if new_log is None and new_run is None:
        return names
    name = claim(run_name, new_log, new_run)
    return {
        "log_file": names["log_file"] if new_log is None else f"{name}.log",
        "run_dir": names["run_dir"] if new_run is None else name,
    }


def _place(folder: Path | None, name: str | None) -> Path | None:
    """Return where a file or folder of a run is, in a folder that exists."""
    if folder is None or name is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name

"""The logs of a run: opened, gone on with, flushed, and told of its failure."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from helios.core.logging import Loggers, open_loggers
from helios.functional.state import TrainingState
from helios.loggers.board import BoardLog
from helios.loggers.run_log import Run, RunLog
from helios.model.model import Model
from helios.trainer.hyperparameters import hyperparameters
from helios.trainer.ranks.group import Ranks

if TYPE_CHECKING:
    from helios.trainer.trainer import Trainer


def open_logs(
    trainer: Trainer,
    model: Model,
    content: dict[str, Any] | None,
    stack: contextlib.ExitStack,
    next_step: int | None = None,
) -> Loggers:
    """Open the logs that were asked for, those of a checkpoint again; the stack closes them.

    Args:
        trainer: whose run it is.
        model: its name is that of a run without one.
        content: the checkpoint to go on from, if any.
        stack: an exception that passes through it is written to the log.
        next_step: the first update that a resumed fit logs; None for a test, which drops nothing.
    """
    writes = trainer.ranks.is_first
    loggers = open_loggers(
        run_name=trainer.run_name or model.save_name,
        log_path=trainer.log_path if trainer.enable_file_logging and writes else None,
        run_path=trainer.run_path if trainer.enable_tensorboard and writes else None,
        resume=file_names(content),
        purge_step=None if content is None else next_step,
    )
    stack.callback(loggers.close)
    stack.push(failure_logger(loggers.logger, trainer.ranks))
    trainer.failure_log = loggers.logger
    boards = [] if loggers.writer is None else [BoardLog(loggers.writer)]
    open_run_logs(trainer, model, content, stack, boards, next_step)
    return loggers


def open_run_logs(
    trainer: Trainer,
    model: Model,
    content: Mapping[str, Any] | None,
    stack: contextlib.ExitStack,
    boards: Sequence[RunLog],
    next_step: int | None,
) -> None:
    """Open the logs that were given to a trainer, and let its `log` write to them.

    Args:
        trainer: whose run it is.
        model: what is run.
        content: the checkpoint to go on from, if any.
        stack: closes them.
        boards: logs that are open already, and are written to as well.
        next_step: the first update that a resumed fit logs; None for a test.
    """
    if not trainer.ranks.is_first:
        return
    is_test = next_step is None
    resumed = None if content is None or next_step is None else next_step - 1
    kept = {} if content is None else content["log"]
    for key, log in named(trainer.logs).items():
        stack.callback(log.close)
        name = trainer.run_name or model.save_name
        log.open(Run(name, resumed, kept.get(key), is_test=is_test))
    logs = [*boards, *trainer.logs]
    trainer.log.begin(logs, lambda: _place(trainer.loop.state if trainer.loop else None))
    stack.callback(trainer.log.end)
    if content is None and not is_test:
        trainer.log.hyperparameters(hyperparameters(trainer, model))


def named(logs: Sequence[RunLog]) -> dict[str, RunLog]:
    """Return logs by the names under which a checkpoint keeps what they go on with."""
    found: dict[str, RunLog] = {}
    for log in logs:
        kind = type(log).__name__
        count = sum(type(other).__name__ == kind for other in found.values())
        found[kind if count == 0 else f"{kind} {count + 1}"] = log
    return found


def kept_names(trainer: Trainer, names: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return what a checkpoint keeps of all logs.

    Args:
        trainer: whose logs they are.
        names: the names of the log file and the TensorBoard folder.
    """
    told = {key: log.identity for key, log in named(trainer.logs).items()}
    return {**names, **{key: one for key, one in told.items() if one is not None}}


def file_names(content: Mapping[str, Any] | None) -> dict[str, str | None] | None:
    """Return the names of log file and TensorBoard folder that a checkpoint holds."""
    if content is None:
        return None
    return {key: content["log"].get(key) for key in ("log_file", "run_dir")}


def flusher(trainer: Trainer, loggers: Loggers) -> Callable[[], None]:
    """Return what brings all logs to the disk."""

    def flush() -> None:
        loggers.flush()
        trainer.log.flush()

    return flush


def _place(state: TrainingState | None) -> tuple[int, int]:
    return (0, 0) if state is None else (state.current_iteration, state.global_epoch)


def failure_logger(logger: logging.Logger | None, ranks: Ranks) -> Callable[..., None]:
    """Return what writes an exception that ends a run to its log, for an ``ExitStack``."""

    def log(kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            return
        if ranks.several:
            ranks.named(error)  # said here, before anything else takes its time; it is logged too
        elif logger is not None:
            write_failure(logger, "the run failed", error)

    return log


def write_failure(
    logger: logging.Logger, message: str, failure: BaseException | None = None
) -> None:
    """Write how a run failed to the files of its log.

    Whoever catches the exception shows it on standard error, so it goes into files alone.

    Args:
        logger: the log.
        message: what to write.
        failure: (optional) the exception, for its traceback.
    """
    exception = None if failure is None else (type(failure), failure, failure.__traceback__)
    record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, message, (), exception)
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)

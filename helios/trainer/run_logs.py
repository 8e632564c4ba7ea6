"""The logs of a run: opened, gone on with, and told of its failure."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from helios.core.logging import Loggers, open_loggers
from helios.model.model import Model
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
        resume=None if content is None else content["log"],
        purge_step=None if content is None else next_step,
    )
    stack.callback(loggers.close)
    stack.push(failure_logger(loggers.logger, trainer.ranks))
    trainer.failure_log = loggers.logger
    return loggers


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

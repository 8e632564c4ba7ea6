"""Where the metrics of the members go: a TensorBoard folder for each, one log, one terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from logging import Logger
from pathlib import Path
from typing import Any

from helios.core.log_names import claim
from helios.core.tensorboard import TensorboardWriter
from helios.functional.stacked import each
from helios.functional.state import Carry, TrainingState, report
from helios.loggers.log import Log
from helios.trainer.many.model import Many
from helios.trainer.progress import Progress, describe
from helios.trainer.report import Reporter


class ManyReporter(Reporter):
    """Hands the metrics of each member to its own writer, and to the log and the terminal of all.

    Args:
        many: the members.
        logger: the log, None for none.
        writers: a TensorBoard writer for each member; empty for none.
        progress: the terminal, None for none.
        announce: prints what the user is to know in any case.
        log: the logs of all; the names of numbers begin with that of the member.
        done: updates done before this process began.
    """

    def __init__(
        self,
        many: Many,
        logger: Logger | None,
        writers: Sequence[TensorboardWriter],
        progress: Progress | None,
        announce: Callable[[str], None],
        log: Log | None = None,
        done: int = 0,
    ) -> None:
        wanted = bool(writers) or any((logger, progress, log is not None and log.is_on))
        super().__init__(logger, log, progress, announce, wanted=wanted, done=done)
        self._many = many
        self.writers = writers
        self._of_members: list[tuple[int, str, float, int]] = []

    def training(self, state: TrainingState) -> TrainingState:
        """Report the training metrics since the last report, and begin new ones."""
        carry = state.carry
        if isinstance(carry, Carry) and self._wanted:
            self._show(state, "train", each(carry.metrics, len(self._many.members)))
        return report(state)

    def show(self, state: TrainingState, label: str, values: Mapping[str, float]) -> None:
        """Report the last validation of every member."""
        self._show(state, label, [member.valid_metrics for member in self._many.members])

    def release(self) -> None:
        """Write what was shown to TensorBoard, now that a run can go on from after it."""
        for member, tag, value, step in self._of_members:
            self.writers[member].add_scalar(tag, value, step)
        self._of_members.clear()
        super().release()

    def _show(
        self, state: TrainingState, label: str, results: Sequence[Mapping[str, float]]
    ) -> None:
        if not any(results):
            return
        self._is_due, step = True, state.current_iteration
        for member, values in zip(self._many.members, results, strict=True):
            self._log.scalars(f"{member.save_name}/{label}", values)
        if label == "train":
            self._measured(state)
        for k in range(len(self.writers)):
            self._of_members += [(k, f"{label}/{n}", v, step) for n, v in results[k].items()]
        if self._logger is not None:
            for member, values in zip(self._many.members, results, strict=True):
                self._logger.info(
                    "epoch %d, update %d, %s: %s",
                    state.global_epoch,
                    step,
                    member.save_name,
                    describe(label, values),
                )
        if self._progress is not None:
            self._progress.report(state, label, spread(results))


def spread(results: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the least and the greatest value of each metric over the members.

    Example:
        >>> spread([{"loss": 1.0}, {"loss": 3.0}, {"loss": 2.0}])
        {'loss min': 1.0, 'loss max': 3.0}
    """
    found = {}
    for name in results[0]:
        values = [result[name] for result in results if name in result]
        found[f"{name} min"], found[f"{name} max"] = min(values), max(values)
    return found


def open_writers(
    names: Sequence[str],
    run_path: Path | None,
    saved: Sequence[Mapping[str, str | None] | None],
    purge_step: int,
    stack: contextlib.ExitStack,
) -> tuple[list[TensorboardWriter], list[str | None]]:
    """Open a TensorBoard folder for each member, that of its checkpoint again.

    Args:
        names: what new folders are named after.
        run_path: where they are, None for no TensorBoard.
        saved: the names of the logs in the members' checkpoints, None of a new run.
        purge_step: the first update that a resumed run logs.
        stack: closes them.

    Returns:
        The writers, and the names of the folders, which a checkpoint keeps.
    """
    folders = [None if one is None else one["run_dir"] for one in saved]
    writers: list[TensorboardWriter] = []
    if run_path is None:
        return writers, folders
    for k, name in enumerate(names):
        known = folders[k]
        folder = folders[k] = claim(name, None, run_path) if known is None else known
        writer = TensorboardWriter(run_path / folder, None if known is None else purge_step)
        stack.callback(writer.close)
        writers.append(writer)
    return writers, folders


def flush_all(writers: Sequence[Any]) -> None:
    """Write out what is still in memory."""
    for writer in writers:
        writer.flush()

"""Where metrics go: the logs, the log file, the terminal. The only place that reads them back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from logging import Logger
from typing import Any

from helios.functional import metrics
from helios.functional.state import Carry, TrainingState, report
from helios.loggers.log import Log
from helios.trainer.pace import Pace
from helios.trainer.progress import Progress, describe

Measure = Callable[[TrainingState], Mapping[str, Any]]


class Reporter:
    """Hands metrics to whatever was asked for.

    Args:
        logger: the log file, None for none.
        log: the other logs; by default none are on.
        progress: the terminal, None for none.
        announce: prints what the user is to know in any case, None to keep quiet.
        merge: adds the training metrics of several ranks; called on all of them or on none.
        wanted: whether anyone, on any rank, is shown metrics; by default whether this one is.
        done: updates done before this process began.

    Attributes:
        measure: returns what the logs show of an update beside its metrics.
    """

    def __init__(
        self,
        logger: Logger | None = None,
        log: Log | None = None,
        progress: Progress | None = None,
        announce: Callable[[str], None] | None = None,
        merge: Callable[[metrics.Metrics], metrics.Metrics] | None = None,
        wanted: bool | None = None,
        done: int = 0,
    ) -> None:
        self._logger = logger
        self._log = Log() if log is None else log
        self._progress = progress
        self._announce = announce
        self._merge = merge
        self._is_due = False
        self._pace = Pace(done) if self._log.is_on else None
        shown = self._log.is_on or not (logger is None and progress is None)
        self._wanted = shown if wanted is None else wanted
        self.measure: Measure = lambda state: {}

    def count(self, batch: Any, waited: float, took: float) -> None:
        """Count a micro-batch, and the seconds that it took, of which it was waited for some."""
        if self._pace is not None:
            self._pace.count(batch, waited, took)

    def training(self, state: TrainingState) -> TrainingState:
        """Report the training metrics since the last report, and begin new ones.

        Returns:
            The state without them. It is the same whether or not anything is shown.
        """
        carry = state.carry
        if isinstance(carry, Carry) and self._wanted:
            own = carry.metrics
            values = metrics.compute(own if self._merge is None else self._merge(own))
            self.show(state, "train", values)
            if values:
                self._measured(state)
        return report(state)

    def show(self, state: TrainingState, label: str, values: Mapping[str, float]) -> None:
        """Report metrics at the present update.

        Args:
            state: the state they belong to.
            label: ``"train"``, ``"valid"`` or ``"test"``.
            values: the metrics by name.
        """
        if not values:
            return
        self._is_due = True
        self._log.scalars(label, values)
        if self._logger is not None:
            self._logger.info(
                "epoch %d, update %d: %s",
                state.global_epoch,
                state.current_iteration,
                describe(label, values),
            )
        if self._progress is not None:
            self._progress.report(state, label, values)

    def judged(self, metric: str, best: Any, *, improved: bool) -> None:
        """Report what the last validation was found to be.

        Args:
            metric: the metric that counts as progress.
            best: its best value so far.
            improved: whether the validation was better than any before.
        """
        if isinstance(best, float) and math.isfinite(best):
            self._log.scalar(f"best/{metric}", best)
        if self._progress is not None:
            self._progress.judged(improved=improved)

    def watched(self, label: str, batches: Iterator[Any], total: int | None) -> Iterator[Any]:
        """Return the batches of a validation or a test, with a bar of their own if they take long.

        Args:
            label: ``"valid"`` or ``"test"``.
            batches: the batches.
            total: how many there are, None if that is not known.
        """
        if self._progress is None:
            return batches
        return self._progress.watched(label, batches, total)

    def release(self) -> None:
        """Write what was shown to the logs, now that a run can go on from after it.

        If a hook fails before, the resumed run computes the same points again; written twice, they
        would stand there twice.
        """
        self._log.release(write=self._is_due)
        self._is_due = False

    def write(self) -> None:
        """Write all that is sure to the logs, before a checkpoint."""
        self._log.write()

    def advance(self, state: TrainingState) -> None:
        """Count an update on the terminal."""
        if self._progress is not None:
            self._progress.advance(state)

    def say(self, message: str) -> None:
        """Write a sentence to the log."""
        if self._logger is not None:
            self._logger.info(message)

    def announce(self, message: str) -> None:
        """Print a sentence, and write it to the log."""
        if self._announce is not None:
            self._announce(message)

    def close(self) -> None:
        """Close the terminal's bar; the loggers close by themselves."""
        if self._progress is not None:
            self._progress.close()

    def _measured(self, state: TrainingState) -> None:
        """Log what belongs to a report of the training metrics."""
        if self._pace is None:
            return
        measured = {**self.measure(state), **self._pace.take(state.current_iteration)}
        for tag, value in measured.items():
            self._log.scalar(tag, value)

"""Where metrics go: TensorBoard, the log, the terminal. The only place that reads them back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from logging import Logger
from typing import Any

from helios.functional import metrics
from helios.functional.state import Carry, TrainingState, report
from helios.trainer.progress import Progress, describe


class Reporter:
    """Hands metrics to whatever was asked for.

    Args:
        logger: the log, None for none.
        writer: the TensorBoard writer, None for none.
        progress: the terminal, None for none.
        announce: prints what the user is to know in any case, None to keep quiet.
        merge: adds the training metrics of several ranks; called on all of them or on none.
        wanted: whether anyone, on any rank, is shown metrics; by default whether this one is.
    """

    def __init__(
        self,
        logger: Logger | None = None,
        writer: Any = None,
        progress: Progress | None = None,
        announce: Callable[[str], None] | None = None,
        merge: Callable[[metrics.Metrics], metrics.Metrics] | None = None,
        wanted: bool | None = None,
    ) -> None:
        self._logger = logger
        self._writer = writer
        self._progress = progress
        self._announce = announce
        self._points: list[tuple[str, float, int]] = []
        self._merge = merge
        shown = not (logger is None and writer is None and progress is None)
        self._wanted = shown if wanted is None else wanted

    def training(self, state: TrainingState) -> TrainingState:
        """Report the training metrics since the last report, and begin new ones.

        Returns:
            The state without them. It is the same whether or not anything is shown.
        """
        carry = state.carry
        if isinstance(carry, Carry) and self._wanted:
            own = carry.metrics
            self.show(
                state, "train", metrics.compute(own if self._merge is None else self._merge(own))
            )
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
        if self._writer is not None:
            step = state.current_iteration
            self._points += [(f"{label}/{name}", value, step) for name, value in values.items()]
        if self._logger is not None:
            self._logger.info(
                "epoch %d, update %d: %s",
                state.global_epoch,
                state.current_iteration,
                describe(label, values),
            )
        if self._progress is not None:
            self._progress.report(state, label, values)

    def release(self) -> None:
        """Write what was shown to TensorBoard, now that a run can go on from after it.

        If a hook fails before, the resumed run computes the same points again; written twice, they
        would stand there twice.
        """
        if self._points:
            for point in self._points:
                self._writer.add_scalar(*point)
            self._points.clear()

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

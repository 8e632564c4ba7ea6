"""The terminal: a bar and a table where there is one, and a line per report where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from tqdm import tqdm

from helios.functional.state import TrainingState
from helios.trainer.table import Table
from helios.trainer.terminal import Stream

_DELAY = 1.0  # seconds after which a validation or a test gets a bar of its own


class Progress:
    """Shows how far a fit is, counted in updates.

    On a terminal that is a bar, which tqdm redraws at intervals, and above it a table with a row
    for each validation. Elsewhere it is a line for each report. The speed and the time left are
    those of this process; what was done before it counts as done alone.

    Args:
        total: updates in the whole run, None if unknown or infinite.
        done: updates done before this process began.
        stream: where to show it; standard error by default. One that is None, or closed, shows
            nothing.
        with_bar: whether there are updates to count, as there are not in a test.
    """

    def __init__(
        self,
        total: int | None,
        done: int,
        stream: TextIO | None = None,
        *,
        with_bar: bool = True,
    ) -> None:
        self._stream = Stream(sys.stderr if stream is None else stream)
        self._total = total
        self._began = time.monotonic()
        self._epoch = 0
        self._table = Table()
        self._train: dict[str, str] = {}
        self._owed: tuple[TrainingState, dict[str, float]] | None = None
        self._bar: tqdm[Any] | None = None
        if with_bar and self._stream.is_terminal:
            self._bar = tqdm(
                total=total,
                initial=done,
                unit="update",
                file=self._stream,
                dynamic_ncols=True,
            )

    def advance(self, state: TrainingState) -> None:
        """Count an update."""
        bar = self._bar
        if bar is not None:
            if state.global_epoch != self._epoch:
                self._epoch = state.global_epoch
                bar.set_description(f"epoch {self._epoch}", refresh=False)
            bar.update(state.current_iteration - bar.n)

    def report(self, state: TrainingState, label: str, values: Mapping[str, float]) -> None:
        """Show metrics: on the bar, or as a row above it, or as a line.

        Those of a validation are shown once it was judged.

        Args:
            state: the state they belong to.
            label: what they are, such as ``"train"``.
            values: the metrics by name.
        """
        self._show_owed()
        if label == "valid":
            self._owed = state, dict(values)
        elif self._bar is not None and label == "train":
            self._train = {name: f"{value:.4g}" for name, value in values.items()}
            self._bar.set_postfix(self._train, refresh=False)
        else:
            self._write(f"{self._position(state)}  {describe(label, values)}")

    def judged(self, *, improved: bool) -> None:
        """Show the last validation, and whether it was the best so far."""
        self._show_owed(improved=improved)

    def watched(self, label: str, batches: Iterator[Any], total: int | None) -> Iterator[Any]:
        """Yield the batches of a validation or a test; on a terminal, with a bar if it takes long.

        Args:
            label: what is run.
            batches: the batches.
            total: how many there are, None if that is not known.
        """
        if not self._stream.is_terminal:
            yield from batches
            return
        with tqdm(
            desc=label,
            total=total,
            unit="batch",
            file=self._stream,
            dynamic_ncols=True,
            leave=False,
            delay=_DELAY,
        ) as bar:
            for batch in batches:
                yield batch
                bar.update()

    def close(self) -> None:
        """Leave the terminal as it was; the last bar stays visible."""
        self._show_owed()
        if self._bar is not None:
            self._bar.close()

    def _show_owed(self, *, improved: bool = False) -> None:
        """Show the validation that is not yet shown, if there is one."""
        owed, self._owed = self._owed, None
        if owed is None:
            return
        state, values = owed
        if self._bar is None:
            best = " (best)" if improved else ""
            self._write(f"{self._position(state)}  {describe('valid', values)}{best}")
            return
        row = {
            "epoch": str(state.global_epoch),
            "update": str(state.current_iteration),
            **{f"train {name}": value for name, value in self._train.items()},
            **{f"valid {name}": f"{value:.4g}" for name, value in values.items()},
            "best": "*" if improved else "",
            "time": tqdm.format_interval(time.monotonic() - self._began),
        }
        for line in self._table.lines(row):
            self._write(line)

    def _write(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            self._stream.write(line + "\n")
            self._stream.flush()

    def _position(self, state: TrainingState) -> str:
        total = "" if self._total is None else f"/{self._total}"
        return f"epoch {state.global_epoch}  update {state.current_iteration}{total}"


def describe(label: str, values: Mapping[str, float]) -> str:
    """Return metrics in one line.

    Example:
        >>> describe("valid", {"loss": 0.25, "accuracy": 0.9375})
        'valid: loss 0.25, accuracy 0.9375'
    """
    return f"{label}: " + ", ".join(f"{name} {value:.6g}" for name, value in values.items())

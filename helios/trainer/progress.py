"""The terminal: a progress bar where there is one, and a line per report where there is none."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TextIO

from tqdm import tqdm

from helios.functional.state import TrainingState


class Progress:
    """Shows how far a fit is, counted in updates.

    Args:
        total: updates in the whole run, None if unknown or infinite.
        done: updates done before this process began.
        stream: where to show it; standard error by default. On a terminal it is a bar that tqdm
            redraws at intervals; elsewhere it is a line for each report.
    """

    def __init__(self, total: int | None, done: int, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._total = total
        self._bar: tqdm[Any] | None = None
        if self._stream.isatty():
            self._bar = tqdm(
                total=total, initial=done, unit="update", file=self._stream, dynamic_ncols=True
            )

    def advance(self, state: TrainingState) -> None:
        """Count an update."""
        if self._bar is not None:
            self._bar.update(state.current_iteration - self._bar.n)

    def report(self, state: TrainingState, label: str, values: Mapping[str, float]) -> None:
        """Show metrics, as a row above the bar or as a line.

        Args:
            state: the state they belong to.
            label: what they are, such as ``"train"``.
            values: the metrics by name.
        """
        if self._bar is not None and label == "train":
            self._bar.set_postfix(
                {name: f"{value:.4g}" for name, value in values.items()}, refresh=False
            )
            return
        line = f"{self._position(state)}  {describe(label, values)}"
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            self._stream.write(line + "\n")
            self._stream.flush()

    def close(self) -> None:
        """Leave the terminal as it was; the last bar stays visible."""
        if self._bar is not None:
            self._bar.close()

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

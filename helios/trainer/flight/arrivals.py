"""Numbers of updates on their way to the host: nobody waits for them before they are needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from helios.functional import nonfinite

_TOGETHER = 512  # tensors sent at a time, so that few are kept on the device


class Arrivals:
    """Collects rows of numbers, some of which are still being computed on a device."""

    def __init__(self) -> None:
        self._rows: list[list[Any]] = []
        self._waiting: list[tuple[list[Any], int]] = []  # which places of which rows
        self._sent: list[tuple[list[tuple[list[Any], int]], Callable[[], list[float]]]] = []

    def add(self, numbers: list[Any]) -> None:
        """Take a row: f[] on any device, or numbers. Those on the CPU are read at once."""
        row = [_read(number) for number in numbers]
        for place, number in enumerate(row):
            if isinstance(number, torch.Tensor):
                self._waiting.append((row, place))
        self._rows.append(row)
        if len(self._waiting) >= _TOGETHER:
            self._send()

    def take(self) -> list[list[float]]:
        """Return the rows since the last call. Waits for the device."""
        self._send()
        for places, numbers in self._sent:
            for (row, place), number in zip(places, numbers(), strict=True):
                row[place] = number
        rows, self._rows, self._sent = self._rows, [], []
        return rows

    def _send(self) -> None:
        """Send what is waiting, without waiting for it."""
        kinds: dict[Any, list[tuple[list[Any], int]]] = {}
        for row, place in self._waiting:
            kinds.setdefault((row[place].device, row[place].dtype), []).append((row, place))
        for places in kinds.values():
            together = torch.stack([row[place] for row, place in places]).to(torch.float64)
            self._sent.append((places, nonfinite.arriving(together)))
            for row, place in places:
                row[place] = None
        self._waiting = []


def _read(number: Any) -> Any:
    if not isinstance(number, torch.Tensor):
        return float(number)
    if number.is_cpu:
        # tolist() reads the memory as it lies there; item() would dispatch an operator.
        return float(number.tolist())  # type: ignore[arg-type]
    return number.detach().reshape(())

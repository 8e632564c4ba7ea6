"""The flight recorder: what each update of a run was made of, kept while the run goes on."""

from __future__ import annotations

import hashlib
import math
import struct
import warnings
from typing import Any, NamedTuple, Protocol

import torch
from msgspec.structs import replace

from helios.errors import CheckpointError
from helios.functional.observe import Seen, total_norm
from helios.functional.state import TrainingState
from helios.functional.transformation import Tensors
from helios.trainer.flight.arrivals import Arrivals
from helios.trainer.flight.indices import IndexDigests
from helios.trainer.flight.record import START, Entry, chained, encode
from helios.trainer.flight.writing import FlightFile
from helios.trainer.ranks.group import Ranks

_COUNTERS = struct.Struct("<QQQ")
_OTHER = struct.Struct("<ddB")


class Records(Protocol):
    """What a loop tells of its updates."""

    def update(self, state: TrainingState) -> None:
        """Take the counters after an update; what was observed of it was told before."""
        ...

    def flush(self, *, sync: bool = False) -> None:
        """Write what is recorded; every rank calls it at the same place."""
        ...


class NoRecords:
    """Records nothing."""

    def update(self, state: TrainingState) -> None:
        """Take no notice."""

    def flush(self, *, sync: bool = False) -> None:
        """Write nothing."""


class Recorder:
    """Records updates: an `Observer` of their losses and norms, and `Records` of a loop.

    Args:
        indices: tells which samples they were made of.
        state: where the run begins, or goes on.
        begin: the chained digest there.
        file: where to write; None to keep the records in memory, or where another rank writes.
        ranks: the ranks; the losses of their shares are put together.
        whole: whether each rank is told the loss of whole micro-batches, not of its share.
        tolerant: whether a record that cannot be written is a warning; it is tried again.

    Attributes:
        entries: the records that were flushed, if there is no file.
    """

    def __init__(
        self,
        indices: IndexDigests,
        state: TrainingState,
        begin: bytes = START,
        file: FlightFile | None = None,
        ranks: Ranks | None = None,
        *,
        whole: bool = True,
        tolerant: bool = False,
    ) -> None:
        self._indices = indices
        self._file = file
        self._ranks = Ranks() if ranks is None else ranks
        self._whole = whole
        self._tolerant = tolerant
        self._digest = begin
        self._done = state.global_iteration - state.window_iter  # where the open window began
        self._seen: list[Seen] = []
        self._pending: list[_Update] = []
        self._arrivals = Arrivals()
        self.entries: list[Entry] = []

    def wants(self, state: TrainingState) -> bool:
        """Tell that every update is of interest; see `Observer`."""
        return True

    def norm(self, grads: Tensors) -> torch.Tensor:
        """Return the norm; see `Observer`."""
        return total_norm(grads)

    def see(self, state: TrainingState, seen: Seen) -> None:
        """Take what an objective was like; see `Observer`."""
        self._seen.append(seen)

    def update(self, state: TrainingState) -> None:
        """Take the counters after an update."""
        numbers: list[Any] = []
        for seen in self._seen:
            numbers += (seen.total, seen.weight, seen.norm)
        self._arrivals.add(numbers)
        done, self._done = self._done, state.global_iteration
        self._pending.append(
            _Update(
                state.current_iteration,
                state.global_epoch,
                state.dataset_iter - 1,
                state.global_iteration - done,
                state.global_iteration,
                tuple(seen.applied for seen in self._seen),
                tuple(isinstance(seen.weight, torch.Tensor) for seen in self._seen),
            )
        )
        self._seen.clear()

    def flush(self, *, sync: bool = False) -> None:
        """Write what is recorded. Waits for the device.

        Args:
            sync: whether to wait until it is on the disk.

        Raises:
            CheckpointError: if it cannot be written, unless that is tolerated.
        """
        pending, self._pending = self._pending, []
        rows = self._arrivals.take()
        if self._ranks.several and not self._whole:
            rows = self._put_together(pending, rows)
        if self._ranks.several:
            self._ranks.together(
                lambda: self._keep(pending, rows, sync=sync), "writing the flight record"
            )
        else:
            self._keep(pending, rows, sync=sync)

    def _keep(self, pending: list[_Update], rows: list[list[float]], *, sync: bool) -> None:
        if not self._ranks.is_first:
            return
        written = []
        for one, row in zip(pending, rows, strict=True):
            entry = self._entry(one, row)
            self._digest = entry.digest
            written.append(entry)
        if self._file is None:
            self.entries += written
            return
        try:
            self._file.write(b"".join(map(encode, written)), sync=sync)
        except CheckpointError as error:
            if not self._tolerant:
                raise
            warnings.warn(f"the flight record is behind: {error}", stacklevel=4)

    def _entry(self, one: _Update, row: list[float]) -> Entry:
        objectives = [
            (_quotient(total, weight), norm)
            for total, weight, norm in zip(row[::3], row[1::3], row[2::3], strict=True)
        ]
        loss, norm = objectives[0] if objectives else (math.nan, math.nan)
        rest = _COUNTERS.pack(one.iteration, one.epoch, one.place)
        for numbers, applied in zip(objectives[1:], one.applied[1:], strict=True):
            rest += _OTHER.pack(*(math.nan if math.isnan(n) else n for n in numbers), applied)
        entry = Entry(
            one.number,
            loss,
            norm,
            one.batches,
            self._indices.window(one.epoch, one.place, one.batches),
            hashlib.blake2b(rest, digest_size=8).digest(),
            skipped=not all(one.applied),
            has_loss=bool(objectives),
        )
        return replace(entry, digest=chained(self._digest, entry))

    def _put_together(self, pending: list[_Update], rows: list[list[float]]) -> list[list[float]]:
        """Return the rows with the losses of all ranks, added in their order.

        A loss that is a mean was told as its part of the mean over the ranks; the weight of a sum
        is that of all of them already.
        """
        told = self._ranks.exchange([row[::3] for row in rows])
        world = self._ranks.world_size
        result = []
        for number, (one, row) in enumerate(zip(pending, rows, strict=True)):
            row = list(row)
            for objective, is_sum in enumerate(one.is_sum):
                total = math.fsum(of_rank[number][objective] for of_rank in told)
                row[3 * objective] = total if is_sum else total / world
            result.append(row)
        return result


class _Update(NamedTuple):
    """An update whose numbers are on their way."""

    number: int
    epoch: int
    place: int
    batches: int
    iteration: int
    applied: tuple[bool, ...]
    is_sum: tuple[bool, ...]


def _quotient(total: float, weight: float) -> float:
    return total / weight if weight else math.nan

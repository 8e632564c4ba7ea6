"""Saving on several ranks: rank 0 writes, all of them know."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import torch

from helios.core.rng import python_rng_state
from helios.errors import RankError
from helios.functional.metrics import Metrics
from helios.functional.state import Carry, TrainingState
from helios.functional.tree import leaves
from helios.trainer.agreement import packed
from helios.trainer.ranks.group import Ranks
from helios.trainer.saving import Saver


class RankSaver:
    """Writes the checkpoints of several ranks, which all have the same state but for metrics.

    Every rank calls the same at the same place.

    Args:
        saver: what writes them, on rank 0; None on the others.
        ranks: the ranks.

    Raises:
        RankError: on the other ranks, from every method, if rank 0 could not do it.
    """

    def __init__(self, saver: Saver | None, ranks: Ranks) -> None:
        self._saver = saver
        self._ranks = ranks

    def __call__(self, state: TrainingState) -> None:
        """Write a checkpoint of ``state``, or begin to.

        Raises:
            CheckpointError: on rank 0, if it cannot be written.
            RankError: if the ranks have drifted apart.
        """
        carry = state.carry
        own: Metrics = carry.metrics if isinstance(carry, Carry) else {}
        generators = _generators()
        digest = hashlib.sha256(generators).digest()
        told = self._ranks.exchange([checksum(state), *packed([own]), digest])
        check_equal([number for number, *_ in told], state)
        measured = [metrics for _, metrics, _ in told]
        drawn = None
        if any(other != told[0][2] for *_, other in told):
            drawn = [_read(data) for data in self._ranks.exchange(generators)]
        self._ranks.together(lambda: self._save(state, measured, drawn), "saving a checkpoint")

    def holds(self, state: TrainingState) -> bool:
        """Tell whether a state is on the disk; waits for the save under way."""
        saver = self._saver
        held = self._ranks.together(
            lambda: saver is not None and saver.holds(state), "saving the last checkpoint"
        )
        return bool(held)

    def finish(self) -> None:
        """Wait until everything is on the disk."""
        self._ranks.together(self._finish, "saving the last checkpoint")

    def _save(
        self,
        state: TrainingState,
        measured: list[dict[str, list[float]]],
        drawn: list[dict[str, Any]] | None,
    ) -> None:
        if self._saver is not None:
            self._saver(state, measured, drawn)

    def _finish(self) -> None:
        if self._saver is not None:
            self._saver.finish()


def _generators() -> bytes:
    """Return the states of Python's and numpy's generators here."""
    buffer = io.BytesIO()
    torch.save(python_rng_state(), buffer)
    return buffer.getvalue()


def _read(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True)
    return found


def checksum(state: TrainingState) -> int:
    """Return a number that tells the parameters of two states apart, if not by an ill chance."""
    if not isinstance(state.carry, Carry):
        return 0
    total = 0
    for parameter in leaves(state.carry.params):
        data = parameter.detach().contiguous().reshape(-1).view(torch.uint8)
        whole = data[: data.numel() // 4 * 4].view(torch.int32)
        total += int(whole.sum(dtype=torch.int64)) + int(data[whole.numel() * 4 :].sum())
    return total


def check_equal(checksums: list[int], state: TrainingState) -> None:
    """Raise unless all ranks have the same parameters.

    Raises:
        RankError: naming the first rank that differs from rank 0.
    """
    for rank, number in enumerate(checksums):
        if number != checksums[0]:
            when = f"after update {state.current_iteration}"
            raise RankError(
                f"rank {rank} has other parameters than rank 0 {when}; they are to be the same on "
                "all ranks. Look in setup() and in hooks for what differs by rank: random numbers "
                "that are drawn without a seed, or parameters that are changed on one rank alone.",
                rank=rank,
            )

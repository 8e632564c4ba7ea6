"""Saving on several ranks: rank 0 writes, all of them know."""

from __future__ import annotations

import hashlib
import io
from typing import Any, NamedTuple

import torch

from helios.core.rng import python_rng_state
from helios.functional.metrics import Metrics
from helios.functional.state import Carry, TrainingState
from helios.functional.tree import leaves
from helios.model.model import Model
from helios.trainer.agreement import packed
from helios.trainer.ranks.equal import check_equal, checksum
from helios.trainer.ranks.group import Ranks
from helios.trainer.saving import Saver


class RankSaver:
    """Writes the checkpoints of several ranks, which all have the same state but for metrics.

    Every rank calls the same at the same place.

    Args:
        saver: what writes them, on rank 0; None on the others.
        ranks: the ranks.
        model: the model.

    Raises:
        RankError: on the other ranks, from every method, if rank 0 could not do it.
    """

    def __init__(self, saver: Saver | None, ranks: Ranks, model: Model) -> None:
        self._saver = saver
        self._ranks = ranks
        self._model = model

    def __call__(self, state: TrainingState) -> None:
        """Write a checkpoint of ``state``, or begin to.

        Raises:
            CheckpointError: on rank 0, if it cannot be written.
            RankError: if the ranks have drifted apart.
        """
        carry = state.carry
        parameters = leaves(carry.params) if isinstance(carry, Carry) else []
        if self._model.trains_by_side_effect:
            parameters = list(self._model.own_parameters())
        said = Said.by_all(self._ranks, state, checksum(parameters))
        check_equal(said.checksums, f"after update {state.current_iteration}")
        self._ranks.together(lambda: self._save(state, said), "saving a checkpoint")

    def holds(self, state: TrainingState) -> bool:
        """Tell whether a state is on the disk; waits for the save under way."""
        saver = self._saver
        held = self._ranks.together(
            lambda: saver is not None and saver.holds(state), "saving the last checkpoint"
        )
        return bool(held)

    def hold(self, state: TrainingState) -> None:
        """Note that a state is on the disk already: the run went on from it."""
        if self._saver is not None:
            self._saver.hold(state)

    def close(self) -> None:
        """Wait for the save under way, when something else is raised already; on rank 0 alone."""
        if self._saver is not None:
            self._saver.close()

    def finish(self) -> None:
        """Wait until everything is on the disk."""
        self._ranks.together(self._finish, "saving the last checkpoint")

    def _save(self, state: TrainingState, said: Said) -> None:
        if self._saver is not None:
            self._saver(state, said.measured, said.drawn)

    def _finish(self) -> None:
        if self._saver is not None:
            self._saver.finish()


class Said(NamedTuple):
    """What belongs to a checkpoint and is each rank's own.

    Args:
        checksums: of the parameters.
        measured: the metrics in the making.
        drawn: the states of Python's and numpy's generators; None if all are the same.
    """

    checksums: list[int]
    measured: list[dict[str, list[float]]]
    drawn: list[dict[str, Any]] | None

    @classmethod
    def by_all(cls, ranks: Ranks, state: TrainingState, number: int = 0) -> Said:
        """Return what all ranks say, given the state and the checksum of this one."""
        carry = state.carry
        own: Metrics = carry.metrics if isinstance(carry, Carry) else {}
        generators = _generators()
        digest = hashlib.sha256(generators).digest()
        told = ranks.exchange([number, *packed([own]), digest])
        drawn = None
        if any(other != told[0][2] for *_, other in told):
            drawn = [_read(data) for data in ranks.exchange(generators)]
        return cls([n for n, *_ in told], [metrics for _, metrics, _ in told], drawn)


def _generators() -> bytes:
    """Return the states of Python's and numpy's generators here."""
    buffer = io.BytesIO()
    torch.save(python_rng_state(), buffer)
    return buffer.getvalue()


def _read(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True)
    return found

"""Saving on several ranks: rank 0 writes, all of them know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from helios.errors import CheckpointError, RankError
from helios.functional.metrics import Metrics
from helios.functional.state import Carry, TrainingState
from helios.functional.tree import leaves
from helios.trainer.agreement import packed
from helios.trainer.ranks.equal import check_equal, checksum
from helios.trainer.ranks.group import Ranks
from helios.trainer.ranks.sharding import ShardedBinding
from helios.trainer.ranks.shards import save
from helios.trainer.saving import Saver, all_finite
from helios.trainer.store import Store
from helios.trainer.store.fs import OsFs
from helios.trainer.store.guard import check_archive
from helios.trainer.store.sharded import mark


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
        parameters = leaves(carry.params) if isinstance(carry, Carry) else []
        told = self._ranks.exchange([checksum(parameters), *packed([own])])
        check_equal([number for number, _ in told], f"after update {state.current_iteration}")
        measured = [metrics for _, metrics in told]
        self._ranks.together(lambda: self._save(state, measured), "saving a checkpoint")

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

    def _save(self, state: TrainingState, measured: list[dict[str, list[float]]]) -> None:
        if self._saver is not None:
            self._saver(state, measured)

    def _finish(self) -> None:
        if self._saver is not None:
            self._saver.finish()


class ShardSaver(Saver):
    """Writes the checkpoints of a sharded model: every rank its rows, and rank 0 the rest.

    Every rank has one, and calls the same at the same place.

    Args:
        store: where they go, on rank 0; None on the others.
        folder: the folder of the store.
        ranks: the ranks.
        binding: of the model.
        rest: as for `Saver`.
        options: as for `Saver`.
    """

    def __init__(
        self,
        store: Store | None,
        folder: Path,
        ranks: Ranks,
        binding: ShardedBinding,
        *rest: Any,
        **options: Any,
    ) -> None:
        super().__init__(store, *rest, **options)
        self._folder = folder
        self._ranks = ranks
        self._binding = binding
        self._fs = OsFs() if store is None else store.fs

    def __call__(
        self, state: TrainingState, measured: list[dict[str, list[float]]] | None = None
    ) -> None:
        """Write a checkpoint of ``state``; see `Saver`."""
        carry = state.carry
        own: Metrics = carry.metrics if isinstance(carry, Carry) else {}
        super().__call__(state, [told[0] for told in self._ranks.exchange(packed([own]))])

    def _model_content(self) -> dict[str, Any]:
        names = self._binding.names
        return {
            key: mark(f"params/{names[key]}") if isinstance(value, DTensor) else value
            for key, value in self._model.state_dict().items()
        }

    def _commit(self, name: str, content: dict[str, Any], score: Any) -> str:
        finite = all(self._ranks.exchange(all_finite(content["carry"]["params"])))
        try:
            file = save(
                self._store,
                self._ranks,
                self._fs,
                self._folder,
                name,
                content,
                self._binding,
                torch.save,
                self._describe(content, score, finite=finite),
                check_archive,
            )
        except RankError as error:
            if not self._tolerant:
                raise
            raise CheckpointError(str(error)) from error
        return f"saved {file}"

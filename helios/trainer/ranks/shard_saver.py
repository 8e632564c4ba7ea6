"""Saving a sharded model: every rank writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from helios.errors import CheckpointError, RankError
from helios.functional.state import TrainingState
from helios.trainer.ranks.group import Ranks
from helios.trainer.ranks.saving import Said
from helios.trainer.ranks.sharding import ShardedBinding
from helios.trainer.ranks.shards import save, without_weights
from helios.trainer.saving import Saver, all_finite
from helios.trainer.store import Store
from helios.trainer.store.fs import OsFs
from helios.trainer.store.guard import check_archive


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

    def __call__(self, state: TrainingState, *_: Any) -> None:
        """Write a checkpoint of ``state``; see `Saver`."""
        said = Said.by_all(self._ranks, state)
        super().__call__(state, said.measured, said.drawn)

    def _model_content(self, state: TrainingState) -> dict[str, Any]:
        return without_weights(self._model.state_dict(), self._binding)

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

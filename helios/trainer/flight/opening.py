"""The recorder of a fit, if one was asked for."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from helios.data import EpochSource
from helios.functional.state import TrainingState
from helios.trainer.engine import Division
from helios.trainer.flight.indices import IndexDigests
from helios.trainer.flight.record import START
from helios.trainer.flight.recorder import Recorder
from helios.trainer.flight.writing import FlightFile, open_file
from helios.trainer.store import Store

if TYPE_CHECKING:
    from helios.trainer.trainer import Trainer


def open_recorder(
    trainer: Trainer,
    store: Store | None,
    train: EpochSource,
    state: TrainingState,
    division: Division,
    stack: contextlib.ExitStack,
) -> Recorder | None:
    """Return what records the updates of a fit, None if nothing is to be recorded.

    Args:
        trainer: whose fit it is.
        store: its checkpoints, on rank 0; None on the others.
        train: the training batches.
        state: the state that it begins with, or goes on from.
        division: how micro-batches are divided among the ranks.
        stack: closes the file.

    Raises:
        CheckpointError: if the record there cannot be gone on with.
    """
    if not trainer.flight_recorder:
        return None
    opened: list[FlightFile] = []

    def open_it() -> None:
        assert store is not None
        opened.append(open_file(store.folder, state, store.fs))
        stack.callback(opened[0].close)

    trainer.ranks.together(open_it, "opening the flight record")
    file = opened[0] if opened else None
    return Recorder(
        IndexDigests(train),
        state,
        START if file is None else file.digest,
        file,
        trainer.ranks,
        whole=division.pieces is not None,
        tolerant=trainer.tolerate_failed_saves,
    )

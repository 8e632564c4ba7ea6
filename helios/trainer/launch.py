"""How a fit or a test comes to its ranks: alone, among those there are, or in new processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from helios.core.distributed import get_dist_info, is_dist_active
from helios.data import DataModule
from helios.model.model import Model
from helios.trainer.ranks.board import Failure
from helios.trainer.ranks.group import Ranks
from helios.trainer.ranks.guard import guarded
from helios.trainer.ranks.join import joined
from helios.trainer.ranks.rendezvous import Rendezvous

if TYPE_CHECKING:
    from helios.trainer.trainer import Trainer

Routine = Callable[["Trainer", Model, DataModule], None]
"""What is to be done on every rank."""


def is_one_of_several() -> bool:
    """Tell whether this process is a rank of a group, or was started by ``torchrun`` to be one."""
    return get_dist_info().world_size > 1


def on_this_rank(
    rendezvous: Rendezvous | None,
    routine: Routine,
    trainer: Trainer,
    model: Model,
    datamodule: DataModule,
) -> None:
    """Run a routine as one of several ranks.

    Args:
        rendezvous: where the ranks meet; None if the user has formed a group.
        routine: what to do.
        trainer: whose run it is.
        model: the model.
        datamodule: its data.

    Raises:
        RankError: if another rank failed first; the message has its traceback.
        Exception: what the routine raises, if nothing failed before.
    """

    def log(failure: Failure) -> None:
        trainer.log_failure(f"the run failed: {failure}")

    with (
        joined(rendezvous, trainer.device, trainer.rank_timeout) as it,
        guarded(it, trainer.whereabouts, log) as guard,
    ):
        if trainer.device.type == "cuda":
            torch.cuda.set_device(trainer.device)
        trainer.ranks = Ranks(
            it.rank, it.local_rank, it.world_size, it.group, it.board.store, guard
        )
        try:
            routine(trainer, model, datamodule)
        finally:
            trainer.ranks.close()
            trainer.ranks = Ranks()


def rendezvous_here() -> Rendezvous | None:
    """Return where the ranks meet that ``torchrun`` started; None if there is a group already."""
    return None if is_dist_active() else Rendezvous.from_environment()

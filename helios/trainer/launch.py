"""How a fit or a test comes to its ranks: alone, among those there are, or in new processes."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from queue import Queue
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from helios.core.distributed import get_dist_info, is_dist_active
from helios.data import DataModule
from helios.errors import RankError
from helios.functional.binding import bind, own_binding
from helios.functional.serial import from_bytes, to_bytes
from helios.functional.state import Carry
from helios.functional.tree import place
from helios.model.model import Model
from helios.trainer import fit as fits
from helios.trainer.ranks.board import Failure
from helios.trainer.ranks.group import Ranks
from helios.trainer.ranks.guard import guarded
from helios.trainer.ranks.join import joined
from helios.trainer.ranks.options import FSDP
from helios.trainer.ranks.rendezvous import Rendezvous
from helios.trainer.ranks.spawn import spawn
from helios.trainer.run_logs import write_failure
from helios.trainer.side_effects import weights_from_bytes, weights_to_bytes

if TYPE_CHECKING:
    from helios.trainer.trainer import Trainer

_ROUTINES: dict[str, Callable[[Trainer, Model, DataModule], None]] = {
    "fit": fits.fit,
    "test": fits.test,
}
_GRACE = 5.0  # seconds that ranks have to end by themselves once one of them has failed


def launch(
    trainer: Trainer,
    routine: str,
    passed_on: Sequence[type[Exception]],
    model: Model,
    datamodule: DataModule,
) -> bool:
    """Run a fit or a test on the ranks that there are to be, and tell success from failure.

    Args:
        trainer: whose run it is.
        routine: ``"fit"`` or ``"test"``.
        passed_on: the types of exceptions that are raised; any other is printed.
        model: the model.
        datamodule: its data.

    Returns:
        Whether it went well.

    Raises:
        SystemExit: on one of several ranks, if it did not: what started the ranks is to know.
    """
    several = get_dist_info().world_size > 1
    try:
        if several:
            rendezvous = None if is_dist_active() else Rendezvous.from_environment()
            _on_this_rank(rendezvous, routine, trainer, model, datamodule)
        elif trainer.ranks_to_start > 1 and not fits.is_taken_over(trainer, model, datamodule):
            _in_new_processes(routine, trainer, model, datamodule)
        else:
            _ROUTINES[routine](trainer, model, datamodule)
    except Exception as error:
        if isinstance(error, tuple(passed_on)):
            raise
        # What another rank saw of its own says nothing beside the failure that it names.
        shown = f"{error}\n" if isinstance(error, RankError) else traceback.format_exc()
        sys.stderr.write(shown)
        sys.stderr.flush()
        if several:
            raise SystemExit(1) from error
        return False
    return True


def _on_this_rank(
    rendezvous: Rendezvous | None,
    routine: str,
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
        if trainer.failure_log is not None:
            write_failure(trainer.failure_log, f"the run failed: {failure}")

    with (
        joined(
            rendezvous,
            trainer.device,
            trainer.rank_timeout,
            keep=isinstance(trainer.parallel, FSDP),
        ) as it,
        guarded(it, trainer.whereabouts, log) as guard,
    ):
        if trainer.device.type == "cuda":
            torch.cuda.set_device(trainer.device)
        trainer.ranks = Ranks(
            it.rank, it.local_rank, it.world_size, it.group, it.board.store, guard
        )
        try:
            _ROUTINES[routine](trainer, model, datamodule)
        finally:
            trainer.ranks.close()
            trainer.ranks = Ranks()


class _Result(msgspec.Struct):
    """What comes back from rank 0 of processes that were started for a run."""

    state: bytes | None
    valid_metrics: dict[str, float]
    test_metrics: dict[str, float]
    best_score: float | None
    weights: bytes | None  # of a model that trains by side effect


def _in_new_processes(routine: str, trainer: Trainer, model: Model, datamodule: DataModule) -> None:
    """Start one process for each rank, and take what rank 0 ends with into this one's model."""
    datamodule.trainer = trainer
    datamodule.is_distributed = True
    datamodule.seed = trainer.seed
    datamodule.prepare_data()
    trainer.loop, trainer.is_prepared, trainer.queue_of_ranks = None, True, Queue()
    try:
        data = spawn(
            _work,
            trainer.ranks_to_start,
            (routine, trainer, model, datamodule),
            grace=_GRACE,
            queue=trainer.queue_of_ranks,
        )
    finally:
        trainer.is_prepared = False
    trainer.is_introduced = True
    result = msgspec.msgpack.decode(data, type=_Result)
    model.valid_metrics, model.test_metrics = result.valid_metrics, result.test_metrics
    model.best_score = result.best_score
    if result.state is None:
        return
    state = place(from_bytes(result.state), trainer.device)
    trainer.last_state = state
    model.trainer, model.device = trainer, trainer.device
    model.prepare(trainer.seed)
    if result.weights is not None:
        weights_from_bytes(model, result.weights)
    elif isinstance(state.carry, Carry):
        bind(model).lend(state.carry.params, state.carry.buffers)


def _work(
    rank: int,
    local_rank: int,
    world_size: int,
    host: str,
    port: int,
    name: str,
    queue: Any,
    routine: str,
    trainer: Trainer,
    model: Model,
    datamodule: DataModule,
) -> bytes | None:
    """Run a routine in a process that was started for it."""
    trainer.queue_of_ranks = queue
    if trainer.gpu_ids:
        trainer.device = torch.device("cuda", trainer.gpu_ids[local_rank])
    here = Rendezvous(rank, local_rank, world_size, host, port, is_hosted=True, name=name)
    _on_this_rank(here, routine, trainer, model, datamodule)
    if rank > 0:
        return None
    # Of a sharded model rank 0 has a part alone, and all of it need not fit into one process.
    has_whole = trainer.loop is not None and own_binding(model) is None
    state = to_bytes(trainer.state) if has_whole else None
    result = _Result(
        state,
        model.valid_metrics,
        model.test_metrics,
        model.best_score,
        weights_to_bytes(model) if has_whole else None,
    )
    return msgspec.msgpack.encode(result)

"""Going on from a checkpoint: which one, what is taken from it, and what must fit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from helios.data import EpochSource
from helios.errors import ResumeError
from helios.functional.binding import own_binding
from helios.functional.plan import Plan
from helios.functional.state import TrainingState
from helios.model.imperative import ImperativeModel
from helios.model.model import Model
from helios.trainer.fingerprint import lost_promises
from helios.trainer.ranks.group import Ranks
from helios.trainer.saving import with_metrics
from helios.trainer.side_effects import take_up_content
from helios.trainer.store import Store, read_checkpoint, restore_state
from helios.trainer.store.fs import OsFs
from helios.trainer.store.reading import last_valid

if TYPE_CHECKING:
    from helios.trainer.trainer import Trainer


def check_position(state: TrainingState, batches: int | None, saved: dict[str, Any]) -> None:
    """Refuse to take up an epoch whose batches are not those of the checkpoint.

    Args:
        state: the state to go on from.
        batches: the batches of an epoch now, None if unknown.
        saved: the plan of the checkpoint.

    Raises:
        ResumeError: if an epoch is in progress and its number of batches has changed.
    """
    before = saved.get("batches_per_epoch")
    if state.dataset_iter > 0 and before != batches:
        raise ResumeError(
            f"the checkpoint stands at batch {state.dataset_iter} of an epoch of {before} batches, "
            f"and an epoch now has {batches}. Resume with the dataset and the batch size of the "
            "run, or begin a new one under another save_name."
        )


def load_weights(model: Model, content: dict[str, Any]) -> None:
    """Load the weights of a checkpoint into a model.

    Raises:
        ResumeError: if they are another model's.
    """
    try:
        if isinstance(model, ImperativeModel):
            model.load_state_dict(content["model"], fast_init=True)
        else:
            model.load_state_dict(content["model"])
    except (RuntimeError, LookupError) as error:
        raise ResumeError(f"the checkpoint does not fit this model: {error}") from error


def resume(
    trainer: Trainer,
    model: Model,
    fresh: TrainingState,
    content: dict[str, Any],
    path: Path | None = None,
) -> TrainingState:
    """Return the state of a checkpoint, and load what is beside it into model and plugins.

    Args:
        trainer: whose run it is.
        model: the model; of a sharded one, this rank's rows are read.
        fresh: the state that it begins with.
        content: of the checkpoint.
        path: where it is; needed for a sharded model.
    """
    own: Any = own_binding(model)
    if own is not None and path is not None:
        from helios.trainer.ranks.shards import load

        content = load(OsFs(), path, content, fresh, own)
        state = restore_state(content, fresh)
        extra = {key: v for key, v in content["model"].items() if key not in own.names}
        model.load_state_dict(extra, strict=False)
    elif isinstance(model, ImperativeModel):
        state = take_up_content(model, content)
    else:
        state = restore_state(content, fresh)
        load_weights(model, content)
    if trainer.random_seed is not None and trainer.random_seed != state.seed:
        trainer.warn(
            f"random_seed: received {trainer.random_seed}; the checkpoint's run has {state.seed} "
            "and goes on with it. Use another save_name to begin a run with another seed."
        )
    for name, plugin in trainer.plugins.items():
        if name in content["plugins"]:
            plugin.load_state_dict(content["plugins"][name])
    return measured_here(state, trainer.ranks, content.get("ranks"))


def measured_here(
    state: TrainingState, ranks: Ranks, measured: list[dict[str, list[float]]] | None
) -> TrainingState:
    """Return the state of a checkpoint with the metrics that this rank had in the making.

    On another number of ranks, rank 0 takes those of all.
    """
    if not ranks.several:
        return state
    if measured is not None and len(measured) == ranks.world_size:
        return with_metrics(state, [measured[ranks.rank]])
    return state if ranks.is_first else with_metrics(state, [])


def check_same(ranks: Ranks, state: TrainingState, plan: Plan) -> None:
    """Raise unless all ranks are about to run the same training.

    Raises:
        RankError: naming what differs.
    """
    ranks.agree(
        "the place in the run and the plan",
        [state.seed, state.dict(), msgspec.to_builtins(plan)],
        "give the same arguments to the trainer and the same data on every rank",
    )


def take_up(train: EpochSource, content: dict[str, Any]) -> None:
    """Give an iterable dataset the position that it saved of its own."""
    if content["data"] is not None:
        train.load_state(content["data"])


def content_of_all(
    trainer: Trainer, model: Model, store: Store | None = None
) -> tuple[dict[str, Any] | None, Path | None]:
    """Return the checkpoint to go on from, the same one on every rank, and where it is.

    Rank 0 finds it; the others read the file that it names.

    Args:
        trainer: whose run it is.
        model: whose checkpoints they are.
        store: (optional) where they are; without one the lock is not taken, and a fit may be
            writing more.

    Raises:
        CheckpointError: if a rank cannot read what rank 0 has read.
    """
    ranks, root = trainer.ranks, trainer.chkpt_root
    joined = not trainer.division().is_sharded
    found: tuple[dict[str, Any] | None, Path | None] = (None, None)
    if ranks.is_first:
        if store is not None:
            found = store.last_valid(joined=joined) or found
        else:
            found = last_content(trainer, model, joined=joined)
    if not ranks.several or root is None:
        return found
    name = ranks.told_by_first(None if found[1] is None else found[1].name)
    if ranks.is_first or name is None:
        return found
    path = root / model.save_name / name
    return read_checkpoint(path, joined=joined), path


def last_content(
    trainer: Trainer, model: Model, *, joined: bool = True
) -> tuple[dict[str, Any] | None, Path | None]:
    """Return the newest whole checkpoint, without taking the lock: a fit may be writing more.

    Args:
        trainer: whose run it is.
        model: whose checkpoints they are.
        joined: whether the tensors of a sharded one are read, whole.
    """
    if trainer.chkpt_root is None:
        return None, None
    folder = trainer.chkpt_root / model.save_name
    found = None
    if folder.is_dir():
        found = last_valid(OsFs(), folder, model.save_name, joined=joined)
    return found or (None, None)


def warn_of_lost_promises(trainer: Trainer, content: dict[str, Any], now: dict[str, Any]) -> None:
    """Warn if what the bits of a run depend on is not what it was at a checkpoint."""
    lost = lost_promises(content["fingerprint"], now)
    if lost is not None:
        trainer.warn(
            f"the environment is not that of the checkpoint: {lost}. The run goes on, but it is "
            "not promised to have the bits of an uninterrupted one."
        )

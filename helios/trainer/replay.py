"""The past, again: the states of a run, bit for bit, from one of its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from helios.data import DataModule
from helios.functional.schedule import EpochEnd, EpochStart, Peek, Plan, Validate, schedule
from helios.functional.state import TrainingState, TrainingUnit
from helios.functional.tree import digest
from helios.model.model import Model
from helios.plugins import Plugin
from helios.trainer.again import states_again
from helios.trainer.engine import as_recorded
from helios.trainer.store import read_checkpoint, stored_state
from helios.trainer.store.fs import OsFs
from helios.trainer.store.reading import committed
from helios.trainer.trainer import Trainer


def replay(
    model: Model,
    datamodule: DataModule,
    checkpoint: str | Path,
    *,
    updates: int | None = None,
    plugins: Sequence[Plugin] = (),
    use_cpu: bool | None = None,
) -> Iterator[TrainingState]:
    """Yield the states of a run after each update that followed a checkpoint.

    Steps, validations and hooks run as they did; nothing is written. Every state stays valid: none
    is consumed by the next step.

    Args:
        model: the model of the run, freshly made.
        datamodule: the data of the run.
        checkpoint: where to begin.
        updates: how many states to yield; None for all up to the end of the run's plan.
        plugins: the plugins of the run.
        use_cpu: as for `helios.Trainer`.

    Yields:
        The state after an update, with the validation and the epoch's end that belong to it: what
        a checkpoint at this update holds.

    Raises:
        CheckpointError: if the checkpoint cannot be read.
        ResumeError: if it does not fit the model or the data.

    Law:
        The states have the bits of the original run's, if that was on one rank, or canonical
        (``tests/trainer/test_replay.py``).
    """
    content = read_checkpoint(Path(checkpoint))
    plan = msgspec.convert(content["plan"], Plan)
    trainer = Trainer(
        train_unit=plan.unit,
        total_steps=float("inf") if plan.total_steps is None else plan.total_steps,
        accumulation_steps=plan.accumulation_steps,  # a train_step may look at it
        random_seed=content["training_state"]["seed"],
        use_cpu=use_cpu,
        print_banner=False,
        plugins=plugins,
        **as_recorded(content["fingerprint"]),
    )
    for state, _ in states_again(trainer, model, datamodule, content, updates, recorded=False):
        yield state


def recorded_digests(folder: str | Path) -> dict[int, str]:
    """Return the digest of every checkpoint in a folder, by its update, for `helios.verify`.

    What a stop left in the middle of a window, or before a validation that was due, is no state
    that a replay yields; such checkpoints are left out.

    Args:
        folder: the folder of one run's checkpoints.

    Raises:
        CheckpointError: if one of them cannot be read.
    """
    folder = Path(folder)
    digests = {}
    for entry in reversed(committed(OsFs(), folder, folder.name)):
        known = recorded_digest(folder / f"{entry.stem}.pth")
        if known is not None:
            digests[known[0]] = known[1]
    return digests


def recorded_digest(checkpoint: Path) -> tuple[int, str] | None:
    """Return the update and the digest of a checkpoint; None if no replay yields such a state.

    Args:
        checkpoint: the ``.pth`` file.

    Raises:
        CheckpointError: if it cannot be read.
    """
    content = read_checkpoint(checkpoint)
    state = stored_state(content)
    if not _is_settled(msgspec.convert(content["plan"], Plan), state):
        return None
    return state.current_iteration, digest(state)


def _is_settled(plan: Plan, state: TrainingState) -> bool:
    """Tell whether all that belongs to the last update is done."""
    if state.window_iter > 0:
        return False
    for event in schedule(plan, state):
        if isinstance(event, Peek) and state.dataset_iter > 0:
            # The epoch may be at its end, which only the data knows; at a cadence it is not.
            frequency = plan.chkpt_frequency
            by_update = plan.unit is TrainingUnit.ITERATION and frequency is not None
            return by_update and state.current_iteration % (frequency or 1) == 0
        if not isinstance(event, EpochStart):
            return not isinstance(event, (Validate, EpochEnd))
    return True

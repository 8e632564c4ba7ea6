"""A run again, with the trainer of a program: its states, and the record of its updates."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import msgspec

from helios.core.rng import preserved_rng
from helios.data import DataModule, mover
from helios.errors import ResumeError
from helios.functional.plan import Plan
from helios.functional.replay import settled
from helios.functional.state import TrainingState
from helios.functional.step import make_step
from helios.functional.trainable import init_state
from helios.functional.tree import clone
from helios.model.model import Model
from helios.trainer.fingerprint import fingerprint, lost_promises
from helios.trainer.flight.indices import IndexDigests
from helios.trainer.flight.record import START, Entry
from helios.trainer.flight.recorder import Recorder
from helios.trainer.hooks import Hooks
from helios.trainer.inputs import make_plan, sources
from helios.trainer.loop import Loop
from helios.trainer.observing import Observers
from helios.trainer.ranks.ballot import Ballot
from helios.trainer.report import Reporter
from helios.trainer.resuming import check_position, resume, take_up
from helios.trainer.saving import rng_restorer
from helios.trainer.session import session
from helios.trainer.trainer import Trainer


def states_again(
    trainer: Trainer,
    model: Model,
    datamodule: DataModule,
    content: dict[str, Any] | None,
    updates: int | None = None,
    *,
    seed: int | None = None,
    begin: bytes = START,
    note: list[str] | None = None,
    recorded: bool = True,
) -> Iterator[tuple[TrainingState, Entry | None]]:
    """Yield the states of a run after each update that followed a checkpoint, with its record.

    Steps, validations and hooks run as they did; nothing is written. See `helios.replay`.

    Args:
        trainer: of the run; its arguments and its plugins hold.
        model: of the run, freshly made.
        datamodule: of the run.
        content: the checkpoint to begin at; None for the start of the run.
        updates: how many states to yield; None for all up to the end of the plan.
        seed: (optional) the seed that a run from its start must have.
        begin: the chained digest of the flight record where it begins.
        note: (optional) is given a sentence if the environment is not that of the checkpoint.
        recorded: whether to make the records: that takes the norm of the gradients.

    Yields:
        The state after an update, valid as long as the caller keeps it, and the update's record.

    Raises:
        ResumeError: if it does not fit the program.
    """
    trainer.loop = None
    if content is None and seed is not None and trainer.seed != seed:
        raise ResumeError(
            f"random_seed: received {trainer.seed}; the run has {seed}. Start the program with the "
            "arguments of the run."
        )
    with session(trainer, model, datamodule), contextlib.ExitStack() as stack:
        hooks = Hooks(trainer.plugins, model)
        state = init_state(model, trainer.seed)
        division = trainer.division()
        if content is not None:
            state = resume(trainer, model, state, content)
            datamodule.seed = state.seed
        division.prepare(model)
        train, valid = sources(datamodule, stack, division.shares, trainer.limits)
        plan, policy = make_plan(trainer, train, valid), trainer.non_finite
        if content is not None:
            plan = msgspec.convert(content["plan"], Plan)
            policy = str(content["fingerprint"].get("non_finite", policy))
            now = fingerprint(model, datamodule, policy, trainer.compile, trainer.overfit_batches)
            now.update(division.fingerprint())
            _note(content, now, note)
            check_position(state, train.batches_per_epoch, content["plan"])
            take_up(train, content)
        recorder = Recorder(IndexDigests(train), state, begin) if recorded else None
        members = () if recorder is None else (recorder,)
        observers = Observers(plan, division.norm, reports=False, members=members)
        loop = Loop(
            plan,
            make_step(
                model,
                plan,
                engine=division.engine(Ballot(lambda: False)),
                non_finite=policy,
                compile=trainer.compile,
                observe=observers.observer(),
            ),
            hooks,
            train,
            valid,
            mover(trainer.device),
            Reporter(),
            records=recorder,
        )
        trainer.loop = loop
        restore = None if content is None else rng_restorer(content)
        # Steps are donated, so that hooks find in the model what they found in the run: hence the
        # copies. What the caller draws between two states must not reach the hooks.
        for after in settled(loop.run(state, restore), updates):
            with preserved_rng():
                yield clone(model.captured(after)), None if recorder is None else _last(recorder)


def _last(recorder: Recorder) -> Entry | None:
    recorder.flush()
    entries, recorder.entries = recorder.entries, []
    return entries[-1] if entries else None


def _note(content: dict[str, Any], now: dict[str, Any], note: list[str] | None) -> None:
    lost = lost_promises(content["fingerprint"], now)
    if lost is not None and note is not None:
        note.append(
            f"the environment is not that of the checkpoint: {lost}. The bits need not be the same"
        )

"""A failed step, again: the run up to it, and then that very micro-batch."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helios.data import DataModule, EpochSource, mover
from helios.errors import CheckpointError, ResumeError
from helios.functional.step import make_step
from helios.functional.trainable import init_state
from helios.model.model import Model
from helios.plugins import Plugin
from helios.trainer.crash import Crash, read_crash
from helios.trainer.engine import as_recorded
from helios.trainer.fingerprint import fingerprint, lost_promises
from helios.trainer.hooks import Hooks
from helios.trainer.inputs import sources
from helios.trainer.loop import Loop
from helios.trainer.ranks.ballot import Ballot
from helios.trainer.report import Reporter
from helios.trainer.resuming import check_position, resume, take_up
from helios.trainer.saving import rng_restorer
from helios.trainer.session import session
from helios.trainer.store import read_checkpoint
from helios.trainer.trainer import Trainer


def reproduce(
    model: Model,
    datamodule: DataModule,
    bundle: str | Path,
    *,
    plugins: Sequence[Plugin] = (),
    use_cpu: bool | None = None,
) -> None:
    """Run a step that failed again, so that it raises what it raised.

    The run goes forward from the checkpoint that the record names, or from its start, just as it
    did: steps, validations and hooks. Nothing is written. If the step does not fail this time,
    that is printed.

    Args:
        model: the model of the run, freshly made.
        datamodule: the data of the run.
        bundle: the file that the failed run names, ``.../crashes/micro_<number>.json``.
        plugins: the plugins of the run.
        use_cpu: as for `helios.Trainer`.

    Raises:
        Exception: what the step raises. One that comes from another micro-batch has a note that
            says so.
        CheckpointError: if the file or its checkpoint cannot be read.
        ResumeError: if they do not fit the model or the data.

    Law:
        The parameters and the batch at the failing step have the bits that they had in the run
        (``tests/test_debug.py``).
    """
    path = Path(bundle).absolute()
    crash = read_crash(path)
    plan = crash.plan
    trainer = Trainer(
        train_unit=plan.unit,
        total_steps=float("inf") if plan.total_steps is None else plan.total_steps,
        valid_frequency=plan.valid_frequency,
        print_frequency=plan.print_frequency,
        accumulation_steps=plan.accumulation_steps,
        early_stop_cycles=plan.early_stop_cycles,
        random_seed=crash.seed,
        enable_deterministic=crash.fingerprint.get("deterministic") is True,
        use_cpu=use_cpu,
        print_banner=False,
        plugins=plugins,
        **as_recorded(crash.fingerprint),
    )
    run_again(trainer, model, datamodule, crash, path.parent.parent)
    sys.stdout.write(went_through(crash) + "\n")
    sys.stdout.flush()


def went_through(crash: Crash) -> str:
    """Return the sentence for a step that does not fail again."""
    return (
        f"micro-batch {crash.micro_batch} (update {crash.update}) went through this time: "
        f"no {crash.error}"
    )


def run_again(
    trainer: Trainer, model: Model, datamodule: DataModule, crash: Crash, folder: Path
) -> None:
    """Run up to a failed micro-batch, and that micro-batch.

    Args:
        trainer: whose settings of device, seed and determinism hold, and whose plugins run; its
            ``loop`` stays None until the run begins.
        model: the model of the run, freshly made.
        datamodule: the data of the run.
        crash: what failed.
        folder: where its checkpoint is.

    Raises:
        Exception: as `reproduce` says.
    """
    trainer.loop = None
    content = _checkpoint(crash, folder)
    if model.save_name != crash.save_name:
        raise ResumeError(
            f"model: received {model.save_name!r}; the step that failed is one of "
            f"{crash.save_name!r}. Give that model."
        )
    if content is None and trainer.seed != crash.seed:
        raise ResumeError(
            f"random_seed: received {trainer.seed}; the run that failed had {crash.seed}. Start it "
            "with the arguments of that run."
        )
    policy = str(crash.fingerprint.get("non_finite", "raise"))
    with session(trainer, model, datamodule), contextlib.ExitStack() as stack:
        hooks = Hooks(trainer.plugins, model)
        state = init_state(model, trainer.seed)
        if content is not None:
            state = resume(trainer, model, state, content)
            datamodule.seed = state.seed
        division = trainer.division()
        division.prepare(model)
        train, valid = sources(datamodule, stack, division.shares, trainer.limits)
        _check_data(crash, train, valid)
        now = fingerprint(model, datamodule, policy, overfit_batches=trainer.overfit_batches)
        now.update(division.fingerprint())
        lost = lost_promises(crash.fingerprint, now)
        if lost is not None:
            warnings.warn(
                f"the environment is not that of the run that failed: {lost}. The step is run "
                "again, but it is not promised to have the same bits.",
                stacklevel=3,
            )
        if content is not None:
            check_position(state, train.batches_per_epoch, content["plan"])
            take_up(train, content)
        loop = Loop(
            crash.plan,
            # On a GPU too the answer is waited for: the error is to come where it belongs.
            make_step(
                model,
                crash.plan,
                engine=division.engine(Ballot(lambda: False)),
                non_finite=policy,
            ),
            hooks,
            train,
            valid,
            mover(trainer.device),
            Reporter(),
        )
        trainer.loop = loop
        restore = None if content is None else rng_restorer(content)
        try:
            # An event comes before it is done, with the state that all before it have led to.
            for _, before in loop.run(state, restore):
                if before.global_iteration >= crash.micro_batch:
                    return
        except Exception as error:
            if not fails_there(loop, crash):
                error.add_note(
                    f"This is not the failure on record, {crash.error} in micro-batch "
                    f"{crash.micro_batch}: it comes after {loop.state.global_iteration}."
                )
            raise
        if loop.state.global_iteration < crash.micro_batch:
            raise ResumeError(
                f"the run ended after micro-batch {loop.state.global_iteration}, and "
                f"{crash.micro_batch} is to be run again: the model, the plugins or the data are "
                "not those of the run that failed"
            )


def fails_there(loop: Loop | None, crash: Crash) -> bool:
    """Tell whether a loop that raised did so in the micro-batch on record."""
    return loop is not None and loop.batch is not None and loop.batch.iteration == crash.micro_batch


def _checkpoint(crash: Crash, folder: Path) -> dict[str, Any] | None:
    """Return the content of the checkpoint to begin at, None for the start of the run."""
    if crash.checkpoint is None:
        return None
    path = folder / crash.checkpoint
    content = read_checkpoint(path)
    saved = content["training_state"]
    if saved["seed"] != crash.seed or saved["global_iteration"] >= crash.micro_batch:
        raise CheckpointError(
            f"{str(path)!r} is of seed {saved['seed']} after micro-batch "
            f"{saved['global_iteration']}; expected seed {crash.seed} and a place before "
            f"micro-batch {crash.micro_batch}: it is not the checkpoint of the run that failed"
        )
    return content


def _check_data(crash: Crash, train: EpochSource, valid: EpochSource | None) -> None:
    """Raise if the data cannot be those of the run."""
    expected, batches = crash.plan.batches_per_epoch, train.batches_per_epoch
    if batches != expected:
        raise ResumeError(
            f"an epoch of the run that failed has {expected} batches, and one has {batches} now. "
            "Give the dataset and the batch size of that run."
        )
    if crash.plan.valid_frequency is not None and valid is None:
        raise ResumeError(
            "the run that failed validates, and the datamodule has no validation set. Give the "
            "data of that run."
        )
    if crash.index is None or crash.indices is None:
        return
    indices = train.indices(crash.epoch - 1, crash.index)
    if indices != crash.indices:
        raise ResumeError(
            f"batch {crash.index} of epoch {crash.epoch} was of the samples {crash.indices}, and "
            f"is of {indices} now. Give the dataset, the batch size and the order of that run."
        )

"""What a fit begins with: its batches, and the calendar that follows from them."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

from helios.data import DataModule, EpochSource, source_of
from helios.errors import DataError
from helios.functional.plan import Plan
from helios.functional.share import Shares
from helios.functional.state import TrainingUnit
from helios.trainer.limits import Limits

if TYPE_CHECKING:
    from helios.trainer.trainer import Trainer


def make_plan(trainer: Trainer, train: EpochSource, valid: EpochSource | None) -> Plan:
    """Return the calendar of a fit."""
    valid_frequency, early_stop_cycles = trainer.valid_frequency, trainer.early_stop_cycles
    if valid is None and valid_frequency is not None and trainer.fast_dev_run:
        valid_frequency = None
    elif valid is None and valid_frequency is not None:
        trainer.warn(
            "valid_frequency is given, but the datamodule has no validation set: there will be no "
            "validation" + (", and no early stop" if early_stop_cycles else "")
        )
        valid_frequency = early_stop_cycles = None
    total = trainer.total_steps
    return Plan(
        unit=trainer.train_unit,
        total_steps=None if total == math.inf else int(total),
        batches_per_epoch=train.batches_per_epoch,
        accumulation_steps=trainer.accumulation_steps,
        valid_frequency=valid_frequency,
        chkpt_frequency=trainer.chkpt_frequency,
        print_frequency=trainer.print_frequency,
        early_stop_cycles=early_stop_cycles,
        save_final=trainer.chkpt_root is not None,
    )


def training_source(
    datamodule: DataModule, shares: Shares | None = None, loaders: Any = None
) -> EpochSource:
    """Open the training batches, of which this rank has its shares.

    Args:
        datamodule: where they are.
        shares: which pieces are this rank's.
        loaders: (optional) what the module's ``train_dataloader`` has returned.

    Raises:
        DataError: if there is no training set, or it is empty.
    """
    loaders = datamodule.train_dataloader() if loaders is None else loaders
    source = source_of(loaders, seed=datamodule.seed, shares=shares)
    if source is None:
        raise DataError(
            f"{type(datamodule).__name__} has no training set; assign self._train_dataset in "
            "setup(), or override train_dataloader()"
        )
    return source


def sources(
    datamodule: DataModule,
    stack: contextlib.ExitStack,
    shares: Shares | None = None,
    limits: Limits = Limits(),  # noqa: B008
) -> tuple[EpochSource, EpochSource | None]:
    """Open the training and the validation batches; the stack closes them.

    Args:
        datamodule: where they are.
        stack: closes them.
        shares: which pieces of every micro-batch are this rank's; None for whole batches.
        limits: how much of them is used.

    Raises:
        DataError: if there is no training set, or one of them is empty.
    """
    loaders = datamodule.train_dataloader()
    train = limits.of_training(training_source(datamodule, shares, loaders))
    stack.enter_context(contextlib.closing(train))
    if limits.overfit is not None:
        again = datamodule.train_dataloader()
        valid = limits.to_validate(loaders, again, datamodule.seed, shares)
    else:
        valid = source_of(datamodule.valid_dataloader(), seed=datamodule.seed, shares=shares)
    if valid is not None:
        valid = limits.of_evaluation(valid)
        stack.enter_context(contextlib.closing(valid))
    return train, valid


def total_updates(plan: Plan) -> int | None:
    """Return the updates of a whole run, None if they are not known beforehand.

    Example:
        >>> total_updates(Plan(total_steps=2, batches_per_epoch=5, accumulation_steps=2))
        6
    """
    if plan.total_steps is None or plan.unit is TrainingUnit.ITERATION:
        return plan.total_steps
    if plan.batches_per_epoch is None:
        return None
    return plan.total_steps * -(-plan.batches_per_epoch // plan.accumulation_steps)

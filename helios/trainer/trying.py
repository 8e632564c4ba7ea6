"""``fast_dev_run``: all code of a run once, on a few batches, leaving nothing behind."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helios.core.distributed import get_dist_info
from helios.data import DataModule
from helios.functional.state import TrainingUnit
from helios.model.model import Model

if TYPE_CHECKING:
    from helios.trainer.trainer import Trainer

_PUT_BACK = (
    *("chkpt_root", "log_path", "run_path", "total_steps", "valid_frequency", "chkpt_frequency"),
    *("early_stop_cycles", "print_frequency", "retention", "loop", "last_state", "left"),
    *("is_introduced", "failure_log", "_plugins", "_model", "_datamodule"),
    *("_train_exceptions", "_test_exceptions", "logs"),
)


@contextlib.contextmanager
def trying(trainer: Trainer, model: Model, datamodule: DataModule, routine: str) -> Iterator[Model]:
    """Let a trainer run a short run in a folder that goes away, on copies of model and plugins.

    Law:
        A fit after it has the bits of a fit without it, of the same objects
        (``tests/trainer/test_trying.py``).

    Args:
        trainer: put back as it was at the end.
        model: what to try; what is yielded is to be run in its place.
        datamodule: its data; ``prepare_data``, ``setup`` and ``teardown`` run.
        routine: ``"fit"`` or ``"test"``.

    Raises:
        ValueError: on one of several ranks that something else has started: they have no folder
            in common that goes away.
    """
    if get_dist_info().world_size > 1:
        raise ValueError(
            "fast_dev_run: received it on one of several ranks that were started from outside; "
            "expected one process. Run the script without torchrun; cpu_ranks and gpus start "
            "ranks themselves"
        )
    updates = trainer.fast_dev_run
    before = {name: getattr(trainer, name) for name in _PUT_BACK}
    given = datamodule._trainer
    # A plugin may add to these when it configures the trainer.
    trainer._train_exceptions = list(trainer._train_exceptions)
    trainer._test_exceptions = list(trainer._test_exceptions)
    try:
        with tempfile.TemporaryDirectory(prefix="helios-dev-run-") as folder:
            root = Path(folder)
            trainer.chkpt_root = root / "checkpoints"
            trainer.logs = []
            trainer.log_path = root / "logs" if trainer.enable_file_logging else None
            trainer.run_path = root / "runs" if trainer.enable_tensorboard else None
            every = 1 if trainer.train_unit is TrainingUnit.EPOCH else updates
            trainer.total_steps = trainer.valid_frequency = trainer.chkpt_frequency = every
            trainer.print_frequency, trainer.early_stop_cycles = 1, None
            trainer.loop = trainer.last_state = None
            copied, trainer._plugins = _copies(trainer, model, datamodule)
            what = f"{updates} batch(es) of test"
            if routine == "fit":
                what = (
                    f"{updates} update(s) of training, {updates} batch(es) of validation and of "
                    "test, and a checkpoint"
                )
            trainer.say(f"fast_dev_run: {what}; nothing is resumed, and nothing is kept")
            yield copied
    finally:
        for name, value in before.items():
            setattr(trainer, name, value)
        datamodule._trainer = given


def _copies(trainer: Trainer, model: Model, datamodule: DataModule) -> tuple[Model, dict[str, Any]]:
    """Return copies of a model and of plugins that know each other as those do."""
    shared = {id(one): one for one in (trainer, datamodule, model._trainer) if one is not None}
    try:
        return copy.deepcopy((model, trainer._plugins), shared)
    except Exception as error:
        trainer.warn(
            f"fast_dev_run: the model and the plugins cannot be copied ({error}), so they are used "
            "themselves: make them anew for the fit that follows"
        )
        return model, trainer._plugins

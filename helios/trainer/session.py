"""What surrounds a fit or a test: seeds, switches, plugins, data and model, and their clean-up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from helios.core.cuda import determinism
from helios.core.rng import preserved_rng, seed_all
from helios.core.utils import update_all_registries
from helios.data import DataModule
from helios.functional import rng
from helios.model.model import Model

if TYPE_CHECKING:
    from helios.trainer.trainer import Trainer


@contextlib.contextmanager
def session(
    trainer: Trainer, model: Model, datamodule: DataModule, *, fast_init: bool = False
) -> Iterator[None]:
    """Set up everything that a fit or a test needs, and leave the process as it was.

    The global random generators and the determinism switches are put back, and
    ``DataModule.teardown`` runs, whatever happens inside.

    Args:
        trainer: whose run it is.
        model: set up here, if it has not been.
        datamodule: prepared and set up here.
        fast_init: whether the model is only to be tested.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(preserved_rng())
        stack.enter_context(
            determinism(
                benchmark=trainer.enable_cudnn_benchmark, deterministic=trainer.enable_deterministic
            )
        )
        seed = trainer.seed
        trainer.ranks.agree(
            "the seed", seed, "give the same arguments to the trainer on every rank"
        )
        seed_all(rng.fold(seed, "session"))
        stack.callback(datamodule.teardown)
        datamodule.trainer = trainer
        several = trainer.ranks.several
        datamodule.is_distributed = several
        datamodule.seed = seed
        if not trainer.is_prepared:
            trainer.ranks.once(datamodule.prepare_data)
        if trainer.src_root is not None:
            update_all_registries(trainer.src_root, import_prefix=trainer.import_prefix)
        for plugin in list(trainer.plugins.values()):
            plugin.trainer = trainer
            plugin.device = trainer.device
            plugin.rank = trainer.rank
            plugin.is_distributed = several
            plugin.configure_trainer(trainer)
            plugin.setup()
        datamodule.setup()
        model.trainer = trainer
        model.rank = trainer.rank
        model.is_distributed = several
        model.device = trainer.device
        for plugin in trainer.plugins.values():
            plugin.configure_model(model)
        model.prepare(seed, fast_init=fast_init)
        yield

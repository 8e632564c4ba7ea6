"""The shell around the core: devices, files, the terminal."""

from helios.functional.metrics import Mean
from helios.functional.precision import LossScale
from helios.functional.state import Accumulator, Carry
from helios.functional.state import TrainingState as TrainingState
from helios.functional.state import TrainingUnit as TrainingUnit
from helios.trainer.store import find_last_checkpoint as find_last_checkpoint
from helios.trainer.trainer import Trainer as Trainer

__all__ = [
    "TrainingUnit",
    "TrainingState",
    "Trainer",
    "get_trainer_safe_types_for_load",
    "register_trainer_types_for_safe_load",
    "find_last_checkpoint",
]


def get_trainer_safe_types_for_load() -> list[type]:
    """Return the list of safe types for loading needed by the trainer.

    Returns:
        The list of types that need to be registered for safe loading.
    """
    return [TrainingState, Carry, Accumulator, LossScale, Mean]


def register_trainer_types_for_safe_load() -> None:
    """Register trainer types for safe loading.

    Afterwards ``torch.load(path, weights_only=True)`` opens files into which states were saved.
    The checkpoints of the trainer hold builtin types alone and open without it.
    """
    import torch

    torch.serialization.add_safe_globals([*get_trainer_safe_types_for_load()])

"""Where plugins hand the numbers that they measure: one place, whatever shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from helios.core.logging import get_tensorboard_writer

if TYPE_CHECKING:
    from helios.trainer import Trainer


def write_scalars(trainer: Trainer, values: Mapping[str, float], update: int) -> None:
    """Hand numbers to what the trainer reports to.

    Args:
        trainer: whose run it is.
        values: the numbers by tag.
        update: the update that they belong to.
    """
    log = getattr(trainer, "log", None)
    if log is not None:
        for tag, value in values.items():
            log.scalar(tag, value)
        return
    writer = get_tensorboard_writer()
    if writer is not None:
        for tag, value in values.items():
            writer.add_scalar(tag, value, update)

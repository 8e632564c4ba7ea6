"""TensorBoard as a log among others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from helios.core.tensorboard import TensorboardWriter
from helios.loggers.run_log import RunLog


class BoardLog(RunLog):
    """Writes to the TensorBoard folder of a run, which is opened and closed with its other logs.

    Args:
        writer: the folder.
    """

    def __init__(self, writer: TensorboardWriter) -> None:
        self._writer = writer

    def scalars(self, update: int, epoch: int, values: Mapping[str, float]) -> None:
        """Write numbers."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, update)

    def images(self, update: int, tag: str, images: Any) -> None:
        """Write images side by side."""
        if len(images) == 1:
            self._writer.add_image(tag, images[0], update, dataformats="HWC")
        else:
            self._writer.add_images(tag, images, update, dataformats="NHWC")

    def histogram(self, update: int, tag: str, values: Any) -> None:
        """Write the distribution of the values that are finite."""
        finite = values[np.isfinite(values)]
        if len(finite):
            self._writer.add_histogram(tag, finite, update)

    def text(self, update: int, tag: str, text: str) -> None:
        """Write a text."""
        self._writer.add_text(tag, text, update)

    def hyperparameters(self, values: Mapping[str, bool | int | float | str]) -> None:
        """Write what the run was started with, for the tab HPARAMS."""
        self._writer.add_session(values)

    def flush(self) -> None:
        """Write out what is still in memory."""
        self._writer.flush()

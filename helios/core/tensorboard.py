"""Writing to TensorBoard, so that a resumed run shows every step once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_PATIENCE = 3.0  # seconds to wait for the clock; file names count whole ones


class TensorboardWriter:
    """A TensorBoard folder to write to.

    TensorBoard itself is imported when the first writer is made: that takes seconds.

    Args:
        run_dir: the folder, created if it is missing; None for a writer that writes nothing, as
            ranks other than 0 have.
        purge_step: (optional) the first step that this writer may log again. What earlier writers
            have logged in the folder from that step on is dropped by TensorBoard, whatever its
            tag: all of it should be counted in the same unit.
    """

    def __init__(self, run_dir: Path | None, purge_step: int | None = None) -> None:
        self.run_dir = run_dir
        self._purge_step = purge_step
        self._parts: dict[str, SummaryWriter] = {}
        self._writer = None if run_dir is None else open_writer(run_dir, purge_step)

    def add_scalar(
        self, tag: str, scalar_value: float | torch.Tensor, global_step: int | None = None
    ) -> None:
        """Log a number.

        Args:
            tag: its name.
            scalar_value: the number, or a tensor of one element.
            global_step: (optional) the step it belongs to.
        """
        if self._writer is not None:
            self._writer.add_scalar(tag, scalar_value, global_step)

    def add_scalars(
        self,
        main_tag: str,
        tag_scalar_dict: Mapping[str, float | torch.Tensor],
        global_step: int | None = None,
    ) -> None:
        """Log several numbers that share a plot.

        Args:
            main_tag: the name of the plot.
            tag_scalar_dict: the numbers by name.
            global_step: (optional) the step they belong to.
        """
        if self._writer is None or self.run_dir is None:
            return
        for tag, value in tag_scalar_dict.items():
            # Each line of the plot is a folder of its own, named as SummaryWriter.add_scalars
            # names it; that method would not purge there.
            name = f"{main_tag}_{tag}".replace("/", "_")
            if name not in self._parts:
                self._parts[name] = open_writer(self.run_dir / name, self._purge_step)
            self._parts[name].add_scalar(main_tag, value, global_step)

    def add_image(
        self, tag: str, img_tensor: Any, global_step: int | None = None, dataformats: str = "CHW"
    ) -> None:
        """Log an image.

        Args:
            tag: its name.
            img_tensor: a tensor or an array, u8 in [0, 255] or f32 in [0, 1].
            global_step: (optional) the step it belongs to.
            dataformats: its dimensions, such as ``"CHW"``, ``"HWC"`` or ``"HW"``.
        """
        if self._writer is not None:
            self._writer.add_image(tag, img_tensor, global_step, dataformats=dataformats)

    def add_images(
        self, tag: str, img_tensor: Any, global_step: int | None = None, dataformats: str = "NCHW"
    ) -> None:
        """Log a batch of images side by side.

        Args:
            tag: its name.
            img_tensor: a tensor or an array, u8 in [0, 255] or f32 in [0, 1].
            global_step: (optional) the step it belongs to.
            dataformats: its dimensions, such as ``"NCHW"`` or ``"NHWC"``.
        """
        if self._writer is not None:
            self._writer.add_images(tag, img_tensor, global_step, dataformats=dataformats)

    def add_figure(
        self, tag: str, figure: Any, global_step: int | None = None, close: bool = True
    ) -> None:
        """Log one matplotlib figure, or several. Needs matplotlib.

        Args:
            tag: its name.
            figure: the figure, or a list of them.
            global_step: (optional) the step it belongs to.
            close: whether to close it afterwards.
        """
        if self._writer is not None:
            self._writer.add_figure(tag, figure, global_step, close)

    def add_histogram(
        self, tag: str, values: Any, global_step: int | None = None, bins: str = "tensorflow"
    ) -> None:
        """Log a histogram of values.

        Args:
            tag: its name.
            values: a tensor or an array.
            global_step: (optional) the step it belongs to.
            bins: how to find the bins: ``"tensorflow"``, or a name that numpy knows.
        """
        if self._writer is not None:
            self._writer.add_histogram(tag, values, global_step, bins)

    def add_text(self, tag: str, text_string: str, global_step: int | None = None) -> None:
        """Log text; TensorBoard reads it as Markdown.

        Args:
            tag: its name.
            text_string: the text.
            global_step: (optional) the step it belongs to.
        """
        if self._writer is not None:
            self._writer.add_text(tag, text_string, global_step)

    def add_hparams(
        self,
        hparam_dict: Mapping[str, bool | str | float],
        metric_dict: Mapping[str, float],
        global_step: int | None = None,
    ) -> None:
        """Log hyper-parameters, and the metrics to compare runs by.

        Args:
            hparam_dict: the hyper-parameters by name.
            metric_dict: the metrics by name; they are logged as scalars, too.
            global_step: (optional) the step the metrics belong to.
        """
        if self._writer is None:
            return
        from torch.utils.tensorboard.summary import hparams

        # SummaryWriter.add_hparams opens a second file in the folder, after which TensorBoard
        # reads no more from this one.
        summaries = hparams(dict(hparam_dict), dict(metric_dict))  # type: ignore[no-untyped-call]
        file: Any = self._writer.file_writer
        for summary in summaries:
            file.add_summary(summary)
        for name, value in metric_dict.items():
            self._writer.add_scalar(name, value, global_step)

    def add_session(self, hparam_dict: Mapping[str, bool | str | float]) -> None:
        """Log hyper-parameters alone; TensorBoard compares runs by the last value of every scalar.

        Args:
            hparam_dict: the hyper-parameters by name.
        """
        if self._writer is None:
            return
        from torch.utils.tensorboard.summary import hparams

        # Without the first of the three, which lists metrics, TensorBoard takes all that there are.
        _, start, _ = hparams(dict(hparam_dict), {})  # type: ignore[no-untyped-call]
        file: Any = self._writer.file_writer
        file.add_summary(start)

    def flush(self) -> None:
        """Write out what is still in memory."""
        self._each(lambda writer: writer.flush())

    def close(self) -> None:
        """Close the files. What is added afterwards is dropped."""
        try:
            self._each(lambda writer: writer.close())
        finally:
            self._writer = None
            self._parts = {}

    def _each(self, action: Callable[[SummaryWriter], None]) -> None:
        for writer in (self._writer, *self._parts.values()):
            if writer is not None:
                action(writer)


def open_writer(folder: Path, purge_step: int | None = None) -> SummaryWriter:
    """Open an event file that TensorBoard reads after all those that are in the folder.

    It reads them by name, and names begin with the second in which a file was made, so two files
    of one second may be read in the wrong order, and steps be purged that should not be.

    Args:
        folder: the folder, created if it is missing.
        purge_step: (optional) the step from which on earlier files count no more.
    """
    from torch.utils.tensorboard import SummaryWriter

    deadline = time.monotonic() + _PATIENCE
    while True:
        earlier = set(folder.glob("*tfevents*"))
        writer = SummaryWriter(str(folder), purge_step=purge_step, flush_secs=20)
        made = set(folder.glob(f"*tfevents*.{os.getpid()}.*")) - earlier
        last = max((path.name for path in earlier), default="")
        if all(path.name > last for path in made):
            return writer
        if time.monotonic() > deadline:
            # The clock is behind the one of the earlier run: better a file that is read too early
            # than none.
            return writer
        writer.close()
        for path in made:
            path.unlink()
        time.sleep(1.001 - time.time() % 1)  # to the next whole second

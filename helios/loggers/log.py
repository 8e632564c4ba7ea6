"""What a hook writes to: one object for all logs of a run, or for none."""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from helios.functional.state import TrainingState
from helios.loggers.pictures import bytes_of, drawn, rows_of
from helios.loggers.run_log import RunLog

_Point = tuple[int, int, str, str, Any]
"""Update, epoch, kind, tag and value."""


class Log:
    """Takes numbers, images, histograms and texts of a run to all of its logs.

    It is ``trainer.log``, and may be called from any hook, on any rank, with or without a log: if
    none is on, nothing is done and nothing is read. The step is the present update.

    Values that lie on a GPU stay there until metrics are reported, so a call does not wait for the
    device. What was logged is written once the run can go on from after it: if it fails before,
    the resumed run logs the same again, and it would stand there twice.

    Example:
        >>> log = Log()
        >>> log.scalar("temperature", 0.5)  # nobody listens
        >>> log.is_on
        False
    """

    def __init__(self) -> None:
        self._logs: tuple[RunLog, ...] = ()
        self._where: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self._pending: list[_Point] = []
        self._sure: list[_Point] = []
        self._waits = False

    @property
    def is_on(self) -> bool:
        """Whether anything is written."""
        return bool(self._logs)

    def scalar(self, tag: str, value: float | torch.Tensor) -> None:
        """Log a number.

        Args:
            tag: its name, such as ``"gan/temperature"``.
            value: the number, or a tensor of one element.
        """
        if self._logs:
            self._add("scalar", tag, _number(tag, value))

    def scalars(self, tag: str, values: Mapping[str, float | torch.Tensor]) -> None:
        """Log several numbers, named ``<tag>/<name>``.

        Args:
            tag: what their names begin with.
            values: the numbers by name.
        """
        for name, value in values.items():
            self.scalar(f"{tag}/{name}", value)

    def image(self, tag: str, image: Any, layout: str = "CHW") -> None:
        """Log an image.

        Args:
            tag: its name.
            image: a tensor or an array, u8 in [0, 255] or floating point in [0, 1].
            layout: its dimensions: ``"CHW"``, ``"HWC"`` or ``"HW"``.
        """
        if self._logs:
            self._add("images", tag, bytes_of(_kept(image)[None], f"N{layout}"))

    def images(self, tag: str, images: Any, layout: str = "NCHW") -> None:
        """Log several images of one size.

        Args:
            tag: their name.
            images: a tensor or an array, u8 in [0, 255] or floating point in [0, 1].
            layout: its dimensions: ``"NCHW"``, ``"NHWC"`` or ``"NHW"``.
        """
        if self._logs:
            self._add("images", tag, bytes_of(_kept(images), layout))

    def figure(self, tag: str, figure: Any, close: bool = True) -> None:
        """Log a figure of matplotlib, as an image of its present look.

        Args:
            tag: its name.
            figure: the figure.
            close: whether to close it, whether or not a log is on.
        """
        if self._logs:
            self._add("images", tag, drawn(figure))
        pyplot = sys.modules.get("matplotlib.pyplot")
        if close and pyplot is not None:
            pyplot.close(figure)

    def histogram(self, tag: str, values: Any) -> None:
        """Log the distribution of some values.

        Args:
            tag: their name.
            values: a tensor or an array of numbers.
        """
        if self._logs:
            self._add("histogram", tag, _kept(values).reshape(-1))

    def text(self, tag: str, text: str) -> None:
        """Log a text.

        Args:
            tag: its name.
            text: the text.
        """
        if self._logs:
            self._add("text", tag, str(text))

    def begin(self, logs: Sequence[RunLog], where: Callable[[], tuple[int, int]]) -> None:
        """Write to some logs from now on, which are open.

        Args:
            logs: the logs.
            where: returns the updates done, and the epoch.
        """
        self._logs, self._where = tuple(logs), where
        self._pending, self._sure, self._waits = [], [], False

    def at(self, state: TrainingState) -> None:
        """Let the step be the place of a state from now on, as in a test."""
        self._where = lambda: (state.current_iteration, state.global_epoch)

    def end(self) -> None:
        """Write what is sure, and drop the rest; nothing is on any more."""
        self._pending = []
        try:
            self.write()
        finally:
            self.begin((), lambda: (0, 0))

    def release(self, *, write: bool) -> None:
        """Take what was logged as sure: a run can go on from after it.

        Args:
            write: whether to write it now, though that may wait for the device. What does not lie
                on one is written anyway.
        """
        if self._pending:
            self._sure += self._pending
            self._pending = []
        if self._sure and (write or not self._waits):
            self.write()

    def write(self) -> None:
        """Write what is sure. Waits for the device if something lies there."""
        points, self._sure, self._waits = self._sure, [], False
        for (update, epoch, kind), group in itertools.groupby(points, lambda point: point[:3]):
            same = [(tag, value) for _, _, _, tag, value in group]
            if kind == "scalar":
                numbers = _read(same)
                self._tell("scalars", update, epoch, numbers)
                continue
            for tag, value in same:
                if kind != "text":
                    value = value.cpu().numpy() if kind == "images" else rows_of(value)
                self._tell(kind, update, tag, value)

    def flush(self) -> None:
        """Let every log write out what it still has in memory."""
        for log in self._logs:
            log.flush()

    def hyperparameters(self, values: Mapping[str, bool | int | float | str]) -> None:
        """Let every log write what the run was started with."""
        self._tell("hyperparameters", values)

    def _tell(self, method: str, *args: Any) -> None:
        """Call a method of every log; one that cannot be written is left out from then on."""
        for log in self._logs:
            try:
                getattr(log, method)(*args)
            except OSError as error:
                self._logs = tuple(other for other in self._logs if other is not log)
                warnings.warn(
                    f"a {type(log).__name__} cannot be written, and the run goes on without it: "
                    f"{error}",
                    stacklevel=2,
                )

    def _add(self, kind: str, tag: str, value: Any) -> None:
        update, epoch = self._where()
        self._pending.append((update, epoch, kind, tag, value))
        self._waits = self._waits or (isinstance(value, torch.Tensor) and not value.is_cpu)

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]  # another process logs on its own


def _number(tag: str, value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"log: received a tensor of shape {list(value.shape)} for {tag!r}; expected a "
                "number, or a tensor of one element"
            )
        value = value.detach().reshape(())
        # What lies in the memory of the CPU is read there; nothing is waited for.
        return float(value.tolist()) if value.is_cpu else value.clone()
    return float(value)


def _kept(values: Any) -> torch.Tensor:
    """Return a copy on its device: what it is a copy of may change before it is written."""
    tensor = values.detach() if isinstance(values, torch.Tensor) else torch.as_tensor(values)
    return tensor.clone()


def _read(points: list[tuple[str, Any]]) -> dict[str, float]:
    """Return numbers by tag; those on a device come in one copy."""
    there = [value for _, value in points if isinstance(value, torch.Tensor)]
    if there:
        read = iter(torch.stack([value.to(torch.float64) for value in there]).tolist())
    return {tag: next(read) if isinstance(value, torch.Tensor) else value for tag, value in points}

"""What a log of a run is: the few methods that a trainer calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class Run(msgspec.Struct, frozen=True):
    """The run that a log is opened for.

    Args:
        name: its name: that of the trainer, or else the model's.
        resumed_from: the update of the checkpoint that it goes on from; None if it goes on from
            none. What the log holds of later updates is about to be computed again.
        identity: what `RunLog.identity` was when that checkpoint was written.
        is_test: whether this is a test, which adds to what is there.
    """

    name: str
    resumed_from: int | None = None
    identity: str | None = None
    is_test: bool = False


class RunLog:
    """A log of a run, for ``Trainer(logs=[...])``. Subclass it to write one.

    Only `scalars` has to be there: what a log does not understand, it does not override. All
    methods are called on rank 0 alone, and by one thread alone, but `flush`: under
    ``async_saving`` another one calls it.

    Example:
        >>> class Printed(RunLog):
        ...     def scalars(self, update, epoch, values):
        ...         print(update, values)
        >>> Printed().scalars(3, 1, {"train/loss": 0.5})
        3 {'train/loss': 0.5}
    """

    @property
    def identity(self) -> str | None:
        """What a checkpoint is to keep, so that a resumed run goes on in the same log."""
        return None

    def open(self, run: Run) -> None:
        """Begin; called before anything else, and again for a later fit or test.

        Args:
            run: the run.
        """

    def scalars(self, update: int, epoch: int, values: Mapping[str, float]) -> None:
        """Write numbers.

        Args:
            update: updates done, the step of these numbers. It never decreases, and several calls
                may have the same.
            epoch: the epoch in progress, or the one that has just ended.
            values: the numbers by name, such as ``"train/loss"``.

        Raises:
            NotImplementedError: unless it is overridden.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no scalars(); override scalars(update, epoch, values)"
        )

    def images(self, update: int, tag: str, images: Any) -> None:
        """Write images.

        Args:
            update: updates done.
            tag: their name.
            images: u8[n, height, width, channels], a numpy array.
        """

    def histogram(self, update: int, tag: str, values: Any) -> None:
        """Write the distribution of some values.

        Args:
            update: updates done.
            tag: their name.
            values: f64[n], a numpy array; some may be NaN.
        """

    def text(self, update: int, tag: str, text: str) -> None:
        """Write a text.

        Args:
            update: updates done.
            tag: its name.
            text: the text.
        """

    def hyperparameters(self, values: Mapping[str, bool | int | float | str]) -> None:
        """Write what the run was started with; called once, and not again for a resumed run.

        Args:
            values: the values by name.
        """

    def flush(self) -> None:
        """Write out what is still in memory; called before a checkpoint is committed."""

    def close(self) -> None:
        """End; called whatever happened, also if `open` has failed."""

"""The run in progress, as the trainer tells of it: its model, its data, its ranks, its state."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import TYPE_CHECKING, Any

from helios.core.distributed import get_dist_info
from helios.data import DataModule
from helios.functional.state import TrainingState
from helios.loggers.log import Log
from helios.model.model import Model
from helios.trainer.in_memory import NOTHING, Left, whereabouts
from helios.trainer.ranks.group import Ranks

if TYPE_CHECKING:
    from helios.trainer.loop import Loop


class RunInProgress:
    """What a trainer knows of the run in progress, or of the last one; nothing before the first.

    Attributes:
        ranks: the processes that train together.
        log: takes numbers, images and texts from hooks to all logs of the run; see
            `helios.loggers.Log`.
        loop: what carries the state, None before the first fit.
        failure_log: where a failure is written to, if there is a log.
        is_introduced: whether the banner was shown.
        is_prepared: whether ``prepare_data`` has run before the ranks were started.
        last_state: the state that a run in other processes has ended with.
        queue_of_ranks: what `queue` returns.
        left: where the last fit was left, for `Trainer.resume`.
        going_on: the content that the next fit goes on from, in the place of a checkpoint.
    """

    def __init__(self) -> None:
        self.ranks = Ranks()
        self.log = Log()
        self.loop: Loop | None = None
        self.failure_log: logging.Logger | None = None
        self.is_introduced = False
        self.is_prepared = False
        self.last_state: TrainingState | None = None
        self.queue_of_ranks: Any = None
        self.left: Left = NOTHING
        self.going_on: dict[str, Any] | None = None
        self._model: Model | None = None
        self._datamodule: DataModule | None = None
        self._train_exceptions: list[type[Exception]] = []
        self._test_exceptions: list[type[Exception]] = []

    @property
    def model(self) -> Model:
        """Return the model.

        Raises:
            RuntimeError: if nothing has been run yet.
        """
        if self._model is None:
            raise RuntimeError("the trainer has no model yet; it has one once fit or test runs")
        return self._model

    @property
    def datamodule(self) -> DataModule:
        """Return the datamodule.

        Raises:
            RuntimeError: if nothing has been run yet.
        """
        if self._datamodule is None:
            raise RuntimeError(
                "the trainer has no datamodule yet; it has one once fit or test runs"
            )
        return self._datamodule

    @property
    def is_distributed(self) -> bool:
        """Whether the run in progress has several ranks."""
        return self.ranks.several

    @property
    def local_rank(self) -> int:
        """Return the local rank of the trainer."""
        return get_dist_info().local_rank

    @property
    def rank(self) -> int:
        """Return the global rank of the trainer."""
        return get_dist_info().rank

    @property
    def train_exceptions(self) -> list[type[Exception]]:
        """Return the list of valid exceptions for training.

        One of these types is re-raised by `fit`, after clean-up; any other makes it return False.
        """
        return self._train_exceptions

    @property
    def test_exceptions(self) -> list[type[Exception]]:
        """Return the list of valid exceptions for testing, as `train_exceptions`."""
        return self._test_exceptions

    @property
    def queue(self) -> Any:
        """Return the multi-processing queue instance.

        If training isn't distributed or if ``torchrun`` is used, then None is returned instead.
        What the ranks put into it is there for this process once they run, and after it.
        """
        return self.queue_of_ranks

    @property
    def state(self) -> TrainingState:
        """Return the state of the run in progress, or of the last one.

        Raises:
            RuntimeError: if nothing has been run yet.
        """
        if self.loop is not None:
            return self.loop.state
        if self.last_state is not None:
            return self.last_state
        raise RuntimeError("the trainer has no state yet; it has one once fit runs")

    def say(self, message: str, logger: logging.Logger | None = None) -> None:
        """Print a message on rank 0, and write it to the log if there is one."""
        if not self.ranks.is_first:
            return
        sys.stdout.write(message + "\n")
        sys.stdout.flush()
        if logger is not None:
            logger.info(message)

    def warn(self, message: str) -> None:
        """Warn on rank 0."""
        if self.ranks.is_first:
            warnings.warn(message, stacklevel=4)

    def whereabouts(self) -> str:
        """Say in words where the run in progress is."""
        if self.loop is None:
            return "before the first step"
        return whereabouts(self.loop.state)

    def __getstate__(self) -> dict[str, Any]:
        """Return what goes to the processes of a run: nothing that belongs to this one."""
        here = {"loop": None, "failure_log": None, "last_state": None, "queue_of_ranks": None}
        return {**self.__dict__, **here, "left": NOTHING, "going_on": None}

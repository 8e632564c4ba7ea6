"""A run of several ranks that gets signals, at any call of a Python function of one of them."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec

from helios.trainer.signals import Signals
from tests.trainer.ranks import small
from tests.zoo import Augmented


class Config(msgspec.Struct, frozen=True):
    """How a run is configured.

    Args:
        unit: ``"iteration"`` or ``"epoch"``.
        accumulation: micro-batches in a window.
        reduction: ``"mean"`` or ``"canonical"``.
        ranks: how many.
        workers: processes that fetch, on every rank.
        async_saving: whether checkpoints are written in the background.
    """

    unit: str = "iteration"
    accumulation: int = 1
    reduction: str = "mean"
    ranks: int = 2
    workers: int = 0
    async_saving: bool = False

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the trainer."""
        steps = {"total_steps": small.UPDATES, "valid_frequency": 4, "chkpt_frequency": 4}
        if self.unit == "epoch":
            steps = {"total_steps": 4, "valid_frequency": 1, "chkpt_frequency": 2}
        pieces = {"pieces": 4} if self.reduction == "canonical" else {}
        return {
            "train_unit": self.unit,
            "accumulation_steps": self.accumulation,
            "reduction": self.reduction,
            "async_saving": self.async_saving,
            **steps,
            **pieces,
        }


class Shot(msgspec.Struct, frozen=True):
    """Which signals are sent, when, and to whom.

    Args:
        number: the signal.
        rank: which rank's calls are counted.
        call: the call of a Python function, from the start of the training on, at which it is
            sent; or the name of a hook, with the update at which it is called.
        to: the ranks that get it.
        times: how many of them each rank gets.
    """

    number: int
    rank: int
    call: int | tuple[str, int]
    to: list[int]
    times: int = 1


class Watched(Augmented):
    """Data that tell which processes read them."""

    def __init__(self, folder: str) -> None:
        super().__init__(small.SAMPLES)
        self._folder = folder

    def __getitem__(self, index):
        Path(self._folder, f"reader-{os.getpid()}").touch()
        return super().__getitem__(index)


class Hit(small.Net):
    """A model that counts the calls while it is trained, and sends a signal at one of them."""

    def __init__(self, folder: str, shot: Shot | None) -> None:
        super().__init__(small.NAME)
        self._folder, self._shot = folder, shot
        self._calls = 0

    def on_training_start(self):
        mine = self._shot is None or self._shot.rank == self.rank
        if mine and (self._shot is None or isinstance(self._shot.call, int)):
            sys.setprofile(self._count)

    def on_training_batch_end(self, state, should_log=False):
        self._reach("on_training_batch_end")
        # Beyond this the ranks part: one that is through has given its handlers back.
        if state.global_iteration == small.UPDATES - 1:
            sys.setprofile(None)
            if self._shot is None:
                Path(self._folder, f"calls-{self.rank}").write_text(str(self._calls))

    def on_training_batch_start(self, state):
        self._reach("on_training_batch_start")

    def on_training_epoch_end(self, current_epoch):
        self._reach("on_training_epoch_end")

    def on_validation_batch_end(self, step):
        self._reach("on_validation_batch_end")

    def append_metadata_to_chkpt_name(self, name):
        self._reach("append_metadata_to_chkpt_name")
        return ""

    def on_training_end(self):
        self._reach("on_training_end")

    def _count(self, frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            self._calls += 1
            if self._shot is not None and self._calls == self._shot.call:
                self._fire()

    def _reach(self, hook: str) -> None:
        shot = self._shot
        if shot is not None and shot.rank == self.rank:
            update = self.trainer.state.current_iteration
            if [hook, update] == list(shot.call if not isinstance(shot.call, int) else ()):
                self._fire()

    def _fire(self) -> None:
        shot, self._shot = self._shot, msgspec.structs.replace(self._shot, call=-1)
        for rank in shot.to:
            pid = int(Path(self._folder, f"pid-{rank}").read_text())
            for _ in range(shot.times):
                os.kill(pid, shot.number)


def fit(
    folder: str,
    config: dict[str, Any],
    shot: dict[str, Any] | None = None,
) -> None:
    """Run the small run on this rank, and write down where it was hit and where it ended.

    Args:
        folder: of the run.
        config: a `Config`.
        shot: (optional) a `Shot`; without one the calls are counted.
    """
    rank = int(os.environ["RANK"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Path(folder, f"pid-{rank}").write_text(str(os.getpid()))
    given = msgspec.convert(config, Config)
    made = small.trainer(folder, rank_timeout=10.0, **given.arguments())
    note = Signals._note

    def noted(self: Signals, number: int, frame: Any) -> None:
        Path(folder, f"hit-{rank}.json").write_text(json.dumps(_counters(made)))
        note(self, number, frame)

    model = Hit(folder, None if shot is None else msgspec.convert(shot, Shot))
    status = 0
    with mock.patch.object(Signals, "_note", noted):
        try:
            made.fit(model, small.Data(Watched(folder), given.workers))
        except KeyboardInterrupt:
            status = 128 + signal.SIGINT  # as the interpreter would end
        finally:
            sys.setprofile(None)
            Path(folder, f"ended-{rank}.json").write_text(json.dumps(_counters(made)))
    sys.exit(status)


def _counters(trainer: Any) -> dict[str, Any]:
    state = trainer.state
    counters = {**state.dict(), "window_iter": state.window_iter}
    del counters["average_iter_time"]
    return counters

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
        number: the signal; None to ask that rank to stop instead.
        rank: which rank sends it.
        to: the ranks that get it.
        call: (optional) the call of a Python function of the sender, from the end of the first
            micro-batch on, at which it is sent.
        hook: (optional) the hook, and the micro-batch of the run, at which it is sent.
        times: how many of them each gets.
    """

    number: int | None
    rank: int
    to: list[int]
    call: int | None = None
    hook: tuple[str, int] | None = None
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
    """A model that counts the calls while it is trained, and sends signals.

    Args:
        folder: of the run.
        shots: all of them; None to count, and to write down how many calls there were.
    """

    def __init__(self, folder: str, shots: list[Shot] | None) -> None:
        super().__init__(small.NAME)
        self._folder = folder
        self._counts = shots is None
        self._shots = shots or []
        self._calls, self._pid = 0, 0
        self._stop = False

    def on_training_start(self):
        self._shots = [shot for shot in self._shots if shot.rank == self.rank]

    def on_training_batch_start(self, state):
        self._reach("on_training_batch_start")

    def on_training_batch_end(self, state, should_log=False):
        self._reach("on_training_batch_end")
        # Before this a rank may not have set its handlers yet, and soon after the last but one the
        # ranks part: one that is through has given them back.
        if state.global_iteration == 1 and (self._counts or any(s.call for s in self._shots)):
            self._pid = os.getpid()
            sys.setprofile(self._count)
        if state.global_iteration == small.UPDATES - 1:
            sys.setprofile(None)
            if self._counts:
                Path(self._folder, f"calls-{self.rank}").write_text(str(self._calls))

    def on_training_epoch_end(self, current_epoch):
        self._reach("on_training_epoch_end")

    def on_validation_batch_end(self, step):
        self._reach("on_validation_batch_end")

    def should_training_stop(self):
        return self._stop

    def append_metadata_to_chkpt_name(self, name):
        self._reach("append_metadata_to_chkpt_name")
        return ""

    def on_training_end(self):
        self._reach("on_training_end")

    def _count(self, frame: Any, event: str, argument: Any) -> None:
        if event == "call" and os.getpid() == self._pid:  # a worker inherits what profiles
            self._calls += 1
            for shot in self._shots:
                if shot.call == self._calls:
                    self._fire(shot)

    def _reach(self, hook: str) -> None:
        here = hook, self.trainer.state.global_iteration
        for shot in self._shots:
            if shot.hook == here:
                self._fire(shot)

    def _fire(self, shot: Shot) -> None:
        self._shots = [other for other in self._shots if other is not shot]
        if shot.number is None:
            self._stop = True
            return
        for rank in shot.to:
            pid = int(Path(self._folder, f"pid-{rank}").read_text())
            for _ in range(shot.times):
                os.kill(pid, shot.number)


def fit(
    folder: str,
    config: dict[str, Any],
    shots: list[dict[str, Any]] | None = None,
) -> None:
    """Run the small run on this rank, and write down where it was hit and where it ended.

    Args:
        folder: of the run.
        config: a `Config`.
        shots: (optional) every `Shot`; without them the calls are counted.
    """
    rank = int(os.environ["RANK"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Path(folder, f"pid-{rank}").write_text(str(os.getpid()))
    given = msgspec.convert(config, Config)
    made = small.trainer(folder, rank_timeout=10.0, **given.arguments())
    note = Signals._note

    def noted(self: Signals, number: int, frame: Any) -> None:
        told = {**_counters(made), "place": _place(frame)}
        Path(folder, f"hit-{rank}.json").write_text(json.dumps(told))
        note(self, number, frame)

    model = Hit(folder, None if shots is None else msgspec.convert(shots, list[Shot]))
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


PLACES = {
    "_on_checkpoint": "save",
    "save_resumable": "save",
    "_on_validate": "validation",
    "compute": "step",
    "_on_epoch_start": "epoch start",
    "_on_epoch_end": "epoch end",
}


def _place(frame: Any) -> str:
    """Return what of the run was under way in a frame."""
    while frame is not None:
        code = frame.f_code
        if code.co_name in PLACES:
            return PLACES[code.co_name]
        if code.co_filename.endswith("helios/data/source.py"):
            return "fetch"
        frame = frame.f_back
    return "between"


def _counters(trainer: Any) -> dict[str, Any]:
    state = trainer.state
    counters = {**state.dict(), "window_iter": state.window_iter}
    del counters["average_iter_time"]
    return counters

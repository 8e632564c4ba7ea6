"""A run in which one rank fails: in which way, and where."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist

import helios
from tests.trainer.ranks import small
from tests.zoo import Augmented, Noisy

WORDS = "planned words"


class PlannedError(Exception):
    """What the tests let fail."""


def raises() -> None:
    raise PlannedError(WORDS)


def is_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleeps() -> None:
    time.sleep(1000)


def spins() -> None:
    while True:
        pass


def calls_another_collective() -> None:
    dist.all_reduce(torch.ones(3))


def has_no_memory() -> None:
    raise MemoryError(WORDS)


class Fault(msgspec.Struct, frozen=True):
    """What goes wrong, once.

    Args:
        kind: the name of one of the functions above.
        place: see `PLACES`.
        rank: which rank fails.
        folder: of the run; when it failed is noted there.
        after: the update after which it happens, where the place comes with each update.
    """

    kind: str
    place: str
    rank: int
    folder: str
    after: int = 5

    def at(self, place: str, rank: int) -> None:
        """Fail, if this is the place and the rank."""
        if place == self.place and rank == self.rank:
            note(self.folder, "fault")
            globals()[self.kind]()


PLACES = (
    "data",
    "worker",
    "step",
    "validation",
    "state_dict of a plugin",
    "name of a checkpoint",
    "on_training_batch_end",
    "on_training_epoch_end",
    "on_validation_end",
)


class Samples(Augmented):
    """Data of which the third batch of an epoch fails on a rank."""

    def __init__(self, fault: Fault, place: str) -> None:
        super().__init__(small.SAMPLES)
        self._fault = fault
        self._place = place
        self._left = 2 * small.BATCH // int(os.environ.get("WORLD_SIZE", "1"))

    def __getitem__(self, index):
        if self._left == 0:
            self._fault.at(self._place, int(os.environ["RANK"]))
        self._left -= 1
        return super().__getitem__(index)


class Fails(Noisy):
    """A model that fails at one of the places."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(small.NAME)
        self._fault = fault

    def _reach(self, place: str, *, after: int = 0) -> None:
        if self.trainer.state.current_iteration >= after:
            self._fault.at(place, self.rank)

    def loss(self, batch):
        if self.training:
            self._reach("step", after=self._fault.after)
        else:
            self._reach("validation", after=self._fault.after)
        return super().loss(batch)

    def append_metadata_to_chkpt_name(self, name):
        self._reach("name of a checkpoint", after=self._fault.after)
        return ""

    def on_training_batch_end(self, state, should_log=False):
        if state.current_iteration >= self._fault.after:
            self._reach("on_training_batch_end")

    def on_training_epoch_end(self, current_epoch):
        self._reach("on_training_epoch_end", after=self._fault.after)

    def on_validation_end(self, validation_cycle):
        self._reach("on_validation_end", after=self._fault.after)


class FailsToSave(helios.Plugin):
    """A plugin whose state fails."""

    def __init__(self, fault: Fault) -> None:
        super().__init__("fails_to_save")
        self._fault = fault

    def state_dict(self):
        if self.trainer.state.current_iteration >= self._fault.after:
            self._fault.at("state_dict of a plugin", self.rank)
        return {}


def fit(fault: dict[str, Any], timeout: float, arguments: dict[str, Any] | None = None) -> None:
    """Run the small run on this rank, with a fault."""
    planned = msgspec.convert(fault, Fault)
    note(planned.folder, f"begin-{os.environ['RANK']}")
    in_worker = planned.place == "worker"
    data = small.Data(
        Samples(planned, "worker" if in_worker else "data"), workers=1 if in_worker else 0
    )
    folder = Path(planned.folder)
    made = small.trainer(
        folder,
        rank_timeout=timeout,
        enable_file_logging=True,
        log_path=folder / "logs",
        plugins=[FailsToSave(planned)],
        **(arguments or {}),
    )
    made.fit(Fails(planned), data)


def note(folder: str, name: str) -> None:
    """Write the time down, if that was not done before."""
    path = Path(folder) / name
    if not path.exists():
        path.write_text(repr(time.monotonic()))


def noted(folder: str | Path, name: str) -> float:
    """Return a time that was written down."""
    return float((Path(folder) / name).read_text())


def log(folder: str | Path) -> str:
    """Return the log of a run."""
    return "".join(path.read_text() for path in (Path(folder) / "logs").glob("*.log"))

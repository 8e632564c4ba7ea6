"""Processes that want one lock."""

from __future__ import annotations

import os
import socket
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from helios.errors import RunLockedError
from helios.trainer.store import Store
from tests.trainer.store.bench import Counts, bench
from tests.trainer.store.judging import Violation
from tests.trainer.store.tiny import NAME


def fork(act: Callable[[], object]) -> int:
    """Do something in a forked child, which then ends; return its process number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch has threads; none has a lock
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            act()
            status = 0
        finally:
            os._exit(status)
    return pid


class Gate:
    """Holds processes that wait at it until it is opened, all at once.

    It opens by itself when the process that made it ends.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def wait(self) -> None:
        """Wait, in a child."""
        os.close(self._write)
        os.read(self._read, 1)

    def open(self) -> None:
        os.close(self._write)
        os.close(self._read)


class Wire:
    """Brings messages from children."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def send(self, message: str) -> None:
        os.write(self._write, message.encode() + b"\n")

    def receive(self, count: int) -> list[str]:
        """Return so many messages; fewer if the children end before."""
        os.close(self._write)
        with os.fdopen(self._read) as file:
            return [file.readline().rstrip("\n") for _ in range(count)]


def lock_contest(rounds: int = 50, seed: int = 0) -> Counts:
    """C7: two processes ask for one lock at the same moment, ``rounds`` times.

    Args:
        rounds: how many contests; every other one is for a folder that nobody ever had.
        seed: nothing here is random but the scheduler of the system.

    Raises:
        Violation: unless one of them has it, and the other one is told who and where that is.
    """
    del seed
    outcomes: Counter[str] = Counter()
    with bench() as bed:
        for number in range(rounds):
            # In a folder that is used again, the file still names the one before.
            folder = bed.root / (str(number) if number % 2 else "again") / NAME
            outcomes[_contest(folder)] += 1
    return Counts(rounds, dict(outcomes))


def _contest(folder: Path) -> str:
    start, end, wire = Gate(), Gate(), Wire()

    def want() -> None:
        start.wait()
        try:
            with Store(folder):
                wire.send(f"won {os.getpid()}")
                end.wait()
        except RunLockedError as error:
            wire.send(f"lost {error}")

    children = [fork(want), fork(want)]
    start.open()
    lost, won = sorted(wire.receive(2))
    end.open()
    for child in children:
        os.waitpid(child, 0)
    winner = won.removeprefix("won ")
    if won == lost or not won.startswith("won ") or not lost.startswith("lost "):
        raise Violation(f"of two processes that wanted one lock: {won!r} and {lost!r}")
    if f"process {winner} on {socket.gethostname()}" not in lost:
        raise Violation(f"process {winner} has the lock, and the other one was told: {lost}")
    return "one has it"

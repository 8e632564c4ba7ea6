"""Signals that come to a process while it waits for others that do its work."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from types import FrameType

from helios.trainer.signals import Handlers, call_user, handled, stop_by, stopping


class Forwarding:
    """While it is entered, signals are noted, for others to be told.

    SIGINT and SIGTERM, SIGUSR1 under SLURM, and SIGTSTP, by which a terminal suspends a program.
    Handlers are set in the main thread alone, and those of before are put back at the end.
    """

    def __init__(self) -> None:
        self._before: Handlers = {}
        self._pending: list[int] = []
        self._is_told = False
        self.received: int | None = None
        """The first signal by which this process was asked to end."""

    def __enter__(self) -> Forwarding:
        if threading.current_thread() is threading.main_thread():
            self._before = handled(_numbers(), self._note)  # what is ignored is so by the ranks too
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def take(self) -> list[int]:
        """Return the signals that came since the last call, in their order."""
        taken = []
        while self._pending:
            taken.append(self._pending.pop(0))
        return taken

    def told(self, number: int) -> None:
        """Say that a signal found somebody who does something about it."""
        self._is_told = self._is_told or number == self.received

    def leave(self) -> None:
        """End as the signal does that came too late for anybody to do something about it.

        Raises:
            KeyboardInterrupt: for SIGINT.
            SystemExit: for another, with the status 128 + number.
        """
        if self.received is not None and not self._is_told:
            raise stop_by(self.received)

    def call_user(self) -> None:
        """Call the handler of the user's own for the first signal, if there is one."""
        if self.received is not None:
            call_user(self._before, self.received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._pending.append(number)
        if self.received is None and not is_suspend(number):
            self.received = number


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Hold signals back from this thread, and from the processes that it starts, until `release`.

    A process that imports what it needs cannot answer them yet, and nothing would be saved by it.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # It is started with the first process otherwise, and lets these signals through again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _numbers())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def release() -> None:
    """Let the signals through that `held` has held back from this process."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _numbers())


def is_suspend(number: int) -> bool:
    """Tell whether a signal is that of a terminal which suspends a program."""
    return hasattr(signal, "SIGTSTP") and number == signal.SIGTSTP


def _numbers() -> list[int]:
    return stopping() + ([int(signal.SIGTSTP)] if hasattr(signal, "SIGTSTP") else [])

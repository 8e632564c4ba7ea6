"""Being asked to stop: a signal sets a flag, and the loop looks at it where the state is whole."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

_Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None
Handlers = dict[int, _Handler]
"""What handles some signals."""


class Interrupted(BaseException):
    """The run is to be left here; raised where its state is whole.

    Args:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Signals:
    """While it is entered, SIGINT and SIGTERM ask a run to stop, and SIGUSR1 does under SLURM.

    The first signal is noted, and nothing else: the run goes on to the next place where its state
    is whole. A second SIGINT ends the process at once, as the system does it, wherever it is; in an
    interactive session it raises ``KeyboardInterrupt`` instead, and the session lives on.

    Handlers are set in the main thread alone; elsewhere this does nothing. Those of before are put
    back at the end. If one of them was the user's own, `leave` calls it.

    Args:
        active: whether to do anything: where neither a checkpoint nor a session that lives on is
            there to go on from, stopping at once loses nothing.
    """

    def __init__(self, active: bool = True) -> None:
        self._active = active and threading.current_thread() is threading.main_thread()
        self._before: Handlers = {}
        self._received: int | None = None

    def __enter__(self) -> Signals:
        if self._active:
            self._before = handled(stopping(), self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def received(self) -> int | None:
        """The first signal that came, None as long as none has."""
        return self._received

    def received_elsewhere(self, number: int) -> None:
        """Take a signal that another rank of the run has got as one of this process."""
        if self._received is None:
            self._received = number

    def leave(self) -> None:
        """End the process as its signal does by convention, once everything is saved.

        Raises:
            KeyboardInterrupt: for SIGINT.
            SystemExit: for the others, with the status 128 + number.
        """
        number = self._received
        if number is None:
            return
        call_user(self._before, number)
        raise stop_by(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._received is None:
            self._received = number
        if number == signal.SIGINT:
            signal.signal(number, _at_once())


def stopping() -> list[int]:
    """Return the signals that ask a run to stop."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    # SLURM announces the end of a job's time by a signal of the job's choice, SIGUSR1 by custom.
    if "SLURM_JOB_ID" in os.environ and hasattr(signal, "SIGUSR1"):
        numbers.append(signal.SIGUSR1)
    return [int(number) for number in numbers]


def handled(numbers: list[int], handler: Callable[[int, FrameType | None], Any]) -> Handlers:
    """Set a handler, in the main thread; return those that were set before, to be put back.

    None was not set from Python, and cannot be put back from Python; a process that was started to
    ignore a signal, as by nohup, goes on to ignore it.
    """
    before: Handlers = {}
    for number in numbers:
        if signal.getsignal(number) not in (None, signal.SIG_IGN):
            before[number] = signal.signal(number, handler)
    return before


def call_user(before: Handlers, number: int) -> None:
    """Call the handler that a user had set for a signal, if there is one."""
    handler = before.get(number)
    if callable(handler) and handler is not signal.default_int_handler:
        handler(number, None)


def stop_by(number: int) -> BaseException:
    """Return what ends a process as a signal does by convention."""
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


def is_interactive() -> bool:
    """Tell whether this process is a notebook or a prompt, and lives on after an interruption."""
    return hasattr(sys, "ps1") or "ipykernel" in sys.modules


def _at_once() -> _Handler:
    return signal.default_int_handler if is_interactive() else signal.SIG_DFL

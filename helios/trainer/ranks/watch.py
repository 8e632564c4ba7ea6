"""A thread on every rank that ends the process if its main thread does not see that the run failed.

A main thread may be anywhere when another rank fails: in a collective until its timeout, in a long
computation, in a loop that never ends. The watcher waits for the failure at the board, which costs
nothing, and gives the main thread some time to leave by itself.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from helios.trainer.ranks.board import Answer, Board, Failure

_COLLECTIVES = Path(dist.__file__).parent
_LAST_WORDS = 1.0  # seconds for a callback that writes the failure to a log


class Watcher:
    """While it is entered, a failure of any rank ends this process, in the end by force.

    It also says what the main thread does when a rank that waits for it asks, and ends the process
    if the store has gone, and with it those that hosted it. A main thread that never gives up the
    interpreter's lock cannot be helped from within its process.

    Args:
        board: whose connection is cloned.
        describe: says in words where the run is.
        on_failure: is called once, with the first failure; what it raises is dropped.
        grace: seconds in which the main thread may leave by itself. A rank that has stalled gets
            none: the others have waited for it already.
    """

    def __init__(
        self,
        board: Board,
        describe: Callable[[], str] = lambda: "",
        on_failure: Callable[[Failure], None] = lambda failure: None,
        grace: float = 3.0,
    ) -> None:
        self._main_board = board
        self._describe = describe
        self._on_failure = on_failure
        self._grace = grace
        self._told = threading.Lock()
        self._disarmed = threading.Event()

    def __enter__(self) -> Watcher:
        # Cloned here: to connect to a store that has gone would take until the timeout.
        self._board = self._main_board.clone()
        self._watched = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="helios-watcher", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._disarmed.set()
        with contextlib.suppress(RuntimeError):  # the store has gone, so the thread is awake
            self._main_board.ring_own_bell()
        self._thread.join(timeout=1.0)

    def describe(self) -> str:
        """Say in words where the run is, whatever the run is like."""
        try:
            return self._describe()
        except Exception as error:
            return f"where it was could not be told: {error!r}"

    def tell(self, failure: Failure) -> None:
        """Call ``on_failure``, once, and wait for it only so long: it may need a lock that is held.

        Args:
            failure: the first one.
        """
        if not self._told.acquire(blocking=False):
            return
        teller = threading.Thread(target=self._tell, args=(failure,), daemon=True)
        teller.start()
        teller.join(_LAST_WORDS)

    def _tell(self, failure: Failure) -> None:
        with contextlib.suppress(Exception):
            self._on_failure(failure)

    def _watch(self) -> None:
        try:
            self._board.wait_for_bell()
            if self._disarmed.is_set():
                return
            self._board.answer(self._answer())
            while (failure := self._board.failure()) is None:
                if self._disarmed.wait(0.02):
                    return
        except RuntimeError:
            failure = self._board.gone()
        blamed = failure.kind == "stalled" and failure.rank == self._board.rank
        if not self._disarmed.wait(0.0 if blamed else self._grace):
            self._end(failure)

    def _answer(self) -> Answer:
        frame = sys._current_frames().get(self._watched)
        if frame is None:
            return Answer(self.describe(), "the thread that ran the fit is no more\n")
        stack = traceback.extract_stack(frame)
        return Answer(
            self.describe(),
            "".join(stack.format()),
            any(Path(entry.filename).is_relative_to(_COLLECTIVES) for entry in stack),
        )

    def _end(self, failure: Failure) -> None:
        text = (
            f"rank {self._board.rank} is ended: the run has failed, and it did not leave by "
            f"itself.\n{failure}\n"
        )
        # Not by way of sys.stderr, whose lock the main thread may hold.
        with contextlib.suppress(OSError):
            os.write(2, text.encode(errors="replace"))
        self.tell(failure)
        with contextlib.suppress(RuntimeError):
            self._board.leave(0.0)
        os._exit(1)

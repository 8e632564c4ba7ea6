"""The death of a worker is reported where a batch is awaited, and nowhere else.

Torch raises from a handler of SIGCHLD wherever the main thread is: in the middle of a step, whose
state is then lost, or of a save. Here, its handler is kept from that, and what it said is raised
once the next batch is awaited.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from torch.utils.data._utils import signal_handling

TORCH_SAYS = "DataLoader worker (pid"
"""How torch begins to tell of a death."""

_SIGCHLD = getattr(signal, "SIGCHLD", None)


class _Held:
    """A handler of SIGCHLD that runs another one, and keeps its report of a death to itself."""

    def __init__(self, handler: Callable[[int, FrameType | None], Any]) -> None:
        self.handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        try:
            self.handler(number, frame)
        except RuntimeError as error:
            if not str(error).startswith(TORCH_SAYS):
                raise
            if awaiting.now and awaiting.concerned():
                awaiting.now = False
                raise
            awaiting.missed = error


class _Awaiting:
    """Surrounds the places in which a batch is awaited.

    Attributes:
        now: whether one is.
        missed: a death that was not reported yet.
    """

    def __init__(self) -> None:
        self.now = False
        self.missed: RuntimeError | None = None
        self._workers: Sequence[Any] = ()

    def of(self, workers: Sequence[Any]) -> _Awaiting:
        """Await a batch of some workers: the deaths of others, such as validation's, can wait."""
        self._workers = workers
        return self

    def concerned(self) -> bool:
        """Tell whether one of the workers that are awaited is dead."""
        return any(not worker.is_alive() for worker in self._workers)

    def __enter__(self) -> None:
        self.now = True  # first: a death that comes between these lines is raised here
        if self.missed is not None and self.concerned():
            error, self.missed = self.missed, None
            self.now = False
            raise error

    def __exit__(self, *exc: object) -> None:
        self.now = False


awaiting = _Awaiting()


def hold_back() -> None:
    """Keep torch's handler from raising at once; call it before workers are started.

    In another thread than the main one it has no handler, and looks at its workers now and then.
    """
    if _SIGCHLD is None or threading.current_thread() is not threading.main_thread():
        return
    # Torch would do this once all workers are started; the first may have died by then.
    signal_handling._set_SIGCHLD_handler()
    handler = signal.getsignal(_SIGCHLD)
    if callable(handler) and not isinstance(handler, _Held):
        signal.signal(_SIGCHLD, _Held(handler))


def let_go() -> None:
    """Put torch's handler back, and forget the deaths of workers that were ended."""
    awaiting.missed = None
    if _SIGCHLD is None or threading.current_thread() is not threading.main_thread():
        return
    handler = signal.getsignal(_SIGCHLD)
    if isinstance(handler, _Held):
        signal.signal(_SIGCHLD, handler.handler)

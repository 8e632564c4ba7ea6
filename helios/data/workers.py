"""Worker processes: deaf to the signals that ask for a checkpoint, and ended on the spot.

A worker whose parent was killed ends as well. Torch looks whether its parent is still the one that
it saw when it started, and so does not notice one that was killed before.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing.connection import wait
from typing import Any

from helios.data.deaths import TORCH_SAYS

_PATIENCE = 5.0  # seconds for a worker that has hung up to be gone
_LOOK_EVERY = 1.0  # seconds between two looks at whether the parent lives


def shield(worker_id: int) -> None:
    """Make a worker process deaf to SIGINT, and to a SIGTERM that its parent did not send.

    Both reach the whole process group when a run is asked to stop. The run still needs its
    workers then, to come to the next checkpoint; it ends them itself. A worker whose run is gone
    ends by itself.

    Args:
        worker_id: the number of the worker; unused, it is what torch passes.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if hasattr(signal, "sigtimedwait"):
        # Only `sigtimedwait` says who sent a signal. A thread waits for it, so that a worker which
        # hangs in its dataset can still be terminated by the run.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, args=(_parent(),), daemon=True).start()


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Start workers that will call `shield`: until they do, those signals wait for them."""
    if not hasattr(signal, "sigtimedwait"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _parent() -> int:
    """Return the process that began this one, which may be gone already."""
    parent = multiprocessing.parent_process()
    return os.getppid() if parent is None or parent.pid is None else parent.pid


def _obey_parent(parent: int) -> None:
    above = os.getppid()  # the parent, a server that forks for it, or whoever adopted this process
    while os.getppid() == above and _exists(parent):
        received = signal.sigtimedwait({signal.SIGTERM}, _LOOK_EVERY)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def cause_of_death(iterator: Any, error: Exception) -> str | None:
    """Say how a worker died, if that is where an error of fetching came from.

    A dying worker shows as one of several errors, whichever comes first.

    Args:
        iterator: of a `torch.utils.data.DataLoader`.
        error: what asking it for a batch raised.
    """
    workers = getattr(iterator, "_workers", ())
    lost = isinstance(error, (ConnectionError, EOFError)) or str(error).startswith(TORCH_SAYS)
    if not workers or not lost:
        return None
    with contextlib.suppress(RuntimeError):  # torch raises at a worker's end, wherever we are
        hung_up = wait([worker.sentinel for worker in workers], timeout=_PATIENCE)
        for worker in workers:
            if worker.sentinel in hung_up:
                worker.join(_PATIENCE)  # it has hung up, but may not have a status yet
    for number, worker in enumerate(workers):
        if worker.exitcode is not None and worker.exitcode < 0:
            return f"worker {number} was ended by {signal.Signals(-worker.exitcode).name}"
        if worker.exitcode:
            return f"worker {number} exited with status {worker.exitcode}"
    return None


def end_workers(iterator: Any) -> None:
    """End the workers of a `torch.utils.data.DataLoader`'s iterator, if it has any, now."""
    shut_down = getattr(iterator, "_shutdown_workers", None)
    if shut_down is None:
        return
    try:
        shut_down()
    except RuntimeError as error:
        # One died just now. It has ended the others before it let this through.
        if not str(error).startswith(TORCH_SAYS):
            raise
    for worker in iterator._workers:
        if worker.is_alive():
            worker.kill()
        worker.join()

"""Forked children, how they end, and the workers that they leave behind."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.torture.aims import Aim
from tests.torture.watched import restore_signals

LEAKED_AFTER = 10.0
"""Seconds after which an orphan is a leak; a worker looks for its parent every five."""

_SUBREAPER = 36  # of prctl(2)


def adopt_orphans() -> None:
    """Become the parent of whatever the children leave behind; their process groups tell whose."""
    if ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


class Child:
    """A running fork of this process.

    Args:
        work: what it does, given the descriptor on which to notify; its result is the exit status.
        output: the file that gets its output.
        aim: how it is to be hit, None if it is not.
    """

    def __init__(self, work: Callable[[int], int], output: Path, aim: Aim | None) -> None:
        self.aim = aim
        self.notified, notify = os.pipe2(os.O_CLOEXEC)
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            _work(work, notify, output)
        os.close(notify)
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(self.pid, self.pid)
        self.ends = os.pidfd_open(self.pid)
        self.sent = False
        self.due: float | None = None
        if aim is not None and not aim.point:
            self.due = self.started + (aim.delay or 0.0)

    def hear(self) -> None:
        """Take note of what the child says: that it came to the point."""
        if self.aim is not None and self.aim.delay is not None and os.read(self.notified, 1):
            self.due = time.monotonic() + self.aim.delay

    def hit(self) -> None:
        """Send the signal."""
        assert self.aim is not None
        self.due, self.sent = None, True
        with contextlib.suppress(ProcessLookupError):
            if self.aim.group:
                os.killpg(self.pid, self.aim.number)
            else:
                os.kill(self.pid, self.aim.number)

    def end(self) -> None:
        """Kill it and everything that it began."""
        self.due = None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Close what the parent holds of it."""
        os.close(self.ends)
        os.close(self.notified)


def _work(work: Callable[[int], int], notify: int, output: Path) -> None:
    status = 1
    try:
        os.setpgid(0, 0)
        restore_signals()
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        status = work(notify)
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class Nursery:
    """All children of this process, and the orphans among them."""

    def __init__(self) -> None:
        gc.collect()
        gc.freeze()  # a fork copies no page that the collector alone would touch
        adopt_orphans()
        self._poll = select.poll()
        self._children: dict[int, Child] = {}
        self._orphans: dict[int, float] = {}
        self._looked = time.monotonic()
        self.leaked: list[str] = []

    def start(self, work: Callable[[int], int], output: Path, aim: Aim | None = None) -> Child:
        """Fork a child; see `Child`."""
        child = Child(work, output, aim)
        self._children[child.pid] = child
        self._poll.register(child.ends, select.POLLIN)
        if aim is not None and aim.point and aim.delay is not None:
            self._poll.register(child.notified, select.POLLIN)
        return child

    def wait(self, seconds: float = 1.0) -> list[tuple[Child, int]]:
        """Hit whom it is time to hit, until a child ends or time is up.

        Returns:
            The children that ended, each with its status, negative for a signal.
        """
        end = time.monotonic() + seconds
        while True:
            dues = [child.due for child in self._children.values() if child.due is not None]
            now = time.monotonic()
            timeout = max(0.0, min([end, *dues]) - now)
            # A poll waits whole milliseconds; for what is due before, look again and again.
            for descriptor, event in self._poll.poll(int(timeout * 1e3)):
                self._hear(descriptor, event)
            now = time.monotonic()
            for child in self._children.values():
                if child.due is not None and child.due <= now:
                    child.hit()
            ended = self._reap()
            self._look_for_leaks()
            if ended or now >= end:
                return ended

    def idle(self) -> bool:
        """Tell whether no orphan is left."""
        self._reap()
        self._look_for_leaks(at_once=True)
        return not self._orphans

    def _hear(self, descriptor: int, event: int) -> None:
        for child in self._children.values():
            if child.notified == descriptor:
                self._poll.unregister(descriptor)
                if event & select.POLLIN:
                    child.hear()

    def _reap(self) -> list[tuple[Child, int]]:
        ended = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return ended
            if pid == 0:
                return ended
            self._orphans.pop(pid, None)
            child = self._children.pop(pid, None)
            if child is not None:
                self._poll.unregister(child.ends)
                with contextlib.suppress(KeyError):
                    self._poll.unregister(child.notified)
                child.close()
                ended.append((child, os.waitstatus_to_exitcode(status)))

    def _look_for_leaks(self, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if now - self._looked < 1.0 and not at_once:
            return
        self._looked = now
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            pids = set(map(int, file.read().split())) - self._children.keys()
        self._orphans = {pid: self._orphans.get(pid, now) for pid in pids}
        for pid, since in self._orphans.items():
            if now - since > LEAKED_AFTER:
                with contextlib.suppress(ProcessLookupError):
                    self.leaked.append(f"process {pid} of the group {os.getpgid(pid)}")
                    os.kill(pid, signal.SIGKILL)

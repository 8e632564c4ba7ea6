"""The contestants of one workload, in turns: one at a time runs, the others stand still."""

from __future__ import annotations

import collections
import contextlib
import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contestants import Contestant, public_library
from benchmarks.standins import write_standins
from benchmarks.turns import Cadence

ROOT = Path(__file__).parents[1]
_PATIENCE = 600.0  # seconds without a word: compiling takes minutes on a slow machine


class WorkerError(Exception):
    """A contestant's process has failed."""


@dataclass
class Run:
    """What a contestant did on a workload.

    Args:
        startup: seconds from the start of its training to the end of the warm-up.
        seconds: of each turn.
        folder: where its parameters are, as ``parameters.npz``.
        done: its last message.
        failure: why it did not come to its end, None if it did.
    """

    startup: float = 0.0
    seconds: list[float] = field(default_factory=list)
    folder: Path = Path()
    done: dict[str, Any] = field(default_factory=dict)
    failure: str | None = None


class Worker:
    """A contestant's process, with a terminal of its own whose output is thrown away."""

    def __init__(
        self,
        contestant: Contestant,
        workload: str,
        full: bool,
        cadence: Cadence,
        folder: Path,
        compiled: Path,
    ) -> None:
        self.name = contestant.name
        told, send = os.pipe()
        wait, self._go = os.pipe()
        master, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        job = folder / "job.json"
        job.write_text(
            json.dumps(
                {
                    "contestant": contestant.name,
                    "workload": workload,
                    "full": full,
                    "cadence": cadence.as_dict(),
                    "send": send,
                    "wait": wait,
                }
            )
        )
        self._process = subprocess.Popen(
            # Without the current folder on its path: `helios` is another library for helios-ml.
            [sys.executable, "-P", "-m", "benchmarks.worker", str(job)],
            cwd=folder,
            env=_environment(contestant, folder, compiled),
            stdin=subprocess.DEVNULL,
            stdout=terminal,
            stderr=terminal,
            pass_fds=(send, wait),
            start_new_session=True,
        )
        for used in (send, wait, terminal):
            os.close(used)
        self._told, self._master = told, master
        self._buffer = b""
        self._tail: collections.deque[bytes] = collections.deque(maxlen=64)
        self._drain = threading.Thread(target=self._read_terminal, daemon=True)
        self._drain.start()

    def go(self) -> None:
        """Let it take its next turn."""
        os.write(self._go, b".")

    def hear(self) -> dict[str, Any]:
        """Return its next message.

        Raises:
            WorkerError: if it has died, or says nothing for a long time.
        """
        while b"\n" not in self._buffer:
            if not select.select([self._told], [], [], _PATIENCE)[0]:
                raise WorkerError(f"{self.name} said nothing for {_PATIENCE:g} s")
            read = os.read(self._told, 65536)
            if not read:
                raise WorkerError(f"{self.name} ended with {self._status()}: {self._last_lines()}")
            self._buffer += read
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        """End the process, if it has not ended by itself."""
        os.close(self._go)
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._drain.join(timeout=5)
        os.close(self._told)
        os.close(self._master)

    def _status(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=20)
        return f"status {self._process.poll()}"

    def _last_lines(self) -> str:
        self._drain.join(timeout=5)
        text = b"".join(self._tail).decode(errors="replace").replace("\r", "\n")
        lines = [line for line in text.split("\n") if line.strip()]
        return "\n".join(lines[-25:])

    def _read_terminal(self) -> None:
        while True:
            try:
                read = os.read(self._master, 65536)
            except OSError:  # the other end is closed
                return
            if not read:
                return
            self._tail.append(read[-4096:])


def take_turns(
    contestants: Sequence[Contestant],
    workload: str,
    full: bool,
    cadence: Cadence,
    folder: Path,
    compiled: Path,
    progress: Callable[[str], None],
) -> dict[str, Run]:
    """Run contestants on a workload, in turning order; one that fails is left out from there on.

    Args:
        contestants: who takes part.
        workload: the name of the workload.
        full: whether everything optional is on.
        cadence: how the updates are divided.
        folder: an empty folder.
        compiled: where compiled code is kept, for further runs.
        progress: is told where the run is.
    """
    runs = {c.name: Run() for c in contestants}
    workers: dict[str, Worker] = {}
    lock = threading.Lock()

    def start(contestant: Contestant) -> None:
        run = runs[contestant.name]
        run.folder = folder / contestant.name
        run.folder.mkdir(parents=True)
        worker = Worker(contestant, workload, full, cadence, run.folder, compiled)
        with lock:
            workers[contestant.name] = worker
        with failing(run):
            run.startup = worker.hear()["ready"]
        progress(f"{contestant.name} is warm after {run.startup:.1f} s")

    try:
        with ThreadPoolExecutor(max_workers=max(os.cpu_count() or 1, 1)) as pool:
            list(pool.map(start, contestants))
        names = [c.name for c in contestants]
        for number in range(cadence.rounds):
            progress(f"round {number + 1} of {cadence.rounds}")
            for name in names[number % len(names) :] + names[: number % len(names)]:
                run = runs[name]
                if run.failure is None:
                    with failing(run):
                        workers[name].go()
                        run.seconds.append(workers[name].hear()["seconds"])
        left = [name for name in names if runs[name].failure is None]
        for name in left:
            with failing(runs[name]):
                workers[name].go()
        for name in left:
            if runs[name].failure is None:
                with failing(runs[name]):
                    runs[name].done = workers[name].hear()
    finally:
        for worker in workers.values():
            worker.close()
    return runs


@contextlib.contextmanager
def failing(run: Run) -> Iterator[None]:
    """Note in a run that its process failed."""
    try:
        yield
    except (WorkerError, BrokenPipeError) as error:
        run.failure = str(error) or type(error).__name__


def _environment(contestant: Contestant, folder: Path, compiled: Path) -> dict[str, str]:
    path = [str(ROOT)]
    if contestant.package == "helios-ml":
        path = [str(public_library()), str(write_standins(folder / "standins")), *path]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TERM": "xterm",
        # No processes of the compiler: they would disturb the turns.
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(compiled / contestant.name),
    }


def stamp() -> str:
    """Return the seconds since this process began, for progress."""
    return f"{time.monotonic() - _BEGAN:6.0f} s"


_BEGAN = time.monotonic()

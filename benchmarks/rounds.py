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

from benchmarks.contestants import BASELINE, Contestant, public_library
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
        beside: for each turn, seconds of a turn of the baseline at that time.
        folder: where its parameters are, as ``parameters.npz``.
        done: its last message.
        failure: why it did not come to its end, None if it did.
    """

    startup: float = 0.0
    seconds: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
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
    copies: int = 1,
) -> dict[str, Run]:
    """Run contestants on a workload, in turning order; one that fails is left out from there on.

    Args:
        contestants: who takes part, the baseline among them.
        workload: the name of the workload.
        full: whether everything optional is on.
        cadence: how the updates are divided.
        folder: an empty folder.
        compiled: where compiled code is kept, for further runs.
        progress: is told where the run is.
        copies: processes of the baseline, spread over each round: one is never far.

    Returns:
        The runs by name; those of further copies as ``again(1)``, ``again(2)``, ...
    """
    entries = {c.name: c for c in contestants}
    entries |= {again(i): entries[BASELINE] for i in range(1, copies)}
    baselines = [name for name, c in entries.items() if c.name == BASELINE]
    runs = {name: Run() for name in entries}
    workers: dict[str, Worker] = {}
    lock = threading.Lock()

    def start(name: str) -> None:
        run = runs[name]
        run.folder = folder / name
        run.folder.mkdir(parents=True)
        worker = Worker(entries[name], workload, full, cadence, run.folder, compiled)
        with lock:
            workers[name] = worker
        with failing(run):
            run.startup = worker.hear()["ready"]
        progress(f"{name} is warm after {run.startup:.1f} s")

    try:
        with ThreadPoolExecutor(max_workers=max(os.cpu_count() or 1, 1)) as pool:
            list(pool.map(start, entries))
        turns: list[tuple[str, float]] = []
        others = [name for name in entries if name not in baselines]
        for number in range(cadence.rounds):
            progress(f"round {number + 1} of {cadence.rounds}")
            for name in order(baselines, others, number):
                run = runs[name]
                if run.failure is None:
                    with failing(run):
                        workers[name].go()
                        run.seconds.append(workers[name].hear()["seconds"])
                        turns.append((name, run.seconds[-1]))
        for name, run in runs.items():
            run.beside = beside(turns, name, baselines)
        left = [name for name in entries if runs[name].failure is None]
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


def again(number: int) -> str:
    """Return the name of a further process of the baseline."""
    return f"{BASELINE} again {number}"


def order(baselines: Sequence[str], others: Sequence[str], number: int) -> list[str]:
    """Return who comes after whom in a round: the baseline's processes, and others between them.

    Example:
        >>> order(["A", "B"], ["c", "d", "e"], 1)
        ['B', 'd', 'A', 'e', 'c']
    """

    def turned(names: Sequence[str]) -> list[str]:
        at = number % len(names) if names else 0
        return [*names[at:], *names[:at]]

    found, rest, count = [], turned(others), len(baselines)
    for place, name in enumerate(turned(baselines)):
        first, last = (len(rest) * p // count for p in (place, place + 1))
        found += [name, *rest[first:last]]
    return found


def beside(turns: Sequence[tuple[str, float]], name: str, baselines: Sequence[str]) -> list[float]:
    """Return what a turn of the baseline took at the time of each turn of ``name``.

    It is interpolated between the turn of the baseline before it and that after it; of a process of
    the baseline, those of the other ones.

    Args:
        turns: all turns in their order: whose, and its seconds.
        name: whose turns to go by.
        baselines: whose turns are the baseline's.

    Example:
        >>> beside([("A", 1.0), ("x", 9.0), ("y", 9.0), ("A", 4.0), ("x", 9.0)], "x", ["A"])
        [2.0, 4.0]
    """
    others = set(baselines) - {name}
    known = [(place, seconds) for place, (who, seconds) in enumerate(turns) if who in others]
    found = []
    for place, (who, _) in enumerate(turns):
        if who != name or not known:
            continue
        before = [k for k in known if k[0] < place][-1:] or known[:1]
        after = [k for k in known if k[0] > place][:1] or known[-1:]
        (left, a), (right, b) = before[0], after[0]
        share = (place - left) / (right - left) if right != left else 0.0
        found.append(a + (b - a) * min(max(share, 0.0), 1.0))
    return found


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

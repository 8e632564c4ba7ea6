"""A process that has imported everything and computed nothing, and forks for every leg.

A fresh interpreter takes seconds to import torch; a fork of one that has, milliseconds. A process
that has run autograd has threads, which a fork would lose, so the zygote itself never does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType

import msgspec

import helios
from tests.exactness.runs import Leg, run_leg

ROOT = Path(__file__).parents[2]
_AT_ONCE = 2


def begin(module: str) -> subprocess.Popen[bytes]:
    """Start a module that answers requests, a line each, and computes on one thread."""
    return subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )


class Zygote:
    """Runs legs, each in a process of its own; the legs of a run in order, two runs at a time."""

    def __enter__(self) -> Zygote:
        self._process = begin("tests.exactness.zygote")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def run(self, runs: list[list[Leg]]) -> None:
        """Run every leg, and raise with the output of the first that failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(runs) + b"\n")
        self._process.stdin.flush()
        failures = msgspec.json.decode(self._process.stdout.readline())
        if failures:
            raise RuntimeError(f"{len(failures)} legs failed; the first:\n{failures[0]}")


def serve() -> None:
    """Take requests from standard input, one a line, and answer each with its failures."""
    helios.optim.AdamW(lr=1e-2)  # torch imports its compiler here: seconds, once
    answers = os.fdopen(os.dup(1), "wb")
    os.set_inheritable(answers.fileno(), False)
    os.dup2(2, 1)
    for line in sys.stdin:
        runs = msgspec.json.decode(line.encode(), type=list[list[Leg]])
        answers.write(msgspec.json.encode(_run_all(runs)) + b"\n")
        answers.flush()


def _run_all(waiting: list[list[Leg]]) -> list[str]:
    waiting = waiting[::-1]
    running: dict[int, list[Leg]] = {}
    failures = []
    while waiting or running:
        while waiting and len(running) < _AT_ONCE:
            legs = waiting.pop()
            running[_start(legs[0])] = legs
        pid, status = os.wait()
        leg, *rest = running.pop(pid)
        if status != 0:
            failures.append(f"{leg}\nstatus {status}\n{_output(leg).read_text()}")
        elif rest:
            running[_start(rest[0])] = rest
    return failures


def _start(leg: Leg) -> int:
    _output(leg).parent.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid != 0:
        return pid
    status = 1
    try:
        output = os.open(_output(leg), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        run_leg(leg)
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _output(leg: Leg) -> Path:
    return Path(leg.folder) / f"leg-{leg.number}.output"


if __name__ == "__main__":
    serve()

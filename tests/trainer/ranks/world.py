"""A small world: run a function on some ranks, each a process of its own, and see how they end.

``run(function, ranks=2)`` is all there is to it. The ranks are forked by a process that has
imported everything and computed nothing, so a world starts in milliseconds. They find what
``torchrun`` would give them: the variables of the environment, and a store that is hosted outside
of them. What a rank returns comes back; what it prints, its traceback too, is its output.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import importlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist

ROOT = Path(__file__).parents[3]

# torch looks up the name of every address it connects to, by DNS for those of IPv6; a lost answer
# would cost seconds, and with them the timeouts of a test. It is read once, at the first look-up,
# also in this process: it hosts the store.
os.environ.setdefault("RES_OPTIONS", "attempts:0")


class Outcome(msgspec.Struct, frozen=True):
    """How a rank ended.

    Args:
        status: the exit status; of a signal, its negative number.
        output: what it wrote to standard output and standard error.
        seconds: from its start to its end.
        timed_out: whether it did not end by itself and was killed.
        value: what the function returned, as msgpack gives it back; None if it did not return.
    """

    status: int
    output: str
    seconds: float
    timed_out: bool
    value: Any = None


class _Request(msgspec.Struct, frozen=True):
    module: str
    function: str
    args: bytes
    environments: list[dict[str, str]]
    folder: str
    timeout: float


class _Ended(msgspec.Struct, frozen=True):
    status: int
    seconds: float
    timed_out: bool


def run(
    function: Callable[..., Any],
    ranks: int = 2,
    timeout: float = 20.0,
    args: tuple[Any, ...] = (),
    environment: Mapping[str, str] | None = None,
    agent: bool = True,
) -> list[Outcome]:
    """Run a function on every rank, and return how each ended, in the order of the ranks.

    Args:
        function: of a module, by its name there; it is called with ``args`` on every rank.
        ranks: how many.
        timeout: seconds after which what is left is killed.
        args: what msgpack can carry.
        environment: (optional) more variables of the environment.
        agent: whether this process hosts the store, as the agent of ``torchrun`` does; without it
            rank 0 has to.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    port = store.port
    if not agent:
        del store
    with tempfile.TemporaryDirectory() as folder:
        request = _Request(
            module=function.__module__,
            function=function.__qualname__,
            args=msgspec.msgpack.encode(args),
            environments=[
                _variables(rank, ranks, port, agent) | dict(environment or {})
                for rank in range(ranks)
            ],
            folder=folder,
            timeout=timeout,
        )
        ended = _ask(request)
        return [_outcome(Path(folder), rank, end) for rank, end in enumerate(ended)]


def join(timeout: float = 20.0) -> int:
    """On a rank: join the group of all ranks, by gloo; returns the rank."""
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    hosted = os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "True"
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=rank == 0 and not hosted,
        wait_for_workers=False,
    )
    limit = timedelta(seconds=timeout)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=limit)
    return rank


def leave() -> None:
    """On a rank: leave the group, once all ranks are here."""
    dist.barrier()  # who leaves first closes connections that others may still read from
    dist.destroy_process_group()


def explain(outcomes: list[Outcome]) -> str:
    """Return all outcomes as text, for the message of a failed assertion."""
    lines = []
    for rank, outcome in enumerate(outcomes):
        late = ", killed: out of time" if outcome.timed_out else ""
        head = f"rank {rank}: status {outcome.status}, {outcome.seconds:.1f} s{late}"
        lines.append(f"--- {head}\n{outcome.output}")
    return "\n".join(lines)


def values(outcomes: list[Outcome]) -> list[Any]:
    """Return what the ranks returned; raises with all outputs if one failed."""
    if any(outcome.status != 0 for outcome in outcomes):
        raise AssertionError(explain(outcomes))
    return [outcome.value for outcome in outcomes]


def _variables(rank: int, ranks: int, port: int, agent: bool) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "ROLE_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "ROLE_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_RUN_ID": "world",
        "TORCHELASTIC_USE_AGENT_STORE": str(agent),
    }


def _outcome(folder: Path, rank: int, end: _Ended) -> Outcome:
    value, path = None, folder / f"{rank}.value"
    if path.exists():
        value = msgspec.msgpack.decode(path.read_bytes())
    output = (folder / f"{rank}.output").read_text(errors="replace")
    return Outcome(end.status, output, end.seconds, end.timed_out, value)


_zygote: subprocess.Popen[bytes] | None = None


def _ask(request: _Request) -> list[_Ended]:
    global _zygote
    if _zygote is None:
        _zygote = subprocess.Popen(
            [sys.executable, "-m", "tests.trainer.ranks.world"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
            },
        )
        atexit.register(_zygote.communicate)
    assert _zygote.stdin is not None
    assert _zygote.stdout is not None
    _zygote.stdin.write(msgspec.json.encode(request) + b"\n")
    _zygote.stdin.flush()
    return msgspec.json.decode(_zygote.stdout.readline(), type=list[_Ended])


def _serve() -> None:
    """Take requests from standard input, one a line, and answer each with how its ranks ended."""

    import helios
    import helios.trainer.ranks.fsdp
    import helios.trainer.ranks.shard_saver

    helios.optim.AdamW(lr=1e-2)  # torch imports its compiler here: seconds, once
    answers = os.dup(1)
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        request = msgspec.json.decode(line, type=_Request)
        os.write(answers, msgspec.json.encode(_run_all(request, answers)) + b"\n")


def _run_all(request: _Request, answers: int) -> list[_Ended]:
    begin = time.monotonic()
    pids = [_start(request, rank, answers) for rank in range(len(request.environments))]
    ended: dict[int, _Ended] = {}
    poll = select.poll()
    handles = {os.pidfd_open(pid): pid for pid in pids}
    for handle in handles:
        poll.register(handle, select.POLLIN)
    late: set[int] = set()
    while handles:
        left = begin + request.timeout - time.monotonic()
        if left <= 0:
            late = set(handles.values())
            for pid in late:
                os.kill(pid, signal.SIGKILL)
        for handle, _ in poll.poll(max(left, 0) * 1000 if not late else None):
            pid = handles.pop(handle)
            poll.unregister(handle)
            os.close(handle)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            ended[pid] = _Ended(status, time.monotonic() - begin, pid in late)
    return [ended[pid] for pid in pids]


def _start(request: _Request, rank: int, answers: int) -> int:
    pid = os.fork()
    if pid != 0:
        return pid
    status = 1
    try:
        os.close(answers)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        output = os.open(f"{request.folder}/{rank}.output", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(request.environments[rank])
        # A rank that hangs shows where, before it is killed.
        faulthandler.dump_traceback_later(request.timeout * 0.9, file=output)
        function: Any = importlib.import_module(request.module)
        for name in request.function.split("."):
            function = getattr(function, name)
        value = function(*msgspec.msgpack.decode(request.args))
        Path(f"{request.folder}/{rank}.value").write_bytes(msgspec.msgpack.encode(value))
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()

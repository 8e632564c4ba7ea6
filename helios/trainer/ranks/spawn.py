"""A parent that starts ranks, one process each, and watches them until all have ended."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from queue import Queue
from typing import Any

import msgspec
import torch
from torch._C._distributed_c10d import TCPStore

from helios.trainer.ranks.child import Start, check_may_start_ranks, run_rank
from helios.trainer.ranks.ends import End, raise_first
from helios.trainer.ranks.forward import Forwarding, held, is_suspend
from helios.trainer.ranks.payload import pack
from helios.trainer.ranks.pipe import Report, unpickle

HOST = "127.0.0.1"
"""Where the parent's store listens; nobody else on the network reaches it."""

_POLL = 0.1  # seconds; the end of a rank wakes the parent at once, in general
_UNTIL_KILLED = 3.0  # seconds from SIGTERM to SIGKILL
_LAST_WORDS = 30.0  # seconds to read what a rank that has ended left in its pipe, at most
_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)


def spawn(
    work: Callable[..., Any],
    world_size: int,
    args: tuple[Any, ...],
    *,
    grace: float,
    queue: Queue[Any],
) -> bytes:
    """Run a function on some ranks of this host, each a process of its own, and wait for all.

    It is called there as ``work(rank, local_rank, world_size, host, port, name, queue, *args)``. A
    store for the ranks is at the host and port, and lives until all have ended.

    Processes are started by the method ``spawn``, which CUDA needs, so the function and its
    arguments are pickled; tensors are copied. What ranks print goes where this process prints.

    Signals: each rank has a session of its own. SIGINT, SIGTERM and, under SLURM, SIGUSR1 are
    forwarded once each, and how the ranks end decides how this ends. A terminal's suspension, and
    its end, are forwarded too. If this process dies, the ranks end at once.

    Threads: a rank computes with as many threads as this process is set to, but not with more than
    its share of the cores, unless ``OMP_NUM_THREADS`` is set, which is kept. Bits depend on it: set
    ``OMP_NUM_THREADS=1`` to have the same number of threads on any number of ranks.

    Args:
        work: a function at the top level of a module. Rank 0 returns bytes, or None.
        world_size: number of ranks.
        args: what can be pickled.
        grace: seconds in which the others may end by themselves once a rank has failed. Then they
            get SIGTERM, and SIGKILL 3 s later.
        queue: takes what ranks put into theirs, while they run; the order of each rank is kept.

    Returns:
        What rank 0 returned; nothing for None.

    Raises:
        TypeError: if the function or an argument cannot be pickled.
        ValueError: if there is not at least one rank.
        BaseException: what the first rank to fail raised, with its traceback as the cause.
        RankError: if a rank ended without a word, or if this process may start none.
        KeyboardInterrupt: if the ranks were stopped by SIGINT.
        SystemExit: if they were stopped by another signal, with the status 128 + number.
    """
    check_may_start_ranks()
    if world_size < 1:
        raise ValueError(f"world_size: received {world_size}; expected the number of ranks, from 1")
    payload = [pack(work, args)]
    ranks: list[_Rank] = []
    with _store() as port, Forwarding() as signals:
        try:
            with held(), _environment(_threads(world_size)) as threads:
                for rank in range(world_size):
                    start = Start(rank, world_size, HOST, port, f"spawn-{os.getpid()}", threads)
                    ranks.append(_Rank(start, payload[0], queue))
            payload.clear()  # it may be as large as the data
            _watch(ranks, signals, grace)
        finally:
            for rank_ in ranks:
                rank_.force(_KILL)  # none is left, but after an error of the parent's own
            for rank_ in ranks:
                rank_.close()
    try:
        raise_first([rank.end(signals.received) for rank in ranks])
        signals.leave()
    except (KeyboardInterrupt, SystemExit):
        signals.call_user()
        raise
    return ranks[0].result


class _Rank:
    """A rank as its parent sees it.

    Args:
        start: what it is told.
        payload: its work.
        queue: where the user's items go.
    """

    def __init__(self, start: Start, payload: bytes, queue: Queue[Any]) -> None:
        self.number = start.rank
        self.status: int | None = None
        self.ended = 0.0
        self.forced: signal.Signals | None = None
        self.began: Report | None = None
        self.done: Report | None = None
        self.failed: Report | None = None
        self.error: BaseException | None = None
        self.result = b""
        self._payload = payload
        self._forced: signal.Signals | None = None
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        with theirs:
            self._process = context.Process(
                target=run_rank, args=(theirs, start), name=start.process_name
            )
            self._process.start()
        self._listener = threading.Thread(
            target=self._listen, args=(queue,), name="helios-listener", daemon=True
        )
        self._listener.start()

    @property
    def lingered(self) -> bool:
        """Whether it had to be ended after its work had returned."""
        return self.done is not None and self._forced is not None

    @property
    def sentinel(self) -> int:
        """What can be waited on for the end of the process."""
        return self._process.sentinel

    def look(self) -> bool:
        """See whether the process has ended; return whether it has."""
        if self.status is None and (status := self._process.exitcode) is not None:
            self.ended = time.monotonic()
            self._listener.join(_LAST_WORDS)
            self.status = status
        return self.status is not None

    def send(self, number: int) -> bool:
        """Send a signal to the process if it has not ended; return whether it is at work."""
        if self.look() or self._process.pid is None:
            return False
        os.kill(self._process.pid, number)
        return self.done is None and self.failed is None

    def force(self, number: signal.Signals) -> None:
        """End the process by a signal if it has not ended."""
        if not self.look() and self._forced is not number:
            self._forced = number
            if self.failed is None and self.done is None:
                self.forced = number
            if number is signal.SIGTERM:
                self._process.terminate()
            else:
                self._process.kill()

    def close(self) -> None:
        """Wait for the end of a process that is about to end, and free what it took."""
        self._process.join()
        self.look()
        self._process.close()
        self._connection.close()

    def end(self, asked: int | None = None) -> End:
        """Return how it ended, as far as it has."""
        told = self.failed or self.done
        return End(
            rank=self.number,
            seconds=self.ended if told is None else told.seconds,
            status=self.status,
            began=self.began is not None,
            done=self.done is not None,
            error=self.error,
            text="" if self.failed is None else self.failed.text,
            forced=self.forced,
            asked=asked,
        )

    def _listen(self, queue: Queue[Any]) -> None:
        """Send the work, and take what the rank says until it says no more."""
        connection: Connection[Any, Any] = self._connection
        with contextlib.suppress(EOFError, OSError):
            connection.send_bytes(self._payload)
            self._payload = b""
            while True:
                report = msgspec.msgpack.decode(connection.recv_bytes(), type=Report)
                if report.kind == "began":
                    connection.recv_bytes()
                    self.began = report
                elif report.kind == "item":
                    self._take_item(connection.recv_bytes(), queue)
                elif report.kind == "done":
                    self.result = connection.recv_bytes()
                    self.done = report
                else:
                    self.error = _error(connection.recv_bytes())
                    self.failed = report

    def _take_item(self, data: bytes, queue: Queue[Any]) -> None:
        try:
            item = unpickle(data)
        except Exception:  # of the user's __setstate__
            text = traceback.format_exc()
            sys.stderr.write(
                f"An item that rank {self.number} put into the queue is lost: it cannot be rebuilt "
                f"here.\n{text}"
            )
        else:
            queue.put(item)


def _error(data: bytes) -> BaseException | None:
    try:
        error = unpickle(data)
    except Exception:  # many exceptions can be pickled, and not rebuilt
        return None
    return error if isinstance(error, BaseException) else None


def _watch(ranks: list[_Rank], signals: Forwarding, grace: float) -> None:
    """Wait until all have ended; see to it that they do once one has failed, or all are done."""
    since: float | None = None
    while left := [rank for rank in ranks if not rank.look()]:
        wait([rank.sentinel for rank in left], _POLL)
        for number in signals.take():
            if is_suspend(number):
                _suspend(left)
                continue
            took = [rank.send(number) for rank in left]
            if any(took):
                signals.told(number)
        now = time.monotonic()
        if since is None and _must_end(ranks, signals.received):
            since = now
        if since is not None and now >= since + grace:
            late = now >= since + grace + _UNTIL_KILLED
            for rank in left:
                rank.force(_KILL if late else signal.SIGTERM)
    for rank in ranks:
        if rank.lingered:
            warnings.warn(
                f"rank {rank.number} had done its work, but did not end within {grace:g} s and was "
                "ended by a signal; does a thread of it run on that is not a daemon?",
                RuntimeWarning,
                stacklevel=3,
            )


def _must_end(ranks: list[_Rank], asked: int | None) -> bool:
    """Tell whether a rank has failed, or all have said their last word.

    A rank that was asked to stop leaves at once, while another may still have to save.
    """
    ends = [rank.end(asked) for rank in ranks]
    failed = any(end.is_failure and not end.is_stop for end in ends)
    return failed or all(end.done or end.is_failure for end in ends)


def _suspend(ranks: list[_Rank]) -> None:
    for rank in ranks:
        rank.send(signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGSTOP)  # stops here, until the shell goes on with it
    for rank in ranks:
        rank.send(signal.SIGCONT)


@contextlib.contextmanager
def _store() -> Iterator[int]:
    """Host a store, and yield its port."""
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        store = TCPStore(
            HOST,
            port,
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=server.detach(),  # by itself it would listen on all interfaces
        )
    try:
        yield port
    finally:
        del store


def _threads(world_size: int) -> int:
    """Return the number of threads for each of some ranks."""
    threads = torch.get_num_threads()
    if "OMP_NUM_THREADS" in os.environ:
        return threads
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return max(1, min(threads, cores // world_size))


@contextlib.contextmanager
def _environment(threads: int) -> Iterator[int]:
    """Let processes that are started here have so many threads, in every library."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        yield threads
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before

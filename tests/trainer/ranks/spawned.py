"""What spawned ranks do in tests; as a program, a parent of ranks that wait to be stopped."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from queue import Queue

import numpy as np
import torch
import torch.distributed as dist

from helios.trainer.ranks.spawn import spawn
from helios.trainer.signals import Signals

ITEMS, SIZE = 40, 50_000_000


class Refusal(Exception):  # noqa: N818
    def __init__(self, message, amount):
        super().__init__(message)
        self.amount = amount

    def __reduce__(self):
        return type(self), (self.args[0], self.amount)


class Homesick:
    """It can be pickled, but not be rebuilt in another process."""

    def __init__(self):
        self.home = os.getpid()

    def __setstate__(self, state):
        raise LookupError(f"made for process {state['home']}")


def large():
    return np.arange(SIZE // 4, dtype=np.int32).tobytes()


def tell(rank, local_rank, world_size, host, port, name, queue, tensor):
    tensor += rank  # of this rank alone
    for number in range(ITEMS):
        queue.put((rank, number, bytes(10_000)))
    store = dist.TCPStore(host, port, is_master=False)
    store.set(f"tensor/{rank}", str(tensor.tolist()))
    refused = []
    for action in [lambda: queue.put(lambda: 0), queue.get]:
        try:
            action()
        except Exception as error:
            refused.append(type(error).__name__)
    pid = os.fork()
    if pid == 0:
        try:
            queue.put("from another process")
        except RuntimeError:
            os._exit(7)
        os._exit(0)
    facts = {
        "ranks": (rank, local_rank, world_size),
        "tensors": [store.get(f"tensor/{other}").decode() for other in range(world_size)],
        "threads": (torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]),
        "leads a session": os.getsid(0) == os.getpid(),
        "refused": refused,
        "refused in a fork": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]),
        "name": name,
        "held": signal.pthread_sigmask(signal.SIG_BLOCK, []),
    }
    queue.put((rank, ITEMS, facts))
    return large() if rank == 0 else "of no interest"


def refuse_on_rank_1(rank, local_rank, world_size, host, port, name, queue):
    store = dist.TCPStore(host, port, is_master=False)
    if rank == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        store.set("here", "")
        while True:
            signal.pause()
    store.get("here")
    raise Refusal("not with rank 1", amount=3)


def die_on_rank_1(rank, local_rank, world_size, host, port, name, queue):
    store = dist.TCPStore(host, port, is_master=False)
    if rank == 0:
        store.set("here", "")
        signal.pause()
    store.get("here")
    os.kill(os.getpid(), signal.SIGKILL)


def leave_a_thread(*_):
    threading.Thread(target=signal.sigwait, args=([signal.SIGUSR2],)).start()
    return b"done"


def return_text(*_):
    return "text"


def wait_for_a_signal(rank, local_rank, world_size, host, port, name, queue):
    with Signals() as signals:
        queue.put(os.getpid())
        while signals.received is None:
            time.sleep(0.005)
    queue.put(f"{signal.Signals(signals.received).name} came")
    signals.leave()


def say(what):
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def show(queue):
    while True:
        say(queue.get())


def main():
    queue = Queue()
    threading.Thread(target=show, args=(queue,), daemon=True).start()
    try:
        spawn(wait_for_a_signal, 2, (), grace=5.0, queue=queue)
    except BaseException as error:
        say(repr(error))
        raise


if __name__ == "__main__":
    main()

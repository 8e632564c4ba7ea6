"""What ranks do in the tests of how a run fails, and of how it ends well."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from helios.trainer.ranks.guard import guarded
from helios.trainer.ranks.join import joined
from helios.trainer.ranks.rendezvous import Rendezvous

TIMEOUT = 2.0
CPU = torch.device("cpu")


def total(group=None, size=64):
    tensor = torch.ones(size)
    dist.all_reduce(tensor, group=group)
    return tensor[0].item()


def several(group=None):
    for _ in range(20):
        total(group)


def blow_up():
    raise ValueError("rank blew up")


def raises(rank):
    if rank == 1:
        blow_up()
    several()


def raises_with_a_collective_under_way(rank):
    if rank == 1:
        dist.all_reduce(torch.ones(64), async_op=True)
        blow_up()
    wait_for_ever()


def raises_on_rank_0(rank):
    if rank == 0:
        blow_up()
    several()


def raises_while_others_compute(rank):
    if rank == 1:
        blow_up()
    threading.Event().wait()


def raises_after_the_last_collective(rank):
    if rank == 1:
        blow_up()


def is_killed(rank):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    several()


def is_killed_on_rank_0(rank):
    if rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    several()


def is_killed_after_the_last_collective(rank):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def sleep_for_ever():
    time.sleep(1000)


def stalls_in_a_sleep(rank):
    if rank == 1:
        sleep_for_ever()
    several()


def wait_for_ever():
    threading.Event().wait()


def stalls_on_an_event(rank):
    if rank == 1:
        wait_for_ever()
    several()


def spin_for_ever():
    while True:
        pass


def stalls_in_a_loop(rank):
    if rank == 1:
        spin_for_ever()
    several()


def gives_another_shape(rank):
    total(size=64 if rank != 1 else 4)
    several()


def calls_another_collective(rank):
    if rank == 1:
        dist.broadcast(torch.ones(64), 0)
    several()


def returns_early(rank):
    if rank != 1:
        several()


def leaves_with_status_0(rank):
    if rank == 1:
        sys.exit(0)
    several()


def leaves_with_status_3(rank):
    if rank == 1:
        sys.exit(3)
    several()


def is_interrupted(rank):
    if rank == 1:
        raise KeyboardInterrupt
    several()


def has_no_memory(rank):
    if rank == 1:
        bytearray(1 << 60)
    several()


def is_ended_by_native_code(rank):
    if rank == 1:
        os.abort()
    several()


def cannot_say_what(rank):
    class SilentError(Exception):
        def __str__(self):
            raise RuntimeError("no words")

    if rank == 1:
        raise SilentError
    several()


def note(failure):
    sys.stdout.write(f"noted {failure.rank}\n")


def run(case):
    """Join, agree once, and do what the case says."""
    with (
        joined(Rendezvous.from_environment(), CPU, TIMEOUT) as it,
        guarded(it, describe=lambda: "update 7", log=note),
    ):
        total()
        globals()[case](it.rank)


def run_in_a_group_of_the_user(case):
    """Do the same in a group that is there already."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT))
    with joined(None, CPU, TIMEOUT) as it, guarded(it, describe=lambda: "update 7"):
        total(it.group)
        globals()[case](it.rank)


def both_raise():
    """Two ranks fail at the same moment."""
    with joined(Rendezvous.from_environment(), CPU, TIMEOUT) as it, guarded(it):
        total()
        raise ValueError(f"words of rank {it.rank}")


def host_and_die():
    """Rank 0 hosts the store for all and takes it away, while all of them compute."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    hosts = os.environ["RANK"] == "0"
    store = dist.TCPStore(host, port, is_master=True, wait_for_workers=False) if hosts else None
    with joined(Rendezvous.from_environment(), CPU, TIMEOUT) as it, guarded(it):
        total()
        total()
        del store
        wait_for_ever()


def end_well():
    """Agree on a sum, each rank at its own speed, and end."""
    with joined(Rendezvous.from_environment(), CPU, TIMEOUT) as it, guarded(it):
        torch.ones(200 * (1 + it.rank), 200) @ torch.ones(200, 200)
        several()
        return total(it.group)


def join_twice():
    """Fit twice in one process."""
    return [end_well(), end_well()]


def use_a_group_of_the_user():
    """Fit twice in a group that lives on."""
    dist.init_process_group("gloo")
    sums = []
    for _ in range(2):
        with joined(None, CPU, TIMEOUT) as it, guarded(it):
            sums.append(total(it.group))
    return [*sums, total()]


def fail_at_first(restarts):
    """Fail until the ranks have been started again so often."""
    with joined(Rendezvous.from_environment(), CPU, TIMEOUT) as it, guarded(it):
        total()
        if int(os.environ["TORCHELASTIC_RESTART_COUNT"]) < restarts and it.rank == 1:
            blow_up()
        return total()


def leave_in_agreement():
    """Leave by sys.exit(0) when all have agreed to end."""
    with joined(Rendezvous.from_environment(), CPU, TIMEOUT) as it, guarded(it) as guard:
        total()
        guard.ended()
        sys.exit(0)


def fail_after_an_agreement():
    """Fail on rank 1 when all have agreed to end."""
    with joined(Rendezvous.from_environment(), CPU, TIMEOUT) as it, guarded(it) as guard:
        total()
        guard.ended()
        if it.rank == 1:
            blow_up()
        sys.exit(0)


def look_at_what_is_joined():
    """Return what a rank is told of itself, and which groups are left behind."""
    with joined(Rendezvous.from_environment(), CPU, TIMEOUT) as it:
        told = [it.rank, it.local_rank, it.world_size, dist.get_backend(it.group)]
    return [*told, dist.is_initialized()]


def join_a_group_that_is_there():
    """Give a rendezvous, where there is a group."""
    dist.init_process_group("gloo")
    with joined(Rendezvous.from_environment(), CPU, TIMEOUT):
        pass


def join_nothing():
    """Give neither a rendezvous nor a group."""
    with joined(None, CPU, TIMEOUT):
        pass


def raise_before_joining():
    """Rank 1 never comes."""
    if os.environ["RANK"] == "1":
        blow_up()
    with joined(Rendezvous.from_environment(), CPU, TIMEOUT) as it, guarded(it):
        several()

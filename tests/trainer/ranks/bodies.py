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
    class Silent(Exception):
        def __str__(self):
            raise RuntimeError("no words")

    if rank == 1:
        raise Silent
    several()


def run(case):
    """Join, agree once, and do what the case says."""
    with (
        joined(Rendezvous.from_environment(), CPU, TIMEOUT) as it,
        guarded(it, describe=lambda: "update 7", log=lambda failure: print("logged", failure.rank)),
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


def raise_before_joining():
    """Rank 1 never comes."""
    if os.environ["RANK"] == "1":
        blow_up()
    with joined(Rendezvous.from_environment(), CPU, TIMEOUT) as it, guarded(it):
        several()

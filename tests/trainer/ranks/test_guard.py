from __future__ import annotations

import pytest
import torch.distributed as dist

from helios.trainer.ranks.board import Board, Failure
from helios.trainer.ranks.guard import is_of_a_peer
from helios.trainer.ranks.watch import Watcher

FAILURE = Failure(1, "raised", "", "ValueError: no")


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1"),
        RuntimeError("[/src/gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer"),
        RuntimeError("[unbound_buffer.cc:78] Timed out waiting 2000ms for recv operation"),
        RuntimeError("Application timeout caused pair closure"),
        dist.DistBackendError("NCCL"),
        dist.DistNetworkError("recv"),
        dist.DistStoreError("wait timeout"),
        caused(ValueError("no metrics"), dist.DistNetworkError("recv")),
    ],
)
def test_what_is_seen_of_another_ranks_failure_is_known(error):
    assert is_of_a_peer(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ConnectionResetError("Connection reset by peer"),
        MemoryError(),
        caused(ValueError("a"), KeyError("b")),
    ],
)
def test_other_exceptions_are_a_ranks_own(error):
    assert not is_of_a_peer(error)


def test_a_circle_of_causes_has_an_end():
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert not is_of_a_peer(first)


def test_a_failure_is_told_once():
    told = []
    watcher = Watcher(Board(dist.HashStore(), 0, 2), on_failure=told.append)
    watcher.tell(FAILURE)
    watcher.tell(FAILURE)
    assert told == [FAILURE]


def test_what_telling_a_failure_raises_is_dropped():
    def fail(failure):
        raise OSError("no space left")

    Watcher(Board(dist.HashStore(), 0, 2), on_failure=fail).tell(FAILURE)


def test_a_place_that_cannot_be_told_is_no_failure():
    watcher = Watcher(Board(dist.HashStore(), 0, 2), describe=lambda: str(1 // 0))
    assert watcher.describe().startswith("where it was could not be told: ZeroDivisionError")

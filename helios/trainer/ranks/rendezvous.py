"""Where the ranks of a run meet: a store that all of them reach."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from datetime import timedelta

import msgspec
from torch._C._distributed_c10d import PrefixStore, TCPStore

from helios.errors import RankError

_hosted: dict[tuple[str, int], TCPStore] = {}
"""The stores that this process hosts. They live as long as it does: a rank that is late in leaving
one fit, or early in joining the next, still finds them."""

_joins: defaultdict[tuple[str, int, str], int] = defaultdict(int)


class Rendezvous(msgspec.Struct, frozen=True):
    """Who this rank is, and where it meets the others.

    Args:
        rank: over all hosts, from 0.
        local_rank: on this host, from 0; the index of its device.
        world_size: ranks over all hosts.
        host: of the store.
        port: of the store.
        is_hosted: whether the store is hosted outside of the ranks, by the agent of ``torchrun`` or
            by a parent that started them; otherwise rank 0 hosts it.
        name: of the run; another one for every start of the ranks at the same store.
    """

    rank: int
    local_rank: int
    world_size: int
    host: str
    port: int
    is_hosted: bool = False
    name: str = "run"

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"rank: received {self.rank} with a world size of {self.world_size}; expected "
                "0 <= rank < world size: count the ranks from 0"
            )
        if self.local_rank < 0:
            raise ValueError(f"local_rank: received {self.local_rank}; expected 0 or more")
        if not 0 < self.port < 1 << 16:
            raise ValueError(f"port: received {self.port}; expected a port from 1 to 65535")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Rendezvous:
        """Read what ``torchrun`` gives to every rank.

        Args:
            environment: (optional) the variables; those of this process by default.

        Raises:
            ValueError: if a variable is missing or makes no sense; the message names it.

        References:
            https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables
        """
        given = os.environ if environment is None else environment
        run = given.get("TORCHELASTIC_RUN_ID", "run")
        restart = given.get("TORCHELASTIC_RESTART_COUNT", "0")
        return cls(
            rank=_number(given, "RANK"),
            local_rank=_number(given, "LOCAL_RANK"),
            world_size=_number(given, "WORLD_SIZE"),
            host=_text(given, "MASTER_ADDR"),
            port=_number(given, "MASTER_PORT"),
            is_hosted=given.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            name=f"{run}/{restart}",
        )

    @property
    def hosting_rank(self) -> int | None:
        """The rank that hosts the store; None if none of them does."""
        return None if self.is_hosted else 0

    def store(self, timeout: float) -> PrefixStore:
        """Open the store, where this process joins the run once more.

        The keys of each join have a prefix of their own, so a process that fits twice, and ranks
        that are started again at the same store, never see old ones. For that, all ranks have to
        join equally often.

        Args:
            timeout: seconds to wait for the store, and for any key of it.

        Raises:
            RankError: if it cannot be hosted, or is not reached in time.
        """
        place = (self.host, self.port)
        if self.rank == self.hosting_rank and place not in _hosted:
            _hosted[place] = self._open(timeout, is_master=True)
        store = self._open(timeout, is_master=False)
        _joins[*place, self.name] += 1
        return PrefixStore(f"helios/{self.name}/{_joins[*place, self.name]}", store)

    def _open(self, timeout: float, is_master: bool) -> TCPStore:
        try:
            return TCPStore(
                self.host,
                self.port,
                is_master=is_master,
                timeout=timedelta(seconds=timeout),
                wait_for_workers=False,
                # As torch does it: a group of the user's own may have its store at the same port.
                multi_tenant=True,
            )
        except RuntimeError as error:
            if is_master:
                message = (
                    f"rank {self.rank} cannot host the store at {self.host}:{self.port}; choose a "
                    "free port (MASTER_PORT) of this host (MASTER_ADDR)"
                )
            else:
                by = "what started the ranks" if self.is_hosted else "rank 0"
                message = (
                    f"rank {self.rank} waited {timeout:g} s for the store at {self.host}:"
                    f"{self.port}, which {by} hosts, and did not reach it; see whether that is "
                    "running, and whether the address and the port are right"
                )
            raise RankError(f"{message}: {error}", rank=self.hosting_rank) from error


def _text(given: Mapping[str, str], name: str) -> str:
    if not given.get(name):
        raise ValueError(
            f"{name}: received {given.get(name)!r} from the environment; expected what torchrun "
            "gives to every rank: start them with torchrun"
        )
    return given[name]


def _number(given: Mapping[str, str], name: str) -> int:
    text = _text(given, name)
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(
            f"{name}: received {text!r} from the environment; expected a number of 0 or more, as "
            "torchrun gives it to every rank"
        )
    return int(text)

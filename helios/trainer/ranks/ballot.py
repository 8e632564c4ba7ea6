"""How ranks learn of each other's wishes: with the gradients, in no collective of their own."""

from __future__ import annotations

from collections.abc import Callable

import torch

from helios.functional.nonfinite import send


class Ballot:
    """Whether some rank wishes that all of them talk: one asked to stop, or got a signal.

    An engine adds the votes of the ranks while it adds their gradients. On the CPU the result is
    there with the gradients; elsewhere nobody waits for the device, and it counts one update later,
    on all ranks alike.

    Args:
        wish: whether this rank wishes it, asked once for each objective of an update.

    Example:
        >>> ballot = Ballot(lambda: True)
        >>> ballot.count(torch.tensor([ballot.vote()]))
        >>> ballot.carried(), ballot.carried()
        (True, False)
    """

    def __init__(self, wish: Callable[[], bool]) -> None:
        self._wish = wish
        self._new: list[Callable[[], list[float]]] = []
        self._old: list[Callable[[], list[float]]] = []
        self._wait = False

    def vote(self) -> float:
        """Return 1 if this rank wishes it, else 0."""
        return 1.0 if self._wish() else 0.0

    def count(self, votes: torch.Tensor) -> None:
        """Take the sum of all ranks' votes, or any multiple of it, as ``f[1]`` or ``f[]``."""
        self._wait = self._wait or votes.device.type == "cuda"
        self._new.append(send(votes.reshape(())))

    def carried(self) -> bool:
        """Tell whether some rank wished it; called after each update, on every rank."""
        due = self._old if self._wait else self._new
        self._old, self._new = (self._new if self._wait else []), []
        votes = [answer()[0] for answer in due]  # all of them: each is to be waited for
        return any(votes)

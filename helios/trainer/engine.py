"""Which engine computes the gradients of a run, and which pieces of its data are this rank's."""

from __future__ import annotations

from typing import Any

from helios.errors import ModelError
from helios.functional.binding import Binding
from helios.functional.canonical import CanonicalEngine
from helios.functional.gradients import MakeEngine
from helios.functional.precision import Policy
from helios.functional.share import Shares
from helios.functional.trainable import custom_step
from helios.functional.tree_sum import check_pieces
from helios.model.model import Model
from helios.trainer.ranks.ballot import Ballot
from helios.trainer.ranks.ddp import DDP, DDPEngine
from helios.trainer.ranks.exchange import TreeExchange
from helios.trainer.ranks.group import Ranks

REDUCTIONS = ("mean", "canonical")
"""How gradients can be put together over ranks."""

PIECES = 8
"""In how many pieces canonical reduction cuts a micro-batch, unless told otherwise."""


class Division:
    """How the micro-batches of a run are divided among its ranks.

    Args:
        ranks: the ranks.
        pieces: in how many pieces canonical reduction cuts a micro-batch; None for the plain mean,
            with one piece for each rank.
        options: how gradients are added over ranks; None for the defaults.

    Attributes:
        shares: this rank's pieces; None if micro-batches are not cut.
        in_order: how many pieces of each micro-batch are this rank's if the order in which they
            are added is fixed, else 0.

    Raises:
        ValueError: if the pieces cannot be shared among the ranks so that their order is fixed.
    """

    def __init__(self, ranks: Ranks, pieces: int | None = None, options: DDP | None = None) -> None:
        self._ranks = ranks
        self._options = DDP() if options is None else options
        self._engine: DDPEngine | None = None
        self.pieces = pieces
        self.shares: Shares | None = None
        self.in_order = 0
        if pieces is not None:
            check_pieces(pieces, ranks.world_size)
            self.shares = Shares.of_rank(pieces, ranks.rank, ranks.world_size)
            self.in_order = pieces // ranks.world_size
        elif ranks.several:
            self.shares = Shares.of_rank(ranks.world_size, ranks.rank, ranks.world_size)

    def engine(self, model: Model, ballot: Ballot) -> str | MakeEngine:
        """Return what `helios.make_step` takes as its engine.

        Args:
            model: whose gradients it computes.
            ballot: where wishes are cast and counted.

        Raises:
            ModelError: if the model has a step of its own, which knows nothing of pieces.
        """
        if self.shares is None:
            return "autograd"
        if custom_step(model) is not None:
            raise ModelError(
                f"{type(model).__name__} has a step() of its own; received "
                f"{self._ranks.world_size} ranks and {self.shares.pieces} pieces of each batch, of "
                "which such a step knows nothing. Return the loss from loss() or objectives(), or "
                "train on one rank"
            )
        if self.pieces is not None:
            exchange = TreeExchange(ballot=ballot if self._ranks.several else None)
            return lambda binding, policy: CanonicalEngine(binding, policy, exchange)

        def make(binding: Binding, policy: Policy) -> DDPEngine:
            self._engine = DDPEngine(binding, policy, self._options, self._ranks, ballot)
            return self._engine

        return make

    def close(self) -> None:
        """Let go of the process group."""
        if self._engine is not None:
            self._engine.close()

    def describe(self) -> str | None:
        """Return the division in a sentence; None if there is none.

        Example:
            >>> Division(Ranks(), pieces=4).describe()
            'Ranks: 1; each micro-batch in 4 pieces, added in a fixed order'
        """
        if self.shares is None:
            return None
        how = "a share of each micro-batch on every rank"
        if self.pieces is not None:
            how = f"each micro-batch in {self.pieces} pieces, added in a fixed order"
        return f"Ranks: {self._ranks.world_size}; {how}"

    def fingerprint(self) -> dict[str, Any]:
        """Return what of the division the bits of a run depend on."""
        if self.pieces is not None:
            return {"reduction": f"canonical, in {self.pieces} pieces"}
        return {"reduction": "mean", "ranks": self._ranks.world_size}

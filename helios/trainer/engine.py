"""Which engine computes the gradients of a run, and which pieces of its data are this rank's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from helios.errors import ModelError
from helios.functional.binding import Binding, own_binding
from helios.functional.canonical import CanonicalEngine
from helios.functional.gradients import MakeEngine
from helios.functional.observe import total_norm
from helios.functional.precision import Policy
from helios.functional.share import Shares
from helios.functional.trainable import custom_step
from helios.functional.transformation import Tensors
from helios.functional.tree_sum import check_pieces
from helios.model.model import Model
from helios.trainer.agreement import Agreement
from helios.trainer.ranks.ballot import Ballot
from helios.trainer.ranks.ddp import DDPEngine
from helios.trainer.ranks.equal import check_equal, checksum
from helios.trainer.ranks.exchange import TreeExchange
from helios.trainer.ranks.group import Ranks
from helios.trainer.ranks.options import DDP, FSDP
from helios.trainer.ranks.saving import RankSaver
from helios.trainer.saving import Saver, Saves
from helios.trainer.side_effects import check_divided
from helios.trainer.signals import Signals
from helios.trainer.store import Store

REDUCTIONS = ("mean", "canonical")
"""How gradients can be put together over ranks."""

PIECES = 8
"""In how many pieces canonical reduction cuts a micro-batch, unless told otherwise."""


def as_recorded(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the trainer's arguments for how a run computes, as far as one process has it.

    Args:
        fingerprint: of the run; see `Division.fingerprint`.

    Example:
        >>> as_recorded({"reduction": "canonical", "pieces": 4})
        {'reduction': 'canonical', 'pieces': 4}
        >>> as_recorded({"reduction": "mean", "ranks": 2, "compiled": "no"})
        {}
    """
    arguments: dict[str, Any] = {}
    if fingerprint.get("reduction") == "canonical":
        arguments.update(reduction="canonical", pieces=fingerprint["pieces"])
    if fingerprint.get("compiled", "no") != "no":
        arguments["compile"] = fingerprint["compiled"]
    if fingerprint.get("overfit_batches"):
        arguments["overfit_batches"] = fingerprint["overfit_batches"]
    return arguments


class Division:
    """How the micro-batches of a run are divided among its ranks.

    Args:
        ranks: the ranks.
        pieces: in how many pieces canonical reduction cuts a micro-batch; None for the plain mean,
            with one piece for each rank.
        options: how gradients are added, or the model is sharded, over ranks; None for `DDP()`.

    Attributes:
        shares: this rank's pieces; None if micro-batches are not cut.
        in_order: how many pieces of each micro-batch are this rank's if the order in which they
            are added is fixed, else 0.
        is_sharded: whether each rank keeps a part of the model alone.

    Raises:
        ValueError: if the pieces cannot be shared among the ranks so that their order is fixed.
    """

    def __init__(
        self, ranks: Ranks, pieces: int | None = None, options: DDP | FSDP | None = None
    ) -> None:
        self._ranks = ranks
        self._options: DDP | FSDP = DDP() if options is None else options
        self.is_sharded = ranks.several and isinstance(self._options, FSDP)
        self._engine: DDPEngine | None = None
        self._polled = False  # whether no gradients tell ranks of each other's wishes
        self.pieces = pieces
        self.shares: Shares | None = None
        self.in_order = 0
        if pieces is not None:
            check_pieces(pieces, ranks.world_size)
            self.shares = Shares.of_rank(pieces, ranks.rank, ranks.world_size)
            self.in_order = pieces // ranks.world_size
        elif ranks.several:
            self.shares = Shares.of_rank(ranks.world_size, ranks.rank, ranks.world_size)

    def prepare(self, model: Model) -> None:
        """Spread a model that is set up over the ranks, if that is asked for.

        Raises:
            ModelError: if the model cannot be sharded, or has a step of its own.
            RankError: if it is not the same on all ranks.
        """
        if self.shares is not None and model.trains_by_side_effect:
            self._polled = True
            check_divided(model, self._ranks.world_size, self.pieces, is_sharded=self.is_sharded)
        elif self.shares is not None and custom_step(model) is not None:
            raise ModelError(
                f"{type(model).__name__} has a step() of its own; received "
                f"{self._ranks.world_size} ranks and {self.shares.pieces} pieces of each batch, of "
                "which such a step knows nothing. Return the loss from loss() or objectives(), or "
                "train on one rank"
            )
        if not self._ranks.several:
            return
        if own_binding(model) is None:
            own = model.own_parameters()
            check_equal(self._ranks.exchange(checksum(own)), "after setup()")
            if isinstance(self._options, FSDP):
                # Half a second that those who do not shard need not wait for.
                from helios.trainer.ranks.wrapping import shard

                shard(model, self._options)

    def agreement(self, stop_asked: Callable[[], bool], signals: Signals | None) -> Agreement:
        """Return what lets the ranks decide alike.

        Args:
            stop_asked: whether the user's hooks ask to stop.
            signals: what tells of signals, None for nothing.
        """
        return Agreement(
            stop_asked,
            signals,
            self._ranks,
            self.in_order,
            in_step=self.is_sharded or self._polled,
            polled=self._polled,
        )

    def saver(
        self, folder: Path, store: Store | None, model: Model, *rest: Any, **options: Any
    ) -> Saves:
        """Return what saves the states of a run.

        Args:
            folder: where.
            store: that folder, open on rank 0; None on the others.
            model: whose states they are, prepared.
            rest: as for `Saver`, after its model.
            options: as for `Saver`.
        """
        if self.is_sharded:
            from helios.trainer.ranks.shard_saver import ShardSaver

            own: Any = own_binding(model)
            return ShardSaver(store, folder, self._ranks, own, model, *rest, **options)
        saver = None if store is None else Saver(store, model, *rest, **options)
        if self._ranks.several:
            return RankSaver(saver, self._ranks, model)
        assert saver is not None
        return saver

    def engine(self, ballot: Ballot) -> str | MakeEngine:
        """Return what `helios.make_step` takes as its engine.

        Args:
            ballot: where wishes are cast and counted.
        """
        if self.shares is None:
            return "autograd"
        if self.pieces is not None:
            exchange = TreeExchange(ballot=ballot if self._ranks.several else None)
            return lambda binding, policy: CanonicalEngine(binding, policy, exchange)

        options, ranks = self._options, self._ranks
        if isinstance(options, FSDP):
            from helios.trainer.ranks.fsdp import FSDPEngine

            return lambda binding, policy: FSDPEngine(binding, policy, ranks, ballot)

        def make(binding: Binding, policy: Policy) -> DDPEngine:
            self._engine = DDPEngine(binding, policy, options, ranks, ballot)
            return self._engine

        return make

    def norm(self, grads: Tensors) -> torch.Tensor:
        """Return f[], the 2-norm of the gradients of an update, which is the same on all ranks.

        Args:
            grads: the gradients by path; this rank's rows of them, if the model is sharded.
        """
        if not (self.is_sharded and grads):
            return total_norm(grads)
        from helios.trainer.ranks.elementwise import norm_over_ranks

        return norm_over_ranks(grads)

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
        if self.is_sharded:
            how = "a share of each micro-batch, and of the model, on every rank"
        if self.pieces is not None:
            how = f"each micro-batch in {self.pieces} pieces, added in a fixed order"
        return f"Ranks: {self._ranks.world_size}; {how}"

    def fingerprint(self) -> dict[str, Any]:
        """Return what of the division the bits of a run depend on."""
        if self.pieces is not None:
            return {"reduction": "canonical", "pieces": self.pieces}
        how = "mean, sharded" if self.is_sharded else "mean"
        return {"reduction": how, "ranks": self._ranks.world_size}

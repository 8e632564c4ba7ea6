"""How a loader is brought to batch k of an epoch: one feed for each kind of loader."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

from torch.utils.data import DataLoader

from helios.data.batches import Dealing, KeyedBatchSampler
from helios.data.cutting import TensorBatches
from helios.data.deaths import hold_back, let_go
from helios.data.device import as_it_is, pinned
from helios.data.distributed import is_own
from helios.data.order import batches_of
from helios.data.pieces import Deal, cut, has_samples, own, repeated, samples_of
from helios.data.stream import KeyedStream
from helios.data.workers import cause_of_death, end_workers, shield, starting
from helios.functional.share import Piece, Shares


class Feed(Protocol):
    """A loader that can be asked for the batches of an epoch from a position on.

    With shares, a batch is the list of this rank's pieces of a micro-batch, and positions and
    lengths count micro-batches.

    Args:
        length: batches of an epoch; None if that is not known beforehand.
        kept_state: whether the dataset can say its own position.
    """

    length: int | None
    kept_state: bool

    def begin(self, epoch: int, start: int, state: Any) -> tuple[Iterator[Any], int]:
        """Iterate over ``epoch``.

        Args:
            epoch: counted from 0.
            start: batches that were consumed.
            state: what `state` returned at that position, or None.

        Returns:
            The iterator, and how many of its first batches are to be thrown away.
        """

    def note(self, thrown: int) -> str | None:
        """Say how the last position was restored; None if by going there."""

    def state(self) -> Any:
        """Return the dataset's own state, where it keeps one."""

    def sizes(self) -> str:
        """Say what the number of batches comes from."""

    def batch(self, epoch: int, number: int) -> str:
        """Name a batch, for an error that arose from it."""

    def indices(self, epoch: int, number: int) -> list[Any] | None:
        """Return the indices of a batch without fetching it; None if they are not known."""

    @property
    def workers(self) -> Sequence[Any]:
        """The processes that the iteration in progress awaits."""

    def death(self, error: Exception) -> str | None:
        """Say how a worker died, if an error came from that."""

    def end(self) -> None:
        """Stop the iteration in progress, if any; workers may be kept for the next."""

    def close(self) -> None:
        """End all workers."""


class WorkerFeed:
    """The workers of a `DataLoader`, whatever it loads."""

    def __init__(self, loader: Any, shares: Shares | None = None, deal: Deal = cut) -> None:
        self.loader = loader
        self.shares = shares
        self.deal = deal
        self._iterator: Any = None

    def iterate(self) -> Any:
        """Begin an iteration, which `end` ends."""
        shielded = getattr(self.loader, "worker_init_fn", None) is shield
        if getattr(self.loader, "num_workers", 0) > 0:
            hold_back()
        with starting() if shielded else contextlib.nullcontext():
            self._iterator = iter(self.loader)
        return self._iterator

    def dealt(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Make this rank's pieces of batches that it reads whole; without shares, do nothing."""
        if self.shares is None:
            return batches
        return self._dealt(batches, self.shares)

    def _dealt(self, batches: Iterator[Any], shares: Shares) -> Iterator[list[Piece]]:
        for batch in batches:
            # Pieces that are all the whole batch weigh the same, however many samples it has.
            known = self.deal is not repeated or has_samples(batch)
            yield self.deal(batch, samples_of(batch) if known else 1, shares)

    def end(self) -> None:
        """Stop the iteration in progress, if any; persistent workers are kept for the next."""
        if self._iterator is not None and not self.loader.persistent_workers:
            end_workers(self._iterator)
        self._iterator = None

    def close(self) -> None:
        """End all workers."""
        self.end()
        end_workers(self.loader._iterator)
        self.loader._iterator = None
        let_go()

    @property
    def workers(self) -> Sequence[Any]:
        """The processes that the iteration in progress awaits."""
        return getattr(self._iterator, "_workers", ())

    def death(self, error: Exception) -> str | None:
        """Say how a worker died, if an error came from that."""
        return cause_of_death(self._iterator, error)

    def batch(self, epoch: int, number: int) -> str:
        """Name a batch."""
        return f"batch {number} of epoch {epoch} (both from 0)"

    def indices(self, epoch: int, number: int) -> list[Any] | None:
        """Return None: what the loader reads cannot be asked."""
        return None


class IndexedFeed(WorkerFeed):
    """A loader made by `create_dataloader` of an indexable dataset: goes there by index."""

    kept_state = False

    def __init__(
        self, loader: DataLoader[Any], plan: KeyedBatchSampler, shares: Shares | None
    ) -> None:
        super().__init__(loader, shares)
        self.plan = plan
        if shares is not None and is_own(plan.sampler, shares):
            self.deal = own
        elif not plan.shared:
            self.deal = repeated
        try:
            self.length: int | None = len(plan)
        except TypeError:  # a sampler without a length
            self.length = None

    def begin(self, epoch: int, start: int, state: Any) -> tuple[Iterator[Any], int]:
        """Iterate from batch ``start`` on; nothing before it is fetched."""
        self.plan.seek(epoch, start)
        if self.shares is None:
            return self.iterate(), 0
        # The sampler is told by the source, and only while it begins: a loader that is iterated
        # by itself gives whole batches.
        dealing = self.plan.dealing = Dealing(self.shares, self.deal is cut)
        try:
            batches = self.iterate()
        finally:
            self.plan.dealing = None
        return self._collected(batches, dealing), 0

    def iterate(self) -> Any:
        """Begin an iteration. Whole batches are cut without the loader's own, which costs more."""
        loader = self.loader
        dataset = loader.dataset
        if type(dataset) is not TensorBatches or loader.collate_fn is not as_it_is:
            return super().iterate()
        dataset.begin()
        batches = map(dataset.__getitems__, self.plan)
        return map(pinned, batches) if loader.pin_memory else batches

    def _collected(self, batches: Iterator[Any], dealing: Dealing) -> Iterator[list[Piece]]:
        pieces: list[Piece] = []
        for batch in batches:
            index, count, of = dealing.dealt.popleft()
            if not dealing.cuts:
                yield self.deal(batch, count, dealing.shares)
                continue
            pieces.append(Piece(index, batch, count, of))
            if index == dealing.shares.end - 1:
                yield pieces
                pieces = []

    def note(self, thrown: int) -> str | None:
        """Return None: the position is an index."""
        return None

    def state(self) -> Any:
        """Return None."""

    def sizes(self) -> str:
        """Say what the number of batches comes from."""
        return (
            f"a dataset of {len(self.loader.dataset)} samples with "
            f"batch_size={self.plan.batch_size}, drop_last={self.plan.drop_last}"
        )

    def batch(self, epoch: int, number: int) -> str:
        """Name a batch and its indices."""
        name = super().batch(epoch, number)
        indices = self.indices(epoch, number)
        return name if indices is None else f"{name}, of the indices {indices}"

    def indices_from(self, epoch: int, number: int) -> Iterator[Any] | None:
        """Iterate over the indices of batches, if the sampler can say them from there on."""
        if not self.plan.resumable:
            return None
        return batches_of(self.plan.sampler.indices(epoch, number), self.plan.batch_size, None)

    def indices(self, epoch: int, number: int) -> list[Any] | None:
        """Return the indices of a batch, if the sampler can say them from there on."""
        if not self.plan.resumable:
            return None
        return list(islice(self.plan.sampler.indices(epoch, number), self.plan.batch_size))


class StreamFeed(WorkerFeed):
    """A loader made by `create_dataloader` of an iterable dataset."""

    length: int | None = None

    def __init__(self, loader: DataLoader[Any], stream: KeyedStream, shares: Shares | None) -> None:
        super().__init__(loader, shares, cut if stream.shared else repeated)
        self.stream = stream
        self.kept_state = stream.stateful and loader.num_workers == 0

    def begin(self, epoch: int, start: int, state: Any) -> tuple[Iterator[Any], int]:
        """Iterate, from ``state`` on if there is one."""
        if state is None or not self.kept_state:
            self.stream.seek(epoch, 0)
            return self.dealt(self.iterate()), start
        self.stream.dataset.load_state_dict(state["dataset"])
        self.stream.seek(epoch, start)
        if state["ended"] and start > 0:
            # The dataset stands at the start of the next epoch already.
            self.stream.ended = True
            return iter(()), 0
        return self.dealt(self.iterate()), 0

    def note(self, thrown: int) -> str | None:
        """Say that batches were thrown away, or that the dataset went there by itself."""
        name = type(self.stream.dataset).__name__
        if thrown == 0:
            return f"the position was restored by {name}.load_state_dict"
        if self.loader.num_workers > 0:
            why = "with workers, the state of an iterable dataset cannot be restored"
        elif self.stream.stateful:
            why = "no state of the dataset was given"
        else:
            why = f"{name} has no state_dict and load_state_dict"
        return f"the position was restored by fetching {thrown} batches anew: {why}"

    def state(self) -> Any:
        """Return the dataset's own state."""
        if not self.kept_state:
            return None
        return {"dataset": self.stream.dataset.state_dict(), "ended": self.stream.ended}

    def sizes(self) -> str:
        """Say what the number of batches comes from."""
        return (
            f"an iterable {type(self.stream.dataset).__name__} with "
            f"batch_size={self.stream.batch_size}, drop_last={self.stream.drop_last}"
        )

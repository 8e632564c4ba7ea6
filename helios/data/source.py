"""`EpochSource`: the batches of an epoch from any position on, whatever the loader."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from helios.core.rng import preserved_rng
from helios.data.batches import KeyedBatchSampler
from helios.data.checks import check_integer
from helios.data.deaths import awaiting
from helios.data.feeds import Feed, IndexedFeed, StreamFeed
from helios.data.foreign import ForeignFeed
from helios.data.prefetch import Lane, lane_to, prefetched
from helios.data.stream import KeyedStream
from helios.errors import DataError
from helios.functional.rng import DEFAULT_SEED
from helios.functional.share import Shares

# Snapshots of an iterable dataset: a loop may look two batches ahead of what it has consumed, and
# a lane one further.
_KEPT = 4


class EpochSource:
    """The batches of an epoch from any position on.

    Law: ``open(e, k)`` gives what ``open(e, 0)`` gives after its first k batches
    (``tests/data/test_equality.py``).

    With shares, a list of `helios.functional.share.Piece` stands in the place of each batch: the
    pieces of that micro-batch that are this rank's. Positions, lengths and indices are those of
    whole micro-batches, and are equal on all ranks. A loader of `create_dataloader` with an
    indexable dataset fetches and collates each piece by itself; of any other loader every rank
    reads the whole batch, which must be the same on all, and cuts its pieces out of it.

    Law: the pieces of all ranks, joined in order and without those that count 0, are the batch
    without shares, for any number of pieces and ranks (``tests/data/test_shares.py``).

    Args:
        loader: a loader of `create_dataloader`, any ``DataLoader``, or any iterable of batches.
        sampler: what was made beside the loader, if anything.
        seed: what loaders that helios did not make draw from.
        shares: which pieces of every micro-batch are this rank's; None for whole batches.

    Attributes:
        batches_per_epoch: batches of an epoch; None where only the end of the data tells, which
            is always so for iterable datasets.
        lane: what carries each batch to a device while the one before it is in use; None, as at
            first, to yield batches as the loader gives them. Positions count what is yielded.

    Raises:
        DataError: if the loader has no batches, or if its sampler is that of another rank.

    Example:
        >>> source = EpochSource(["a", "b", "c"])
        >>> list(source.open(epoch=0, start=1))
        ['b', 'c']
    """

    def __init__(
        self,
        loader: Any,
        sampler: Any = None,
        *,
        seed: int = DEFAULT_SEED,
        shares: Shares | None = None,
    ) -> None:
        if not hasattr(loader, "__iter__"):
            raise TypeError(
                f"loader: received {loader!r} ({type(loader).__name__}); expected a DataLoader or "
                "another iterable of batches"
            )
        self.lane: Lane | None = None
        self._feed = _feed(loader, sampler, seed, shares)
        self._snapshots: dict[int, Any] = {}
        self._loaded: dict[str, Any] | None = None
        self._note: str | None = None
        self._opened = 0
        self.batches_per_epoch = self._feed.length
        if self.batches_per_epoch == 0:
            raise self._empty()

    @property
    def resume_note(self) -> str | None:
        """How the position last opened was restored; None if by going there, or if it was 0."""
        return self._note

    @property
    def samples_per_batch(self) -> int | None:
        """Samples of a whole batch, over all ranks, as its loader says; None if it does not."""
        for name in ("plan", "stream", "loader"):
            size = getattr(getattr(self._feed, name, None), "batch_size", None)
            if type(size) is int:
                return size
        return None

    def open(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Iterate over the batches of an epoch; what was open before is closed.

        Args:
            epoch: counted from 0.
            start: batches of that epoch that were consumed; they are left out.

        Raises:
            DataError: if ``start`` lies beyond the epoch's end, and while iterating, if there
                are fewer or more batches than the loader's length, or none at all, or if a worker
                process died.
        """
        check_integer("epoch", epoch, at_least=0)
        check_integer("start", start, at_least=0)
        length = self.batches_per_epoch
        if length is not None and start > length:
            raise self._beyond(start, length)
        self._opened += 1
        self._feed.end()
        batches, thrown = self._feed.begin(epoch, start, self._take_loaded(start))
        self._note = self._feed.note(thrown) if start else None
        self._snapshots = {}
        self._keep(start - thrown)
        fetched = self._run(batches, epoch, start, thrown, self._opened)
        return fetched if self.lane is None else prefetched(fetched, self.lane)

    def _run(
        self, batches: Iterator[Any], epoch: int, start: int, thrown: int, opened: int
    ) -> Iterator[Any]:
        number = start - thrown
        try:
            while True:
                self._check_current(opened)
                try:
                    with awaiting.of(self._feed.workers):
                        batch = next(batches)
                except StopIteration:
                    break
                number += 1
                self._keep(number)
                if number > start:
                    self._check_not_more(number)
                    yield batch
            self._check_count(number, start)
            # At the end of an epoch the position is the start of the next one.
            self._keep(0)
        except DataError:
            raise
        except Exception as error:
            death = self._feed.death(error)
            awaited = f"while {self._feed.batch(epoch, number)} was awaited"
            self._feed.close()
            if death is not None:
                raise DataError(
                    f"{death} {awaited}. A worker is often ended for want of memory: give fewer "
                    "workers or a smaller prefetch_factor; with num_workers=0 the error shows where"
                ) from error
            error.add_note(awaited)
            raise
        finally:
            if opened == self._opened:
                self._feed.end()

    def indices(self, epoch: int, number: int) -> list[int] | None:
        """Return the indices of a batch, over all ranks; nothing is fetched, what is open goes on.

        Args:
            epoch: counted from 0.
            number: the batch in that epoch, counted from 0.

        Returns:
            The indices, or None where they are not known, as for iterable datasets, for samplers
            and loaders of the user's own, and where an index is no int. Those of this rank alone
            for a `ResumableDistributedSampler`.

        Example:
            >>> EpochSource(["a", "b"]).indices(0, 1) is None
            True
        """
        with preserved_rng():
            indices = self._feed.indices(epoch, number)
        if indices is None or any(type(index) is not int for index in indices):
            return None
        return indices

    def indices_from(self, epoch: int, number: int) -> Iterator[Sequence[Any]] | None:
        """Iterate over the indices of the batches of an epoch, as `indices` gives them one by one.

        What draws while it goes on may draw from the global generators: keep them.

        Args:
            epoch: counted from 0.
            number: the first batch, counted from 0.

        Returns:
            None where they are not known. At the end of an epoch there may be one more, which is
            dropped.
        """
        find = getattr(self._feed, "indices_from", None)
        found: Iterator[Sequence[Any]] | None = None if find is None else find(epoch, number)
        return found

    def state_after(self, batches: int) -> dict[str, Any] | None:
        """Return the position of an iterable dataset, as it says it itself.

        Args:
            batches: batches of the epoch in progress that were consumed, one of the last few
                numbers; 0 also at an epoch's end.

        Returns:
            What `load_state` takes; None if the dataset keeps no state.

        Raises:
            DataError: if the state at that position is not kept any more.
        """
        if not self._feed.kept_state:
            return None
        if batches not in self._snapshots:
            raise DataError(
                f"state_after: received {batches}; the positions kept are {list(self._snapshots)}"
            )
        return {"batches": batches, **self._snapshots[batches]}

    def load_state(self, state: dict[str, Any] | None) -> None:
        """Let the next `open` restore a position that `state_after` returned; None changes nothing.

        A dataset that keeps no state, or is fetched by workers, ignores it.
        """
        self._loaded = state

    def close(self) -> None:
        """End the iteration in progress and all workers, now. The source can be opened again."""
        self._opened += 1
        self._feed.close()

    def _check_current(self, opened: int) -> None:
        if opened != self._opened:
            raise DataError(
                "these batches are at an end: their source was closed or opened again since; go "
                "on with the iterator that its last open() returned"
            )

    def _take_loaded(self, start: int) -> Any:
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return None
        if loaded["batches"] != start:
            raise DataError(
                f"load_state: the state is that after {loaded['batches']} batches, and the epoch "
                f"was opened after {start}; give the state that belongs to the position"
            )
        return copy.deepcopy(loaded)

    def _keep(self, number: int) -> None:
        if self._feed.kept_state:
            self._snapshots.pop(number, None)  # the newest stands last
            self._snapshots[number] = copy.deepcopy(self._feed.state())
            while len(self._snapshots) > _KEPT:
                del self._snapshots[next(iter(self._snapshots))]

    def _check_not_more(self, number: int) -> None:
        length = self.batches_per_epoch
        if length is not None and number > length:
            raise DataError(
                f"the loader has a length of {length} batches but gave more; its __len__ must be "
                f"the number of batches of an epoch ({self._feed.sizes()})"
            )

    def _check_count(self, number: int, start: int) -> None:
        length = self.batches_per_epoch
        if length is not None and number < length:
            raise DataError(
                f"the loader has a length of {length} batches but gave {number}; its __len__ must "
                f"be the number of batches of an epoch ({self._feed.sizes()})"
            )
        if number < start:
            raise self._beyond(start, number)
        if number == 0:
            raise self._empty()

    def _beyond(self, start: int, length: int) -> DataError:
        return DataError(
            f"the position to go on from is after batch {start} of the epoch, which has {length}; "
            f"go on with the data and the batch size of before ({self._feed.sizes()})"
        )

    def _empty(self) -> DataError:
        return DataError(
            f"the loader has 0 batches: {self._feed.sizes()}; give at least one sample, and with "
            "drop_last at least one whole batch"
        )


def source_of(
    loaders: Any, *, seed: int = DEFAULT_SEED, shares: Shares | None = None
) -> EpochSource | None:
    """Make a source of what a `DataModule` returns as its loader.

    Args:
        loaders: ``(loader, sampler)``, a loader alone, or None.
        seed: what loaders that helios did not make draw from.
        shares: which pieces of every micro-batch are this rank's; None for whole batches.

    Returns:
        The source, or None for None.
    """
    if loaders is None:
        return None
    if isinstance(loaders, tuple) and len(loaders) == 2:
        loader, sampler = loaders
        if isinstance(loader, DataLoader) or isinstance(sampler, Sampler) or sampler is None:
            return EpochSource(loader, sampler, seed=seed, shares=shares)
    return EpochSource(loaders, seed=seed, shares=shares)


def prefetch_to(device: torch.device | str, *sources: EpochSource | None) -> None:
    """Let batches be on their way to a device while the ones before them are in use.

    That is done for CUDA. For other devices nothing is changed.
    """
    lane = lane_to(device)
    for source in sources:
        if source is not None and lane is not None:
            source.lane = lane


def _feed(loader: Any, sampler: Any, seed: int, shares: Shares | None) -> Feed:
    if isinstance(loader, DataLoader):
        plan: Any = loader.batch_sampler
        dataset: Any = loader.dataset
        if isinstance(plan, KeyedBatchSampler):
            return IndexedFeed(loader, plan, shares)
        if isinstance(dataset, KeyedStream):
            return StreamFeed(loader, dataset, shares)
    return ForeignFeed(loader, sampler, seed, shares)

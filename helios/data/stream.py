"""Iterable datasets: batches whose randomness is a function of the position in the stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from helios.core.rng import preserved_rng, seed_all
from helios.functional.rng import fold


def is_stream(dataset: Any) -> bool:
    """Tell whether ``dataset`` can only be iterated, not indexed.

    Example:
        >>> is_stream([1, 2]), is_stream(iter([1, 2]))
        (False, True)
    """
    if isinstance(dataset, IterableDataset):
        return True
    return hasattr(dataset, "__iter__") and not hasattr(dataset, "__getitem__")


class KeyedStream(IterableDataset[list[Any]]):
    """Cuts an iterable dataset in batches of samples, each drawn under a key of its own.

    The key is folded from the seed, the epoch, the sample's number in the stream and the worker.
    What a worker yields is up to the dataset: one that does not look at ``get_worker_info()``
    yields every sample once per worker, as in torch.

    Args:
        dataset: the iterable; its ``set_epoch`` is called where it is iterated, if there is one.
        seed: the seed of the loader.
        batch_size: samples per batch.
        drop_last: leave out a last batch that is smaller.
        shared: whether ranks share a batch; if not, each computes all of it.

    Attributes:
        ended: whether the dataset has said, in this process, that the epoch is over. After a last
            batch that is smaller it has, before anyone asks for another.
    """

    def __init__(
        self, dataset: Any, seed: int, batch_size: int, drop_last: bool, shared: bool = True
    ) -> None:
        self.dataset = dataset
        self.seed = seed
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.shared = shared
        self.ended = False
        # Shared memory: persistent workers keep their copy of this object over the epochs.
        self._position = torch.zeros(2, dtype=torch.int64)
        self._position.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def stateful(self) -> bool:
        """Whether the dataset can say and restore its own position."""
        return callable(getattr(self.dataset, "state_dict", None)) and callable(
            getattr(self.dataset, "load_state_dict", None)
        )

    def seek(self, epoch: int, start: int) -> None:
        """Tell the next iteration its epoch, and the batches that the dataset has left behind."""
        self._position.copy_(torch.tensor([epoch, start]))
        self.ended = False

    def __iter__(self) -> Iterator[list[Any]]:
        epoch, start = self._position.tolist()
        self.ended = False
        worker = get_worker_info()
        return self._batches(epoch, start * self.batch_size, None if worker is None else worker.id)

    def _batches(self, epoch: int, position: int, worker: int | None) -> Iterator[list[Any]]:
        number = 0 if worker is None else worker
        if callable(getattr(self.dataset, "set_epoch", None)):
            self.dataset.set_epoch(epoch)
        with _guard(worker):
            seed_all(fold(self.seed, "stream", epoch, number))
            samples = iter(self.dataset)
        while not self.ended:
            batch: list[Any] = []
            with _guard(worker):
                while len(batch) < self.batch_size and not self.ended:
                    seed_all(fold(self.seed, "sample", epoch, position, number))
                    try:
                        batch.append(next(samples))
                    except StopIteration:
                        self.ended = True
                    except Exception as error:
                        error.add_note(
                            f"raised by the dataset at sample {position} of epoch {epoch} "
                            f"(both from 0) in worker {number}"
                        )
                        raise
                    position += 1
            if len(batch) == self.batch_size or (batch and not self.drop_last):
                yield batch


def _guard(worker: int | None) -> AbstractContextManager[None]:
    # A worker's generators serve nothing but its samples.
    return preserved_rng() if worker is None else nullcontext()

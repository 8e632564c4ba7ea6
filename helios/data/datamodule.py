"""`DataModule`: the datasets of a run and their loaders."""

from __future__ import annotations

import abc
import enum
from typing import Any

import msgspec
from torch.utils.data import DataLoader

from helios.data.checks import check_flag, check_integer
from helios.data.loader import create_dataloader
from helios.data.params import DataLoaderParams
from helios.errors import DataError
from helios.functional.rng import DEFAULT_SEED


class DatasetSplit(enum.Enum):
    """The different dataset splits."""

    TRAIN = 0
    VALID = 1
    TEST = 2

    @classmethod
    def from_str(cls, label: str) -> DatasetSplit:
        """Convert the given string to the corresponding enum value.

        Args:
            label: one of "train", "valid" or "test".

        Raises:
            ValueError: if the label is none of these.

        Example:
            >>> DatasetSplit.from_str("valid")
            <DatasetSplit.VALID: 1>
        """
        for split in cls:
            if label == split.name.lower():
                return split
        raise ValueError(
            f"DatasetSplit: received {label!r}; expected one of 'train', 'valid', 'test'"
        )


class Dataset(msgspec.Struct, frozen=True):
    """A dataset and how it is to be loaded.

    Args:
        dataset: indexable, or iterable.
        params: how to load it.
    """

    dataset: Any
    params: DataLoaderParams

    def dict(self) -> dict[str, Any]:
        """Return the params by name, with the dataset as ``"dataset"``."""
        return {**self.params.to_dict(), "dataset": self.dataset}


class DataModule(abc.ABC):
    """The datasets of a run and their loaders.

    A subclass assigns ``self._train_dataset``, ``self._valid_dataset`` and
    ``self._test_dataset`` in `setup`, each by ``self._create_dataset(dataset, params)``. It may
    override `train_dataloader` and its like to return a loader of its own, alone or with its
    sampler: a ``DataLoader`` or any other iterable of batches.

    Example:
        >>> class Digits(DataModule):
        ...     def setup(self):
        ...         self._train_dataset = self._create_dataset(range(10), {"batch_size": 4})
        >>> data = Digits()
        >>> data.setup()
        >>> loader, sampler = data.train_dataloader()
        >>> len(loader), data.valid_dataloader()
        (3, None)
    """

    # On the class, so that a subclass whose __init__ does not call this one's works too.
    _train_dataset: Dataset | None = None
    _valid_dataset: Dataset | None = None
    _test_dataset: Dataset | None = None
    _is_distributed: bool = False
    _seed: int = DEFAULT_SEED
    _trainer: Any = None

    @property
    def is_distributed(self) -> bool:
        """Whether the run has several ranks; the trainer sets it."""
        return self._is_distributed

    @is_distributed.setter
    def is_distributed(self, value: bool) -> None:
        check_flag("is_distributed", value)
        self._is_distributed = value

    @property
    def seed(self) -> int:
        """The seed of the run, for datasets whose params name none; the trainer sets it."""
        return self._seed

    @seed.setter
    def seed(self, value: int) -> None:
        check_integer("seed", value)
        self._seed = value

    @property
    def trainer(self) -> Any:
        """The trainer of the run.

        Raises:
            DataError: before a trainer has taken this module.
        """
        if self._trainer is None:
            raise DataError(
                f"{type(self).__name__}.trainer: there is none yet; it is set by fit and test, "
                "before prepare_data"
            )
        return self._trainer

    @trainer.setter
    def trainer(self, value: Any) -> None:
        self._trainer = value

    @property
    def train_dataset(self) -> Any:
        """The training dataset as the user gave it, or None."""
        return None if self._train_dataset is None else self._train_dataset.dataset

    @property
    def valid_dataset(self) -> Any:
        """The validation dataset as the user gave it, or None."""
        return None if self._valid_dataset is None else self._valid_dataset.dataset

    @property
    def test_dataset(self) -> Any:
        """The test dataset as the user gave it, or None."""
        return None if self._test_dataset is None else self._test_dataset.dataset

    def prepare_data(self) -> None:  # noqa: B027
        """Download or convert data, once and before any rank is started. Set no attribute here."""

    @abc.abstractmethod
    def setup(self) -> None:
        """Create the datasets, on every rank."""

    def train_dataloader(self) -> Any:
        """Return ``(loader, sampler)`` of the training dataset, made anew; None without one."""
        return self._create_dataloader(self._train_dataset)

    def valid_dataloader(self) -> Any:
        """Return ``(loader, sampler)`` of the validation dataset, made anew; None without one."""
        return self._create_dataloader(self._valid_dataset)

    def test_dataloader(self) -> Any:
        """Return ``(loader, sampler)`` of the test dataset, made anew; None without one."""
        return self._create_dataloader(self._test_dataset)

    def teardown(self) -> None:  # noqa: B027
        """Clean up after the run, however it ended."""

    def _create_dataset(self, dataset: Any, params: DataLoaderParams | dict[str, Any]) -> Dataset:
        """Pair a dataset with its params, given as such or as a table of arguments.

        Raises:
            TypeError: if ``params`` is neither.
            ValueError: if the table has a key that is no argument of `DataLoaderParams`.
        """
        if not isinstance(params, DataLoaderParams):
            params = DataLoaderParams.from_dict(params)
        return Dataset(dataset, params)

    def _create_dataloader(self, dataset: Dataset | None) -> tuple[DataLoader[Any], Any] | None:
        if dataset is None:
            return None
        if not isinstance(dataset, Dataset):
            raise TypeError(
                f"{type(self).__name__}: a dataset attribute holds a {type(dataset).__name__}; "
                "expected what self._create_dataset(dataset, params) returns"
            )
        params = dataset.params
        if params.is_distributed:
            # The trainer shares the batches of any loader: the loader need not.
            params = msgspec.structs.replace(params, is_distributed=None)
        return create_dataloader(dataset.dataset, params, seed=self._seed)

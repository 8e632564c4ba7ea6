"""What a plugin is: hooks around a run that are called before those of the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from helios.core.utils import convert_to_list
from helios.errors import RegistryError
from helios.functional.state import TrainingState

if TYPE_CHECKING:
    from helios.model import Model
    from helios.trainer import Trainer

RESERVED_IDS = frozenset(
    {
        "schema",
        "version",
        "training_state",
        "model",
        "carry",
        "plan",
        "rng",
        "data",
        "log",
        "plugins",
        "fingerprint",
    }
)
"""Names that a plugin may not have as its id: checkpoints use them."""


class UniquePluginOverrides(msgspec.Struct, frozen=True):
    """What a plugin claims for itself alone: no two plugins of a run may claim the same.

    Args:
        training_batch: whether the plugin processes training batches.
        validation_batch: whether it processes validation batches.
        testing_batch: whether it processes test batches.
        should_training_stop: whether it, and no other that claims so, decides when to stop.
    """

    training_batch: bool = False
    validation_batch: bool = False
    testing_batch: bool = False
    should_training_stop: bool = False


class Plugin:
    """Extends a run without changing its model. Every hook does nothing by default.

    A plugin's hooks are called before the model's hooks of the same name, and plugins in the order
    in which they were registered. Hooks that are not overridden cost nothing.

    Args:
        plug_id: the id under which the trainer and checkpoints know the plugin.
        unique_overrides: (optional) what the plugin claims for itself alone. One that overrides
            ``process_training_batch`` claims ``training_batch``, and so on.

    Raises:
        TypeError: if the id is not a string, or the claims are something else.
        ValueError: if the id is empty or reserved.

    Example:
        >>> class Double(Plugin):
        ...     def __init__(self):
        ...         super().__init__("double", UniquePluginOverrides(training_batch=True))
        ...
        ...     def process_training_batch(self, batch, state):
        ...         return 2 * batch
        >>> Double().process_training_batch(torch.ones(2), TrainingState())
        tensor([2., 2.])
    """

    def __init__(self, plug_id: str, unique_overrides: UniquePluginOverrides | None = None) -> None:
        self._plug_id = check_plugin_id(plug_id)
        overrides = UniquePluginOverrides() if unique_overrides is None else unique_overrides
        if not isinstance(overrides, UniquePluginOverrides):
            raise TypeError(
                f"unique_overrides of plugin {plug_id!r}: received a "
                f"{type(unique_overrides).__name__}; expected UniquePluginOverrides, such as "
                "UniquePluginOverrides(training_batch=True)"
            )
        self._overrides = overrides
        self._trainer: Trainer | None = None
        self._device: torch.device | None = None
        self._rank = 0
        self._is_distributed = False
        self._map_loc: str | dict[str, str] | None = None

    @property
    def plug_id(self) -> str:
        """The id under which the trainer and checkpoints know the plugin."""
        return self._plug_id

    @property
    def unique_overrides(self) -> UniquePluginOverrides:
        """What the plugin claims for itself alone."""
        return self._overrides

    @property
    def device(self) -> torch.device:
        """The device that the run computes on.

        Raises:
            ValueError: if no run has begun.
        """
        if self._device is None:
            raise self._unset("device")
        return self._device

    @device.setter
    def device(self, device: torch.device) -> None:
        self._device = device

    @property
    def rank(self) -> int:
        """The rank of this process, 0 for one process."""
        return self._rank

    @rank.setter
    def rank(self, rank: int) -> None:
        self._rank = rank

    @property
    def is_distributed(self) -> bool:
        """Whether several processes train together."""
        return self._is_distributed

    @is_distributed.setter
    def is_distributed(self, value: bool) -> None:
        self._is_distributed = value

    @property
    def map_loc(self) -> str | dict[str, str]:
        """Return where tensors of a file go, as the ``map_location`` of ``torch.load``.

        It is the device of the run, unless it is set.
        """
        return str(self.device) if self._map_loc is None else self._map_loc

    @map_loc.setter
    def map_loc(self, value: str | dict[str, str]) -> None:
        self._map_loc = value

    @property
    def trainer(self) -> Trainer:
        """The trainer of the run.

        Raises:
            ValueError: if no run has begun.
        """
        if self._trainer is None:
            raise self._unset("trainer")
        return self._trainer

    @trainer.setter
    def trainer(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def configure_trainer(self, trainer: Trainer) -> None:
        """Change the trainer before a run, such as its ``train_exceptions``.

        Args:
            trainer: the trainer.
        """

    def configure_model(self, model: Model) -> None:
        """Change the model before a run, such as its ``save_name``.

        Args:
            model: the model, before its ``setup()``.
        """

    def setup(self) -> None:
        """Make what the plugin needs; the trainer and the device are known."""

    def on_training_start(self) -> None:
        """Run before the first batch of a fit, resumed or not."""

    def on_training_epoch_start(self, current_epoch: int) -> None:
        """Run when an epoch starts, and again, with the same number, when it is resumed.

        Args:
            current_epoch: the number of the epoch, 1 for the first.
        """

    def on_training_batch_fetched(self, batch: Any, seconds: float) -> None:
        """Look at a batch that was just fetched. Draw nothing here, and change nothing.

        Args:
            batch: the batch; of several ranks, the list of this rank's pieces of it.
            seconds: how long the run waited for it.
        """

    def on_training_batch_start(self, state: TrainingState) -> None:
        """Run before the loss of a micro-batch.

        Args:
            state: the state, with counters already advanced and the old ``dataset_iter``.
        """

    def process_training_batch(self, batch: Any, state: TrainingState) -> Any:
        """Return the batch to train on in place of ``batch``.

        Overriding it takes the claim ``training_batch``.

        Args:
            batch: the batch, on the device of the run.
            state: the state, with counters already advanced and the old ``dataset_iter``.
        """
        return batch

    def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
        """Run after the step of a micro-batch.

        Args:
            state: the state after the step, with the old ``dataset_iter``.
            should_log: whether ``print_frequency`` asks for a report at this update.
        """

    def on_training_report(self, state: TrainingState) -> None:
        """Look at the state after the training metrics were reported: where others report too.

        That is at ``print_frequency``; without one, at validations and ends of epochs. Draw nothing
        here, and change nothing.

        Args:
            state: the state.
        """

    def on_training_epoch_end(self, current_epoch: int) -> None:
        """Run when every micro-batch of an epoch is consumed, after its validation.

        Args:
            current_epoch: the number of the epoch.
        """

    def on_training_end(self) -> None:
        """Run after the last event of a fit."""

    def on_validation_start(self, validation_cycle: int) -> None:
        """Run before a validation.

        Args:
            validation_cycle: validations done before this one.
        """

    def process_validation_batch(self, batch: Any, step: int) -> Any:
        """Return the batch to validate on in place of ``batch``.

        Overriding it takes the claim ``validation_batch``.

        Args:
            batch: the batch, on the device of the run.
            step: the index of the batch.
        """
        return batch

    def on_validation_end(self, validation_cycle: int) -> None:
        """Run after a validation.

        Args:
            validation_cycle: validations done before this one.
        """

    def on_testing_start(self) -> None:
        """Run before the first test batch."""

    def process_testing_batch(self, batch: Any, step: int) -> Any:
        """Return the batch to test on in place of ``batch``.

        Overriding it takes the claim ``testing_batch``.

        Args:
            batch: the batch, on the device of the run.
            step: the index of the batch.
        """
        return batch

    def on_testing_end(self) -> None:
        """Run after the last test batch."""

    def should_training_stop(self) -> bool:
        """Tell whether to stop now; asked after every micro-batch and after what follows it."""
        return False

    def is_over(self) -> bool:
        """Tell whether the run is over; asked before the first batch and after each validation.

        What is due is done first, and the final state is saved. Of several ranks, the answer of
        rank 0 is that of all. A run that was left because of it trains nothing more when it is
        started again, as long as the answer stays the same.
        """
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the plugin: tensors, numbers, strings."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` returned.

        Args:
            state_dict: the state.
        """

    def _append_train_exceptions(
        self, exceptions: type[Exception] | Sequence[type[Exception]], trainer: Trainer
    ) -> None:
        """Let exceptions of these types pass through ``fit``.

        Raises:
            TypeError: if one is not a type of exception.
        """
        _append(exceptions, trainer.train_exceptions)

    def _append_test_exceptions(
        self, exceptions: type[Exception] | Sequence[type[Exception]], trainer: Trainer
    ) -> None:
        """Let exceptions of these types pass through ``test``.

        Raises:
            TypeError: if one is not a type of exception.
        """
        _append(exceptions, trainer.test_exceptions)

    def _register_in_trainer(self, trainer: Trainer) -> None:
        """Add the plugin to ``trainer.plugins``; once it is there, nothing more happens.

        Raises:
            RegistryError: if another plugin has its id.
        """
        other = trainer.plugins.setdefault(self.plug_id, self)
        if other is not self:
            raise RegistryError(
                f"the trainer has a plugin with the id {self.plug_id!r} already, a "
                f"{type(other).__name__}; received a {type(self).__name__}. Give one of them "
                "another id."
            )

    def _unset(self, name: str) -> ValueError:
        return ValueError(
            f"plugin {self._plug_id!r} has no {name} yet; the trainer sets it when a fit or a test "
            "begins, before setup()"
        )


def check_plugin_id(plug_id: Any) -> str:
    """Return an id that a plugin may have.

    Raises:
        TypeError: if it is not a string.
        ValueError: if it is empty or reserved.
    """
    if not isinstance(plug_id, str):
        raise TypeError(f"plug_id: received a {type(plug_id).__name__}; expected a string")
    if not plug_id:
        raise ValueError("plug_id: received an empty string; expected a name, such as 'cuda'")
    if plug_id in RESERVED_IDS:
        raise ValueError(
            f"plug_id: received {plug_id!r}, which checkpoints use; expected any name but "
            f"{', '.join(sorted(RESERVED_IDS))}"
        )
    return plug_id


def _append(
    exceptions: type[Exception] | Sequence[type[Exception]], known: list[type[Exception]]
) -> None:
    types: list[Any] = convert_to_list(exceptions)
    for kind in types:
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            raise TypeError(f"received {kind!r}; expected a type of exception, such as ValueError")
    known.extend(kind for kind in types if kind not in known)

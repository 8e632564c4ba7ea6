"""The hooks of a model: empty methods that the trainer calls, if they are overridden."""

from __future__ import annotations

from typing import Any

from helios.functional.state import TrainingState


class ModelHooks:
    """What a model may do around the steps. Every hook does nothing by default.

    The trainer looks once, at the start, which hooks are overridden; the others cost nothing.
    States passed to hooks are for reading: what a hook needs later it copies.
    """

    def on_training_start(self) -> None:
        """Run before the first batch of a fit, resumed or not."""

    def on_training_epoch_start(self, current_epoch: int) -> None:
        """Run when an epoch starts, and again, with the same number, when it is resumed.

        Args:
            current_epoch: the number of the epoch, 1 for the first.
        """

    def on_training_batch_start(self, state: TrainingState) -> None:
        """Run before the loss of a micro-batch.

        Args:
            state: the state, with counters already advanced and the old ``dataset_iter``.
        """

    def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
        """Run after the step of a micro-batch.

        Args:
            state: the state after the step, with the old ``dataset_iter``.
            should_log: whether ``print_frequency`` asks for a report at this update.
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

    def on_validation_batch_start(self, step: int) -> None:
        """Run before a validation batch.

        Args:
            step: the index of the batch.
        """

    def on_validation_batch_end(self, step: int) -> None:
        """Run after a validation batch.

        Args:
            step: the index of the batch.
        """

    def on_validation_end(self, validation_cycle: int) -> None:
        """Run after a validation, with its results in ``valid_metrics``.

        Args:
            validation_cycle: validations done before this one.
        """

    def on_testing_start(self) -> None:
        """Run before the first test batch."""

    def on_testing_batch_start(self, step: int) -> None:
        """Run before a test batch.

        Args:
            step: the index of the batch.
        """

    def on_testing_batch_end(self, step: int) -> None:
        """Run after a test batch.

        Args:
            step: the index of the batch.
        """

    def on_testing_end(self) -> None:
        """Run after the last test batch, with the results in ``test_metrics``."""

    def load_for_testing(self) -> None:
        """Load weights for `helios.Trainer.test` when there is no checkpoint to load."""

    def should_training_stop(self) -> bool:
        """Tell whether to stop now; asked after every micro-batch and after what follows it."""
        return False

    def append_metadata_to_chkpt_name(self, chkpt_name: str) -> str:
        """Return the checkpoint's name with anything added that helps to tell it apart.

        Args:
            chkpt_name: the name without extension, which holds the epoch and the iteration.

        Returns:
            The name with something appended, or only what to append.
        """
        return chkpt_name

    def append_to_banner(self, banner: str) -> str:
        """Return the banner with lines of the model's own added."""
        return banner


def overridden(instance: Any, name: str, base: type) -> Any:
    """Return the bound method ``name`` if it is not the one of ``base``, else None.

    Example:
        >>> class Quiet(ModelHooks):
        ...     def on_testing_end(self):
        ...         pass
        >>> overridden(Quiet(), "on_testing_start", ModelHooks) is None
        True
        >>> overridden(Quiet(), "on_testing_end", ModelHooks) is None
        False
    """
    method = getattr(instance, name)
    return None if getattr(method, "__func__", method) is getattr(base, name) else method

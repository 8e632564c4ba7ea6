"""A run that is left and gone on with in the same process, without a file."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from helios.errors import ResumeError
from helios.functional.state import TrainingState
from helios.model.imperative import ImperativeModel
from helios.trainer.saving import Saver

if TYPE_CHECKING:
    from helios.data import EpochSource
    from helios.functional.plan import Plan
    from helios.trainer.loop import Loop
    from helios.trainer.trainer import Trainer


class Left:
    """Where a fit was left, as a checkpoint that was never written.

    It holds the tensors of `Trainer.state` and no copies of them, so that it costs nothing; they
    are copied when a run goes on from here.

    Args:
        content: what a checkpoint of that state would hold; None if there is no such state.
        reason: why there is none.
        interrupted: where it was left, if that was by a signal; empty if not.
    """

    def __init__(
        self, content: dict[str, Any] | None, reason: str = "", interrupted: str = ""
    ) -> None:
        self._content = content
        self._reason = reason
        self.interrupted = interrupted

    def take(self) -> dict[str, Any]:
        """Return the content, of which nothing is shared.

        Raises:
            ResumeError: if there is nothing to go on from.
        """
        if self._content is None:
            raise ResumeError(f"there is no state to go on from: {self._reason}")
        return copy.deepcopy(self._content)


NOTHING = Left(None, "this trainer has not run a fit in this process; call fit() first")


def leave(
    loop: Loop,
    plan: Plan,
    log_names: Mapping[str, str | None],
    train: EpochSource,
    fingerprint: Mapping[str, Any],
    *,
    interrupted: bool,
) -> Left:
    """Return where a fit is left, whole or interrupted.

    Args:
        loop: what carried its state; it is put back to the last state that a run can go on from.
        plan: its calendar.
        log_names: its log file and TensorBoard folder, to go on with.
        train: its training batches, still open.
        fingerprint: the environment.
        interrupted: whether a signal asked for it.
    """
    if isinstance(loop.model, ImperativeModel) and not loop.model.tells_its_state:
        return Left(
            None,
            f"{type(loop.model).__name__} trains by side effect and has no state_dict(). Override "
            "state_dict() and load_state_dict()",
        )
    state = loop.at_resumable()
    if state is None:
        return Left(
            None,
            "the fit was left in the middle of a micro-batch or after an update that was not "
            "finite. Call fit() to begin anew, or give the trainer a chkpt_root",
        )
    model = loop.model
    saver = Saver(
        None,
        model,
        plan,
        model.trainer.plugins,
        log_names,
        lambda state: train.state_after(state.dataset_iter),
        lambda message: None,
        fingerprint,
    )
    try:
        content = saver.content(state)
    except Exception as error:  # as for a file: what a plugin keeps may be no plain value
        return Left(None, f"what belongs to the state cannot be kept: {error}")
    # A plugin may go on to change what it has told.
    content["plugins"] = copy.deepcopy(content["plugins"])
    return Left(content, interrupted=whereabouts(state) if interrupted else "")


def begin_anew(trainer: Trainer) -> None:
    """Forget where the last fit was left; say so if that was in its middle.

    What a notebook runs again by habit is the cell of the fit.
    """
    place = trainer.left.interrupted
    if place and not trainer.fast_dev_run:
        trainer.say(
            f"This fit begins a new run. The last one was left at {place}: to go on from there, it "
            "is trainer.resume() in the place of trainer.fit(), or a chkpt_root"
        )
    trainer.left = NOTHING


def whereabouts(state: TrainingState) -> str:
    """Say where a state stands.

    Example:
        >>> whereabouts(TrainingState(global_epoch=1, current_iteration=3, global_iteration=6))
        'epoch 1, update 3, micro-batch 6'
    """
    return (
        f"epoch {state.global_epoch}, update {state.current_iteration}, "
        f"micro-batch {state.global_iteration}"
    )

"""What a fit observes of its updates: one observer for the step, for all who want to know."""

from __future__ import annotations

from collections.abc import Callable

import torch

from helios.functional.observe import Observer, Seen, total_norm
from helios.functional.plan import Plan
from helios.functional.state import TrainingState, TrainingUnit
from helios.functional.transformation import Tensors


class Observers:
    """Tells several observers of the updates that each of them wants; the norm is computed once.

    It is itself the one that keeps the last norm for reports.

    Args:
        plan: the calendar; it says at which updates training metrics may be reported.
        norm: returns the norm of the gradients of an update, over all ranks.
        reports: whether to observe the updates at which metrics may be reported. It must be the
            same on all ranks.
        members: who is told besides. What they want must be the same on all ranks.

    Attributes:
        last: what the objectives of the last observed update were like, by the metric's name.
        last_update: that update, counted from 1; 0 before any.

    Example:
        >>> Observers(Plan(), reports=False).observer() is None
        True
    """

    def __init__(
        self,
        plan: Plan,
        norm: Callable[[Tensors], torch.Tensor] = total_norm,
        *,
        reports: bool = True,
        members: tuple[Observer, ...] = (),
    ) -> None:
        self._plan = plan
        self._norm = norm
        self._reports = reports
        self._members = members
        self.last: dict[str, Seen] = {}
        self.last_update = 0

    @property
    def last_norm(self) -> torch.Tensor | float | None:
        """Return the norm of the first objective's gradients at the last observed update.

        It is f[] on the device of the gradients, or a number; reading it may wait for the device.
        None before any.
        """
        return next((seen.norm for seen in self.last.values()), None)

    def observer(self) -> Observer | None:
        """Return what `helios.make_step` is to be given: None if nobody wants to know anything."""
        return self if self._reports or self._members else None

    def wants(self, state: TrainingState) -> bool:
        """Tell whether anybody wants to be told; see `Observer`."""
        if self._reports and may_be_reported(self._plan, state):
            return True
        return any(member.wants(state) for member in self._members)

    def norm(self, grads: Tensors) -> torch.Tensor:
        """Return the norm; see `Observer`."""
        return self._norm(grads)

    def see(self, state: TrainingState, seen: Seen) -> None:
        """Pass on what an objective was like; see `Observer`."""
        if state.current_iteration != self.last_update:
            self.last, self.last_update = {}, state.current_iteration
        self.last[seen.metric] = seen
        for member in self._members:
            if member.wants(state):
                member.see(state, seen)


def may_be_reported(plan: Plan, state: TrainingState) -> bool:
    """Tell whether training metrics may be reported after an update.

    With a print frequency they are at its updates, and otherwise at validations and at the ends of
    epochs. Where only the data tells that an epoch ends, any update may be its last.

    Args:
        plan: the calendar.
        state: the state with the counters of the update, before its batch is counted as consumed.

    Example:
        >>> may_be_reported(Plan(print_frequency=5), TrainingState(current_iteration=10))
        True
    """
    update = state.current_iteration
    if plan.print_frequency is not None:
        return update % plan.print_frequency == 0
    size = plan.batches_per_epoch
    if size is None or state.dataset_iter + 1 == size:
        return True
    by_update = plan.unit is TrainingUnit.ITERATION and plan.valid_frequency is not None
    if by_update and update % (plan.valid_frequency or 1) == 0:
        return True
    # A window that is open at the end of an epoch began with an update before it.
    return state.dataset_iter + 1 + plan.accumulation_steps > size

"""All members of a run as one model, whose parameters are theirs, stacked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from helios.functional import metrics
from helios.functional.binding import bind
from helios.functional.gradients import trained_names
from helios.functional.stacked import each, rows, stack, stack_carries
from helios.functional.state import TrainingState
from helios.functional.trainable import init_state
from helios.functional.vmapped import Vmapped
from helios.model.hooks import ModelHooks, overridden
from helios.model.model import Model, read_metrics
from helios.trainer.many.fold import Fold
from helios.trainer.many.members import check_members, differing


class Many(Model):
    """The members of a run, which computes with all of them at once.

    Its parameters and buffers have the names that they have in a member, and a first dimension for
    the members. The modules that compute are those of the first member.

    Args:
        members: the models.
        seeds: the seed under which each is set up.
        skip: whether an update of a member that is not finite is left out, or raises.

    Attributes:
        results: the metrics of each member's last validation, by name.
    """

    def __init__(self, members: Sequence[Model], seeds: Sequence[int], *, skip: bool) -> None:
        super().__init__(members[0].save_name)
        self.members = tuple(members)
        self.results: list[dict[str, float]] = [{} for _ in members]
        self._seeds = tuple(seeds)
        self._skip = skip
        self._modes: list[tuple[torch.nn.Module, bool]] = []
        self._tally: metrics.Metrics = {}

    def setup(self, fast_init: bool = False) -> None:
        """Set the members up, check that they can be trained at once, and stack them."""
        first = self.members[0]
        for member, seed in zip(self.members, self._seeds, strict=True):
            member.trainer, member.device = self._trainer, self._device
            member.prepare(seed)
        check_members(self.members)
        self._member_bindings = [bind(member) for member in self.members]
        read = [binding.read() for binding in self._member_bindings]
        params, buffers = (stack([one[i] for one in read]) for i in range(2))
        for name, parameter in first.named_parameters():
            # A module would refuse to register a name with dots.
            wanted = parameter.requires_grad
            self._parameters[name] = torch.nn.Parameter(params[name], requires_grad=wanted)
        self._buffers.update(buffers)
        self._binding = bind(self)
        self.precision, self.average = first.precision, first.average
        self._vmapped = Vmapped(first, differing(self.members))
        self._fold = Fold(
            self._vmapped,
            [trained_names(member) for member in self.members],
            [member.save_name for member in self.members],
            first.precision,
            first.average,  # type: ignore[arg-type]  # checked with the members
            device_type=self._device.type,
            skip=self._skip,
        )

    def init_carry(self) -> Any:
        """Return the carry that stacks those of the members."""
        return stack_carries([init_state(member).carry for member in self.members])

    def step(self, state: TrainingState, batch: Any) -> TrainingState:
        """Return the state of all members after a micro-batch."""
        self._binding.lend(state.carry.params, state.carry.buffers)
        parameters: Any = self._parameters
        return self._fold(state, parameters, batch)

    def valid_step(self, batch: Any, step: int) -> None:
        """Count what all members measure on a validation batch."""
        samples = metrics.batch_size(batch)
        first = self.members[0]

        def measured(batch: Any) -> Mapping[str, metrics.Mean]:
            return read_metrics(first.valid_step(batch, step), samples)

        parameters: Any = list(self._parameters.values())
        lent: Any = dict(self._buffers)
        found, _ = self._vmapped(measured, parameters, lent, batch)
        self._tally = metrics.merge(self._tally, found)

    def have_metrics_improved(self) -> bool:
        """Tell whether the validation was the best so far of any member."""
        best: list[float | None] = [None] * len(self.members)
        if self.best_score is not None:
            best = list(self.best_score)  # type: ignore[call-overload]  # one for each member
        improved = []
        for k, member in enumerate(self.members):
            member.best_score = best[k]
            improved.append(bool(member.have_metrics_improved()))
            if improved[k] and math.isfinite(reached := member.monitored_score()):
                member.best_score = best[k] = reached
        known = any(score is not None for score in best)
        self.best_score = tuple(best) if known else None  # type: ignore[assignment]  # as above
        return any(improved)

    def monitored_score(self) -> float:
        """Return NaN: every member has a score of its own."""
        return math.nan

    def train(self, mode: bool = True) -> Many:
        """Put the members in training mode, or in evaluation mode until they are put back."""
        if mode and self._modes:
            for module, before in self._modes:
                module.training = before
            self._modes = []
        elif mode != self.training or mode:
            if not mode:
                self._modes = [(m, m.training) for member in self.members for m in member.modules()]
            for member in self.members:
                member.train(mode)
        self.training = mode
        return self

    def lend(self, member: int) -> None:
        """Let a member hold its rows of what this model holds, as views."""
        params = {name: p.data[member] for name, p in self._binding.parameters.items()}
        buffers: Any = {name: b for name, b in self._buffers.items() if b is not None}
        self._member_bindings[member].lend(params, rows(buffers, member))

    def hold(self, member: int, state: TrainingState) -> None:
        """Let a member hold the tensors of a state of its own."""
        self._member_bindings[member].lend(state.carry.params, state.carry.buffers)

    @property
    def optimizers(self) -> str:
        """The implementations of the optimizers."""
        return ", ".join(rules.implementation for rules in self._fold.rules.values())

    def append_to_banner(self, banner: str) -> str:
        """Return the banner with the names of the members."""
        names = ", ".join(member.save_name for member in self.members)
        return f"{banner}\n{len(self.members)} members are trained at once: {names}"

    def on_training_start(self) -> None:
        """Call the hook of the members."""
        self._each("on_training_start")

    def on_training_epoch_start(self, current_epoch: int) -> None:
        """Call the hook of the members."""
        self._each("on_training_epoch_start", current_epoch)

    def on_training_epoch_end(self, current_epoch: int) -> None:
        """Call the hook of the members."""
        self._each("on_training_epoch_end", current_epoch)

    def on_training_end(self) -> None:
        """Call the hook of the members."""
        self._each("on_training_end")

    def on_validation_start(self, validation_cycle: int) -> None:
        """Begin to count, and call the hook of the members."""
        self._tally = {}
        self._each("on_validation_start", validation_cycle)

    def on_validation_end(self, validation_cycle: int) -> None:
        """Give each member its metrics, and call the hook of the members."""
        self.results = each(self._tally, len(self.members))
        self._tally = {}
        for member, values in zip(self.members, self.results, strict=True):
            member.valid_metrics = values
        self._each("on_validation_end", validation_cycle)
        self.valid_metrics = {
            f"{member.save_name}/{name}": value
            for member in self.members
            for name, value in member.valid_metrics.items()
        }

    def _each(self, hook: str, *args: Any) -> None:
        for k, member in enumerate(self.members):
            if overridden(member, hook, ModelHooks) is not None:
                self.lend(k)
                getattr(member, hook)(*args)

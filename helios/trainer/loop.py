"""The loop: interprets the calendar, one branch per event. The only file where everything meets."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from helios.core.rng import python_rng_rewinder
from helios.data import EpochSource
from helios.errors import CheckpointError, NonFiniteError
from helios.functional import rng
from helios.functional.binding import bind
from helios.functional.schedule import (
    Batch,
    Checkpoint,
    EpochEnd,
    EpochStart,
    Event,
    Outcome,
    Peek,
    Plan,
    Stop,
    StopReason,
    Validate,
    schedule,
)
from helios.functional.state import (
    Carry,
    TrainingState,
    TrainingUnit,
    begin_batch,
    end_batch,
    end_epoch,
    end_validation,
    judge,
    score,
    start_epoch,
    timed,
)
from helios.functional.step import Step
from helios.functional.streams import each_piece_drawing
from helios.functional.trainable import custom_step
from helios.trainer.agreement import Agreement
from helios.trainer.crash import Stage
from helios.trainer.evaluate import improves, validate
from helios.trainer.flight.recorder import NoRecords, Records
from helios.trainer.hooks import Hooks, watched
from helios.trainer.lookahead import Lookahead
from helios.trainer.report import Reporter
from helios.trainer.side_effects import held, put_by
from helios.trainer.skips import Skips

if TYPE_CHECKING:
    from helios.trainer.saving import Saves

_GO_ON = Outcome()
_STOP = Outcome(stop=True)
_WHY = {
    StopReason.TOTAL_STEPS: "total_steps is reached",
    StopReason.EARLY_STOP: "the run stopped early, for want of improvement",
    StopReason.REQUESTED: "a plugin takes the run for over",
}


class Loop:
    """Carries a state through the events of a plan.

    Args:
        plan: when things happen.
        step: what a micro-batch does.
        hooks: the plugins and the model.
        train: the training batches.
        valid: the validation batches, None if there are none.
        move: moves a batch to the device.
        reporter: where metrics go.
        save: writes a checkpoint of a state, None where none are kept.
        agreement: decides where the run is left or stopped; by default this process alone does.
        sound: called before anything of the state is shown or saved: it raises if an update before
            was not finite.
        records: is told of every update.

    Attributes:
        model: the model that is trained.
        state: the state now.
        resumable: the last state that a run can go on from exactly, None while a step is under way.
        batch: the micro-batch that is under way, None between two.
        stage: what of the last micro-batch was begun last.
    """

    def __init__(
        self,
        plan: Plan,
        step: Step,
        hooks: Hooks,
        train: EpochSource,
        valid: EpochSource | None,
        move: Callable[[Any], Any],
        reporter: Reporter,
        save: Saves | None = None,
        agreement: Agreement | None = None,
        sound: Callable[[], None] = lambda: None,
        records: Records | None = None,
    ) -> None:
        self._plan = plan
        self._step = step
        self._hooks = hooks
        self.model = hooks.model
        self._train = train
        self._valid = valid
        self._move = move
        self._reporter = reporter
        self._save = save
        self._agreement = Agreement(hooks.stop_asked) if agreement is None else agreement
        self._sound = sound
        self._records: Records = NoRecords() if records is None else records
        self._skips = Skips(reporter)
        self._binding = None
        if any(True for _ in hooks.model.parameters()):
            self._binding = bind(hooks.model)
        self._custom = custom_step(hooks.model) is not None
        self._batches = Lookahead()
        self._by_side_effect = hooks.model.trains_by_side_effect
        self._clock = 0.0
        self.state = TrainingState()
        self.resumable: TrainingState | None = None
        self.batch: Batch | None = None
        self.stage: Stage = "fetch"
        self._rewind: Callable[[], None] | None = None

    def run(
        self, state: TrainingState, restore_rng: Callable[[], None] | None = None
    ) -> Iterator[tuple[Event, TrainingState]]:
        """Run the events that are left from ``state`` on, between the hooks of start and end.

        Args:
            state: where to begin; it is consumed.
            restore_rng: puts back the generators that are not keyed, Python's and numpy's, as they
                were at ``state``; called once the hooks that a resume repeats have run.

        Yields:
            Every event before it is done, with the state that everything before it led to.
        """
        self.state = state
        self._skips.begin(state)
        self._hold(state)
        self._hooks.model.train()
        self._call("on_training_start", rng.fold(state.seed, "start", state.global_iteration))
        events = schedule(self._plan, state)
        if self._hooks.overs and self._agreement.of_first(self._hooks.is_over()):
            events = _nothing()
        outcome: Outcome | None = None
        try:
            while True:
                event = events.send(outcome)
                yield event, self.state
                if isinstance(event, (Batch, EpochStart, Validate)):
                    self._agreement.check()  # before a checkpoint there is nothing to gain by it
                if isinstance(event, Batch):
                    outcome = self._on_batch(event)
                elif isinstance(event, Peek):
                    outcome = Outcome(available=self._batches.available())
                elif isinstance(event, EpochStart):
                    outcome = self._on_epoch_start(event, restore_rng)
                    restore_rng = None
                elif isinstance(event, Validate):
                    outcome = self._on_validate()
                elif isinstance(event, EpochEnd):
                    outcome = self._on_epoch_end(event)
                elif isinstance(event, Checkpoint):
                    outcome = self._on_checkpoint()
                elif isinstance(event, Stop):
                    self._check_sound()
                    if restore_rng is not None:
                        restore_rng()
                    self._mark(self.state)
                    if outcome is None:
                        self._reporter.announce(f"Nothing is left to train: {_WHY[event.reason]}")
                    self._reporter.say(f"stopped: {event.reason.value}")
                    break
        finally:
            self._batches.close()
        if self._by_side_effect and self._save is None and self.resumable is not None:
            self.resumable = held(self.model, self.resumable)  # to go on from in memory
        self._call("on_training_end", rng.fold(state.seed, "end", self.state.global_iteration))

    def _on_epoch_start(self, event: EpochStart, restore_rng: Callable[[], None] | None) -> Outcome:
        resumed = event.first_batch > 0
        if restore_rng is not None and not resumed:
            restore_rng()
        if not resumed:
            self._mark(self.state)
        self.state = start_epoch(self.state)
        batches = self._train.open(event.epoch - 1, event.first_batch)
        self._batches.open(watched(batches, self._hooks.fetched))
        if self._train.resume_note is not None:
            self._reporter.announce(self._train.resume_note)
        key = rng.fold(self.state.seed, "epoch_start", event.epoch)
        self._call("on_training_epoch_start", key, event.epoch)
        if restore_rng is not None and resumed:
            restore_rng()
            self._mark(self.state)
        self._clock = time.perf_counter()
        return _GO_ON

    def _on_batch(self, event: Batch) -> Outcome:
        hooks = self._hooks
        self.batch, self.stage = event, "fetch"
        batch = self._batches.take()
        self._agreement.check_inside()
        batch = self._move(batch)
        waited = time.perf_counter() - self._clock
        # The loss and the hooks see these counters, in their arguments and as trainer.state.
        self.state = state = begin_batch(self.state, update=event.update)
        self.stage = "batch_start"
        if hooks.draws_before_loss:
            self._remember()
            key = rng.fold(state.seed, "batch_start", state.global_iteration)
            rng.seed_generators(key)
            if hooks.process_batch is not None:
                process = hooks.process_batch
                batch = each_piece_drawing(lambda part: process(part, state), batch, key)
            if hooks.batch_start is not None:
                hooks.batch_start(state)
            state = self._take_up(state)
        self.resumable, self.stage = None, "step"
        state = self._step.compute(state, batch, donate=True)
        if self._custom:
            self._hold(state)
        now = time.perf_counter()
        self.state = state = timed(state, max(now - self._clock, 0.0))  # a clock may be set back
        self._reporter.count(batch, waited, now - self._clock)
        self._clock, self.stage = now, "batch_end"
        if hooks.batch_end is not None:
            hooks.batch_end(state, event.log)
            state = self._take_up(state)
        state = end_batch(state)
        if event.log:
            self._check_sound()
            state = self._reported(state)
        if event.update:
            self._records.update(state)
            self._skips.look(state)
            self._reporter.advance(state)
        self.state = state
        self.batch = None
        if event.log:
            self._records.flush()
        self._mark(state)
        return _STOP if self._agreement.after_update(is_last=event.update) else _GO_ON

    def _on_validate(self) -> Outcome:
        state = self._settled(self.state)
        if self._plan.unit is TrainingUnit.EPOCH:
            state = end_epoch(state)
        self.state = state
        self._remember(copy=True)
        assert self._valid is not None
        results = validate(
            state, self._hooks, self._valid, self._move, self._agreement, self._reporter.watched
        )
        self._reporter.show(state, "valid", results)
        self.state = state = end_validation(state)
        model = self._hooks.model
        improved = improves(model, state)
        improved, model.best_score, over = self._agreement.of_first(
            [improved, model.best_score, self._hooks.is_over()]
        )
        self.state = judge(score(state, model.best_score), improved=improved)
        metric = "loss" if model.monitor is None else model.monitor.metric
        self._reporter.judged(metric, model.best_score, improved=improved)
        return self._after(improved=improved, over=over)

    def _on_epoch_end(self, event: EpochEnd) -> Outcome:
        self.state = end_epoch(self._settled(self.state))
        self._batches.close()
        key = rng.fold(self.state.seed, "epoch_end", event.epoch)
        self._call("on_training_epoch_end", key, event.epoch)
        return self._after()

    def _on_checkpoint(self) -> Outcome:
        self._check_sound()
        self._mark(self.state)
        if self._save is not None:
            self._write(self._save, self.state)
        return self._after()

    def _write(self, save: Saves, state: TrainingState) -> None:
        """Save a state, and before it what the logs and the record of the run have up to it."""
        self._reporter.write()
        self._records.flush(sync=True)
        save(state)

    def _after(self, *, improved: bool = True, over: bool = False) -> Outcome:
        """Answer an event that is no micro-batch; its time is not the micro-batches'."""
        self._clock = time.perf_counter()
        stop = self._agreement.after_event(in_window=self.state.window_iter > 0)
        return Outcome(improved=improved, stop=stop or over)

    def save_resumable(self) -> None:
        """After a failure, save the state that a run can go on from, if there is one.

        Python's and numpy's generators are put back to it: a hook may have drawn from them since.
        """
        save, state = self._save, self.resumable
        if save is None:
            return
        held = False
        with contextlib.suppress(CheckpointError):  # an earlier save failed: this one may not
            held = state is not None and save.holds(state)
        if state is not None and not held:
            self._check_sound()
            self.at_resumable()
            self._write(save, state)
        save.finish()

    def at_resumable(self) -> TrainingState | None:
        """Put generators and model back to the state that a run can go on from, and return it."""
        with contextlib.suppress(NonFiniteError):  # such a state is none to go on from
            self._check_sound()
        if self.resumable is not None:
            if self._rewind is not None:
                self._rewind()
            self._hold(self.resumable)
        return self.resumable

    def _mark(self, state: TrainingState) -> None:
        """Note a state that a run can go on from."""
        self.resumable, self._rewind = state, None
        self._reporter.release()

    def _remember(self, *, copy: bool = False) -> None:
        """Before hooks: note the generators as they were at the resumable state, and the model.

        Args:
            copy: whether what is the model's alone is worth a copy; else the state is let go of.
        """
        if self._rewind is None:
            self._rewind = python_rng_rewinder()
        if self._by_side_effect and self.resumable is not None:
            self.resumable = put_by(self.model, self.resumable, copy=copy)

    def _call(self, hook: str, key: int, *args: Any) -> None:
        """Run a hook of the plugins and the model; what it changes in the model is the state's."""
        self._remember()
        self._hooks.call(hook, key, *args)
        self.state = self._take_up(self.state)

    def _take_up(self, state: TrainingState) -> TrainingState:
        """Take what a hook has put in the place of a parameter or a buffer into the state."""
        carry = state.carry
        if self._binding is None or not isinstance(carry, Carry):
            return state
        params = self._binding.parameters_after(carry.params, every=True)
        buffers = self._binding.buffers(carry.buffers)
        if params is carry.params and buffers is carry.buffers:
            return state
        state = replace(state, carry=replace(carry, params=params, buffers=buffers))
        self._binding.lend(params, buffers)
        return state

    def _hold(self, state: TrainingState) -> None:
        """Let the model hold the tensors of the state, for hooks and checkpoints.

        Ordinary steps leave it so; a model's own step returns tensors that the model has not seen.
        """
        if self._binding is not None and isinstance(state.carry, Carry):
            self._binding.lend(state.carry.params, state.carry.buffers)

    def _settled(self, state: TrainingState) -> TrainingState:
        """Report the training metrics where no print frequency does."""
        self._check_sound()
        self._records.flush()
        return state if self._plan.print_frequency else self._reported(state)

    def _reported(self, state: TrainingState) -> TrainingState:
        state = self._reporter.training(state)
        if self._hooks.reported is not None:
            self._hooks.reported(state)
        return state

    def _check_sound(self) -> None:
        """Look at what the updates so far were found to be, before anything of them gets out."""
        try:
            self._sound()
        except NonFiniteError:
            self.resumable = None  # a bad update is in it
            raise


def _nothing() -> Generator[Event, Outcome | None, TrainingState]:
    """Return the events of a run that a plugin takes for over."""
    yield Stop(StopReason.REQUESTED)
    return TrainingState()

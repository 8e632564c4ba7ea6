"""A profile of some updates of a run: where their time and memory go."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from torch.profiler import record_function

from helios.functional.schedule import Batch, Outcome
from helios.functional.state import TrainingState
from helios.model.model import Model
from helios.trainer.hooks import Hooks
from helios.trainer.lookahead import Lookahead
from helios.trainer.loop import Loop

if TYPE_CHECKING:
    from helios.trainer.trainer import Trainer


class Profile(msgspec.Struct, frozen=True):
    """Which updates of a fit to profile, and what of them.

    Give one to ``Trainer(profile=...)``. After the last of these updates a table of operators is
    printed. With ``to``, the table and a trace are written there, as ``<run>_rank<r>_updates_<a>-
    <b>.txt`` and ``.pt.trace.json.gz``: open the trace in https://ui.perfetto.dev or in
    ``chrome://tracing``. With TensorBoard enabled, the trace is put in the folder of the run too,
    where its profiler plugin looks for it.

    The ranges of helios begin with ``helios::`` there: ``step``, ``data`` (waiting for a batch),
    ``move``, ``validation``, ``checkpoint`` and each hook by its name.

    Args:
        wait: updates of this fit that are left out first.
        warmup: updates that are then profiled and thrown away: the profiler is slow at first.
        updates: how many updates are then profiled.
        to: (optional) the folder of the table and the trace; created.
        memory: whether to record what operators allocate.
        shapes: whether to record the shapes of their inputs; the table is then by shape as well.
        stacks: whether to record the lines of Python code that call them.
        flops: whether to estimate the floating point operations of products and convolutions.
        rows: how many rows the table has.

    Raises:
        TypeError: if a number is no int.
        ValueError: if it is too small.

    Law:
        A profiled run has the bits of one that is not (``tests/trainer/test_profiling.py``).

    Example:
        >>> Profile(updates=2, to="traces").warmup
        1
        >>> Profile(updates=0)
        Traceback (most recent call last):
        ...
        ValueError: Profile.updates: received 0; expected at least 1
    """

    wait: int = 1
    warmup: int = 1
    updates: int = 3
    to: str | Path | None = None
    memory: bool = False
    shapes: bool = False
    stacks: bool = False
    flops: bool = False
    rows: int = 20

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, least in (("wait", 0), ("warmup", 0), ("updates", 1), ("rows", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"Profile.{name}: received {value!r}; expected an int")
            if value < least:
                raise ValueError(f"Profile.{name}: received {value}; expected at least {least}")


def profiled(trainer: Trainer, model: Model, writer: Any) -> Callable[..., Loop]:
    """Return what makes the loop of a fit that is profiled.

    Args:
        trainer: whose fit it is; it has a profile.
        model: its name is that of a run without one.
        writer: of the run to TensorBoard, None for none.
    """
    assert trainer.profile is not None
    board = getattr(writer, "run_dir", None)
    name = trainer.run_name or model.save_name
    return functools.partial(ProfiledLoop, Profiler(trainer.profile, name, trainer, board))


class ProfiledLoop(Loop):
    """A loop that marks what it does, and profiles some of its updates.

    Args:
        profiler: what profiles.
        args: as for `Loop`.
        kwargs: as for `Loop`.
    """

    def __init__(self, profiler: Profiler, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._profiler = profiler
        self._batches: Lookahead = _MarkedLookahead()
        self._step: Any = _MarkedStep(self._step)
        self._move = marked("helios::move", self._move)
        mark_hooks(self._hooks)
        if self._save is not None:
            self._save: Any = _MarkedSaves(self._save)

    def run(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Run as `Loop.run` does, and stop the profiler at the end."""
        try:
            yield from super().run(*args, **kwargs)
        finally:
            self._profiler.stop(self.state.current_iteration)

    def _on_batch(self, event: Batch) -> Outcome:
        self._profiler.begin(self.state.current_iteration)
        outcome = super()._on_batch(event)
        if event.update:
            self._profiler.count(self.state.current_iteration)
        return outcome

    def _on_validate(self) -> Outcome:
        with record_function("helios::validation"):
            return super()._on_validate()

    def _call(self, hook: str, key: int, *args: Any) -> None:
        with record_function(f"helios::{hook}"):
            super()._call(hook, key, *args)


class Profiler:
    """Profiles some updates of one fit.

    Args:
        profile: which, and what of them.
        name: begins the names of the files.
        trainer: whose run it is; it prints the table.
        board: (optional) the folder of the run in TensorBoard.
    """

    def __init__(self, profile: Profile, name: str, trainer: Trainer, board: Path | None) -> None:
        self._profile = profile
        self._name = f"{name}_rank{trainer.rank}"
        self._trainer = trainer
        self._folders = [Path(profile.to)] if profile.to is not None else []
        if board is not None:
            self._folders.append(board)
        self._done = 0
        self._first: int | None = None
        self._torch: Any = None

    def begin(self, update: int) -> None:
        """Start before the first micro-batch that is to be profiled, or warmed up on.

        Args:
            update: updates completed.
        """
        if self._first is not None or self._done < self._profile.wait:
            return
        profile = self._profile
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if self._trainer.device.type == "cuda":
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        self._torch = torch.profiler.profile(
            activities=kinds,
            schedule=_schedule(profile),
            record_shapes=profile.shapes,
            profile_memory=profile.memory,
            with_stack=profile.stacks,
            with_flops=profile.flops,
            acc_events=True,  # without it torch warns, at each cycle, that it clears its events
        )
        self._torch.start()
        self._first = update + profile.warmup + 1

    def count(self, update: int) -> None:
        """Count an update; show the profile after the last one."""
        self._done += 1
        if self._torch is None:
            return
        if self._done == self._profile.wait + self._profile.warmup + self._profile.updates:
            self.stop(update)
        else:
            self._torch.step()

    def stop(self, update: int) -> None:
        """Stop, and show what was profiled; a run may end before all of it is."""
        running, self._torch = self._torch, None
        if running is None:
            if self._first is None:
                self._first = 0
                self._trainer.say(
                    f"profile: the fit made {self._done} update(s), and the first "
                    f"{self._profile.wait} are left out: nothing is profiled"
                )
            return
        assert self._first is not None
        running.stop()
        if update < self._first:
            self._trainer.say("profile: the fit ended while the profiler was warming up")
            return
        self._show(running, f"{self._first}-{update}")

    def _show(self, profile: Any, updates: str) -> None:
        shapes = self._profile.shapes
        device = self._trainer.device.type
        table = profile.key_averages(group_by_input_shape=shapes).table(
            sort_by=f"self_{device}_time_total", row_limit=self._profile.rows
        )
        self._trainer.say(f"Profile of the updates {updates}:\n{table}")
        for folder in self._folders:
            folder.mkdir(parents=True, exist_ok=True)
            stem = folder / f"{self._name}_updates_{updates}"
            profile.export_chrome_trace(f"{stem}.pt.trace.json.gz")
            stem.with_name(f"{stem.name}.txt").write_text(table + "\n")
            self._trainer.say(f"profile: written to {stem}.pt.trace.json.gz")


def marked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose calls are a range of the trace."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(name):
            return function(*args, **kwargs)

    return call


def mark_hooks(hooks: Hooks) -> None:
    """Make each call of the hooks of a micro-batch a range of the trace."""
    for attribute, name in (
        ("process_batch", "process_training_batch"),
        ("batch_start", "on_training_batch_start"),
        ("batch_end", "on_training_batch_end"),
    ):
        hook = getattr(hooks, attribute)
        if hook is not None:
            setattr(hooks, attribute, marked(f"helios::{name}", hook))


def _schedule(profile: Profile) -> Any:
    if not profile.warmup:  # torch would warn, and needs no schedule then
        return None
    return torch.profiler.schedule(wait=0, warmup=profile.warmup, active=profile.updates, repeat=1)


class _MarkedStep:
    def __init__(self, step: Any) -> None:
        self._step = step

    def compute(self, state: TrainingState, batch: Any, *, donate: bool = False) -> TrainingState:
        with record_function("helios::step"):
            after: TrainingState = self._step.compute(state, batch, donate=donate)
            return after


class _MarkedSaves:
    def __init__(self, saves: Any) -> None:
        self._saves = saves

    def __call__(self, state: TrainingState) -> None:
        with record_function("helios::checkpoint"):
            self._saves(state)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._saves, name)


class _MarkedLookahead(Lookahead):
    """Batches whose fetching is a range of the trace: the time that a run waits for data."""

    def take(self) -> Any:
        with record_function("helios::data"):
            return super().take()

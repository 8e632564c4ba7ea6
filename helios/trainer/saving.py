"""Saving a run: what a checkpoint holds beside the state, and taking it up again."""

from __future__ import annotations

import contextlib
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec
import torch
from msgspec.structs import replace

from helios.core.rng import python_rng_state, restore_python_rng
from helios.errors import CheckpointError, CorruptCheckpointError
from helios.functional import metrics
from helios.functional.schedule import Plan, is_due
from helios.functional.state import Carry, TrainingState
from helios.model.model import Model
from helios.model.monitor import Monitor
from helios.plugins import Plugin
from helios.trainer.side_effects import held_model
from helios.trainer.store import Store, checkpoint_name, state_content
from helios.trainer.store.background import Background
from helios.trainer.store.guard import check_archive, check_content
from helios.trainer.store.manifest import SCHEMA, Manifest
from helios.trainer.store.snapshot import Snapshot, compact
from helios.version import __version__

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.Tensor, torch.nn.Parameter)


class Saves(Protocol):
    """What a loop needs to save its states."""

    def __call__(self, state: TrainingState) -> None:
        """Write a checkpoint of ``state``, or begin to."""
        ...

    def holds(self, state: TrainingState) -> bool:
        """Tell whether a state is on the disk; waits for the save under way."""
        ...

    def hold(self, state: TrainingState) -> None:
        """Note that a state is on the disk already: the run went on from it."""
        ...

    def finish(self) -> None:
        """Wait until everything is on the disk."""
        ...

    def close(self) -> None:
        """Wait for the save under way, when something else is raised already."""
        ...


class Saver:
    """Writes checkpoints of one fit.

    Args:
        store: where they go; None only where another rank writes them.
        model: whose they are.
        plan: the calendar of the fit.
        plugins: their states are saved too.
        log_names: the names of the log file and of the TensorBoard folder, to go on with.
        data_state: returns what an iterable dataset needs to be resumed, None if nothing.
        say: is told about every checkpoint once it is on the disk.
        fingerprint: the environment; see `helios.trainer.fingerprint`.
        flush: writes out the logs: what they say of the state is to be on the disk before it.
        in_background: whether training goes on while a copy is written, one at a time.
        tolerant: whether a save that fails is a warning, as long as a later one succeeds.
    """

    def __init__(
        self,
        store: Store | None,
        model: Model,
        plan: Plan,
        plugins: Mapping[str, Plugin],
        log_names: Mapping[str, str | None],
        data_state: Callable[[TrainingState], Any],
        say: Callable[[str], None],
        fingerprint: Mapping[str, Any],
        flush: Callable[[], None] = lambda: None,
        *,
        in_background: bool = False,
        tolerant: bool = False,
    ) -> None:
        self._store = store
        self._model = model
        self._plan = plan
        self._plugins = plugins
        self._log_names = dict(log_names)
        self._data_state = data_state
        self._say = say
        self._fingerprint = dict(fingerprint)
        self._flush = flush
        self._background = Background() if in_background else None
        self._snapshot = Snapshot()
        self._tolerant = tolerant
        self._held: TrainingState | None = None
        self._failure: CheckpointError | None = None

    def __call__(
        self,
        state: TrainingState,
        measured: list[dict[str, list[float]]] | None = None,
        drawn: list[dict[str, Any]] | None = None,
    ) -> None:
        """Write a checkpoint of ``state``, or begin to.

        The state may be donated to the next step as soon as this returns.

        Args:
            state: the state.
            measured: (optional) the metrics of each of several ranks, as totals and weights, in
                the place of those in the state.
            drawn: (optional) the states of Python's and numpy's generators on each of several
                ranks, if they have drawn differently.

        Raises:
            CheckpointError: if it cannot be written, or the one before it could not be.
        """
        self._settle()
        name, content, score = self._collect(with_metrics(state, measured))
        if measured is not None:
            content["ranks"] = measured
        if drawn is not None:
            content["ranks_rng"] = drawn
        self._held = state
        # What is on a device is copied in any case: the file is to open where there is none.
        if self._background is not None or self._model.device.type != "cpu":
            content = self._snapshot.take(content)
        if self._background is not None:
            self._background.start(lambda: self._write(name, content, score))
        else:
            with self._failures():
                self._done(self._write(name, content, score))

    def hold(self, state: TrainingState) -> None:
        """Note that a state is on the disk already: the run went on from it."""
        self._held = state

    def holds(self, state: TrainingState) -> bool:
        """Tell whether a state is on the disk; waits for the save under way."""
        self._settle()
        return self._held is state

    def finish(self) -> None:
        """Wait until everything is on the disk.

        Raises:
            CheckpointError: if the last save failed.
        """
        self._settle()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Wait for the save under way, when something else is raised already."""
        if self._background is not None:
            with contextlib.suppress(Exception):
                self._background.finish()

    def _settle(self) -> None:
        """Wait for the save under way."""
        if self._background is not None:
            with self._failures():
                self._done(self._background.finish())

    def _done(self, message: str | None) -> None:
        if message is not None:
            self._failure = None
            self._say(message)

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Note a save that fails inside; pass it over for now if that was asked for."""
        try:
            yield
        except CheckpointError as error:
            self._held = None
            if not self._tolerant:
                raise
            self._failure = error
            warnings.warn(f"a save failed, and the run goes on: {error}", stacklevel=4)

    def content(self, state: TrainingState) -> dict[str, Any]:
        """Return what a checkpoint of ``state`` holds; nothing is written."""
        state = self._model.captured(state)
        content: dict[str, Any] = {
            "version": __version__,
            **state_content(state),
            "model": self._model_content(state),
            "plan": msgspec.to_builtins(self._plan),
            "rng": python_rng_state(),
            "log": self._log_names,
            "plugins": {name: plugin.state_dict() for name, plugin in self._plugins.items()},
            "data": self._data_state(state),
            "fingerprint": self._fingerprint,
        }
        check_plain(content)
        compacted: dict[str, Any] = compact(content)
        return compacted

    def _collect(self, state: TrainingState) -> tuple[str, dict[str, Any], _Score]:
        """Return the name of a checkpoint, its content, and the score of its state."""
        model = self._model
        state = model.captured(state)
        place = (state.global_epoch, state.current_iteration)
        inside = state.global_iteration if state.window_iter else None
        due = inside is None and is_due(self._plan, state)
        stem = checkpoint_name(model.save_name, *place, micro_batch=inside, due=due)
        metadata = model.append_metadata_to_chkpt_name(stem.removesuffix(".pth"))
        name = checkpoint_name(model.save_name, *place, metadata, inside, due=due)
        return name, self.content(state), _score(model, state)

    def _model_content(self, state: TrainingState) -> dict[str, Any]:
        if self._model.trains_by_side_effect:
            return held_model(state)
        return dict(self._model.state_dict())

    def _write(self, name: str, content: dict[str, Any], score: _Score) -> str:
        try:
            check_content(content, sys.maxsize)
            with contextlib.suppress(OSError):  # a log that cannot be written loses nothing more
                self._flush()
            return self._commit(name, content, score)
        except CorruptCheckpointError as error:
            raise TypeError(
                f"the checkpoint could be saved but not be loaded again, so it was not: {error}"
            ) from error

    def _commit(self, name: str, content: dict[str, Any], score: _Score) -> str:
        assert self._store is not None
        manifest = self._store.save(
            name,
            lambda file: torch.save(content, file),
            self._describe(content, score, finite=_is_finite(content, score)),
            check_archive,
        )
        return f"saved {manifest.file}"

    def _describe(
        self, content: dict[str, Any], score: _Score, *, finite: bool
    ) -> Callable[[str, int, str, int], Manifest]:
        saved, carry = content["training_state"], content["carry"]

        def describe(file: str, size: int, sha256: str, sequence: int) -> Manifest:
            return Manifest(
                schema=SCHEMA,
                version=__version__,
                file=file,
                size=size,
                sha256=sha256,
                sequence=sequence,
                counters={n: v for n, v in saved.items() if n not in ("seed", "window_iter")},
                window_iter=saved["window_iter"],
                seed=saved["seed"],
                plan=self._plan,
                fingerprint=self._fingerprint,
                metric=score.metric,
                mode=score.mode,
                score=score.value,
                finite=finite,
                skipped=carry["skipped"] if _is_ordinary(carry) else 0,
            )

        return describe


def _is_ordinary(carry: Any) -> bool:
    return isinstance(carry, dict) and carry.get("__struct__") == Carry.__name__


def _is_finite(content: dict[str, Any], score: _Score) -> bool:
    return all_finite(_params(content)) if score.finite is None else score.finite


def _params(content: dict[str, Any]) -> Mapping[str, Any]:
    carry = content["carry"]
    params: Mapping[str, Any] = carry["params"] if _is_ordinary(carry) else content["model"]
    return params


class _Score(NamedTuple):
    metric: str | None = None
    mode: str | None = None
    value: float | None = None
    finite: bool | None = None  # whether the parameters are, if only the model knows them


def _score(model: Model, state: TrainingState) -> _Score:
    """Return the score of the validation at this very state, if there was one."""
    finite = None
    if model.trains_by_side_effect:
        finite = all_finite(dict(enumerate(model.own_parameters())))
    if state.validation_cycles == 0 or state.running_iter > 0 or not model.valid_metrics:
        return _Score(finite=finite)
    monitor = Monitor("loss") if model.monitor is None else model.monitor
    value = model.valid_metrics.get(monitor.metric, math.nan)
    reached = float(value) if math.isfinite(value) else None
    return _Score(monitor.metric, monitor.mode, reached, finite)


def all_finite(params: Mapping[Any, Any]) -> bool:
    """Tell whether there is neither NaN nor infinity in some tensors."""
    return all(
        bool(torch.isfinite(tensor).all())
        for tensor in params.values()
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
    )


def check_plain(value: Any, path: str = "checkpoint") -> None:
    """Raise if a value could be saved but not be loaded again.

    Raises:
        TypeError: naming the place; numpy scalars and objects of other classes are such values.
    """
    kind = type(value)
    if kind is dict:
        for key, part in value.items():
            check_plain(part, f"{path}[{key!r}]")
    elif kind in (list, tuple):
        for index, part in enumerate(value):
            check_plain(part, f"{path}[{index}]")
    elif kind not in _PLAIN:
        raise TypeError(
            f"{path}: received a {kind.__name__}, which could be saved but not be loaded "
            "again; expected tensors, numbers, strings, bytes, None, and dicts, lists or tuples of "
            "them. Convert it, for numpy with .item() or torch.from_numpy()."
        )


def rng_restorer(
    content: Mapping[str, Any], rank: int = 0, world_size: int = 1
) -> Callable[[], None]:
    """Return what puts Python's and numpy's generators back as they were at a checkpoint.

    On another number of ranks than in the making, they are those of rank 0.
    """
    drawn = content.get("ranks_rng", ())
    own = drawn[rank] if len(drawn) == world_size else content["rng"]
    return lambda: restore_python_rng(own)


def with_metrics(
    state: TrainingState, measured: Sequence[Mapping[str, Sequence[float]]] | None
) -> TrainingState:
    """Return a state with the metrics of some ranks, added in their order; None for its own.

    Args:
        state: the state.
        measured: totals and weights by name, of each rank.
    """
    if measured is None or not isinstance(state.carry, Carry):
        return state
    total: metrics.Metrics = {}
    for one in measured:
        total = metrics.merge(total, {name: metrics.Mean(*sums) for name, sums in one.items()})
    return replace(state, carry=replace(state.carry, metrics=total))

"""Models that train by side effect: their `train_step` does forward, backward and update itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import torch
from msgspec.structs import replace
from torch import nn

from helios.errors import ModelError
from helios.functional import metrics
from helios.functional.share import is_shared
from helios.functional.state import Carry, TrainingState
from helios.model.model import Model
from helios.model.plain import as_plain
from helios.model.trained import gradients, modules_of, put_gradients, trained

OBJECTIVE = "imperative"
"""Under this name a carry has what a checkpoint holds of the model."""


class ImperativeModel(Model):
    """A model whose `train_step` does everything: forward, backward, optimizer, scheduler.

    Its networks, optimizers and whatever else it needs are plain attributes, and it is trained
    where it stands: helios does not see its parameters. What of it goes on in a resumed run is what
    `state_dict` returns. Beside that a checkpoint has counters, ``_running_losses``, the position
    in the data, the generators of Python and numpy and, in an open accumulation window, the
    gradients of the parameters. Torch's generators are seeded anew for each `train_step`.

    It is no fold: there is no pure step, no compiled one, and no training of many at once. A
    `helios.Model` has those.

    Args:
        save_name: names the folder and the files of the checkpoints: letters, digits and ``._=+-``.

    Attributes:
        _loss_items: the losses of this micro-batch by name, ``f[]`` or numbers, assigned by
            `train_step`. They are reported as training metrics. Cleared before the next one.
        _running_losses: their sums since the last validation. On a device other than the CPU they
            stay there: ``float(...)`` waits for it.
        _val_scores: for the scores of a validation. Its numbers are among ``valid_metrics`` once
            ``on_validation_end`` has run, so that a `helios.Monitor` finds them.
        _test_scores: for the scores of a test, as ``_val_scores``.

    Law:
        Trained by the same arithmetic it has the bits of a `helios.Model`, and of a loop written by
        hand; interrupted anywhere and resumed it has the bits of a run that was not
        (``tests/trainer/test_imperative.py``, ``tests/trainer/test_imperative_resume.py``).

    Example:
        >>> import helios
        >>> class Line(helios.ImperativeModel):
        ...     def setup(self, fast_init=False):
        ...         self._net = nn.Linear(1, 1).to(self.device)
        ...         self._optimizer = torch.optim.SGD(self._net.parameters(), lr=0.1)
        ...
        ...     def train_step(self, batch, state):
        ...         x, y = batch
        ...         self._optimizer.zero_grad()
        ...         loss = (self._net(x) - y).square().mean()
        ...         loss.backward()
        ...         self._optimizer.step()
        ...         self._loss_items["loss"] = loss.detach()
        ...
        ...     def state_dict(self):
        ...         return {"net": self._net.state_dict(), "opt": self._optimizer.state_dict()}
        ...
        ...     def load_state_dict(self, state_dict, fast_init=False):
        ...         self._net.load_state_dict(state_dict["net"])
        ...         if not fast_init:
        ...             self._optimizer.load_state_dict(state_dict["opt"])
        >>> x = torch.linspace(-1, 1, 32)[:, None]
        >>> data = helios.data.from_datasets(train=(x, 2 * x), batch_size=8)
        >>> trainer = helios.Trainer(total_steps=30, use_cpu=True, print_banner=False)
        >>> model = Line("line")
        >>> trainer.fit(model, data), round(model._net.weight.item(), 1)
        (True, 2.0)
    """

    trains_by_side_effect: ClassVar[bool] = True

    def __init__(self, save_name: str) -> None:
        super().__init__(save_name)
        self._loss_items: dict[str, Any] = {}
        self._running_losses: dict[str, Any] = {}
        self._val_scores: dict[str, Any] = {}
        self._test_scores: dict[str, Any] = {}
        self._map_loc: str | dict[str, str] | None = None
        self._is_cleared = False
        self._modes: list[tuple[nn.Module, bool]] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Assign a plain attribute: a network is none of the model's submodules.

        So names mean what they mean in any class, and a method such as `loss` may be shadowed.
        """
        object.__setattr__(self, name, value)

    def train_step(self, batch: Any, state: TrainingState) -> None:
        """Train on one micro-batch: forward, backward and, where a window ends, the optimizer.

        Args:
            batch: one micro-batch, on `device`; of several ranks, this rank's part of it.
            state: the state, with counters already advanced and the old ``dataset_iter``;
                ``window_iter`` is 0 if this micro-batch closes an accumulation window.
        """
        raise ModelError(
            f"{type(self).__name__} has no train_step; override train_step(batch, state) and do "
            "forward, backward and the optimizer's step in it"
        )

    def state_dict(self) -> dict[str, Any]:  # type: ignore[override]
        """Return all that a resumed run needs: of networks, optimizers, schedulers and the like.

        It may hold tensors, numbers, strings, bytes, None, and dicts, lists and tuples of them. It
        is read at once, or copied where a checkpoint is written while training goes on.
        """
        return {}

    def load_state_dict(  # type: ignore[override]
        self, state_dict: dict[str, Any], fast_init: bool = False
    ) -> None:
        """Take what `state_dict` has returned, after `setup`.

        Args:
            state_dict: what a checkpoint holds: its tensors are on the CPU, its dicts plain ones.
            fast_init: true for a test, where what is for training alone may be left out.
        """

    def trained_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the weights of a trained model, for uses beside training; yours to define.

        By default it is what `state_dict` returns.
        """
        return self.state_dict()

    def train(self, mode: bool = True) -> Self:
        """Put the networks in training mode: those that `eval` has changed are as they were.

        An override needs no argument.

        Args:
            mode: false to call `eval`.
        """
        if not mode:
            self.eval()
        elif self._modes is not None:
            for module, training in self._modes:
                module.training = training
            self._modes = None
        self.training = mode
        return self

    def eval(self) -> Self:
        """Put every network that is an attribute, or in one, in evaluation mode."""
        if self._modes is None:
            modules = [m for root in modules_of(vars(self)).values() for m in root.modules()]
            self._modes = [(module, module.training) for module in modules]
            for module in modules:
                module.training = False
        self.training = False
        return self

    def valid_step(self, batch: Any, step: int) -> Any:
        """Validate on one batch. What it returns, if anything, is as for `helios.Model`."""
        return None

    def test_step(self, batch: Any, step: int) -> Any:
        """Test on one batch. What it returns, if anything, is as for `helios.Model`."""
        return None

    def on_training_batch_start(self, state: TrainingState) -> None:
        """Run before `train_step`; this clears ``_loss_items``, which an override may leave out.

        Args:
            state: the state, with counters already advanced and the old ``dataset_iter``.
        """
        self._clear()

    def have_metrics_improved(self) -> bool:
        """Tell whether the validation that just ended was better than any before.

        With a `monitor` its metric decides, as for `helios.Model`; without one, every validation
        counts as better.

        Raises:
            ModelError: if the monitored metric was not computed.
        """
        return True if self.monitor is None else super().have_metrics_improved()

    def monitored_score(self) -> float:
        """Return the last validation's value of the monitored metric; NaN without a `monitor`.

        Raises:
            ModelError: if `monitor` names a metric that was not computed.
        """
        return float("nan") if self.monitor is None else super().monitored_score()

    @property
    def map_loc(self) -> str | dict[str, str]:
        """Where tensors of a file go, as the ``map_location`` of ``torch.load``.

        It is the device of the run, unless it is set.
        """
        return str(self.device) if self._map_loc is None else self._map_loc

    @map_loc.setter
    def map_loc(self, value: str | dict[str, str]) -> None:
        self._map_loc = value

    @property
    def metrics(self) -> dict[str, Any]:
        """The results of the last validation, by name, with ``_val_scores`` among them."""
        return {**self.valid_metrics, **self._val_scores}

    def step(self, state: TrainingState, batch: Any) -> TrainingState:
        """Run `train_step`, and return the state with its losses among the metrics."""
        if not self._is_cleared:
            self._clear()
        self._is_cleared = False
        if is_shared(batch):  # of several ranks each has one piece, and it is a batch of its own
            batch = batch[0].batch
        self.train_step(batch, state)
        items = self._loss_items
        for name, value in items.items():
            if isinstance(value, torch.Tensor) and value.ndim:
                raise TypeError(
                    f"_loss_items[{name!r}]: received a tensor of shape {list(value.shape)}; "
                    "expected a scalar tensor or a number. Take its mean()."
                )
            added = metrics.as_mean(name, value, 1).total
            self._running_losses[name] = self._running_losses.get(name, 0.0) + added
        samples = metrics.batch_size(batch)
        seen = {name: metrics.as_mean(name, value, samples) for name, value in items.items()}
        carry = state.carry
        return replace(state, carry=replace(carry, metrics=metrics.merge(carry.metrics, seen)))

    step.is_pure = False  # type: ignore[attr-defined]

    def init_carry(self) -> Carry:
        """Return a carry without tensors: those are the model's own."""
        return Carry(params={}, buffers={}, opt_state={}, accumulators={})

    @contextlib.contextmanager
    def in_evaluation(self) -> Iterator[None]:
        """Call `eval` for a block, and `train` after it."""
        self.eval()
        try:
            yield
        finally:
            self.train()

    def after_validation(self) -> None:
        """Take the numbers of ``_val_scores`` into ``valid_metrics``; clear the running losses."""
        self.valid_metrics = {**self.valid_metrics, **_numbers(self._val_scores)}
        self._running_losses.clear()

    def after_testing(self) -> None:
        """Take the numbers of ``_test_scores`` into ``test_metrics``."""
        self.test_metrics = {**self.test_metrics, **_numbers(self._test_scores)}

    def own_parameters(self) -> list[torch.Tensor]:
        """Return the parameters that are found in networks and optimizers of the model."""
        return list(trained(vars(self)).values())

    @property
    def tells_its_state(self) -> bool:
        """Whether `state_dict` is overridden, so that a run can go on from what it returns."""
        return type(self).state_dict is not ImperativeModel.state_dict

    def captured(self, state: TrainingState) -> TrainingState:
        """Return a state whose carry has all that a checkpoint holds of the model now.

        Its tensors are those of the model, and change when it is trained on.

        Raises:
            TypeError: if `state_dict` returned what could not be loaded again.
        """
        if state.carry.opt_state:
            return state
        content = self.state_dict()
        if not isinstance(content, Mapping):
            raise TypeError(
                f"state_dict(): received a {type(content).__name__}; expected a dict by name"
            )
        held = {
            "model": as_plain(content, "state_dict()"),
            "running_losses": dict(self._running_losses),
            "gradients": gradients(vars(self)) if state.window_iter else {},
        }
        return replace(state, carry=replace(state.carry, opt_state={OBJECTIVE: held}))

    def take_up(self, state: TrainingState) -> TrainingState:
        """Take what `captured` gave back into the model; return the state without it.

        Raises:
            ModelError: if the state is of a model of another kind, or gradients do not fit.
        """
        carry = state.carry
        held = carry.opt_state.get(OBJECTIVE) if isinstance(carry, Carry) else None
        if held is None:
            raise ModelError("it was saved by another kind of model than a helios.ImperativeModel")
        self.load_state_dict(held["model"], fast_init=False)
        put_gradients(vars(self), held["gradients"])
        self._running_losses.clear()
        for name, value in held["running_losses"].items():
            on_device = isinstance(value, torch.Tensor)
            self._running_losses[name] = value.to(self.device) if on_device else value
        return replace(state, carry=replace(carry, opt_state={}))

    def _clear(self) -> None:
        self._loss_items.clear()
        self._is_cleared = True


def _numbers(scores: Mapping[str, Any]) -> dict[str, float]:
    """Return what is a number, or a tensor of one; waits for the device."""
    return {
        name: float(value)
        for name, value in scores.items()
        if isinstance(value, (int, float)) or (isinstance(value, torch.Tensor) and not value.ndim)
    }

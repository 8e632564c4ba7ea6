"""The model: networks, a loss, and what to train them with."""

from __future__ import annotations

import abc
import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import nn

from helios.errors import ModelError
from helios.functional import metrics, rng
from helios.functional.binding import in_mode
from helios.functional.loss import Objective, loss_metrics, read_loss
from helios.functional.precision import Policy
from helios.functional.state import TrainingState
from helios.functional.trainable import Averaging
from helios.functional.transformation import Transformation
from helios.model.freeze import keep_still
from helios.model.hooks import ModelHooks
from helios.model.metric_objects import Objects, separated
from helios.model.monitor import Monitor

if TYPE_CHECKING:
    from helios.trainer import Trainer

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*")


class Model(ModelHooks, nn.Module, abc.ABC):
    """What to train: an ``nn.Module`` with a loss and an optimizer.

    Networks assigned in `setup` are found by themselves, and `loss` is plain PyTorch that calls
    them. The loss is a function of the parameters, the buffers, the batch and torch's random
    generators: what else it reads or writes is not in the state, and neither saved nor replayed.

    Args:
        save_name: names the folder and the files of the checkpoints: letters, digits and ``._=+-``.

    Attributes:
        optimizer: the update rule, from `helios.optim`.
        average: (optional) an average of the parameters to keep, from `helios.optim.average`.
        precision: the dtype in which the loss computes: ``"float32"``, ``"bfloat16"``,
            ``"float16"``, or a `Policy`.
        monitor: (optional) the validation metric that counts as progress. By default it is the
            loss, and less is better.
        valid_metrics: the results of the last validation, by name.
        test_metrics: the results of the last test, by name.
        best_score: the best score of the monitored metric so far, None before the first.
        hparams: what the model was made with, for logs that compare runs: numbers, strings and
            bools by name, which may be nested. Assign it in `setup`, or before.

    Raises:
        ValueError: if ``save_name`` is empty or has other characters.

    Example:
        >>> import helios
        >>> class Line(helios.Model):
        ...     def setup(self, fast_init=False):
        ...         self.net = nn.Linear(1, 1)
        ...         self.optimizer = helios.optim.SGD(lr=0.1)
        ...
        ...     def loss(self, batch):
        ...         x, y = batch
        ...         return (self.net(x) - y).square().mean()
        >>> model = Line("line")
        >>> step, state = helios.make_step(model), helios.init_state(model, seed=0)
        >>> after = step(state, (torch.ones(4, 1), torch.zeros(4, 1)))
        >>> after.current_iteration, state.current_iteration
        (1, 0)
    """

    trains_by_side_effect: ClassVar[bool] = False  # whether it alone holds what it trains
    optimizer: Transformation | None
    average: Averaging | None
    monitor: Monitor | None

    def __init__(self, save_name: str) -> None:
        super().__init__()
        self._save_name = check_save_name(save_name)
        self._is_set_up = False
        self._device = torch.device("cpu")
        self._rank = 0
        self._is_distributed = False
        self._trainer: Trainer | None = None
        self._precision = Policy()
        self.optimizer = None
        self.average = None
        self.monitor = None
        self.valid_metrics: dict[str, float] = {}
        self.test_metrics: dict[str, float] = {}
        self.best_score: float | None = None
        self.hparams: Mapping[str, Any] = {}

    @abc.abstractmethod
    def setup(self, fast_init: bool = False) -> None:
        """Build the networks and assign the optimizer. Runs once, under a key of the seed.

        Args:
            fast_init: true when only weights are needed, for a test: an optimizer need not be made.
        """

    def loss(self, batch: Any) -> Any:
        """Return the loss of a batch.

        Args:
            batch: one micro-batch, on `device`.

        Returns:
            ``f[]``, the mean loss; or ``(f[], metrics)``; or a `helios.Loss`.
        """
        raise ModelError(
            f"{type(self).__name__} has no loss; override loss(batch), or objectives(), or "
            "step(state, batch)"
        )

    def objectives(self) -> Sequence[Objective]:
        """Return the losses with what they train, in the order in which a step folds them.

        Override it for models with several, such as a GAN. Each is computed with the parameters
        that the ones before it have updated.

        Raises:
            ModelError: if there is no optimizer.
        """
        if self.optimizer is None:
            raise ModelError(
                f"{type(self).__name__} has no optimizer; assign one in setup(), such as "
                "self.optimizer = helios.optim.AdamW(lr=1e-3)"
            )
        if not isinstance(self.optimizer, Transformation):
            raise ModelError(
                f"optimizer: received a {type(self.optimizer).__name__}; expected one of "
                "helios.optim. For a torch.optim class, write "
                "helios.optim.TorchOptimizer(torch.optim.SGD, lr=0.1), without the parameters."
            )
        return [Objective("loss", self.loss, self.optimizer)]

    def step(self, state: TrainingState, batch: Any) -> TrainingState:
        """Return the state after one micro-batch. Override it to train in a way of your own.

        The counters are already advanced, and must be returned as they are; ``window_iter`` is 0
        if this micro-batch closes an accumulation window. The state's carry may be any pytree:
        override ``init_carry()`` too, which returns the first one.
        """
        raise ModelError("step() is computed by helios.make_step(model)")

    step.is_default = True  # type: ignore[attr-defined]

    def init_carry(self) -> Any:
        """Return the first carry of a model that overrides `step`: any pytree of tensors.

        None, as by default, stands for the ordinary `Carry`.
        """
        return None

    def valid_step(self, batch: Any, step: int) -> Any:
        """Return the metrics of one validation batch: by default, the losses and their metrics.

        Args:
            batch: one batch, on `device`.
            step: the index of the batch.

        Returns:
            What `loss` may return, a dict of metrics, or None. A metric may be an object of
            torchmetrics that the model has: it is computed over the whole validation.
        """
        return self._evaluate(batch)

    def test_step(self, batch: Any, step: int) -> Any:
        """Return the metrics of one test batch; as `valid_step`."""
        return self._evaluate(batch)

    def have_metrics_improved(self) -> bool:
        """Tell whether the validation that just ended was better than any before.

        By default the metric of `monitor` is compared with ``best_score``, which is part of the
        state. Without a `monitor` that is the loss, and without a loss every validation counts as
        better.

        Raises:
            ModelError: if the monitored metric was not computed.
        """
        monitor = self.monitor
        if monitor is not None and not isinstance(monitor, Monitor):
            raise ModelError(
                f"monitor: received {monitor!r}; expected helios.Monitor, such as "
                "helios.Monitor('accuracy', mode='max')"
            )
        if monitor is None:
            if "loss" not in self.valid_metrics:
                return True
            monitor = Monitor("loss")
        return monitor.improves(self.monitored_score(), self.best_score)

    def monitored_score(self) -> float:
        """Return the last validation's value of the monitored metric; NaN if there is none.

        Raises:
            ModelError: if `monitor` names a metric that was not computed.
        """
        if self.monitor is None:
            return self.valid_metrics.get("loss", float("nan"))
        if self.monitor.metric not in self.valid_metrics:
            raise ModelError(
                f"monitor: received {self.monitor.metric!r}, which the validation did not compute; "
                f"expected one of {sorted(self.valid_metrics)}"
            )
        return self.valid_metrics[self.monitor.metric]

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; layers that `helios.model.freeze` keeps stay still."""
        super().train(mode)
        keep_still(self)
        return self

    def prepare(self, seed: int = rng.DEFAULT_SEED, *, fast_init: bool = False) -> None:
        """Run `setup` under a key of ``seed``, once."""
        if self._is_set_up:
            return
        with rng.keyed(rng.fold(seed, "setup")):
            self.setup(fast_init=fast_init)
        self.to(self._device)
        self._is_set_up = True

    def in_evaluation(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the model is in evaluation mode; then it is as it was."""
        return in_mode(self, training=False)

    def after_validation(self) -> None:
        """Called by the trainer once the hooks of a validation have run."""

    def after_testing(self) -> None:
        """Called by the trainer once the hooks of a test have run."""

    def own_parameters(self) -> Sequence[torch.Tensor]:
        """Return the parameters, to be shown and compared."""
        return list(self.parameters())

    def captured(self, state: TrainingState) -> TrainingState:
        """Return a state with all that a checkpoint holds of the model: of this one, it has."""
        return state

    @property
    def save_name(self) -> str:
        """The name of the model's checkpoints and of their folder."""
        return self._save_name

    @save_name.setter
    def save_name(self, name: str) -> None:
        self._save_name = check_save_name(name)

    @property
    def device(self) -> torch.device:
        """The device on which the model computes."""
        return self._device

    @device.setter
    def device(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self.to(self._device)

    @property
    def rank(self) -> int:
        """The global rank of this process."""
        return self._rank

    @rank.setter
    def rank(self, rank: int) -> None:
        self._rank = rank

    @property
    def is_distributed(self) -> bool:
        """Whether several ranks train this model."""
        return self._is_distributed

    @is_distributed.setter
    def is_distributed(self, value: bool) -> None:
        self._is_distributed = value

    @property
    def trainer(self) -> Trainer:
        """The trainer that runs this model.

        Raises:
            ModelError: if no trainer does.
        """
        if self._trainer is None:
            raise ModelError("the model has no trainer; it has one inside of Trainer.fit and test")
        return self._trainer

    @trainer.setter
    def trainer(self, trainer: Trainer | None) -> None:
        self._trainer = trainer

    @property
    def precision(self) -> Policy:
        """The precision policy; a name such as ``"bf16"`` may be assigned."""
        return self._precision

    @precision.setter
    def precision(self, policy: Policy | str) -> None:
        policy = Policy(policy) if isinstance(policy, str) else policy
        if not isinstance(policy, Policy):
            raise TypeError(
                f"precision: received {policy!r}; expected 'float32', 'bfloat16', 'float16' or a "
                "helios.Policy"
            )
        self._precision = policy

    def _evaluate(self, batch: Any) -> Mapping[str, Any]:
        samples = metrics.batch_size(batch)
        total: metrics.Metrics = {}
        objects: Objects = {}
        with self._precision.context(self._device.type):
            for name, function in self._losses():
                output, found = separated(function(batch))
                objects.update(found)
                loss = read_loss(output, name)
                total = metrics.merge(total, loss_metrics(name, loss, samples))
        return {**total, **objects}

    def _losses(self) -> list[tuple[str, Any]]:
        """Return the losses by metric name; a model that is only tested needs no optimizer."""
        if type(self).objectives is Model.objectives:
            return [("loss", self.loss)]
        return [(objective.metric, objective.loss) for objective in self.objectives()]


def check_save_name(name: Any) -> str:
    """Return a name for checkpoints.

    Raises:
        ValueError: if it is empty, or has characters that do not belong into a file name.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"save_name: received {name!r}; expected a file name of letters, digits and '._=+-' "
            "that begins with a letter or a digit"
        )
    return name


def read_metrics(output: Any, samples: int) -> metrics.Metrics:
    """Turn what `Model.valid_step` or `Model.test_step` returned into metrics.

    Args:
        output: what it returned.
        samples: samples in the batch.
    """
    if output is None:
        return {}
    if isinstance(output, Mapping):
        return {n: metrics.as_mean(n, value, samples) for n, value in output.items()}
    return loss_metrics("loss", read_loss(output, "valid_step"), samples)

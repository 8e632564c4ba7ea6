"""One trial of a study as a plugin of the run that trains it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import optuna
from optuna.study import StudyDirection

from helios.plugins.plugin import Plugin
from helios.plugins.registry import PLUGIN_REGISTRY
from helios.plugins.validated import metric_value

if TYPE_CHECKING:
    from helios.model import Model
    from helios.trainer import Trainer

KINDS = ("categorical", "float", "int")


@PLUGIN_REGISTRY.register
class OptunaPlugin(Plugin):
    """Reports a run's validations to a trial, and ends the run where the trial is pruned.

    The model is named after the trial, ``<save_name>_trial-<number>``, so that every trial has its
    own folder of checkpoints. After each validation its metric is reported, with the number of
    validations done as the step, and the pruner is asked once. A pruned run saves its state and
    ``fit`` raises ``optuna.TrialPruned``. With several objectives nothing is reported or pruned.

    Given a finished trial, such as ``study.best_trial``, it names the model and suggests what the
    trial had: ``Trainer.test`` then tests that trial's last checkpoint.

    Args:
        trial: the trial.
        metric: the name of the validation metric to report.
        plug_id: the id of the plugin.

    Raises:
        TypeError: if ``trial`` is no trial.

    Example:
        >>> trial = optuna.trial.FixedTrial({"lr": 0.1}, number=3)
        >>> OptunaPlugin(trial).suggest("float", "lr", low=1e-3, high=1.0, log=True)
        0.1
    """

    def __init__(self, trial: Any, metric: str = "loss", *, plug_id: str = "optuna") -> None:
        super().__init__(plug_id)
        if not isinstance(trial, optuna.trial.BaseTrial):
            raise TypeError(
                f"trial: received a {type(trial).__name__}; expected what the objective of a study "
                "is given"
            )
        self.trial, self.metric = trial, metric
        self._step, self._pruned_at = 0, 0
        self._best: float | None = None
        self._value: float | None = None
        study = getattr(trial, "study", None)
        self._directions: list[Any] = [] if study is None else list(study.directions)
        # What a process before this one has reported: it must not be reported again.
        self._known: dict[int, float] = {}
        if study is not None:
            for found in study.get_trials(deepcopy=False):
                if found.number == trial.number:
                    self._known = dict(found.intermediate_values)

    @property
    def value(self) -> float | None:
        """The metric of the last validation, None before the first."""
        return self._value

    @property
    def best_value(self) -> float | None:
        """The best finite value so far, in the direction of the study; None before the first."""
        return self._best

    def suggest(self, kind: str, name: str, **options: Any) -> Any:
        """Suggest a parameter.

        Args:
            kind: ``"categorical"``, ``"float"`` or ``"int"``.
            name: the name of the parameter.
            options: those of the trial's ``suggest_<kind>``, such as ``low`` and ``high``.

        Raises:
            ValueError: if there is no such kind.
        """
        if kind not in KINDS:
            raise ValueError(f"kind: received {kind!r}; expected one of {list(KINDS)}")
        return getattr(self.trial, f"suggest_{kind}")(name, **options)

    def configure_trainer(self, trainer: Trainer) -> None:
        """Let a pruned trial pass through ``fit``.

        Raises:
            ValueError: if several ranks train, which would all report.
        """
        if trainer.is_distributed:
            raise ValueError(
                f"plugin {self.plug_id!r}: received a trainer with several ranks; expected one "
                "rank: run several trials side by side in its place"
            )
        self._append_train_exceptions(optuna.TrialPruned, trainer)

    def configure_model(self, model: Model) -> None:
        """Name the model after the trial."""
        suffix = f"_trial-{self.trial.number}"
        if not model.save_name.endswith(suffix):
            model.save_name += suffix

    def on_validation_end(self, validation_cycle: int) -> None:
        """Report the validation that just ended."""
        value = metric_value(self, self.metric)
        self._step, self._value = validation_cycle + 1, value
        if math.isfinite(value) and (self._best is None or self._is_better(value)):
            self._best = value
        if len(self._directions) == 1 and self._step not in self._known:
            self.trial.report(value, self._step)
            self._known[self._step] = value

    def is_over(self) -> bool:
        """Tell whether the trial is pruned, as far as the run has come."""
        done = self.trainer.state.validation_cycles
        if self._pruned_at:
            return done >= self._pruned_at
        # A step before one that was reported was passed already, before an interruption.
        if len(self._directions) != 1 or done == 0 or done != self._step:
            return False
        if done >= max(self._known) and self.trial.should_prune():
            self._pruned_at = done
        return self._pruned_at > 0

    def on_training_end(self) -> None:
        """End the trial if it was pruned; the state of the run is saved.

        Raises:
            TrialPruned: if it was pruned.
        """
        if self._pruned_at and self.trainer.state.validation_cycles >= self._pruned_at:
            raise optuna.TrialPruned(
                f"trial {self.trial.number} was pruned after {self._pruned_at} validations"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return what was reported last."""
        return {
            "step": self._step,
            "value": self._value,
            "best": self._best,
            "pruned_at": self._pruned_at,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        self._step, self._value = state_dict["step"], state_dict["value"]
        self._best, self._pruned_at = state_dict["best"], state_dict["pruned_at"]

    def _is_better(self, value: float) -> bool:
        best = self._best
        assert best is not None
        if self._directions and self._directions[0] == StudyDirection.MAXIMIZE:
            return value > best
        return value < best

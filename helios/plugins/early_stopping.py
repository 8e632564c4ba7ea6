"""Stopping a run that gets no better, or that has gone wrong, or that is good enough."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from helios.plugins.plugin import Plugin
from helios.plugins.registry import PLUGIN_REGISTRY
from helios.plugins.validated import metric_value


class Judgement(msgspec.Struct, frozen=True):
    """What the validations so far have come to.

    Args:
        cycles: validations judged.
        best: the best finite score, None before the first.
        waited: validations in a row that were not better than it.
        reason: why the run is over, None as long as it is not.
    """

    cycles: int = 0
    best: float | None = None
    waited: int = 0
    reason: str | None = None


@PLUGIN_REGISTRY.register
class EarlyStopping(Plugin):
    """Stops a run by a validation metric; looked at after each validation, and never in between.

    What was judged is part of the checkpoint. A validation that a resumed run does again is judged
    again from where it was, so the run stops where it would have stopped.

    Args:
        metric: the name of a validation metric.
        mode: ``"min"`` if less is better, ``"max"`` if more is.
        patience: validations in a row without improvement after which the run stops, at least 1.
        min_delta: by how much a score must be better than the best one to count, at least 0.
        threshold: (optional) a score so good that the run stops.
        divergence: (optional) a score so bad that the run stops.
        check_finite: whether a score that is NaN or infinite stops the run. Otherwise it counts as
            no improvement.
        plug_id: the id of the plugin: give others to several of them.

    Raises:
        ValueError: if an argument is out of its range.

    Law:
        A run that is interrupted and resumed stops after the same update
        (``tests/plugins/test_early_stopping.py``).

    Example:
        >>> stopping = EarlyStopping("loss", patience=2, min_delta=0.1)
        >>> [stopping.judged(score).waited for score in (1.0, 0.95, 0.8)]
        [0, 1, 0]
    """

    def __init__(
        self,
        metric: str = "loss",
        mode: str = "min",
        patience: int = 3,
        min_delta: float = 0.0,
        *,
        threshold: float | None = None,
        divergence: float | None = None,
        check_finite: bool = True,
        plug_id: str = "early_stopping",
    ) -> None:
        super().__init__(plug_id)
        if mode not in ("min", "max"):
            raise ValueError(f"mode: received {mode!r}; expected 'min' or 'max'")
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise ValueError(
                f"patience: received {patience!r}; expected a number of validations, at least 1"
            )
        if not min_delta >= 0:
            raise ValueError(f"min_delta: received {min_delta!r}; expected a number of at least 0")
        self.metric, self.mode, self.patience = metric, mode, patience
        self.min_delta, self.check_finite = float(min_delta), check_finite
        self.threshold, self.divergence = threshold, divergence
        self._before = self._now = Judgement()

    @property
    def reason(self) -> str | None:
        """Why the run is over, None as long as it is not."""
        return self._now.reason

    @property
    def best(self) -> float | None:
        """The best finite score so far."""
        return self._now.best

    def judged(self, score: float) -> Judgement:
        """Judge a score, and return what all so far come to.

        Args:
            score: the value of the metric.
        """
        self._before, self._now = self._now, self._next(self._now, score)
        return self._now

    def on_validation_end(self, validation_cycle: int) -> None:
        """Judge the validation that just ended."""
        if validation_cycle < self._now.cycles:  # it is done again, after a failure
            self._now = self._before
        self.judged(metric_value(self, self.metric))

    def is_over(self) -> bool:
        """Tell whether the last validation has ended the run."""
        now = self._now
        # A run that failed after its last validation goes on before it, and comes to it again.
        return now.reason is not None and self.trainer.state.validation_cycles >= now.cycles

    def state_dict(self) -> dict[str, Any]:
        """Return what the validations so far have come to, and did before the last one."""
        return {"before": msgspec.to_builtins(self._before), "now": msgspec.to_builtins(self._now)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        self._before = Judgement(**state_dict["before"])
        self._now = Judgement(**state_dict["now"])
        if self._now.waited < self.patience and self._now.reason == _PATIENCE:
            # The user has more patience than before: the run goes on.
            self._now = msgspec.structs.replace(self._now, reason=None)

    def _next(self, before: Judgement, score: float) -> Judgement:
        sign = 1.0 if self.mode == "min" else -1.0
        finite, best = math.isfinite(score), before.best
        better = finite and (best is None or sign * (best - score) > self.min_delta)
        waited = 0 if better else before.waited + 1
        reason = None
        if not finite and self.check_finite:
            reason = "the score is NaN or infinite"
        elif finite and self.divergence is not None and sign * (score - self.divergence) >= 0:
            reason = "the score has diverged"
        elif finite and self.threshold is not None and sign * (self.threshold - score) >= 0:
            reason = "the score is good enough"
        elif waited >= self.patience:
            reason = _PATIENCE
        return Judgement(before.cycles + 1, score if better else best, waited, reason)


_PATIENCE = "no improvement"

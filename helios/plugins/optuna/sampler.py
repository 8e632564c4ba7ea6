"""A sampler without a memory of its own: what it suggests is a function of seed and trial."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from helios.functional import rng


class KeyedSampler(BaseSampler):
    """Draws as another sampler does, under a key of the seed, the trial and the parameter.

    The generators of the other sampler are seeded anew for whatever it draws, so a suggestion
    depends on nothing that is lost when a process ends: there is no state to save. What the sampler
    learns from finished trials it reads from the study, as before.

    Args:
        sampler: the sampler that draws.
        seed: the seed of the search, from 0.

    Law:
        A study that is killed after any trial, or in it, and resumed has the parameters and the
        values of one that was not, bit for bit (``tests/plugins/optuna/test_study.py``).

    Example:
        >>> import optuna
        >>> def drawn():
        ...     study = optuna.create_study(sampler=KeyedSampler(optuna.samplers.RandomSampler()))
        ...     return study.ask().suggest_float("x", 0, 1)
        >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
        >>> drawn() == drawn()
        True
    """

    def __init__(self, sampler: BaseSampler, seed: int = 0) -> None:
        self.sampler = sampler
        self.seed = seed
        self._lock = threading.RLock()  # trials may run in several threads

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return what the sampler draws together."""
        with self._lock:
            self._seed(trial, "space")
            space: dict[str, BaseDistribution] = self.sampler.infer_relative_search_space(
                study, trial
            )
            return space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw parameters together."""
        with self._lock:
            self._seed(trial, "relative")
            drawn: dict[str, Any] = self.sampler.sample_relative(study, trial, search_space)
            return drawn

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw one parameter."""
        with self._lock:
            self._seed(trial, "independent", param_name)
            return self.sampler.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Let the sampler prepare for a trial."""
        with self._lock:
            self._seed(trial, "before")
            self.sampler.before_trial(study, trial)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Let the sampler take note of a trial."""
        with self._lock:
            self._seed(trial, "after")
            self.sampler.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Do nothing: trials draw different numbers already."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    def _seed(self, trial: FrozenTrial, *what: str) -> None:
        key = rng.fold(self.seed, "/".join(("optuna", *what)), trial.number)
        for index, generator in enumerate(generators(self.sampler)):
            bits = rng.fold(key, "generator", index) & 0xFFFFFFFF
            if isinstance(generator, np.random.RandomState):
                generator.seed(bits)
            else:
                kind = type(generator.bit_generator)
                generator.bit_generator.state = kind(bits).state


Generator = np.random.RandomState | np.random.Generator


def generators(sampler: Any) -> list[Generator]:
    """Return the generators that a sampler draws from, and the samplers within it.

    Example:
        >>> import optuna
        >>> len(generators(optuna.samplers.RandomSampler(seed=1)))
        1
    """
    return list(_generators(sampler, set()))


def _generators(value: Any, seen: set[int]) -> Iterator[Generator]:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Generator):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _generators(part, seen)
    elif isinstance(value, BaseSampler) or "random_state" in type(value).__module__:
        lazy = getattr(value, "rng", None)  # made when it is first asked for
        yield from _generators(lazy, seen)
        for part in vars(value).values():
            yield from _generators(part, seen)

"""Studies that are interrupted and go on: finished trials stay, and the last one is taken up."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState

from helios.core.utils import convert_to_list
from helios.errors import RunLockedError
from helios.plugins.optuna.sampler import KeyedSampler

_SEED = "helios:seed"
_FOLDER = "helios:folder"


def open_study(
    folder: Path | str,
    *,
    name: str = "study",
    direction: str | list[str] = "minimize",
    sampler: optuna.samplers.BaseSampler | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
    seed: int = 0,
) -> optuna.Study:
    """Return the study of a folder: the one that is there, or a new one.

    Its trials are in ``<folder>/<name>.log``. Its sampler is a `KeyedSampler`: what a trial is
    suggested does not depend on whether the study was interrupted.

    Args:
        folder: where the study is; made if it is missing.
        name: the name of the study and of its file.
        direction: ``"minimize"`` or ``"maximize"``; a list of them for several objectives.
        sampler: (optional) the sampler; by default ``TPESampler``.
        pruner: (optional) the pruner; by default ``MedianPruner``.
        seed: the seed of the search.

    Raises:
        ValueError: if the study that is there has another seed.
    """
    folder = Path(folder).absolute()
    directions: list[Any] = convert_to_list(direction)
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / f"{name}.log"))),
        study_name=name,
        sampler=KeyedSampler(optuna.samplers.TPESampler() if sampler is None else sampler, seed),
        pruner=pruner,
        directions=directions,
        load_if_exists=True,
    )
    known = study.user_attrs.get(_SEED)
    if known is None:
        study.set_user_attr(_SEED, seed)
    elif known != seed:
        raise ValueError(
            f"seed: received {seed}; the study in {str(folder)!r} has the seed {known}. Give that "
            "one, or another folder or name"
        )
    # Not in the storage: a folder may be moved.
    study.__dict__[_FOLDER] = folder
    return study


def resume_study(
    study: optuna.Study, objective: Callable[[Trial], Any], trials: int
) -> optuna.Study:
    """Run a study until it has so many trials, from wherever it was left.

    A trial that is neither finished nor waiting was interrupted: its process has ended. It is run
    first, as the same trial: it has its number and its parameters, so a helios model in it goes on
    from its last checkpoint. An exception of the objective ends the study, and the trial counts as
    failed; what is no ``Exception``, such as ``KeyboardInterrupt``, leaves it to be taken up.

    One process at a time may do this with a study of `open_study`. With any other study that is
    left to the caller.

    Args:
        study: the study, such as `open_study` gives.
        objective: trains one trial and returns its value; raises ``optuna.TrialPruned``.
        trials: how many trials there are to be in all, failed ones included.

    Returns:
        The study.

    Raises:
        RunLockedError: if another process is running the study.
        ValueError: if ``trials`` is not at least 1.

    Law:
        Killed after any trial, or in it, and run again, it has the parameters and values of a study
        that was not (``tests/plugins/optuna/test_study.py``).
    """
    if isinstance(trials, bool) or not isinstance(trials, int) or trials < 1:
        raise ValueError(f"trials: received {trials!r}; expected a number of at least 1")
    with _alone(study):
        for found in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            _run(study, Trial(study, found._trial_id), objective)
        while _begun(study) < trials:
            _run(study, study.ask(), objective)
    return study


def _begun(study: optuna.Study) -> int:
    found = study.get_trials(deepcopy=False)
    return sum(trial.state is not TrialState.WAITING for trial in found)


def _run(study: optuna.Study, trial: Trial, objective: Callable[[Trial], Any]) -> None:
    try:
        value = objective(trial)
    except optuna.TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
    except Exception:
        study.tell(trial, state=TrialState.FAIL)
        raise
    else:
        study.tell(trial, value)


@contextlib.contextmanager
def _alone(study: optuna.Study) -> Iterator[None]:
    """Hold the lock of a study's folder; the end of the process gives it back."""
    folder = study.__dict__.get(_FOLDER)
    if folder is None:
        yield
        return
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    path = folder / f"{study.study_name}.lock"
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunLockedError(
                f"the study {study.study_name!r} in {str(folder)!r} is being run by another "
                "process. Wait until it ends, or stop it"
            ) from error
        yield

import optuna
import pytest
from optuna.samplers import RandomSampler, TPESampler

from helios.errors import RunLockedError
from helios.plugins.optuna import OptunaPlugin, open_study, resume_study
from tests import zoo
from tests.plugins.optuna.searches import Killed, objective, told
from tests.trainer.runs import Batches, trainer

SAMPLERS = {
    "random": lambda: RandomSampler(seed=3),
    "tpe": lambda: TPESampler(seed=3, n_startup_trials=2),
    "tpe_together": lambda: TPESampler(seed=3, n_startup_trials=2, multivariate=True),
}


@pytest.fixture(autouse=True)
def _quiet():
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


def opened(folder, sampler="tpe", **arguments):
    pruner = arguments.pop("pruner", optuna.pruners.NopPruner())
    return open_study(folder, sampler=SAMPLERS[sampler](), pruner=pruner, **arguments)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("trial", "at"), [(1, 0), (3, 3), (4, 4), (2, 6)])
def test_a_killed_study_goes_on_as_if_it_had_not_been(tmp_path, sampler, trial, at):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    expected = told(resume_study(opened(whole, sampler), objective(whole), trials=6))
    with pytest.raises(Killed):
        resume_study(opened(cut, sampler), objective(cut, trial, at), trials=6)
    resumed = resume_study(opened(cut, sampler), objective(cut), trials=6)
    assert told(resumed) == expected


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_study_that_ended_between_trials_goes_on_as_if_it_had_not(tmp_path, sampler):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    expected = told(resume_study(opened(whole, sampler), objective(whole), trials=5))
    for trials in (2, 3, 5):
        study = resume_study(opened(cut, sampler), objective(cut), trials=trials)
    assert told(study) == expected


def test_finished_trials_are_not_run_again(tmp_path):
    resume_study(opened(tmp_path), objective(tmp_path), trials=3)
    seen = []
    resume_study(opened(tmp_path), objective(tmp_path, seen=seen), trials=4)
    assert [number for number, _ in seen] == [3]


def test_an_interrupted_trial_goes_on_from_its_checkpoint(tmp_path, capsys):
    with pytest.raises(Killed):
        resume_study(opened(tmp_path), objective(tmp_path, 0, 5), trials=1)
    resume_study(opened(tmp_path), objective(tmp_path), trials=1)
    assert "Resuming training from checkpoint" in capsys.readouterr().out


def test_every_trial_keeps_a_folder_of_its_own(tmp_path):
    resume_study(opened(tmp_path), objective(tmp_path), trials=3)
    folders = sorted(p.name for p in tmp_path.iterdir() if p.is_dir())
    assert folders == ["line_trial-0", "line_trial-1", "line_trial-2"]


def test_the_best_trial_can_be_tested(tmp_path, capsys):
    study = resume_study(opened(tmp_path), objective(tmp_path), trials=3)
    run = trainer(tmp_path, plugins=[OptunaPlugin(study.best_trial)])
    assert run.test(zoo.Line(), Batches(test=zoo.regression(2)))
    assert f"line_trial-{study.best_trial.number}" in capsys.readouterr().out


def test_a_failing_trial_counts_and_ends_the_study(tmp_path):
    def fails(trial):
        raise KeyError("planned")

    study = opened(tmp_path)
    with pytest.raises(KeyError, match="planned"):
        resume_study(study, fails, trials=2)
    assert [t.state for t in study.trials] == [optuna.trial.TrialState.FAIL]


def test_two_processes_do_not_run_one_study(tmp_path):
    def enters_again(trial):
        resume_study(opened(tmp_path), objective(tmp_path), trials=1)

    with pytest.raises(RunLockedError, match="is being run by another process"):
        resume_study(opened(tmp_path), enters_again, trials=1)


def test_another_seed_is_an_error(tmp_path):
    opened(tmp_path, seed=1)
    with pytest.raises(ValueError, match=r"seed: received 2; the study in .* has the seed 1"):
        opened(tmp_path, seed=2)


def test_no_trials_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="trials: received 0"):
        resume_study(opened(tmp_path), objective(tmp_path), trials=0)

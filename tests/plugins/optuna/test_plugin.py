import optuna
import pytest

from helios.plugins.optuna import OptunaPlugin
from tests import zoo
from tests.trainer.runs import Batches, names, trainer


class From(optuna.pruners.BasePruner):
    """Prunes at a step, and counts how often it is asked."""

    def __init__(self, step):
        self.step, self.asked = step, []

    def prune(self, study, trial):
        self.asked.append(trial.last_step)
        return trial.last_step >= self.step


@pytest.fixture(autouse=True)
def _quiet():
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


def data():
    return Batches(zoo.regression(4), zoo.regression(2, seed=9))


def fit(root, trial, model=None, **arguments):
    arguments = {"steps": 8, "valid_frequency": 2, "chkpt_frequency": 4, **arguments}
    run = trainer(root, plugins=[OptunaPlugin(trial)], **arguments)
    assert run.fit(model or zoo.Line(), data())
    return run


def test_validations_are_reported_with_their_number(tmp_path):
    study = optuna.create_study(pruner=optuna.pruners.NopPruner())
    run = fit(tmp_path, study.ask())
    [trial] = study.trials
    assert list(trial.intermediate_values) == [1, 2, 3, 4]
    assert trial.intermediate_values[4] == run.model.valid_metrics["loss"]


def test_the_pruner_is_asked_once_a_validation(tmp_path):
    pruner = From(99)
    fit(tmp_path, optuna.create_study(pruner=pruner).ask())
    assert pruner.asked == [1, 2, 3, 4]


def test_a_pruned_run_raises_with_its_state_saved(tmp_path):
    study = optuna.create_study(pruner=From(3))
    with pytest.raises(optuna.TrialPruned, match="trial 0 was pruned after 3 validations"):
        fit(tmp_path, study.ask())
    assert "line_trial-0_epoch_2_iter_6.pth" in names(tmp_path)
    assert not list(tmp_path.rglob("crashes"))


def test_a_pruned_run_is_pruned_again_and_trains_nothing_more(tmp_path):
    pruner = From(3)
    study = optuna.create_study(pruner=pruner)
    trial = study.ask()
    for _ in range(2):
        with pytest.raises(optuna.TrialPruned):
            fit(tmp_path, trial)
    assert pruner.asked == [1, 2, 3]
    assert max(study.trials[0].intermediate_values) == 3


def test_a_validation_that_is_done_again_is_not_reported_again(tmp_path):
    class FailsOnce(zoo.Line):
        armed = True

        def have_metrics_improved(self):
            if self.armed and self.trainer.state.validation_cycles == 2:
                raise RuntimeError("planned")
            return super().have_metrics_improved()

    study = optuna.create_study(pruner=optuna.pruners.NopPruner())
    trial = study.ask()
    run = trainer(tmp_path, steps=8, valid_frequency=2, plugins=[OptunaPlugin(trial)])
    assert not run.fit(FailsOnce(), data())
    FailsOnce.armed = False
    fit(tmp_path, trial, FailsOnce())  # a warning of Optuna's would be an error
    assert list(study.trials[0].intermediate_values) == [1, 2, 3, 4]


def test_with_several_objectives_nothing_is_reported(tmp_path):
    study = optuna.create_study(directions=["minimize", "maximize"])
    fit(tmp_path, study.ask())
    assert study.trials[0].intermediate_values == {}


def test_a_metric_that_was_not_computed_is_an_error(tmp_path, capsys):
    plugin = OptunaPlugin(optuna.create_study().ask(), "accuracy")
    assert not trainer(tmp_path, valid_frequency=2, plugins=[plugin]).fit(zoo.Line(), data())
    assert "received 'accuracy', which the validation did not" in capsys.readouterr().err


def test_kinds_of_parameters_are_listed():
    plugin = OptunaPlugin(optuna.trial.FixedTrial({}))
    with pytest.raises(ValueError, match="kind: received 'real'; expected one of"):
        plugin.suggest("real", "lr")


def test_anything_but_a_trial_is_a_type_error():
    with pytest.raises(TypeError, match="trial: received a int"):
        OptunaPlugin(3)

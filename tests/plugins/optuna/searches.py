"""What the tests of the search share: a study of tiny runs, which may be killed anywhere."""

import helios
from helios.plugins.optuna import OptunaPlugin
from tests import zoo
from tests.trainer.runs import Batches, trainer


class Killed(BaseException):
    """What stands for the end of the process."""


class KillAt(helios.Plugin):
    """Ends the process, so to speak, at the n-th update of a trial."""

    def __init__(self, update):
        super().__init__("kill")
        self.update = update

    def should_training_stop(self):
        if self.trainer.state.current_iteration == self.update:
            raise Killed
        return False


def objective(root, killed=None, at=None, seen=None):
    """Return an objective; in trial ``killed`` it ends the process at the update ``at``."""

    def run(trial):
        plugin = OptunaPlugin(trial)
        lr = plugin.suggest("float", "lr", low=1e-3, high=0.3, log=True)
        if trial.number == killed and at == 0:
            raise Killed
        plugin.suggest("categorical", "size", choices=[1, 2])
        plugin.suggest("int", "depth", low=1, high=9)
        model = zoo.Line(optimizer=lambda: helios.optim.SGD(lr=lr))
        plugins = [plugin] + ([KillAt(at)] if trial.number == killed and at else [])
        run = trainer(root, steps=6, valid_frequency=2, chkpt_frequency=2, plugins=plugins)
        assert run.fit(model, Batches(zoo.regression(4), zoo.regression(2, seed=9)))
        if seen is not None:
            seen.append((trial.number, run.state))
        return plugin.best_value

    return run


def told(study):
    """Return all that a study knows of its trials, but the times."""
    return [(t.number, t.state, t.params, t.values, t.intermediate_values) for t in study.trials]

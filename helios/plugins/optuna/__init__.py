"""Hyper-parameter search with Optuna, whose interrupted trials go on. Imported by name alone."""

try:
    import optuna as _optuna  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "helios.plugins.optuna needs Optuna, which is not installed: pip install 'helios[optuna]'"
    ) from error

from helios.plugins.optuna.plugin import OptunaPlugin as OptunaPlugin
from helios.plugins.optuna.sampler import KeyedSampler as KeyedSampler
from helios.plugins.optuna.study import open_study as open_study
from helios.plugins.optuna.study import resume_study as resume_study

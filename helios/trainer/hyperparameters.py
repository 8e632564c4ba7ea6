"""What a run was started with, as a log shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from helios.model.model import Model

if TYPE_CHECKING:
    from helios.trainer.trainer import Trainer

_ARGUMENTS = (
    *("total_steps", "accumulation_steps", "early_stop_cycles", "valid_frequency"),
    *("non_finite", "reduction", "compile", "enable_deterministic"),
)
Plain = bool | int | float | str


def hyperparameters(trainer: Trainer, model: Model) -> dict[str, Plain]:
    """Return the arguments of a trainer that training depends on, and what the model adds.

    A model adds its own in the attribute ``hparams``, a mapping, which may be nested.

    Args:
        trainer: the trainer.
        model: the model, set up.

    Raises:
        TypeError: if ``hparams`` is no mapping.
    """
    own = getattr(model, "hparams", {})
    if not isinstance(own, Mapping):
        raise TypeError(
            f"hparams: received a {type(own).__name__}; expected a mapping of names to numbers, "
            "strings and bools, such as {'width': 64}"
        )
    given: dict[str, Any] = {name: getattr(trainer, name) for name in _ARGUMENTS}
    given["train_unit"] = trainer.train_unit.name.lower()
    given["seed"] = trainer.seed
    given["precision"] = model.precision.compute
    return flat({"trainer": given, "model": own})


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Plain]:
    """Return nested values by path; what is no number, bool or string as the text of it.

    Example:
        >>> flat({"net": {"width": 64, "act": None}})
        {'net/width': 64, 'net/act': 'None'}
    """
    found: dict[str, Plain] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{name}/"))
        else:
            plain = isinstance(value, (bool, int, float, str))
            found[f"{prefix}{name}"] = value if plain else str(value)
    return found

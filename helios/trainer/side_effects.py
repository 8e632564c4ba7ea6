"""Models that train by side effect: what a run does otherwise for them, and what it cannot."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from helios.errors import ModelError, ResumeError
from helios.functional.state import TrainingState
from helios.functional.tree import map_leaves, place
from helios.model.imperative import OBJECTIVE, ImperativeModel
from helios.model.model import Model
from helios.trainer.store import stored_state

if TYPE_CHECKING:
    from helios.trainer.trainer import Trainer


def check_supported(trainer: Trainer, model: Model) -> None:
    """Raise if a fit is asked for what a model that trains by side effect cannot have.

    Raises:
        ModelError: naming it, and what to do.
    """
    if not isinstance(model, ImperativeModel):
        return
    name = type(model).__name__
    problems = {
        f"compile={trainer.compile!r}: there is no pure step to compile. Call torch.compile on a "
        "network in setup()": bool(trainer.compile),
        "non_finite='skip': helios does not see the update before it is made. Look at the loss in "
        "train_step()": trainer.non_finite == "skip",
        f"precision={model.precision.compute!r}: the loss is not computed by helios. Use "
        "torch.autocast in train_step()": model.precision.compute != "float32",
        "average: helios does not see the parameters. Keep it in train_step(), such as with "
        "torch.optim.swa_utils.AveragedModel": model.average is not None,
        "no state_dict(): its checkpoints would hold nothing to go on from. Override state_dict() "
        "and load_state_dict(), or leave chkpt_root out": trainer.chkpt_root is not None
        and not model.tells_its_state,
    }
    for problem, is_there in problems.items():
        if is_there:
            raise ModelError(f"{name} trains by side effect, and has {problem}.")


def check_divided(model: Model, ranks: int, pieces: int | None, *, is_sharded: bool) -> None:
    """Raise if a model that trains by side effect cannot be divided as asked for.

    Args:
        model: the model.
        ranks: how many there are.
        pieces: of canonical reduction, None for the mean.
        is_sharded: whether each rank keeps a part of the model alone.

    Raises:
        ModelError: saying what to do.
    """
    name = type(model).__name__
    if pieces is not None:
        raise ModelError(
            f"{name} trains by side effect; received reduction='canonical', and helios does not "
            f"see its gradients on {ranks} rank(s). Leave it out, and wrap networks in "
            "DistributedDataParallel in setup() where there are several ranks."
        )
    if is_sharded:
        raise ModelError(
            f"{name} trains by side effect; received parallel=helios.FSDP(), and helios does not "
            "see its parameters. Leave it out, and wrap networks in DistributedDataParallel in "
            "setup()."
        )


def put_by(model: Model, state: TrainingState, *, copy: bool) -> TrainingState | None:
    """Return a state that stays what it is when the model changes; None if there is to be none.

    Args:
        model: the model, which trains by side effect.
        state: the state that it is in.
        copy: whether to copy what the model holds, to the host; else the state is let go of.
    """
    if state.carry.opt_state or not copy:
        return state if state.carry.opt_state else None
    found = held(model, state)
    return None if found is None else map_leaves(_on_host, found)


def held(model: Model, state: TrainingState) -> TrainingState | None:
    """Return a state with what the model holds of it, not copied; None if it does not tell.

    What a model without checkpoints returns as its ``state_dict`` is its own affair.
    """
    if not (isinstance(model, ImperativeModel) and model.tells_its_state):
        return None
    try:
        return model.captured(state)
    except Exception:
        return None


def _on_host(leaf: Any) -> Any:
    return leaf.detach().to("cpu", copy=True) if isinstance(leaf, torch.Tensor) else leaf


def held_model(state: TrainingState) -> dict[str, Any]:
    """Return what a captured state has of the model's ``state_dict``."""
    found: dict[str, Any] = state.carry.opt_state[OBJECTIVE]["model"]
    return found


def take_up_content(model: ImperativeModel, content: Mapping[str, Any]) -> TrainingState:
    """Take a checkpoint into a model that is set up, and return its state.

    Raises:
        ResumeError: if it does not fit.
    """
    state = stored_state(dict(content))
    try:
        state = model.take_up(state)
    except (RuntimeError, LookupError, ValueError, TypeError) as error:
        raise ResumeError(
            f"the checkpoint does not fit this model: {type(error).__name__}: {error}"
        ) from error
    return place(state, model.device)  # type: ignore[no-any-return]


def weights_to_bytes(model: Model) -> bytes | None:
    """Return what a model that trains by side effect holds, to go to another process."""
    if not isinstance(model, ImperativeModel):
        return None
    buffer = io.BytesIO()
    torch.save(held_model(model.captured(TrainingState(carry=model.init_carry()))), buffer)
    return buffer.getvalue()


def weights_from_bytes(model: Model, data: bytes) -> None:
    """Give a model what `weights_to_bytes` returned."""
    held = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    assert isinstance(model, ImperativeModel)
    model.load_state_dict(held)

"""What a checkpoint holds: builtin types and tensors alone, for ``torch.load(weights_only=True)``.

``checkpoint["model"]`` is the network's ``state_dict``; ``checkpoint["carry"]`` shares its tensors,
so that they are in the file once. Structs become dicts with their name under ``"__struct__"``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from helios.errors import (
    CheckpointError,
    CheckpointVersionError,
    CorruptCheckpointError,
    ResumeError,
    StateMismatchError,
)
from helios.functional.serial import STRUCTS, carry_like
from helios.functional.state import COUNTERS, TrainingState, take_carry
from helios.trainer.store.manifest import SCHEMA

PARTS = ("training_state", "carry", "model", "plan", "rng", "log", "plugins", "data", "fingerprint")
"""What every checkpoint has, beside the versions."""

_DICTS = tuple(part for part in PARTS if part not in ("carry", "data"))
_NUMBERS = (*COUNTERS, "seed", "window_iter")
_TAG = "__struct__"


def state_content(state: TrainingState) -> dict[str, Any]:
    """Return the part of a checkpoint that holds the state.

    Tensors are not copied: they must not change before the content is written.

    Raises:
        ConsumedStateError: if the state was given to a donated step.
    """
    return {
        "schema": SCHEMA,
        "training_state": {
            **state.dict(),
            "seed": state.seed,
            "window_iter": state.window_iter,
        },
        "carry": _to_builtins(take_carry(state)),
    }


def check_parts(content: Any, path: Path) -> None:
    """Raise if what was loaded is not the content of a checkpoint.

    Raises:
        CheckpointError: if it is something else.
        CorruptCheckpointError: if it lacks a part.
        CheckpointVersionError: if a newer helios wrote it.
    """
    if not isinstance(content, dict) or not isinstance(content.get("schema"), int):
        raise CheckpointError(
            f"{str(path)!r} is not a checkpoint of helios: it has no schema version. To train from "
            "its weights, load them in setup() with helios.load_pretrained()."
        )
    if content["schema"] > SCHEMA:
        raise CheckpointVersionError(
            f"{str(path)!r} has schema {content['schema']}, and this helios reads up to {SCHEMA}; "
            f"helios {content.get('version')} wrote it. Update helios."
        )
    missing = [part for part in PARTS if part not in content]
    if missing:
        raise CorruptCheckpointError(
            f"{str(path)!r} is not a whole checkpoint: it lacks {', '.join(missing)}. Move it away "
            "to go on from the checkpoint before it."
        )
    wrong = [part for part in _DICTS if not isinstance(content[part], dict)]
    if wrong:
        raise CorruptCheckpointError(
            f"{str(path)!r} is not a checkpoint as helios writes it: {', '.join(wrong)} is no dict"
        )
    missing = [name for name in _NUMBERS if name not in content["training_state"]]
    if missing:
        raise CorruptCheckpointError(f"{str(path)!r} lacks the counters {', '.join(missing)}")


def restore_state(content: dict[str, Any], like: TrainingState) -> TrainingState:
    """Rebuild the state of a checkpoint on the devices of a fresh one.

    Args:
        content: what `read_checkpoint` returned.
        like: the state that `helios.init_state` makes for the model that is to go on.

    Raises:
        ResumeError: if the checkpoint was made with another model, optimizer or dtype; the message
            lists the places.
    """
    state = stored_state(content)
    try:
        return replace(state, carry=carry_like(state.carry, take_carry(like)))
    except StateMismatchError as error:
        raise ResumeError(f"the checkpoint cannot be resumed with this model: {error}") from error


def stored_state(content: dict[str, Any]) -> TrainingState:
    """Return the state of a checkpoint as it is, on the CPU.

    Raises:
        CheckpointError: if it holds what this helios does not know.
    """
    counters = content["training_state"]
    return TrainingState(
        **{name: counters[name] for name in _NUMBERS},
        carry=_from_builtins(content["carry"]),
    )


def _to_builtins(node: Any) -> Any:
    if isinstance(node, msgspec.Struct):
        name = type(node).__name__
        if STRUCTS.get(name) is not type(node):
            raise CheckpointError(
                f"the carry holds a {name}, which a checkpoint cannot; expected tensors, numbers, "
                f"strings, dicts, lists, tuples, or {', '.join(STRUCTS)}"
            )
        fields = {n: _to_builtins(getattr(node, n)) for n in type(node).__struct_fields__}
        return {_TAG: name, **fields}
    if isinstance(node, dict):
        return {key: _to_builtins(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node)(_to_builtins(value) for value in node)
    return node


def _from_builtins(node: Any) -> Any:
    if isinstance(node, dict) and _TAG in node:
        cls = STRUCTS.get(node[_TAG])
        if cls is None or node.keys() - {_TAG} != set(cls.__struct_fields__):
            raise CheckpointError(
                f"the checkpoint holds a {node[_TAG]!r} with fields {sorted(node)}, which this "
                "helios does not know. Update helios."
            )
        return cls(**{n: _from_builtins(node[n]) for n in cls.__struct_fields__})
    if isinstance(node, dict):
        return {key: _from_builtins(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node)(_from_builtins(value) for value in node)
    return node

"""The trained network as a graph: for ``torch.export`` and for ONNX, in eval mode."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from helios.errors import ModelError
from helios.functional.state import Carry, TrainingState, take_carry
from helios.model.model import Model
from helios.trainer.store import read_checkpoint, stored_state


def export_program(
    model: Model,
    example: Any,
    *,
    weights: str | os.PathLike[str] | TrainingState | None = None,
    average: bool = False,
    network: str | None = None,
) -> torch.export.ExportedProgram:
    """Return the trained network as a program of ``torch.export``, for any batch size.

    The network is traced in eval mode, on the CPU. The model and the state stay as they are.

    Args:
        model: the model.
        example: what the network is called with: a tensor, or a tuple of them, whose first
            dimension is the batch, of at least 2 samples.
        weights: (optional) where the weights come from: a checkpoint or a state; by default those
            that the model has now. With a checkpoint the model may be freshly made.
        average: whether to take the average of the parameters; for a checkpoint or a state.
        network: (optional) the path of the module, such as ``"net"``. By default the model itself
            if it has a ``forward``, or else its only module.

    Raises:
        ModelError: if there is no such network, or several that could be meant, or no average.
        TypeError: if the example is something else.
        CheckpointError: if the checkpoint cannot be read.

    Law:
        The program gives the numbers of the network in eval mode, bit for bit on the CPU
        (``tests/exporting/test_graph.py``).

    Example:
        >>> import helios
        >>> class Line(helios.Model):
        ...     def setup(self, fast_init=False):
        ...         self.net = nn.Linear(3, 1)
        >>> model = Line("line")
        >>> model.prepare(0)
        >>> program = export_program(model, torch.zeros(2, 3))
        >>> program.module()(torch.zeros(5, 3)).shape
        torch.Size([5, 1])
    """
    inputs = _inputs(example)
    module = trained_network(model, weights, average=average, network=network)
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} if tensor.dim() else None for tensor in inputs)
    with torch.no_grad():
        return torch.export.export(module, inputs, dynamic_shapes=shapes)


def export_onnx(
    model: Model,
    path: str | os.PathLike[str],
    example: Any,
    *,
    weights: str | os.PathLike[str] | TrainingState | None = None,
    average: bool = False,
    network: str | None = None,
) -> None:
    """Write the trained network as an ONNX file, for any batch size.

    Args:
        model: as for `export_program`.
        path: the ``.onnx`` to write; what is there is replaced.
        example: as for `export_program`.
        weights: as for `export_program`.
        average: as for `export_program`.
        network: as for `export_program`.

    Raises:
        ImportError: if the extra is not installed.
        ValueError: if the name does not end in ``.onnx``.
        ModelError: as `export_program` does.

    Law:
        A reference evaluation gives the numbers of the network to 1e-6 of their size
        (``tests/exporting/test_graph.py``).
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"path: received {str(path)!r}; expected a name that ends in .onnx")
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "export_onnx needs onnx and onnxscript: pip install 'helios[onnx]'"
        ) from error
    program = export_program(model, example, weights=weights, average=average, network=network)
    written = torch.onnx.export(program, dynamo=True, verbose=False)
    assert written is not None
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        written.save(str(temporary))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def trained_network(
    model: Model,
    weights: str | os.PathLike[str] | TrainingState | None = None,
    *,
    average: bool = False,
    network: str | None = None,
) -> nn.Module:
    """Return a copy of the network on the CPU in eval mode, with the weights asked for.

    Args:
        model: as for `export_program`.
        weights: as for `export_program`.
        average: as for `export_program`.
        network: as for `export_program`.

    Raises:
        ModelError: as `export_program` does.
    """
    state = weights
    if isinstance(weights, (str, os.PathLike)):
        state = stored_state(read_checkpoint(Path(weights)))
    if not (state is None or isinstance(state, TrainingState)):
        raise TypeError(
            f"weights: received a {type(weights).__name__}; expected a checkpoint, a "
            "helios.TrainingState, or None"
        )
    if isinstance(state, TrainingState):
        model.prepare(state.seed)
    path = _path_of(model) if network is None else network
    try:
        found = model.get_submodule(path)
    except AttributeError as error:
        raise ModelError(
            f"network: received {path!r}, which the model does not have; expected one of "
            f"{', '.join(name for name, _ in model.named_children()) or 'none'}"
        ) from error
    trainer = model.__dict__.get("trainer")  # is no part of a network, and is not to be copied
    memo: dict[int, Any] = {} if trainer is None else {id(trainer): None}
    own = copy.deepcopy(found, memo)
    if isinstance(state, TrainingState):
        _load(own, _tensors(state, average=average), f"{path}." if path else "")
    elif average:
        raise ModelError(
            "average: received True without weights; expected a checkpoint or a state, which has it"
        )
    return own.cpu().eval().requires_grad_(False)


def _path_of(model: Model) -> str:
    """Return the path of what is the network of a model."""
    if type(model).forward is not nn.Module.forward:
        return ""
    children = [name for name, _ in model.named_children()]
    if len(children) == 1:
        return children[0]
    raise ModelError(
        f"network: received None, and {type(model).__name__} has no forward() and the modules "
        f"{', '.join(children) or 'none'}; name the one to export"
    )


def _tensors(state: TrainingState, *, average: bool) -> Mapping[str, torch.Tensor]:
    carry = take_carry(state)
    if not isinstance(carry, Carry):
        raise ModelError(
            "weights: received a state of a model with a step of its own; expected one with "
            "parameters by name. Load the weights into the model, and leave weights out"
        )
    if average and carry.average is None:
        raise ModelError("average: received True, and the state has none; give average=False")
    return {**carry.params, **(carry.average or {} if average else {}), **carry.buffers}


def _load(module: nn.Module, tensors: Mapping[str, torch.Tensor], prefix: str) -> None:
    """Copy tensors into a module by their paths; a tied one has the first of its names."""
    places = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad():
        for name, place in places.items():
            value = tensors.get(prefix + name)
            if value is None or value.shape != place.shape:
                raise ModelError(
                    f"weights: {prefix + name!r} is "
                    f"{'missing' if value is None else f'of shape {list(value.shape)}'}; expected "
                    f"{list(place.shape)}: they are those of another model"
                )
            place.copy_(value)


def _inputs(example: Any) -> tuple[torch.Tensor, ...]:
    inputs = example if isinstance(example, tuple) else (example,)
    if not inputs or not all(isinstance(part, torch.Tensor) for part in inputs):
        raise TypeError(
            f"example: received {type(example).__name__}; expected a tensor or a tuple of tensors, "
            "as the network is called with"
        )
    if any(part.dim() and len(part) < 2 for part in inputs):
        raise ModelError(
            "example: received a batch of fewer than 2 samples, from which a graph for any size "
            "cannot be told from one for that size alone; give at least 2"
        )
    return tuple(part.detach().cpu() for part in inputs)

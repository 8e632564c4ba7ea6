"""A table of a network: what its modules are, how many parameters they have, what they cost."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from helios.core.rng import preserved_rng
from helios.functional.binding import in_mode
from helios.functional.tree import leaves
from helios.model.imperative import ImperativeModel
from helios.model.model import Model
from helios.model.trained import modules_of

_INDENT = "  "


class Row(msgspec.Struct, frozen=True):
    """A module of a network.

    Args:
        path: where it is, empty for the network itself.
        kind: its class.
        depth: how many modules it lies in.
        parameters: numbers in the parameters of it and of what it holds; 0 for a module that an
            earlier row has counted.
        trained: those of them that require a gradient.
        shared_with: the path of the row that has counted this very module; None if none has.
        output: the shapes of the tensors that it returned, in its last call; empty if it was not
            called, or no batch is given.
        calls: how often it was called.
        flops: floating point operations of its calls, those of what it holds included, as
            ``torch.utils.flop_counter`` counts them: products, convolutions and attention; None
            without a batch. There are half as many multiply-accumulates.
    """

    path: str
    kind: str
    depth: int
    parameters: int
    trained: int
    shared_with: str | None = None
    output: tuple[tuple[int, ...], ...] = ()
    calls: int = 0
    flops: int | None = None


class Summary(msgspec.Struct, frozen=True):
    """A table of a network; printed, it is aligned text.

    Args:
        rows: the modules, in the order of ``named_modules``, down to the depth that was asked for.
        parameters: numbers in the parameters of the network, each counted once.
        trained: those of them that require a gradient.
        buffers: numbers in its buffers.
        size: bytes of parameters and buffers.
        flops: floating point operations of the forward pass of the batch; None without one.
    """

    rows: tuple[Row, ...]
    parameters: int
    trained: int
    buffers: int
    size: int
    flops: int | None = None

    def __str__(self) -> str:
        measured = self.flops is not None
        head = ["module", "type", "parameters", "trained"]
        table = [head + (["output", "MFLOPs"] if measured else [])]
        for row in self.rows:
            table.append(_cells(row, measured))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        right = {2, 3, 5}
        lines = [
            _INDENT.join(
                cell.rjust(width) if number in right else cell.ljust(width)
                for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ).rstrip()
            for cells in table
        ]
        lines.insert(1, "-" * max(map(len, lines)))
        total = (
            f"{self.parameters:,} parameters, {self.trained:,} of them trained; {self.buffers:,} "
            f"numbers in buffers; {self.size / 1e6:,.2f} MB"
        )
        if self.flops is not None:
            total += f"; {self.flops / 1e6:,.3f} MFLOPs forward"
        return "\n".join([*lines, lines[1], total])


def summary(model: nn.Module, batch: Any = None, *, depth: int | None = None) -> Summary:
    """Return a table of a network.

    With a batch the forward pass is run once, in evaluation mode and without gradients: the losses
    of a `helios.Model`, which see the batch as in training; of any other module, its call with the
    batch, which is spread if it is a tuple or a dict.

    Args:
        model: a `helios.Model` or any module. One whose ``setup`` has not run is copied first, and
            stays as it is.
        batch: (optional) one micro-batch; it is moved nowhere.
        depth: (optional) how deep the rows go: 0 for the network alone, 1 for the modules right in
            it. Totals count everything in any case.

    Raises:
        ValueError: if ``depth`` is negative.
        TypeError: if the model is no module, or a batch is given with a model that trains by side
            effect, which has no loss to call.

    Law:
        Model, random generators and gradients stay as they were, bit by bit
        (``tests/model/test_summary.py``).

    Example:
        >>> print(summary(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), torch.zeros(2, 4)))
        module  type        parameters  trained  output  MFLOPs
        -------------------------------------------------------
                Sequential          40       40  2x8      0.000
        0       Linear              40       40  2x8      0.000
        1       ReLU                 0        0  2x8      0.000
        -------------------------------------------------------
        40 parameters, 40 of them trained; 0 numbers in buffers; 0.00 MB; 0.000 MFLOPs forward
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: received a {type(model).__name__}; expected a torch.nn.Module")
    if depth is not None and (isinstance(depth, bool) or not isinstance(depth, int) or depth < 0):
        raise ValueError(f"depth: received {depth!r}; expected an int of at least 0, or None")
    if isinstance(model, Model) and not model._is_set_up:
        known = {id(one): one for one in (model._trainer,) if one is not None}
        model = copy.deepcopy(model, known)
        with preserved_rng():
            model.prepare()
    if isinstance(model, ImperativeModel):
        if batch is not None:
            raise TypeError(
                f"batch: received one for {type(model).__name__}, which trains by side effect and "
                "has no loss to call; expected none, or one of its networks as the model"
            )
        model = _gathered(model)
    measures = None if batch is None else _measure(model, batch)
    rows = _rows(model, measures)
    parameters = list(model.parameters())
    buffers = list(model.buffers())
    return Summary(
        tuple(row for row in rows if depth is None or row.depth <= depth),
        sum(map(_count, parameters)),
        sum(_count(p) for p in parameters if p.requires_grad),
        sum(map(_count, buffers)),
        sum(t.element_size() * t.numel() for t in (*parameters, *buffers) if not is_lazy(t)),
        None if measures is None else measures.flops,
    )


def _gathered(model: ImperativeModel) -> nn.Module:
    """Return a module that has the networks of a model, which are plain attributes there."""
    gathered: nn.Module = type(type(model).__name__, (nn.Module,), {})()
    for path, module in modules_of(vars(model)).items():
        gathered.add_module(path.replace(".", "_"), module)
    return gathered


class _Measures:
    """What a forward pass showed: calls, shapes and operations of each module, by identity."""

    def __init__(self) -> None:
        self.calls: dict[int, int] = {}
        self.shapes: dict[int, tuple[tuple[int, ...], ...]] = {}
        self.costs: dict[int, int] = {}
        self.flops = 0


def _rows(model: nn.Module, measures: _Measures | None) -> Iterator[Row]:
    first: dict[int, str] = {}
    # Shared modules are listed at each of their places.
    for path, module in model.named_modules(remove_duplicate=False):
        again = first.get(id(module))
        first.setdefault(id(module), path)
        holds = [] if again is not None else list(module.parameters())
        yield Row(
            path,
            type(module).__name__,
            path.count(".") + 1 if path else 0,
            sum(map(_count, holds)),
            sum(_count(p) for p in holds if p.requires_grad),
            again,
            () if measures is None else measures.shapes.get(id(module), ()),
            0 if measures is None else measures.calls.get(id(module), 0),
            None if measures is None else measures.costs.get(id(module), 0),
        )


def _measure(model: nn.Module, batch: Any) -> _Measures:
    # It takes a moment to import, and is wanted where operations are counted alone.
    from torch.utils.flop_counter import FlopCounterMode

    measures = _Measures()
    counter = FlopCounterMode(display=False)
    begun: list[int] = []

    def before(module: nn.Module, args: Any) -> None:
        begun.append(counter.get_total_flops())

    def after(module: nn.Module, args: Any, output: Any) -> None:
        key, cost = id(module), counter.get_total_flops() - begun.pop()
        measures.costs[key] = measures.costs.get(key, 0) + cost
        measures.calls[key] = measures.calls.get(key, 0) + 1
        measures.shapes[key] = _shapes(output)

    with contextlib.ExitStack() as stack:
        for module in model.modules():
            stack.callback(module.register_forward_pre_hook(before).remove)
            stack.callback(module.register_forward_hook(after).remove)
        stack.enter_context(preserved_rng())
        stack.enter_context(_same_buffers(model))
        stack.enter_context(in_mode(model, training=False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(counter)
        _forward(model, batch)
    measures.flops = counter.get_total_flops()
    if isinstance(model, Model):  # its losses are called, not the model itself
        measures.costs[id(model)], measures.calls[id(model)] = measures.flops, 1
    return measures


def _forward(model: nn.Module, batch: Any) -> None:
    if isinstance(model, Model):
        with model.precision.context(model.device.type):
            for _, loss in model._losses():
                loss(batch)
    elif isinstance(batch, dict):
        model(**batch)
    elif isinstance(batch, tuple):
        model(*batch)
    else:
        model(batch)


@contextlib.contextmanager
def _same_buffers(model: nn.Module) -> Iterator[None]:
    """Let a forward pass update copies of the buffers."""
    slots: Callable[[nn.Module], Any] = lambda module: module._buffers  # noqa: E731
    before = [(slots(module), dict(slots(module))) for module in model.modules()]
    try:
        for held, buffers in before:
            held.update({k: None if b is None else b.detach().clone() for k, b in buffers.items()})
        yield
    finally:
        for held, buffers in before:
            held.clear()
            held.update(buffers)


def _shapes(output: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(leaf.shape) for leaf in leaves(output) if isinstance(leaf, torch.Tensor))


def _count(tensor: torch.Tensor) -> int:
    return 0 if is_lazy(tensor) else tensor.numel()


def _cells(row: Row, measured: bool) -> list[str]:
    name = _INDENT * max(row.depth - 1, 0) + row.path.rpartition(".")[2]
    counts = [f"{row.parameters:,}", f"{row.trained:,}"]
    if row.shared_with is not None:
        counts = [f"as {row.shared_with}", ""]
    cells = [name, row.kind, *counts]
    if measured:
        cells.append(", ".join("x".join(map(str, s)) or "scalar" for s in row.output))
        cells.append(f"{(row.flops or 0) / 1e6:,.3f}" if row.calls else "")
    return cells

"""Which operator a step fails in: its name, the module that called it, and the line."""

from __future__ import annotations

import contextlib
import os
import re
import traceback
import warnings
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import msgspec
import torch
from torch import nn

from helios.functional.loss import read_loss
from helios.functional.tree import leaves

_SKIPPED = tuple(
    os.path.dirname(path) + os.sep for path in (torch.__file__, os.path.dirname(__file__))
)


class Culprit(msgspec.Struct, frozen=True):
    """An operator in a network.

    Args:
        operator: its name, such as ``"put_"`` or ``"SqrtBackward0"``.
        module: the path of the module that called it, empty for the model itself; None if that is
            not known.
        kind: the class of that module.
        line: where in the user's code it was called, empty if that is not known.

    Example:
        >>> print(Culprit("put_", "net.3", "Scatter", "File 'net.py', line 7, in forward"))
        put_ in net.3 (Scatter), File 'net.py', line 7, in forward
    """

    operator: str
    module: str | None = None
    kind: str = ""
    line: str = ""

    def __str__(self) -> str:
        place = ""
        if self.module is not None:
            place = f" in {self.module or 'the model itself'} ({self.kind})"
        return f"{self.operator}{place}" + (f", {self.line}" if self.line else "")


def from_traceback(trace: TracebackType | None, model: nn.Module, operator: str) -> Culprit | None:
    """Return the innermost module that a traceback passes through.

    Args:
        trace: of an exception.
        model: whose modules to look for.
        operator: what failed.

    Returns:
        None if it passes through none, as that of an error in a backward pass.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    found: nn.Module | None = None
    lines = traceback.extract_tb(trace)
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and id(owner) in paths:
            found = owner
        trace = trace.tb_next
    if found is None:
        return None
    return Culprit(operator, paths[id(found)], type(found).__name__, _line(lines))


def in_backward(
    model: Any, batch: Any, seed: Callable[[], None], *, check_nan: bool
) -> Culprit | None:
    """Run the losses of a batch again, and return the operator whose backward pass raises.

    What was added to gradients and buffers is of no use afterwards: the step has failed.

    Args:
        model: a `helios.Model` that holds the parameters of the step.
        batch: on its device.
        seed: seeds the generators as for the step.
        check_nan: whether NaN among the results of an operator counts as its failure.

    Returns:
        None if nothing raises.
    """
    calls = Calls(model)
    seed()
    begun: list[Any] = []
    with (
        calls,
        warnings.catch_warnings(),
        torch.enable_grad(),
        torch.autograd.set_detect_anomaly(True, check_nan=check_nan),
    ):
        warnings.simplefilter("ignore")
        for objective in model.objectives():
            with model.precision.context(model.device.type):
                output = objective.loss(batch)
            total = read_loss(output, objective.name).total
            calls.claim(total, "")
            for node in calls.nodes():
                node.register_prehook(lambda _, node=node: begun.append(node))
            wanted = [p for p in model.parameters() if p.requires_grad]
            try:
                torch.autograd.grad(total, wanted, allow_unused=True)
            except RuntimeError:
                if not begun:
                    return None
                return calls.culprit(begun[-1])
    return None


def in_forward(model: Any, batch: Any, seed: Callable[[], None]) -> dict[str, Culprit]:
    """Run the losses of a batch again, and return the first operators that make NaN, and infinity.

    An operator makes it of numbers that have none. An infinity may be as it should be, in a mask.

    Args:
        model: a `helios.Model` that holds the parameters of the step.
        batch: on its device.
        seed: seeds the generators as for the step.

    Returns:
        Operators by what they made, ``"infinity"`` or ``"NaN"``, of those that were found.
    """
    calls = Calls(model)
    origins = _origins(calls)
    seed()
    with calls, torch.no_grad(), origins, model.precision.context(model.device.type):
        for objective in model.objectives():
            objective.loss(batch)
    found = {"infinity": origins.infinite, "NaN": origins.nan}
    return {what: culprit for what, culprit in found.items() if culprit is not None}


class Calls:
    """While it is entered, notes which module is being called, and which made what of a graph.

    Args:
        model: whose modules.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules = dict(model.named_modules())
        self._stack = [""]
        self._owners: dict[Any, str] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Calls:
        for path, module in self._modules.items():
            if path:
                self._handles += [
                    module.register_forward_pre_hook(self._before(path), with_kwargs=True),
                    module.register_forward_hook(self._after(path)),
                ]
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    @property
    def path(self) -> str:
        """The path of the module that is being called."""
        return self._stack[-1]

    def kind(self, path: str) -> str:
        """Return the class of a module."""
        return type(self._modules[path]).__name__

    def nodes(self) -> list[Any]:
        """Return the nodes of the graph so far."""
        return list(self._owners)

    def claim(self, values: Any, path: str) -> None:
        """Note that what of a graph is nobody's yet was made by a module."""
        waiting = [leaf.grad_fn for leaf in leaves(values) if isinstance(leaf, torch.Tensor)]
        while waiting:
            node = waiting.pop()
            if node is None or node in self._owners:
                continue
            self._owners[node] = path
            waiting += [following for following, _ in node.next_functions]

    def culprit(self, node: Any) -> Culprit:
        """Return the forward call that made a node, under anomaly mode with its line."""
        path = self._owners[node]
        stack = node.metadata.get("traceback_") or []
        written = [re.sub(r"\s+", " ", entry).strip() for entry in stack]
        users = [entry for entry in written if not any(part in entry for part in _SKIPPED)]
        line = users[-1] if users else ""
        return Culprit(node.name(), path, self.kind(path), line)

    def _before(self, path: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.claim([args, kwargs], self.path)
            self._stack.append(path)

        return note

    def _after(self, path: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            self.claim(output, path)
            self._stack.pop()

        return note


@contextlib.contextmanager
def suppressed() -> Iterator[None]:
    """Pass over what goes wrong while a failure is looked into: it says nothing of the failure."""
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _origins(calls: Calls) -> Any:
    # The dispatch modes take a moment to import, and are wanted when something has failed alone.
    from torch.utils._python_dispatch import TorchDispatchMode

    class Origins(TorchDispatchMode):  # type: ignore[no-untyped-call]
        """Notes the first operators that make NaN, or infinity, of what is finite."""

        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.nan: Culprit | None = None
            self.infinite: Culprit | None = None

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            # An operator in place overwrites what it was given.
            nan_before, infinite_before = _has([args, kwargs], "isnan"), False
            if self.infinite is None:
                infinite_before = _has([args, kwargs], "isinf")
            output = func(*args, **kwargs)
            if self.nan is None and not nan_before and _has(output, "isnan"):
                self.nan = self._here(func)
            if self.infinite is None and not (nan_before or infinite_before):
                self.infinite = self._here(func) if _has(output, "isinf") else None
            return output

        def _here(self, func: Any) -> Culprit:
            name = func._schema.name.removeprefix("aten::")
            lines = traceback.extract_stack()
            return Culprit(name, calls.path, calls.kind(calls.path), _line(lines))

    return Origins()


def _has(values: Any, what: str) -> bool:
    test = getattr(torch, what)
    return any(
        bool(test(leaf).any())
        for leaf in leaves(values)
        if isinstance(leaf, torch.Tensor) and (leaf.is_floating_point() or leaf.is_complex())
    )


def _line(lines: traceback.StackSummary) -> str:
    """Return the innermost line that is neither torch's nor helios's own."""
    for entry in reversed(lines):
        if not entry.filename.startswith(_SKIPPED):
            code = f": {entry.line}" if entry.line else ""
            return f'File "{entry.filename}", line {entry.lineno}, in {entry.name}{code}'
    return ""

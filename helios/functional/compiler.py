"""``torch.compile`` for a traced step: what it needs to be told, and what its refusals mean."""

from __future__ import annotations

import contextlib
import functools
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from helios.errors import NotTraceableError
from helios.functional.traced import STAND_INS, Outcome, traced_step
from helios.functional.tree import clone

SHAPES = 8
"""Shapes of batches that have a graph of their own."""

_TRACED: WeakKeyDictionary[nn.Module, dict[Any, dict[Any, _Graph]]] = WeakKeyDictionary()
"""What was compiled for a model in this process, for the fits after the first."""


def backend_of(compile: bool | str) -> str | None:
    """Return what ``torch.compile`` is to compile with, None for nothing.

    Example:
        >>> backend_of(True), backend_of("aot_eager"), backend_of(False)
        ('inductor', 'aot_eager', None)
    """
    return ("inductor" if compile is True else compile) or None


class Compiler:
    """Compiles the traced steps of a model, each graph once in a process.

    There is one graph for each shape of a batch, so that the bits of a step do not depend on the
    batches before it; after `SHAPES` shapes, one graph more serves all others. The results of
    compiling are cached on disk as torch caches them.

    Tracing looks at the model's Python code: a change of what that code reads, such as an
    attribute, traces it anew. How often is bounded by torch's ``recompile_limit``.

    Args:
        model: whose steps they are.
        backend: what ``torch.compile`` compiles with.

    Raises:
        NotTraceableError: if this torch cannot trace a step.
    """

    def __init__(self, model: nn.Module, backend: str) -> None:
        _prepare()
        self._graphs = _TRACED.setdefault(model, {})
        self._backend = backend
        self._device = next(model.parameters()).device

    def __call__(self, kind: Any, *args: Any) -> Outcome:
        """Run `traced_step`, compiled.

        Args:
            kind: what of parameters, optimizer state and average a graph is compiled for: their
                shapes, strides and dtypes. Nothing else looks at them from step to step.
            args: those of `traced_step`.

        Raises:
            NotTraceableError: if it cannot be compiled; nothing was changed then.
        """
        windows, batch, update = args[4], args[7], args[8]
        place = self._backend, kind, update, bool(windows)
        graph = self._graph(place, tuple(_shapes(batch)))
        failures: Any = torch._dynamo.exc
        try:
            outcome = graph(*args)
        except failures.FailOnRecompileLimitHit as error:
            raise NotTraceableError(
                "something that the model's Python code reads changes from step to step, and each "
                "time it would have to be compiled again"
            ) from error
        except failures.TorchDynamoException as error:
            raise NotTraceableError(reason(error)) from error
        # The memory of a CUDA graph is written again by the next step.
        return clone(outcome) if self._device.type == "cuda" else outcome

    def _graph(self, place: Any, shapes: Any) -> _Graph:
        known = self._graphs.setdefault(place, {})
        graph = known.get(shapes)
        if graph is None and len(known) >= SHAPES:
            shapes = None
            graph = known.get(shapes)
        if graph is None:
            graph = known[shapes] = _Graph(self._backend, self._device, dynamic=shapes is None)
        return graph


class _Graph:
    """`traced_step` for one kind of state, place in a window and shape of a batch."""

    def __init__(self, backend: str, device: torch.device, *, dynamic: bool) -> None:
        # torch keeps what it compiled, and counts how often, by the code object: each graph of
        # each model has one of its own.
        code = traced_step.__code__.replace()
        own = types.FunctionType(code, traced_step.__globals__, traced_step.__name__)
        self._make = functools.partial(
            torch.compile, own, fullgraph=True, dynamic=dynamic, backend=backend
        )
        # Calling kernels one by one costs as much as small ones take: C++ calls them on a CPU, and
        # CUDA by itself.
        options = {"cpu": "cpp_wrapper", "cuda": "triton.cudagraphs"}
        option = options.get(device.type) if backend == "inductor" else None
        self._function: Any = self._compiled(option)
        self._plain: Any = self._compiled(None) if option == "cpp_wrapper" else None
        self._is_traced = False

    def _compiled(self, option: str | None) -> Any:
        options: dict[str, Any] = {"guard_filter_fn": _worth_a_look}
        if option is not None:
            options[option] = True
        return self._make(options=options)

    def __call__(self, *args: Any) -> Outcome:
        if self._is_traced:
            with contextlib.suppress(torch._dynamo.exc.Unsupported):
                again: Outcome = self._function(*args)
                return again
            # What the graph rests on has changed, and it is to be traced again. Nothing has run.
        try:
            with torch._dynamo.config.patch(trace_autograd_ops=True):
                outcome = self._traced(args)
        finally:
            for buffer in args[2].values():
                # Tracing marks what it finds in the module, and a marked tensor is no plain one.
                vars(buffer).pop("_dynamo_static_input_type", None)
        self._is_traced = True
        return outcome

    def _traced(self, args: tuple[Any, ...]) -> Outcome:
        try:
            outcome: Outcome = self._function(*args)
        except torch._dynamo.exc.BackendCompilerFailed:
            if self._plain is None:
                raise
            # The younger way knows fewer operators.
            self._function, self._plain = self._plain, None
            outcome = self._function(*args)
        return outcome


def _worth_a_look(guards: Sequence[Any]) -> list[bool]:
    """Say what is to be compared before each run of a graph with what it was compiled for.

    That is all that the user's code reads, and the batch. The tensors of the state are compared
    once, when they are first seen: looking at each of them takes as long as a small layer.
    """
    return [not guard.name.startswith(_OWN) for guard in guards]


_OWN = ("L['params']", "L['slots']", "L['average']", "L['numbers']")


def _prepare() -> None:
    """Let torch trace what a step does.

    Raises:
        NotTraceableError: if it cannot.
    """
    import torch._dynamo.config as config
    from torch._dynamo.decorators import substitute_in_graph

    if not hasattr(config, "trace_autograd_ops"):
        raise NotTraceableError(
            f"torch {torch.__version__} cannot trace the backward pass inside of a step; torch "
            "2.13 can"
        )
    for struct, stand_in in STAND_INS.items():
        if struct not in _substituted:
            _substituted.add(struct)
            substitute_in_graph(struct, is_embedded_type=True, skip_signature_check=True)(
                _maker(stand_in)
            )


_substituted: set[type] = set()


def _maker(stand_in: Any) -> Any:
    def make(*args: Any, **kwargs: Any) -> Any:
        return stand_in(*args, **kwargs)

    return make


def _shapes(batch: Any) -> Iterator[Any]:
    """Yield what of a batch a graph is compiled for."""
    if isinstance(batch, torch.Tensor):
        yield batch.shape, batch.dtype
    elif isinstance(batch, (list, tuple)):
        for part in batch:
            yield from _shapes(part)
    elif isinstance(batch, Mapping):
        for name, part in batch.items():
            yield name
            yield from _shapes(part)
    else:
        yield type(batch)


def reason(error: BaseException) -> str:
    """Return in a line why torch did not compile, and where the user's code stands that it read.

    Example:
        >>> reason(RuntimeError("Unsupported: print"))
        'Unsupported: print'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = " ".join(lines[:2]) if "raised:" in "".join(lines[:1]) else "".join(lines[:1])
    line = line.rstrip(".") or type(error).__name__
    _, _, user_code = str(error).partition("from user code:")
    places = re.findall(r'File "([^"]+)", line (\d+)', user_code)
    if places:
        file, number = places[-1]
        line += f" ({file}, line {number})"
    return line

"""Hypothesis strategies for plans, states and tensors: what the laws of helios quantify over."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch

from helios.functional.plan import Plan
from helios.functional.state import TrainingState, TrainingUnit
from helios.functional.step import make_step
from helios.functional.trainable import init_state
from helios.testing.shell import Data, Script, World, drive, written_and_read

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError(
        "helios.testing.strategies needs hypothesis, which is not installed; "
        "pip install 'helios[testing]'"
    ) from error

_MAYBE = st.sampled_from([None, 1, 2, 3, 4])
_KINDS = st.sampled_from(["EpochStart", "Batch", "Validate", "EpochEnd", "Checkpoint"])
_STOPS = st.frozensets(st.tuples(_KINDS, st.integers(0, 20)), max_size=2)
_IMPROVED = st.integers(2, 127).map(lambda bits: tuple(x == "1" for x in f"{bits:b}"[1:]))
_SIZES = st.lists(st.integers(1, 7), min_size=1, max_size=3)
_SHAPES = st.lists(st.integers(0, 3), max_size=4)


def _plan(
    early_stop: bool | None,
    data: Data,
    unit: TrainingUnit,
    total: int | None,
    accumulation: int,
    frequencies: tuple[int | None, int | None, int | None],
    patience: int | None,
    save_final: bool,
) -> Plan:
    valid, chkpt, log = frequencies
    if early_stop:
        valid, patience = valid or 1, patience or 1
    elif valid is None or early_stop is False:
        patience = None
    if total is not None and unit is TrainingUnit.EPOCH:
        total = (total + 1) // 2
    return Plan(
        unit=unit,
        total_steps=total,
        batches_per_epoch=data.sizes[0] if data.sized else None,
        accumulation_steps=accumulation,
        valid_frequency=valid,
        chkpt_frequency=chkpt,
        print_frequency=log,
        early_stop_cycles=patience,
        save_final=save_final,
    )


@functools.cache
def datas(*, sized: bool | None = None) -> st.SearchStrategy[Data]:
    """Draw data: epochs of one known size, of one unknown size, or of several.

    Args:
        sized: whether the size is known, None for either.
    """
    return st.builds(
        lambda sizes, sized: Data(tuple(sizes[:1] if sized else sizes), sized),
        _SIZES,
        st.booleans() if sized is None else st.just(sized),
    )


@functools.cache
def scripts(*, stops: bool = True) -> st.SearchStrategy[Script]:
    """Draw scripts: which validations improve, and where a stop is asked for."""
    return st.builds(Script, _IMPROVED, _STOPS if stops else st.just(frozenset()))


@functools.cache
def worlds(
    *,
    unit: TrainingUnit | None = None,
    finite: bool = True,
    stops: bool = False,
    early_stop: bool | None = None,
) -> st.SearchStrategy[World]:
    """Draw a plan, its data and its script.

    Args:
        unit: what the plan counts, None for either.
        finite: whether it has a total.
        stops: whether stops are asked for.
        early_stop: whether the plan stops early, None for either.
    """
    return st.builds(
        lambda data, script, *plan: World(_plan(early_stop, data, *plan), data, script),
        datas(),
        scripts(stops=stops),
        st.sampled_from(TrainingUnit) if unit is None else st.just(unit),
        st.integers(1, 10) if finite else st.none(),
        st.integers(1, 5),
        st.tuples(_MAYBE, _MAYBE, _MAYBE),
        st.sampled_from([None, 1, 2, 3]),
        st.booleans(),
    )


@st.composite
def reachable(draw: st.DrawFn, world: World) -> TrainingState:
    """Draw a state that a run of ``world`` leaves behind when it is stopped somewhere."""
    at = draw(st.integers(0, 40))
    rows = drive(world, limit=500, stop_at=lambda index, event: index >= at).rows
    return written_and_read(rows[-1].state)


def plans(
    *, unit: TrainingUnit | None = None, finite: bool = True, early_stop: bool | None = None
) -> st.SearchStrategy[Plan]:
    """Draw plans of short runs, of data whose size is known and of data whose size is not.

    Args:
        unit: what the plan counts, None for either.
        finite: whether it has a total.
        early_stop: whether the plan stops early, None for either.

    Example:
        >>> from hypothesis import given, settings
        >>> @settings(max_examples=20, derandomize=True, database=None)
        ... @given(plans(finite=True))
        ... def test_a_plan_has_an_end(plan):
        ...     assert plan.total_steps >= 1
        >>> test_a_plan_has_an_end()
    """
    return worlds(unit=unit, finite=finite, early_stop=early_stop).map(lambda world: world.plan)


@st.composite
def states(draw: st.DrawFn, plan: Plan | None = None) -> TrainingState:
    """Draw the counters of a state that a run of a plan leaves behind when it is stopped somewhere.

    It has no carry: see `model_states` for states of a model.

    Args:
        draw: given by Hypothesis; leave it out.
        plan: (optional) the plan; by default one is drawn.

    Example:
        >>> from hypothesis import given, settings
        >>> import helios
        >>> plan = Plan(total_steps=2, batches_per_epoch=5)
        >>> @settings(max_examples=20, derandomize=True, database=None)
        ... @given(states(plan))
        ... def test_a_state_has_its_end_before_it(state):
        ...     left = [e for e in helios.schedule(plan, state) if isinstance(e, Batch)]
        ...     assert state.global_iteration + len(left) == 10
        >>> from helios.functional.schedule import Batch
        >>> test_a_state_has_its_end_before_it()
    """
    if plan is None:
        return draw(reachable(draw(worlds())))
    size = plan.batches_per_epoch
    data = draw(datas(sized=False)) if size is None else Data((size,), sized=True)
    return draw(reachable(World(plan, data, draw(scripts(stops=False)))))


@st.composite
def model_states(
    draw: st.DrawFn, model: Any, batches: Sequence[Any], *, plan: Plan | None = None
) -> TrainingState:
    """Draw a state of a model after some of the given micro-batches, under any seed.

    Parameters are those that the model was set up with; the seed decides what its loss draws.

    Args:
        draw: given by Hypothesis; leave it out.
        model: a `helios.Model`.
        batches: micro-batches that it is trained on, from none up to all of them, in order.
        plan: (optional) where accumulation windows end, so that states inside of one are drawn too.

    Example:
        >>> from hypothesis import given, settings
        >>> import helios
        >>> class Line(helios.Model):
        ...     def setup(self, fast_init=False):
        ...         self.net = torch.nn.Linear(2, 1)
        ...         self.optimizer = helios.optim.SGD(lr=0.1)
        ...
        ...     def loss(self, batch):
        ...         return self.net(batch).square().mean()
        >>> drawn = model_states(Line("line"), [torch.ones(4, 2)] * 3)
        >>> @settings(max_examples=10, derandomize=True, database=None, deadline=None)
        ... @given(drawn)
        ... def test_a_state_survives_bytes(state):
        ...     assert TrainingState.from_bytes(state.to_bytes()) == state
        >>> test_a_state_survives_bytes()
    """
    step = make_step(model, plan)
    state = init_state(model, draw(st.integers(0, 2**63 - 1)))
    for batch in batches[: draw(st.integers(0, len(batches)))]:
        state = step(state, batch)
    return state


@st.composite
def whole_tensors(draw: st.DrawFn, dtypes: st.SearchStrategy[torch.dtype]) -> torch.Tensor:
    """Draw a tensor that is the whole of its memory, with its axes in any order."""
    dtype = draw(dtypes)
    shape = draw(_SHAPES)
    size = math.prod(shape) * dtype.itemsize
    bits = draw(st.binary(min_size=size, max_size=size))
    if dtype is torch.bool:
        bits = bytes(b & 1 for b in bits)
    flat = torch.frombuffer(bytearray(bits), dtype=dtype) if bits else torch.empty(0, dtype=dtype)
    order = draw(st.permutations(range(len(shape))))
    tensor = flat.reshape([shape[d] for d in order])
    return tensor.permute([order.index(d) for d in range(len(shape))])

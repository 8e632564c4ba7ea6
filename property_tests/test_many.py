"""Members that are trained at once end where runs of them alone end, up to rounding."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import helios
from helios.functional.stacked import member_state, stack_carries
from helios.functional.tree import leaves_with_paths
from property_tests.fits import a_share
from tests import zoo
from tests.trainer.runs import Batches

NOT_OF_ONE = {"average_iter_time", "early_stop_count"}
"""Counters that are of all members, or of the clock."""

OPTIMIZERS = {
    "sgd": lambda lr, wd: helios.optim.SGD(lr=lr, momentum=0.9, weight_decay=wd),
    "nesterov": lambda lr, wd: helios.optim.SGD(lr=lr, momentum=0.9, nesterov=True),
    "plain": lambda lr, wd: helios.optim.SGD(lr=lr, weight_decay=wd),
    "adam": lambda lr, wd: helios.optim.Adam(lr=lr, weight_decay=wd),
    "adamw": lambda lr, wd: helios.optim.AdamW(lr=lr, weight_decay=wd, amsgrad=True),
    "loops": lambda lr, wd: helios.optim.AdamW(lr=lr, weight_decay=wd, foreach=False),
    "rmsprop": lambda lr, wd: helios.optim.RMSprop(lr=lr, weight_decay=wd, momentum=0.5),
    "nadam": lambda lr, wd: helios.optim.NAdam(lr=lr, weight_decay=wd),
    "asgd": lambda lr, wd: helios.optim.ASGD(lr=lr, weight_decay=wd),
    "rprop": lambda lr, wd: helios.optim.Rprop(lr=lr),
}


class Net(helios.Model):
    """A network of the drawn kind, in the drawn precision."""

    def __init__(self, name: str, kind: dict[str, Any], member: int) -> None:
        super().__init__(name)
        self.kind, self.member = kind, member

    def setup(self, fast_init: bool = False) -> None:
        kind = self.kind
        # A bias before a normalisation has no gradient but rounding, which Adam would blow up.
        layers = [nn.Linear(3, 5, bias=not kind["norm"]), nn.Tanh(), nn.Linear(5, 1)]
        if kind["norm"]:
            layers.insert(1, nn.BatchNorm1d(5))
        self.net = nn.Sequential(*layers).to(kind["dtype"])
        if kind["frozen"]:
            self.net[0].weight.requires_grad_(False)
        lr, wd = (0.02, 0.01) if kind["equal"] else (0.02 / (1 + self.member), 0.1 * self.member)
        rate = (lambda count: lr / (1 + count)) if kind["rate"] else lr
        rule = OPTIMIZERS[kind["optimizer"]](rate, wd)
        if kind["clip"] == "norm":
            rule = helios.optim.chain(clip=helios.optim.clip_by_global_norm(0.1), rule=rule)
        elif kind["clip"] == "value":
            rule = helios.optim.chain(clip=helios.optim.clip_by_value(0.01), rule=rule)
        self.optimizer = rule
        if kind["average"]:
            self.average = helios.optim.average(decay=0.9, start=2)

    def loss(self, batch: Any) -> Any:
        x, y = batch
        errors = (self.net(x) - y).square()
        metrics = {"size": errors.detach().sqrt().squeeze(1), "least": errors.min()}
        if self.kind["weighted"]:
            return helios.Loss(errors.sum(), weight=x.abs().sum(), metrics=metrics)
        return errors.mean(), metrics


@st.composite
def kinds(draw: Any, dtype: torch.dtype) -> dict[str, Any]:
    """Draw a kind of network and training."""
    return {
        "dtype": dtype,
        "optimizer": draw(st.sampled_from(sorted(OPTIMIZERS))),
        "clip": draw(st.sampled_from([None, "norm", "value"])),
        **{
            name: draw(st.booleans())
            for name in ("norm", "frozen", "equal", "rate", "average", "weighted")
        },
    }


arguments = st.fixed_dictionaries(
    {
        "train_unit": st.sampled_from(["epoch", "iteration"]),
        "total_steps": st.integers(1, 4),
        "accumulation_steps": st.integers(1, 3),
        "valid_frequency": st.sampled_from([None, 1]),
        "random_seed": st.integers(0, 2**40),
    }
)


def trained_alone(model: helios.Model, seed: int, data: Any, **given: Any) -> Any:
    model.prepare(seed)
    trainer = helios.Trainer(use_cpu=True, print_banner=False, **given)
    assert trainer.fit(model, data)
    return trainer.state


def trained_at_once(models: list[Any], seeds: list[int], data: Any, **given: Any) -> Any:
    trainer = helios.Trainer(use_cpu=True, print_banner=False, **given)
    trainer.train_exceptions.append(Exception)
    with contextlib.redirect_stdout(io.StringIO()):
        assert helios.fit_many(trainer, models, data, seeds=seeds)
    return trainer.state


def furthest(a: Any, b: Any) -> float:
    """Return the largest difference of two states, relative to 1 or what is larger."""
    left, right = leaves_with_paths(a), leaves_with_paths(b)
    assert [path for path, _ in left] == [path for path, _ in right]
    worst = 0.0
    for (path, x), (_, y) in zip(left, right, strict=True):
        if path in NOT_OF_ONE:
            continue
        assert type(x) is type(y), path
        if isinstance(x, torch.Tensor):
            assert (x.dtype, x.shape) == (y.dtype, y.shape), path
            x, y = x.double(), y.double()
            if x.numel():
                worst = max(worst, float(((x - y).abs() / y.abs().clamp(min=1)).max()))
        elif isinstance(x, float):
            worst = max(worst, abs(x - y) / max(abs(y), 1))
        else:
            assert x == y, path
    return worst


def law(kind: dict[str, Any], given: dict[str, Any], seed: int, tolerance: float) -> None:
    dtype = kind["dtype"]

    def data() -> Batches:
        batches = zoo.regression(5, size=4, seed=seed, dtype=dtype)
        return Batches(batches[:4], batches[4:])

    seeds = [seed, seed + 1, seed]
    models = [Net(f"m{k}", kind, k) for k in range(3)]
    together = trained_at_once(models, seeds, data(), **given)
    for k, own in enumerate(seeds):
        alone = trained_alone(Net("alone", kind, k), own, data(), **given)
        assert furthest(member_state(together, k), alone) <= tolerance
        for name, parameter in models[k].named_parameters():
            assert torch.equal(parameter, together.carry.params[name][k])


@a_share(8)
@given(kinds(torch.float64), arguments, st.integers(0, 1000))
def test_members_end_where_they_end_alone_in_float64(kind, given, seed):
    law(kind, given, seed, 1e-13)


@a_share(16)
@given(kinds(torch.float32), arguments, st.integers(0, 1000))
def test_members_end_where_they_end_alone_in_float32(kind, given, seed):
    # Rprop looks at signs, and RMSprop divides by roots of nearly nothing: rounding counts there.
    if kind["optimizer"] in ("rprop", "rmsprop"):
        kind = {**kind, "optimizer": "adamw"}
    law(kind, given, seed, 2e-6)


@a_share(16)
@given(kinds(torch.float64), arguments, st.integers(0, 1000))
def test_the_states_of_the_members_stack_to_that_of_all(kind, given, seed):
    batches = Batches(zoo.regression(3, seed=seed, dtype=torch.float64))
    models = [Net(f"m{k}", kind, k) for k in range(2)]
    given = {**given, "valid_frequency": None}
    state = trained_at_once(models, [1, 2], batches, **given)
    again = stack_carries([member_state(state, k).carry for k in range(2)])
    assert helios.first_difference(again, state.carry) is None

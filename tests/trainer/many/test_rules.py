"""The optimizers of several members as one give each member the update of its own."""

from __future__ import annotations

import pytest
import torch

import helios
from helios.errors import ModelError
from helios.functional.stacked import rows, stack, unstack
from helios.functional.tree import clone
from helios.optim.forms import FORMS
from helios.trainer.many import sweep
from helios.trainer.many.rules import Rules
from helios.trainer.many.sweep import Sweep

CLASSES = sorted(FORMS, key=lambda cls: cls.__name__)
SIZES = {"matrix": (3, 2), "vector": (4,), "number": ()}


def params(member: int, dtype=torch.float64):
    generator = torch.Generator().manual_seed(member)
    return {n: torch.randn(size, dtype=dtype, generator=generator) for n, size in SIZES.items()}


def grads(update: int, dtype=torch.float64):
    return stack([params(100 + 10 * update + member, dtype) for member in range(3)])


def optimizer(cls, member, **options):
    return helios.optim.TorchOptimizer(cls, lr=0.02 + 0.01 * member, **options)


def check(optimizers, updates=5, dtype=torch.float64, skip=(), missing=(), tolerance=1e-13):
    """Compare updates of all at once with those of each member's optimizer."""
    alone = [params(member, dtype) for member in range(3)]
    states = [rule.init(p) for rule, p in zip(optimizers, alone, strict=True)]
    together, state = stack(alone), stack(states)
    rules = Rules(optimizers, "objective 'loss'", is_complex=dtype.is_complex)
    for update in range(updates):
        given = {n: g for n, g in grads(update, dtype).items() if (update, n) not in missing}
        who = [member for member in range(3) if (update, member) not in skip]
        for member in who:
            alone[member], states[member] = optimizers[member].update(
                clone(rows(given, member)), states[member], alone[member]
            )
        rules.update(clone(given), state, together, who)
        for member in range(3):
            close(rows(together, member), alone[member], tolerance)
    for member in range(3):
        close(unstack(state, member), states[member], tolerance)


def close(received, expected, tolerance):
    received = dict(helios.functional.tree.leaves_with_paths(received))
    expected = dict(helios.functional.tree.leaves_with_paths(expected))
    assert list(received) == list(expected)
    for path, value in expected.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(received[path], value, rtol=tolerance, atol=tolerance)
        else:
            assert received[path] == value, path


@pytest.fixture
def swept(monkeypatch):
    """Count the updates that take the sweep."""
    counted = []
    call = Sweep.__call__

    def counting(self, *args):
        counted.append(None)
        call(self, *args)

    monkeypatch.setattr(sweep.Sweep, "__call__", counting)
    return counted


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_equal_optimizers(cls):
    check([optimizer(cls, 0) for _ in range(3)])


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_different_rates(cls, swept):
    check([optimizer(cls, member) for member in range(3)])
    assert bool(swept) == (cls not in sweep.NOT_LINEAR)


@pytest.mark.parametrize(
    "cls", [c for c in CLASSES if c is not torch.optim.Rprop], ids=lambda cls: cls.__name__
)
def test_different_decays(cls, swept):
    check([optimizer(cls, member, weight_decay=0.1 * member) for member in range(3)])
    assert bool(swept) == (cls not in sweep.NOT_LINEAR)


@pytest.mark.parametrize("cls", [torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adam])
def test_decoupled_decays(cls, swept):
    options = {"decoupled_weight_decay": True}
    check([optimizer(cls, member, weight_decay=0.1 * member, **options) for member in range(3)])
    assert swept


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.5}),
        (torch.optim.AdamW, {"amsgrad": True}),
        (torch.optim.AdamW, {"foreach": True}),
        (torch.optim.AdamW, {"fused": True}),
        (torch.optim.AdamW, {"maximize": True}),
        (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
        (torch.optim.Adagrad, {"lr_decay": 0.1, "initial_accumulator_value": 0.5}),
    ],
)
def test_further_options(cls, options):
    for factor in (0, 1):
        check([optimizer(cls, factor * member, weight_decay=0.1, **options) for member in range(3)])


def test_rates_that_are_functions(swept):
    rates = [helios.optim.rates.cosine(0.1 * (k + 1), updates=6) for k in range(3)]
    check([helios.optim.AdamW(lr=rate) for rate in rates])
    assert swept


def test_other_numbers_may_differ_too():
    check([helios.optim.Adam(lr=0.1, betas=(0.5 + 0.1 * k, 0.9), eps=10.0**-k) for k in range(3)])


def test_complex_parameters():
    check([helios.optim.Adam(lr=0.1) for _ in range(3)], dtype=torch.complex128)
    check([helios.optim.Adam(lr=0.1 * (k + 1)) for k in range(3)], dtype=torch.complex128)


def test_single_precision():
    check(
        [helios.optim.AdamW(lr=0.1 * (k + 1)) for k in range(3)], 5, torch.float32, tolerance=2e-6
    )


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("first", [0, 2])
def test_members_whose_update_is_left_out(cls, first):
    # Afterwards their counts are not those of the others.
    check([optimizer(cls, 0) for _ in range(3)], skip={(first, 1), (first + 1, 1), (first, 2)})


def test_a_parameter_without_a_gradient_stays_as_it_is():
    missing = {(0, "vector"), (1, "vector"), (3, "matrix")}
    check([helios.optim.AdamW(lr=0.1) for _ in range(3)], missing=missing)
    check([helios.optim.AdamW(lr=0.1 * (k + 1)) for k in range(3)], missing=missing)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_members_whose_counts_are_equal_and_whose_steps_are_not(cls):
    # Each member has left out one update, and a parameter had no gradient in that of the first.
    skip = {(1, 0), (2, 1), (3, 2)}
    check([optimizer(cls, 0) for _ in range(3)], 7, skip=skip, missing={(1, "vector")})


def test_going_from_one_set_of_gradients_to_another():
    missing = {(2, "matrix"), (4, "vector"), (5, "vector")}
    check([helios.optim.Adam(lr=0.1) for _ in range(3)], 8, missing=missing)
    check([helios.optim.Adam(lr=0.1) for _ in range(3)], 8, skip={(3, 1)}, missing=missing)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, float("inf")])
def test_each_member_is_clipped_by_its_own_norm(norm_type):
    def rule(k):
        clip = helios.optim.clip_by_global_norm(0.5, norm_type)
        return helios.optim.chain(clip=clip, sgd=helios.optim.SGD(lr=0.1 * (k + 1), momentum=0.9))

    check([rule(0) for _ in range(3)])
    check([rule(k) for k in range(3)])


@pytest.mark.parametrize("cls", ["Adafactor", "Muon"])
def test_a_rule_that_looks_at_more_than_one_element_is_refused(cls):
    with pytest.raises(ModelError, match=rf"{cls}.*not known to treat every element"):
        Rules([helios.optim.NAMED[cls]()] * 2, "objective 'loss'")


def test_a_rule_of_the_user_is_refused():
    class Own:
        def init(self, params):
            return {}

        def update(self, grads, opt_state, params, *, donate=False):
            return params, opt_state

    with pytest.raises(ModelError, match="not known to treat every element"):
        Rules([Own(), Own()], "objective 'loss'")


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (helios.optim.Adam(lr=0.1), "the class"),
        (helios.optim.SGD(lr=0.1, momentum=0.9, nesterov=True), "the options"),
        (
            helios.optim.chain(
                clip=helios.optim.clip_by_value(1.0), sgd=helios.optim.SGD(lr=0.1, momentum=0.9)
            ),
            "gradient clipping",
        ),
    ],
)
def test_rules_of_different_kinds_are_refused(other, what):
    first = helios.optim.SGD(lr=0.1, momentum=0.9)
    with pytest.raises(ModelError, match=f"objective 'loss': {what} of member 1 is"):
        Rules([first, other], "objective 'loss'")

from __future__ import annotations

import math
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from helios.functional.tree import first_difference
from helios.optim import SGD, rates
from tests.optim.runs import functional, make_grads, make_params, native

UPDATES = 400
# The schedulers of torch multiply their way from one rate to the next; each step rounds.
RECURSION = 1e-12

VALUES: list[Any] = [
    rates.constant(0.1),
    rates.linear_warmup(0.3, 100),
    rates.linear_warmup(0.3, 100, start=0.1),
    rates.cosine(0.3, 100, end=0.01),
    rates.cosine_restarts(0.3, 10, factor=2, end=0.01),
    rates.multi_step(0.3, [3, 7, 7, 300], gamma=0.5),
    rates.exponential(0.3, 0.99),
    rates.polynomial(0.3, 100, power=2.0, end=0.01),
    rates.one_cycle(0.3, 100),
    rates.joined([(rates.linear_warmup(0.3, 10), 10), (rates.constant(0.3), None)]),
    rates.warmup_cosine(0.3, 10, 100),
]


def scheduled(base: float, updates: int, make: Any) -> list[float]:
    """The rates that a torch scheduler gives before each of some updates."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base, momentum=0.9)
    scheduler = make(optimizer)
    history = [optimizer.param_groups[0]["lr"]]
    for _ in range(updates - 1):
        optimizer.step()
        scheduler.step()
        history.append(optimizer.param_groups[0]["lr"])
    return history


def assert_near(rate: Any, expected: list[float]) -> None:
    # The absolute part is for rates of 0, which the recursions of torch reach up to rounding.
    for count, value in enumerate(expected):
        assert math.isclose(rate(count), value, rel_tol=RECURSION, abs_tol=1e-15), count


def test_constant_and_joined_equal_constant_lr() -> None:
    expected = scheduled(0.3, UPDATES, lambda o: lr_scheduler.ConstantLR(o, 0.5, 100))
    rate = rates.joined([(rates.constant(0.15), 100), (rates.constant(0.3), None)])
    assert_near(rate, expected)


@pytest.mark.parametrize("factor", [0.1, 0.5, 1.0])
def test_linear_warmup_equals_linear_lr(factor: float) -> None:
    expected = scheduled(
        0.3, UPDATES, lambda o: lr_scheduler.LinearLR(o, factor, 1.0, total_iters=100)
    )
    assert_near(rates.linear_warmup(0.3, 100, start=0.3 * factor), expected)


@pytest.mark.parametrize("end", [0.0, 0.01])
def test_cosine_equals_cosine_annealing_lr(end: float) -> None:
    expected = scheduled(
        0.3, UPDATES + 1, lambda o: lr_scheduler.CosineAnnealingLR(o, UPDATES, eta_min=end)
    )
    # Near the end the recursion divides by almost nothing, and torch's own rate is off by more.
    assert_near(rates.cosine(0.3, UPDATES, end), expected[:300])
    for count, value in enumerate(expected):
        assert rates.cosine(0.3, UPDATES, end)(count) == pytest.approx(value, abs=1e-13)


def test_cosine_stays_at_its_end() -> None:
    assert [rates.cosine(0.3, 10, 0.01)(count) for count in (10, 11, 10**9)] == [0.01] * 3


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_cosine_restarts_equal_cosine_annealing_warm_restarts(factor: int) -> None:
    expected = scheduled(
        0.3,
        UPDATES,
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 7, factor, eta_min=0.01),
    )
    rate = rates.cosine_restarts(0.3, 7, factor, end=0.01)
    assert [rate(count) for count in range(UPDATES)] == expected


@pytest.mark.parametrize("factor", [2, 3, 10])
def test_cosine_restarts_begin_exactly_however_late(factor: int) -> None:
    rate = rates.cosine_restarts(1.0, 5, factor)
    begin, length = 0, 5
    for _ in range(30):
        assert rate(begin) == 1.0
        assert begin == 0 or rate(begin - 1) < 1.0
        begin, length = begin + length, length * factor


def test_multi_step_equals_multi_step_lr() -> None:
    milestones = [3, 7, 7, 300]
    expected = scheduled(0.3, UPDATES, lambda o: lr_scheduler.MultiStepLR(o, milestones, 0.5))
    assert_near(rates.multi_step(0.3, milestones, 0.5), expected)


def test_exponential_equals_exponential_lr() -> None:
    expected = scheduled(0.3, UPDATES, lambda o: lr_scheduler.ExponentialLR(o, 0.99))
    assert_near(rates.exponential(0.3, 0.99), expected)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_polynomial_equals_polynomial_lr(power: float) -> None:
    expected = scheduled(0.3, UPDATES, lambda o: lr_scheduler.PolynomialLR(o, 300, power))
    assert_near(rates.polynomial(0.3, 300, power), expected)


def test_polynomial_ends_at_its_end() -> None:
    rate = rates.polynomial(0.3, 10, end=0.1)
    assert [rate(0), rate(5), rate(10), rate(11)] == pytest.approx([0.3, 0.2, 0.1, 0.1], rel=1e-15)


@pytest.mark.parametrize("anneal", ["cosine", "linear"])
@pytest.mark.parametrize("warmup", [0.0, 0.001, 0.3, 1.0])
def test_one_cycle_equals_one_cycle_lr(warmup: float, anneal: Any) -> None:
    expected = scheduled(
        0.3,
        UPDATES,
        lambda o: lr_scheduler.OneCycleLR(
            o, 0.3, UPDATES, pct_start=warmup, anneal_strategy=anneal[:3].replace("lin", "linear")
        ),
    )
    assert_near(rates.one_cycle(0.3, UPDATES, warmup, anneal=anneal), expected)


def test_one_cycle_with_one_update_of_warmup_begins_at_its_peak() -> None:
    assert rates.one_cycle(0.3, 10, warmup=0.1)(0) == 0.3


def test_one_cycle_stays_at_its_end() -> None:
    rate = rates.one_cycle(0.3, 10)
    assert rate(9) == rate(10) == rate(10**9) == 0.3 / 25 / 1e4


def test_joined_equals_sequential_lr() -> None:
    def make(optimizer: Any) -> Any:
        parts: list[Any] = [
            lr_scheduler.LinearLR(optimizer, 0.1, 1.0, total_iters=50),
            lr_scheduler.CosineAnnealingLR(optimizer, 200, eta_min=0.01),
            lr_scheduler.ExponentialLR(optimizer, 0.99),
        ]
        return lr_scheduler.SequentialLR(optimizer, parts, milestones=[50, 200])

    with warnings.catch_warnings():
        # torch's own: it enters a scheduler by an argument that it deprecates.
        warnings.simplefilter("ignore")
        expected = scheduled(0.3, UPDATES, make)
    rate = rates.joined(
        [
            (rates.linear_warmup(0.3, 50, start=0.3 * 0.1), 50),
            (rates.cosine(0.3, 200, 0.01), 150),
            (rates.exponential(0.3, 0.99), None),
        ]
    )
    assert_near(rate, expected)


def test_the_last_part_of_joined_holds_for_ever() -> None:
    rate = rates.joined([(rates.constant(0.1), 5), (rates.exponential(1.0, 0.5), 2)])
    assert rate(15) == 0.5**10


def test_warmup_cosine_is_the_two_joined() -> None:
    joined = rates.joined([(rates.linear_warmup(0.3, 10), 10), (rates.cosine(0.3, 90, 0.1), None)])
    assert rates.warmup_cosine(0.3, 10, 100, end=0.1) == joined


def test_an_optimizer_with_a_rate_equals_the_native_one_with_its_scheduler() -> None:
    params = make_params()
    grads = make_grads(params, 12)
    own = {path: torch.nn.Parameter(p.clone()) for path, p in params.items()}
    optimizer = torch.optim.SGD(own.values(), lr=0.1)
    scheduler = lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 5)
    expected = []
    for step_grads in grads:
        for path, p in own.items():
            p.grad = step_grads[path].clone()
        optimizer.step()
        scheduler.step()
        expected.append({path: p.detach().clone() for path, p in own.items()})
    rule = SGD(lr=rates.cosine_restarts(0.1, 5))
    assert first_difference(functional(rule, params, grads)[0], expected) is None


def test_any_function_of_the_count_is_a_rate() -> None:
    params = make_params()
    grads = make_grads(params, 3)
    expected = native(torch.optim.SGD, params, grads, rate=lambda count: 1 / (1 + count))
    rule = SGD(lr=lambda count: 1 / (1 + count))
    assert first_difference(functional(rule, params, grads)[0], expected) is None


@pytest.mark.parametrize("rate", VALUES, ids=lambda rate: type(rate).__name__)
class TestEveryRate:
    def test_gives_floats(self, rate: Any) -> None:
        assert {type(rate(count)) for count in (0, 1, 50, 10**6)} == {float}

    def test_is_pickled(self, rate: Any) -> None:
        assert pickle.loads(pickle.dumps(rate)) == rate

    def test_is_hashed(self, rate: Any) -> None:
        assert hash(rate) == hash(pickle.loads(pickle.dumps(rate)))

    def test_is_printed_as_it_is_written(self, rate: Any) -> None:
        assert eval(repr(rate), vars(rates)) == rate

    def test_is_frozen(self, rate: Any) -> None:
        with pytest.raises(AttributeError):
            setattr(rate, rate.__struct_fields__[0], 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rates.constant(-1.0), "rate: received -1.0; expected a number of at least 0"),
        (lambda: rates.constant(math.nan), "rate: received nan"),
        (lambda: rates.linear_warmup(0.1, 0), "updates: received 0; .* at least 1"),
        (lambda: rates.linear_warmup(0.1, 5, start=-1), "start: received -1"),
        (lambda: rates.cosine(-0.1, 5), "start: received -0.1"),
        (lambda: rates.cosine(0.1, 5, end=-1), "end: received -1"),
        (lambda: rates.cosine_restarts(0.1, 5, factor=0), "factor: received 0; .* whole number"),
        (lambda: rates.cosine_restarts(0.1, 5, factor=1.5), "factor: received 1.5"),  # type: ignore[arg-type]  # the mistake
        (lambda: rates.multi_step(0.1, [5, 3]), r"milestones: received \[5, 3\]; .* rising order"),
        (lambda: rates.multi_step(0.1, [-5, 3]), "milestones: received"),
        (lambda: rates.exponential(0.1, -0.5), "gamma: received -0.5"),
        (lambda: rates.polynomial(0.1, 5, power=-1), "power: received -1"),
        (lambda: rates.one_cycle(0.1, 5, warmup=2), "warmup: received 2; .* from 0 to 1"),
        (lambda: rates.one_cycle(0.1, 5, anneal="cos"), "anneal: .* 'cosine' or 'linear'"),  # type: ignore[arg-type]  # the mistake
        (lambda: rates.one_cycle(0.1, 5, div=0), "div: received 0"),
        (lambda: rates.joined([]), "parts: received none"),
        (lambda: rates.joined([(rates.constant(1), 0)]), r"parts\[0\]: received 0 updates"),
        (
            lambda: rates.joined([(rates.constant(1), None), (rates.constant(1), 1)]),
            r"parts\[0\]: received None updates; .* None is for the last part",
        ),
        (lambda: rates.warmup_cosine(0.1, 100, 100), "warmup: received 100; .* total - 1 = 99"),
    ],
)
def test_an_argument_out_of_range_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_part_of_joined_that_is_no_pair_is_refused() -> None:
    with pytest.raises(TypeError, match="expected pairs of a rate and its updates"):
        rates.joined([rates.constant(1.0)])  # type: ignore[list-item]  # the mistake under test

"""Groups of parameters by name, against torch's parameter groups."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

import helios
from helios.errors import ModelError, NotTraceableError, StateMismatchError
from helios.functional.transformation import Transformation
from helios.functional.tree import clone, first_difference
from helios.optim import NAMED, SGD, Adafactor, AdamW, chain, clip_by_global_norm, groups, rates
from helios.trainer.ranks.elementwise import on_shards
from tests import zoo
from tests.functional.test_compiled import distance
from tests.optim.runs import Tensors, functional, make_grads, make_params, storages, without
from tests.trainer.runs import Batches, run, same

PATTERNS: dict[str, dict[str, Any]] = {
    "*.bias": {"weight_decay": 0.0},
    "net.1.*": {"lr": 0.05},
    "*": {"lr": 0.01},
}
OF = {"net.0.weight": "*", "net.0.bias": "*.bias", "net.1.weight": "net.1.*", "scale": "*"}
CASES = [
    ("AdamW", {"weight_decay": 0.1}),
    ("AdamW", {"weight_decay": 0.1, "fused": True}),
    ("AdamW", {"weight_decay": 0.1, "foreach": True}),
    ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9, "dampening": 0.5}),
    ("RMSprop", {"centered": True, "weight_decay": 0.1}),
]
ids = [f"{n}-{'-'.join(map(str, o))}" for n, o in CASES]


def native(
    name: str, params: Tensors, grads: list[Tensors], shared: dict[str, Any]
) -> list[Tensors]:
    """The parameters after each update of torch's optimizer with the same parameter groups."""
    own = {path: torch.nn.Parameter(p.clone()) for path, p in params.items()}
    members = [
        {"params": [own[n] for n, p in OF.items() if p == pattern], **options}
        for pattern, options in PATTERNS.items()
    ]
    optimizer = getattr(torch.optim, name)(members, **shared)
    history = []
    for step_grads in grads:
        for path, p in own.items():
            grad = step_grads.get(path)
            p.grad = None if grad is None else grad.clone()
        optimizer.step()
        history.append({path: p.detach().clone() for path, p in own.items()})
    return history


def some_grads(params: Tensors) -> list[Tensors]:
    grads = make_grads(params, 6)
    grads[3] = without(grads[3], "net.0.weight")
    grads[4] = without(grads[4], "net.0.bias")  # the only one of its group
    return grads


@pytest.mark.parametrize(("name", "shared"), CASES, ids=ids)
@pytest.mark.parametrize("donate", [False, True])
def test_equal_to_parameter_groups_of_torch(name, shared, donate):
    params = make_params()
    grads = some_grads(params)
    rule = groups(NAMED[name], PATTERNS, **shared)
    found, _ = functional(rule, params, grads, donate=donate)
    assert first_difference(found, native(name, params, grads, shared)) is None


@pytest.mark.parametrize(("name", "shared"), CASES, ids=ids)
def test_donated_equals_undonated(name, shared):
    params = make_params()
    grads = some_grads(params)
    rule = groups(NAMED[name], PATTERNS, **shared)
    pure = functional(rule, params, grads)
    assert first_difference(functional(rule, params, grads, donate=True), pure) is None


def test_undonated_arguments_keep_their_bits_and_are_not_shared():
    params = make_params()
    [grads] = make_grads(params, 1)
    rule = groups(AdamW, PATTERNS)
    state = rule.init(params)
    before = clone((grads, state, params))
    after = rule.update(grads, state, params)
    assert first_difference((grads, state, params), before) is None
    assert not storages(after) & storages((grads, state, params))


def test_parameters_keep_their_order():
    params = make_params()
    [grads] = make_grads(params, 1)
    rule = groups(AdamW, PATTERNS)
    assert list(rule.update(grads, rule.init(params), params)[0]) == list(params)


def test_a_group_is_one_call_of_its_optimizer(monkeypatch):
    params = make_params()
    grads = make_grads(params, 3)
    rule = groups(AdamW, {"*.weight": {"lr": 0.1}, "*": {}})
    seen: list[int] = []
    direct = "helios.optim.direct.Direct.__call__"
    monkeypatch.setattr(direct, lambda self, grads, lr: seen.append(len(grads)))
    functional(rule, params, grads, donate=True)
    assert seen == [2, 2, 2, 2]  # the first update makes the state, by way of torch's step


def test_every_pattern_may_have_an_optimizer_of_its_own():
    params = make_params()
    grads = make_grads(params, 4)
    rule = groups({"net.*": SGD(lr=0.1, momentum=0.9), "*": AdamW(lr=0.01)})
    found, _ = functional(rule, params, grads, donate=True)
    for which, alone in (("net", SGD(lr=0.1, momentum=0.9)), ("scale", AdamW(lr=0.01))):
        own = {name: p for name, p in params.items() if name.startswith(which)}
        expected, _ = functional(alone, own, [{n: g[n] for n in own} for g in grads])
        assert same([{n: p[n] for n in own} for p in found], expected)


def test_the_state_is_named_by_pattern():
    params = make_params()
    state = groups(AdamW, PATTERNS).init(params)
    assert list(state) == list(PATTERNS)
    assert list(state["*.bias"]["slots"]) == ["net.0.bias"]


def test_the_first_pattern_that_matches_has_the_parameter():
    rule = groups(SGD, PATTERNS)
    members = rule.members(OF)
    assert {name: pattern for pattern, own in members.items() for name in own} == OF


def test_every_group_tells_its_rate():
    rule = groups(SGD, {"a.*": {"lr": rates.exponential(1.0, 0.5)}, "*": {}}, lr=0.1)
    assert rule.learning_rate(2) == {"a.*": 0.25, "*": 0.1}
    assert chain(clip=clip_by_global_norm(1.0), rule=rule).learning_rate(0)["a.*"] == 1.0


def test_clipping_before_the_groups_is_over_all_gradients():
    params = make_params()
    grads = make_grads(params, 3)
    rule = chain(clip=clip_by_global_norm(0.5), groups=groups(AdamW, PATTERNS))
    clipped = [clip_by_global_norm(0.5).apply(g, {}, params)[0] for g in grads]
    expected, _ = functional(groups(AdamW, PATTERNS), params, clipped)
    assert same(functional(rule, params, grads, donate=True)[0], expected)


def test_copies_of_a_used_rule_go_on_alike():
    params = make_params()
    grads = make_grads(params, 2)
    rule = groups(AdamW, PATTERNS)
    expected = functional(rule, params, grads, donate=True)
    for twin in (copy.deepcopy(rule), pickle.loads(pickle.dumps(rule))):
        assert isinstance(twin, Transformation)
        assert same(functional(twin, params, grads), expected)


def test_a_pattern_without_parameters_is_an_error_that_lists_them():
    rule = groups(SGD, {"head.*": {"lr": 1.0}, "*": {}})
    with pytest.raises(ValueError, match=r"'head\.\*' matches no .*'net\.0\.weight', 'net\.0\.bia"):
        rule.init(make_params())


def test_a_parameter_without_a_pattern_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"no pattern matches 'scale'; the patterns are \['net"):
        groups(SGD, {"net.*": {}}).init(make_params())


def test_a_pattern_behind_a_wider_one_is_an_error():
    with pytest.raises(ValueError, match=r"every parameter that '\*\.bias' matches is matched by"):
        groups(SGD, {"*": {}, "*.bias": {"lr": 1.0}}).init(make_params())


@pytest.mark.parametrize(
    ("arguments", "options", "error", "says"),
    [
        (({},), {}, ValueError, "received no pattern"),
        (({"*": {"lr": 1.0}},), {}, TypeError, r"'\*' received \{'lr': 1.0\}; expected an opt"),
        (({"*": SGD},), {}, TypeError, "expected an optimizer"),
        (({"*": SGD()},), {"lr": 1.0}, TypeError, "options beside them"),
        ((SGD,), {}, TypeError, "received None; expected options by pattern"),
        ((SGD(), {"*": {}}), {}, TypeError, "what makes one"),
        ((SGD, {"*": 1.0}), {}, TypeError, r"'\*' received 1.0; expected a dict"),
        ((SGD, {"*": {"rate": 1.0}}), {}, TypeError, "unknown option 'rate'"),
        (({1: SGD()},), {}, TypeError, "received the pattern 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, options, error, says):
    with pytest.raises(error, match=says):
        groups(*arguments, **options)


def test_a_state_of_other_groups_is_refused():
    params = make_params()
    with pytest.raises(StateMismatchError, match=r"received the groups \['\*'\]; expected"):
        groups(SGD, PATTERNS).update({}, groups(SGD, {"*": {}}).init(params), params)


def test_the_implementation_names_what_differs():
    assert groups(AdamW, PATTERNS, fused=True).implementation == "AdamW(fused=True)"
    assert groups({"a": SGD(), "*": AdamW()}).implementation == "groups(SGD(), AdamW())"


def test_a_group_that_cannot_be_traced_is_named():
    with pytest.raises(NotTraceableError, match="Adafactor"):
        groups({"a": SGD(), "*": Adafactor()}).traced()


def of_noisy():
    """Rules for `zoo.Noisy`, each pattern with an optimizer of its own."""
    return chain(
        clip=clip_by_global_norm(1.0),
        groups=groups(
            {
                "*.bias": SGD(lr=rates.exponential(0.1, 0.9), momentum=0.9),
                "net.4.*": AdamW(lr=0.05),
                "*": AdamW(lr=0.01, weight_decay=0.1, amsgrad=True),
            }
        ),
    )


def test_a_compiled_step_agrees_with_an_uncompiled_one():
    told: list[str] = []
    model = zoo.Noisy(optimizer=of_noisy)
    eager = helios.make_step(model)
    compiled = helios.make_step(model, compile="aot_eager", tell=told.append)
    one = other = helios.init_state(model, seed=0)
    for batch in zoo.classes(5):
        one, other = eager(one, batch), compiled(other, batch)
    assert told == []
    assert distance(one, other) < 2e-6


def test_a_resumed_run_has_the_bits_of_one_in_one_go(tmp_path):
    data = zoo.classes(4)
    whole = run(None, zoo.Noisy(optimizer=of_noisy), Batches(data), steps=7)
    run(tmp_path, zoo.Noisy(optimizer=of_noisy), Batches(data), steps=3)
    resumed = run(tmp_path, zoo.Noisy(optimizer=of_noisy), Batches(data), steps=7)
    assert helios.digest(whole.state) == helios.digest(resumed.state)


def test_members_trained_at_once_refuse_groups():
    members = [zoo.Line(f"m{i}", lambda: groups(SGD, {"*.bias": {}, "*": {}})) for i in (0, 1)]
    trainer = helios.Trainer(total_steps=1, use_cpu=True, print_banner=False)
    trainer.train_exceptions.append(ModelError)
    with pytest.raises(ModelError, match="received groups of parameters"):
        helios.fit_many(trainer, members, Batches(zoo.regression(2)), seeds=[0, 1])


def test_groups_on_shards_are_the_groups_of_what_is_on_shards():
    rule = groups({"a": SGD(), "*": chain(clip=clip_by_global_norm(1.0), adamw=AdamW())})
    sharded = on_shards(rule, "loss")
    assert sharded.optimizers["a"] is rule.optimizers["a"]
    assert type(sharded.optimizers["*"].before["clip"]).__name__ == "ClipOverRanks"
    with pytest.raises(ModelError, match="received Adafactor"):
        on_shards(groups({"*": Adafactor()}), "loss")

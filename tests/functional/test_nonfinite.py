"""What a step does about NaN and infinity, by example; the law is in `property_tests`."""

import contextlib
import pickle
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
import torch.utils._pytree as torch_pytree
from msgspec.structs import replace
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import helios
from helios.errors import NonFiniteError
from helios.functional.nonfinite import Deferred, became_non_finite, is_finite
from helios.functional.serial import placed_like
from helios.functional.tree import clone
from tests.zoo import Adversarial, Line, Noisy, batches_for, regression

NAN, INF = float("nan"), float("inf")
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def poisoned(batch, value=NAN):
    """Return a batch whose input is not finite."""
    if isinstance(batch, tuple):
        return batch[0] * value, *batch[1:]
    return batch * value


def run(step, state, batches, *, donate=False):
    for batch in batches:
        state = step(state, batch, donate=donate)
    return state


def test_an_unknown_policy_lists_the_policies():
    with pytest.raises(ValueError, match=r"'ignore'.*raise.*skip"):
        helios.make_step(Line(), non_finite="ignore")


# Skipping.


def test_a_skipped_update_closes_its_window_and_moves_the_counters():
    step = helios.make_step(Line(), helios.Plan(accumulation_steps=2), non_finite="skip")
    first, second = regression(2)
    state = run(step, helios.init_state(Line()), [poisoned(first), second])
    assert state.carry.accumulators["loss"].grads == {}
    assert (state.current_iteration, state.global_iteration, state.window_iter) == (1, 2, 0)
    assert state.carry.skipped == 1


def test_every_skipped_update_is_counted():
    step, batches = helios.make_step(Line(), non_finite="skip"), regression(4)
    bad = [poisoned(batches[0]), batches[1], poisoned(batches[2], INF), poisoned(batches[3], -INF)]
    assert run(step, helios.init_state(Line()), bad).carry.skipped == 3


def test_the_loss_that_was_skipped_is_on_record():
    step = helios.make_step(Line(), non_finite="skip")
    state = step(helios.init_state(Line()), poisoned(regression(1)[0]))
    assert state.carry.metrics["loss"].compute() != state.carry.metrics["loss"].compute()


def test_a_window_of_weight_zero_is_skipped():
    class Masked(Line):
        def loss(self, batch):
            return helios.Loss(self.net(batch[0]).sum() * 0, weight=torch.zeros(()))

    model = Masked()
    state = helios.init_state(model)
    after = helios.make_step(model, non_finite="skip")(state, regression(1)[0])
    assert helios.first_difference(after.carry.params, state.carry.params) is None
    assert after.carry.skipped == 1


def test_an_average_begins_with_the_first_update_that_is_applied():
    class Averaged(Line):
        def setup(self, fast_init=False):
            super().setup()
            self.average = helios.optim.average(decay=0.5)

    model = Averaged()
    first, second = regression(2)
    state = helios.init_state(model)
    after = run(helios.make_step(model, non_finite="skip"), state, [poisoned(first), second])
    assert helios.first_difference(after.carry.params, state.carry.params) is not None
    assert helios.first_difference(after.carry.average, after.carry.params) is None


# Buffers.


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("engine", ["autograd", "func"])
def test_a_forward_pass_that_poisons_a_buffer_leaves_all_as_they_were(engine, donate):
    model = Noisy()
    step = helios.make_step(model, engine=engine, non_finite="skip")
    good, bad = batches_for(model, 2)
    state = step(helios.init_state(model), good, donate=donate)
    before = clone(state.carry.buffers)
    after = step(state, poisoned(bad), donate=donate)
    assert helios.first_difference(after.carry.buffers, before) is None
    assert after.carry.buffers["seen"] == 4


def test_a_poisoned_forward_pass_inside_a_window_leaves_the_buffers_too():
    model = Noisy()
    plan = helios.Plan(accumulation_steps=3)
    step, state = helios.make_step(model, plan, non_finite="skip"), helios.init_state(model)
    first, second, third = batches_for(model, 3)
    healthy = helios.make_step(model, plan)
    state = run(step, state, [first, poisoned(second), third])
    expected = run(healthy, helios.init_state(model), [first])
    expected = replace(expected, global_iteration=2)
    expected = healthy(expected, third)
    assert helios.first_difference(state.carry.buffers, expected.carry.buffers) is None
    assert state.carry.skipped == 1


def test_in_a_donated_run_the_model_holds_the_buffers_that_were_kept():
    model = Noisy()
    step, batch = helios.make_step(model, non_finite="skip"), batches_for(model, 1)[0]
    state = step(helios.init_state(model), poisoned(batch), donate=True)
    held = dict(model.named_buffers())
    assert {n: b.data_ptr() for n, b in held.items()} == {
        n: b.data_ptr() for n, b in state.carry.buffers.items()
    }


def test_a_pure_step_that_keeps_buffers_leaves_the_model_alone():
    model = Noisy()
    step, state = helios.make_step(model, non_finite="skip"), helios.init_state(model)
    before = dict(model.named_buffers())
    step(state, poisoned(batches_for(model, 1)[0]))
    assert all(buffer is before[name] for name, buffer in model.named_buffers())


def test_a_mask_of_minus_infinity_is_no_poisoned_buffer():
    mask = torch.tensor([0.0, -INF])
    assert not became_non_finite({"mask": mask.clone()}, {"mask": mask})


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2])
def test_infinity_beside_a_mask_is_found_in_every_floating_point_format(value, dtype):
    before = torch.tensor([0.0, -INF]).to(dtype)
    after = torch.tensor([value, -INF]).to(dtype)
    assert became_non_finite({"mask": before}, {"mask": after})


def test_a_new_buffer_or_one_of_a_new_shape_counts_as_changed():
    assert became_non_finite({}, {"new": torch.tensor(NAN)})
    assert became_non_finite({"grown": torch.tensor([NAN])}, {"grown": torch.tensor([NAN, 0.0])})


def test_integer_buffers_are_always_finite():
    assert not became_non_finite({}, {"count": torch.tensor(2**62)})


# Several objectives.


class Halves(helios.Model):
    """Two objectives with a module each; the batch says what to add to their losses."""

    def __init__(self):
        super().__init__("halves")

    def setup(self, fast_init=False):
        self.a, self.b = nn.Linear(1, 1), nn.Linear(1, 1)
        self.rules = [helios.optim.SGD(lr=0.1, momentum=0.9) for _ in range(2)]
        self.average = helios.optim.average(decay=0.5)

    def objectives(self):
        return [
            helios.Objective(
                "a", lambda batch: self._loss(self.a, batch[0]), self.rules[0], [self.a]
            ),
            helios.Objective(
                "b", lambda batch: self._loss(self.b, batch[1]), self.rules[1], [self.b]
            ),
        ]

    def _loss(self, module, extra):
        return module(torch.ones(2, 1)).square().mean() + extra


@pytest.mark.parametrize(("extras", "left_out"), [((NAN, 0.0), "a"), ((0.0, INF), "b")])
@pytest.mark.parametrize("donate", [False, True])
def test_only_the_objective_that_is_not_finite_is_left_out(extras, left_out, donate):
    model = Halves()
    step, state = helios.make_step(model, non_finite="skip"), helios.init_state(model)
    before = clone(state.carry)
    after = step(state, tuple(map(torch.tensor, extras)), donate=donate).carry
    for name in ("a", "b"):
        same = helios.first_difference(after.opt_state[name], before.opt_state[name]) is None
        assert same == (name == left_out)
        moved = not torch.equal(after.params[f"{name}.weight"], before.params[f"{name}.weight"])
        assert moved == (name != left_out)


@pytest.mark.parametrize("extras", [(NAN, 0.0), (0.0, NAN), (NAN, NAN)])
def test_an_update_is_counted_once_whatever_it_leaves_out(extras):
    model = Halves()
    step, state = helios.make_step(model, non_finite="skip"), helios.init_state(model)
    after = step(state, tuple(map(torch.tensor, extras)))
    assert after.carry.skipped == 1
    assert helios.first_difference(after.carry.average, state.carry.average) is None


# The loss scale.


class Scaled(Line):
    """Float16 with a loss scale."""

    def setup(self, fast_init=False):
        super().setup()
        self.precision = helios.Policy("fp16", helios.LossScale(8.0))

    def loss(self, batch):
        with torch.autocast("cpu", enabled=False):
            return F.mse_loss(self.net(batch[0]), batch[1])


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_an_overflow_under_a_loss_scale_is_counted(policy):
    model = Scaled()
    state = helios.init_state(model)
    state = replace(state, carry=replace(state.carry, scale=helios.LossScale(2.0**127)))
    batch = torch.ones(4, 3) * 10, torch.ones(4, 1)
    after = helios.make_step(model, non_finite=policy, deferred=Deferred())(state, batch)
    assert after.carry.skipped == 1
    assert after.carry.scale.scale == 2.0**126
    assert helios.first_difference(after.carry.params, state.carry.params) is None


def test_a_loss_that_no_scale_can_mend_is_an_error_or_skipped_as_asked():
    model = Scaled()
    state, bad = helios.init_state(model), poisoned(regression(1)[0])
    with pytest.raises(NonFiniteError):
        helios.make_step(model)(state, bad)
    after = helios.make_step(model, non_finite="skip")(state, bad)
    assert (after.carry.skipped, after.carry.scale.scale) == (1, 4.0)


# Nothing is read from the device that the policy does not need.


class Reads(TorchDispatchMode):
    """Counts the operators that make the host wait."""

    WAITING = ("aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero")

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.calls[operator.name().split(".")[0]] += 1
        return operator(*args, **(kwargs or {}))

    @property
    def waits(self):
        return sum(self.calls[name] for name in self.WAITING)


@pytest.mark.parametrize("policy", ["raise", "skip"])
@pytest.mark.parametrize("deferred", [None, Deferred()])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("make", [Line, Halves, lambda: Noisy("noisy", helios.optim.SGD)])
def test_a_healthy_run_dispatches_nothing_that_waits(make, policy, deferred, accumulation):
    model = make()
    plan = helios.Plan(accumulation_steps=accumulation)
    step = helios.make_step(model, plan, non_finite=policy, deferred=deferred)
    state, batches = helios.init_state(model), batches_for(model, 20 * accumulation)
    if isinstance(model, Halves):
        batches = [(torch.zeros(()), torch.zeros(()))] * len(batches)
    with Reads() as reads:
        state = run(step, state, batches, donate=True)
    assert reads.waits == 0
    assert reads.calls["aten::_amp_foreach_non_finite_check_and_unscale_"] >= 20


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("value", "finite"), [(1.5, True), (NAN, False), (INF, False)])
def test_a_loss_of_any_precision_is_read(dtype, value, finite):
    assert is_finite(torch.zeros(()), torch.tensor(value, dtype=dtype)) is finite


# Deferred.


def deferring(model=None, **plan):
    model = Line() if model is None else model
    deferred = Deferred()
    return deferred, helios.make_step(model, helios.Plan(**plan), deferred=deferred), model


def test_a_deferred_check_raises_before_the_next_update():
    _, step, model = deferring()
    first, second = regression(2)
    state = step(helios.init_state(model), poisoned(first))
    assert state.carry.params["net.weight"].isnan().all()
    with pytest.raises(NonFiniteError, match=r"update 1 \(global iteration 1,") as caught:
        step(state, second)
    assert caught.value.update == 1


def test_a_deferred_check_raises_when_it_is_asked():
    deferred, step, model = deferring()
    step(helios.init_state(model), poisoned(regression(1)[0]))
    with pytest.raises(NonFiniteError, match=r"have it applied, and nothing of it was saved"):
        deferred.check()


def test_a_deferred_check_waits_for_the_update_not_for_the_next_micro_batch():
    _, step, model = deferring(accumulation_steps=2)
    a, b, c, d = regression(4)
    state = run(step, helios.init_state(model), [poisoned(a), b, c])
    with pytest.raises(NonFiniteError, match=r"update 1 \(global iteration 2,"):
        step(state, d)


def test_the_first_bad_update_is_the_one_that_is_named():
    deferred, step, model = deferring()
    good, bad = regression(2)
    state = step(helios.init_state(model), good)
    bad_state = step(state, poisoned(bad))
    with pytest.raises(NonFiniteError, match="update 2 "):
        step(bad_state, good)  # NaN by now as well
    deferred.check()


def test_the_first_bad_objective_is_the_one_that_is_named():
    deferred, step, model = deferring(Halves())
    step(helios.init_state(model), (torch.tensor(0.0), torch.tensor(NAN)))
    with pytest.raises(NonFiniteError, match="b_loss = nan"):
        deferred.check()


def test_the_objectives_of_an_update_are_all_applied_before_it_is_looked_at():
    deferred, step, model = deferring(Halves())
    state = helios.init_state(model)
    after = step(state, (torch.tensor(NAN), torch.tensor(0.0)))
    assert after.carry.opt_state["b"]["count"] == 1
    with pytest.raises(NonFiniteError, match="a_loss = nan"):
        deferred.check()


def test_a_deferred_check_says_nothing_on_a_healthy_run():
    deferred, step, model = deferring(Noisy())
    state = helios.init_state(model)
    expected = run(helios.make_step(model), state, batches_for(model, 5))
    assert run(step, state, batches_for(model, 5)) == expected
    deferred.check()


def test_a_deferred_check_may_be_used_again_after_an_error():
    deferred, step, model = deferring()
    good, bad = regression(2)
    state = helios.init_state(model)
    step(state, poisoned(bad))
    with pytest.raises(NonFiniteError):
        deferred.check()
    deferred.check()
    run(step, state, [good, bad])
    deferred.check()
    step(state, poisoned(good, INF))
    with pytest.raises(NonFiniteError, match="update 1 "):
        deferred.check()


def test_a_non_finite_gradient_of_a_finite_loss_is_found_later_too():
    class Root(Line):
        def loss(self, batch):
            return (self.net.weight * 0).abs().sqrt().sum() + self.net(batch[0]).mean()

    deferred, step, model = deferring(Root())
    step(helios.init_state(model), regression(1)[0])
    with pytest.raises(NonFiniteError, match="the loss or a gradient is NaN or infinite"):
        deferred.check()


def test_the_loss_and_the_weight_are_those_of_the_window():
    class Weighed(Line):
        def loss(self, batch):
            return helios.Loss(self.net(batch[0]).sum() * 0 + batch[1], weight=torch.tensor(3.0))

    deferred, step, model = deferring(Weighed(), accumulation_steps=2)
    x = torch.ones(4, 3)
    run(step, helios.init_state(model), [(x, torch.tensor(1.0)), (x, torch.tensor(INF))])
    with pytest.raises(NonFiniteError, match=r"loss = inf, window weight 6\.0"):
        deferred.check()


@contextlib.contextmanager
def no_waiting(device):
    """Make whatever waits for a GPU an error; on the CPU there is nothing to wait for."""
    if device == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("weight", [2, 2.0, torch.tensor(2.0, dtype=torch.float64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_the_check_found_arrives_without_waiting(device, weight, dtype):
    deferred, state = Deferred(), helios.TrainingState(current_iteration=4)
    total = torch.full((), 3.0, dtype=dtype, device=device)
    found = torch.ones((), device=device)
    with no_waiting(device):
        deferred.expect(state, "loss", helios.functional.Accumulator({}, weight, total), found)
    with pytest.raises(NonFiniteError, match=r"update 4 .*loss = 1\.5, window weight 2\.0"):
        deferred.check()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_deferred_run_never_waits(device, accumulation):
    model = Line()
    model.prepare(0)
    model.to(device)
    deferred, step, _ = deferring(model, accumulation_steps=accumulation)
    state = helios.init_state(model)
    batches = [(x.to(device), y.to(device)) for x, y in regression(4 * accumulation)]
    state = run(step, state, batches, donate=True)
    with no_waiting(device):
        state = run(step, state, batches, donate=True)
    deferred.check()
    assert state.current_iteration == 8


# The error, and the count as part of a state.


@pytest.mark.parametrize("immediate", [True, False])
def test_the_error_carries_the_place_in_the_run(immediate):
    deferred, step, model = deferring(accumulation_steps=2)
    if immediate:
        step = helios.make_step(model, step.plan)
    a, b = regression(2)
    state = replace(
        helios.init_state(model), current_iteration=6, global_iteration=12, global_epoch=3
    )
    with pytest.raises(NonFiniteError) as caught:
        _run_and_check(step, state, [poisoned(a), b], deferred)
    error = caught.value
    assert (error.update, error.global_iteration, error.epoch) == (7, 14, 3)


def _run_and_check(step, state, batches, deferred):
    run(step, state, batches)
    deferred.check()


def test_the_error_survives_a_trip_between_processes():
    error = pickle.loads(pickle.dumps(NonFiniteError("why", update=1, global_iteration=2, epoch=3)))
    assert str(error) == "why"
    assert (error.update, error.global_iteration, error.epoch) == (1, 2, 3)


@pytest.fixture(scope="module")
def counted():
    state = helios.init_state(Line())
    return replace(state, carry=replace(state.carry, skipped=7))


def test_the_count_is_part_of_the_bytes_of_a_state(counted):
    like = helios.init_state(Line())
    assert helios.TrainingState.from_bytes(counted.to_bytes(), like=like).carry.skipped == 7


def test_the_count_is_part_of_the_digest_and_of_equality(counted):
    other = replace(counted, carry=replace(counted.carry, skipped=8))
    assert helios.digest(counted) != helios.digest(other)
    assert counted != other


def test_the_count_is_kept_by_copies_and_maps(counted):
    assert clone(counted).carry.skipped == 7
    assert placed_like(counted, helios.init_state(Line())).carry.skipped == 7
    leaves, structure = torch_pytree.tree_flatten(counted)
    assert torch_pytree.tree_unflatten(leaves, structure).carry.skipped == 7


def test_an_adversarial_pair_is_skipped_as_one_update():
    model = Adversarial("gan")
    step, state = helios.make_step(model, non_finite="skip"), helios.init_state(model)
    after = step(state, torch.full((4, 3), NAN))
    assert after.carry.skipped == 1
    assert (
        helios.first_difference(after.carry.opt_state["critic"], state.carry.opt_state["critic"])
        is None
    )

import pytest
import torch

import helios
from helios.errors import ConsumedStateError
from helios.functional.state import (
    Accumulator,
    Carry,
    begin_batch,
    consume,
    end_batch,
    end_epoch,
    end_validation,
    judge,
    start_epoch,
    take_carry,
    timed,
)
from helios.trainer import TrainingState, TrainingUnit


def carry(**tensors):
    return Carry(tensors, {}, {"loss": {}}, {"loss": Accumulator()})


def test_a_state_is_frozen():
    with pytest.raises(AttributeError):
        TrainingState().global_epoch = 1


def test_an_update_advances_three_counters_and_closes_the_window():
    after = begin_batch(TrainingState(window_iter=2), update=True)
    assert (after.global_iteration, after.current_iteration, after.running_iter) == (1, 1, 1)
    assert after.window_iter == 0


def test_a_micro_batch_without_update_advances_the_window():
    after = begin_batch(TrainingState(), update=False)
    assert (after.global_iteration, after.current_iteration, after.window_iter) == (1, 0, 1)


def test_the_loss_sees_the_old_dataset_iter():
    begun = begin_batch(TrainingState(dataset_iter=4), update=True)
    assert (begun.dataset_iter, end_batch(begun).dataset_iter) == (4, 5)


def test_an_epoch_in_progress_keeps_its_number():
    assert start_epoch(TrainingState(global_epoch=2, dataset_iter=3)).global_epoch == 2
    assert start_epoch(TrainingState(global_epoch=2)).global_epoch == 3
    assert end_epoch(TrainingState(global_epoch=2, dataset_iter=3)).dataset_iter == 0


def test_a_validation_is_counted_and_judged():
    state = end_validation(TrainingState(running_iter=9, early_stop_count=1))
    assert (state.validation_cycles, state.running_iter) == (1, 0)
    assert judge(state, improved=False).early_stop_count == 2
    assert judge(state, improved=True).early_stop_count == 0


def test_the_average_time_is_a_mean_at_first():
    state = TrainingState()
    for seconds in (1.0, 2.0, 3.0):
        state = timed(begin_batch(state, update=True), seconds)
    assert state.average_iter_time == pytest.approx(2.0)


def test_states_compare_bit_for_bit():
    a = TrainingState(carry=carry(w=torch.tensor([0.0, float("nan")])))
    b = TrainingState(carry=carry(w=torch.tensor([0.0, float("nan")])))
    c = TrainingState(carry=carry(w=torch.tensor([-0.0, float("nan")])))
    assert a == b
    assert a != c
    assert a != TrainingState(global_epoch=1, carry=a.carry)
    assert a != 3


def test_equal_states_have_one_hash():
    assert hash(TrainingState(global_epoch=1)) == hash(TrainingState(global_epoch=1))


def test_dtype_and_shape_are_part_of_the_value():
    a = TrainingState(carry={"w": torch.zeros(2)})
    assert a != TrainingState(carry={"w": torch.zeros(2, dtype=torch.float64)})
    assert a != TrainingState(carry={"w": torch.zeros(2, 1)})
    assert a != TrainingState(carry={"v": torch.zeros(2)})


def test_a_consumed_state_raises_and_takes_its_twins_with_it():
    state = TrainingState(carry=carry(w=torch.zeros(1)))
    twin = begin_batch(state, update=True)
    held = state.carry
    consume(state)
    for use in (
        lambda: take_carry(state),
        lambda: take_carry(twin),
        lambda: held.params["w"],
        lambda: list(held.params),
        lambda: len(held.params),
    ):
        with pytest.raises(ConsumedStateError, match="consumed"):
            use()


def test_a_consumed_state_cannot_be_digested():
    state = TrainingState(carry=carry(w=torch.zeros(1)))
    consume(state)
    with pytest.raises(TypeError, match="donated"):
        helios.digest(state)


@pytest.mark.parametrize(("label", "unit"), [("iteration", 0), ("epoch", 1)])
def test_a_unit_has_a_label(label, unit):
    assert TrainingUnit.from_str(label) is TrainingUnit(unit)


@pytest.mark.parametrize("label", ["Epoch", "", "steps", None])
def test_another_label_is_an_error_that_lists_the_labels(label):
    with pytest.raises(ValueError, match=r"'iteration' or 'epoch'"):
        TrainingUnit.from_str(label)

"""Random keys, precision policies, metrics and trees, by example."""

import math

import pytest
import torch

import helios
from helios.functional import rng
from helios.functional.metrics import Mean, as_mean, batch_size, compute, merge
from helios.functional.tree import leaves_with_paths, same_bits


def test_keys_differ_in_every_argument():
    keys = {
        rng.fold(0, "train", 1),
        rng.fold(1, "train", 1),
        rng.fold(0, "valid", 1),
        rng.fold(0, "train", 2),
        rng.fold(0, "train", 1, 0),
        rng.fold(0, "train"),
    }
    assert len(keys) == 6
    assert all(0 <= key < 2**63 for key in keys)


def test_seeding_the_generators_is_torch_manual_seed():
    with torch.random.fork_rng():
        torch.manual_seed(12345)
        expected = torch.rand(3)
        rng.seed_generators(12345)
        assert torch.equal(torch.rand(3), expected)


def test_a_keyed_block_puts_the_generator_back_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(IndexError), rng.keyed(3):
        torch.rand(2)[7]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loss_scale_grows_after_its_interval_and_shrinks_at_once():
    scale = helios.LossScale(4.0, interval=2)
    assert scale.adjust(finite=True).scale == 4.0
    assert scale.adjust(finite=True).adjust(finite=True).scale == 8.0
    assert scale.adjust(finite=True).adjust(finite=False) == helios.LossScale(2.0, interval=2)


def test_a_policy_knows_its_names():
    assert helios.Policy("bf16").dtype is torch.bfloat16
    assert helios.Policy("float32").dtype is None
    assert helios.Policy("fp16").initial_scale() == helios.LossScale()
    assert helios.Policy("bf16").initial_scale() is None
    with pytest.raises(ValueError, match=r"received 'int8'.*'bfloat16'"):
        helios.Policy("int8")


def test_a_metric_without_samples_is_nan():
    assert math.isnan(Mean().compute())


def test_a_metric_keeps_no_graph():
    value = torch.ones((), requires_grad=True, device="meta") * 2
    assert not as_mean("x", value, 3).total.requires_grad
    assert not as_mean("x", Mean(value, 1), 3).total.requires_grad


def test_a_metric_on_a_device_stays_there_in_float64():
    total = as_mean("x", torch.ones((), device="meta"), 3).total
    assert (total.device.type, total.dtype) == ("meta", torch.float64)


def test_a_metric_in_the_memory_of_the_cpu_is_a_number_of_the_same_bits():
    value = torch.tensor(0.1, requires_grad=True)
    total = as_mean("x", value, 3).total
    assert type(total) is float
    assert total.hex() == (value.detach().double() * 3).item().hex()
    assert (
        as_mean("x", torch.tensor([0.1, 0.2]), 2).total == torch.tensor([0.1, 0.2]).double().sum()
    )


def test_metrics_merge_by_name():
    merged = merge({"a": Mean(1.0, 1)}, {"a": Mean(2.0, 2), "b": Mean(5.0, 1)})
    assert compute(merged) == {"a": 1.0, "b": 5.0}


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (torch.zeros(3, 2), 3),
        ((torch.zeros(3, 2), torch.zeros(3)), 3),
        ({"x": torch.zeros(4)}, 4),
        ([("a", "b"), torch.zeros(2)], 2),
        ([{"x": torch.zeros(5, 1)}], 5),
        (torch.zeros(()), 1),
        ("text", 1),
        ([], 1),
    ],
)
def test_the_size_of_a_batch_is_that_of_its_first_tensor(batch, size):
    assert batch_size(batch) == size


def test_paths_name_the_places_of_a_state():
    state = helios.TrainingState(carry={"layer": [torch.zeros(1), None]})
    assert [p for p, _ in leaves_with_paths(state)][9:11] == ["carry/layer/0", "carry/layer/1"]


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (0.0, -0.0, False),
        (float("nan"), float("nan"), True),
        (1, 1.0, False),
        (True, 1, False),
        (torch.zeros(()), 0.0, False),
        (None, None, True),
        (torch.tensor([float("nan")]), torch.tensor([float("nan")]), True),
    ],
)
def test_bits_are_compared_not_numbers(a, b, same):
    assert same_bits(a, b) is same


def test_the_first_difference_is_named_also_where_a_path_is_missing():
    assert helios.first_difference({"a": 1}, {"a": 1, "b": 2}) == "b"
    assert helios.first_difference({"a": 1, "c": 1}, {"b": 1, "c": 1}) == "a"
    assert helios.first_difference({"a": 1}, {"a": 1}) is None

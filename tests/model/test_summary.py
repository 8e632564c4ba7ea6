"""The table of a network: what is counted, what is shown, and that nothing changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import helios
from helios.model.summary import summary
from tests import zoo
from tests.trainer.runs import Batches, run, same, trainer


def by_path(found):
    return {row.path: row for row in found.rows}


def set_up(model):
    model.prepare(0)
    return model


BATCH = zoo.classes(1)[0]


def test_model_generators_and_gradients_stay_as_they_were():
    model = set_up(zoo.Noisy())
    model.net(BATCH[0]).sum().backward()
    model.net[3].eval()
    before = copy.deepcopy(model.state_dict())
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    buffer, random = model.seen, torch.get_rng_state()
    modes = [module.training for module in model.modules()]
    summary(model, BATCH)
    assert same(dict(before), dict(model.state_dict()))
    assert same(grads, [parameter.grad for parameter in model.parameters()])
    assert model.seen is buffer
    assert same(random, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    assert not any(module._forward_hooks for module in model.modules())


def test_a_training_goes_on_with_the_bits_that_it_would_have_had():
    class Looks(zoo.Noisy):
        def on_training_batch_end(self, state, should_log=False):
            summary(self, BATCH)

    data = Batches(zoo.classes(5))
    looked, plain = run(model=Looks(), data=data), run(model=zoo.Noisy(), data=data)
    assert helios.digest(looked.state) == helios.digest(plain.state)


def test_a_model_that_is_not_set_up_stays_so():
    model = zoo.Noisy()
    random = torch.get_rng_state()
    assert summary(model, BATCH).parameters == 66
    assert not hasattr(model, "net")
    assert same(random, torch.get_rng_state())


def test_parameters_buffers_and_bytes_are_counted():
    found = summary(set_up(zoo.Noisy()))
    assert (found.parameters, found.trained) == (66, 66)
    assert found.buffers == 8 + 8 + 1 + 1  # mean, variance, batches; seen
    assert found.size == 4 * (66 + 8 + 8 + 1) + 8


def test_what_is_frozen_is_not_trained():
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    net[0].requires_grad_(False)
    found = summary(net)
    assert (found.parameters, found.trained) == (25, 16)
    assert by_path(found)["0"].trained == 0


def test_a_shared_module_is_counted_once():
    layer = nn.Linear(3, 3)
    found = summary(nn.Sequential(layer, nn.ReLU(), layer), torch.zeros(2, 3))
    rows = by_path(found)
    assert found.parameters == 12
    assert (rows["2"].shared_with, rows["2"].parameters) == ("0", 0)
    assert rows["0"].calls == 2
    assert "as 0" in str(found)


def test_tied_parameters_are_counted_once():
    net = nn.ModuleDict({"one": nn.Linear(3, 5, bias=False), "two": nn.Linear(3, 5, bias=False)})
    net["two"].weight = net["one"].weight
    assert summary(net).parameters == 15


def test_shapes_and_operations_of_each_module():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    found = summary(net, torch.zeros(5, 1, 4, 4))
    rows = by_path(found)
    assert rows["0"].output == ((5, 4, 2, 2),)
    assert rows["0"].flops == 2 * 5 * 4 * 2 * 2 * 9
    assert rows["2"].flops == 2 * 5 * 16 * 2
    assert rows[""].flops == found.flops == rows["0"].flops + rows["2"].flops


def test_the_losses_of_a_model_are_run():
    found = summary(set_up(zoo.Noisy()), BATCH)
    rows = by_path(found)
    assert rows["net"].output == ((4, 2),)
    assert rows[""].flops == rows["net"].flops == 2 * 4 * (3 * 8 + 8 * 2)


def test_a_batch_is_spread_over_the_arguments_of_a_module():
    net = nn.Bilinear(2, 3, 4)
    one, two = torch.zeros(1, 2), torch.zeros(1, 3)
    expected = ((1, 4),)
    assert summary(net, (one, two)).rows[0].output == expected
    assert summary(net, {"input1": one, "input2": two}).rows[0].output == expected


@pytest.mark.parametrize(("depth", "paths"), [(0, [""]), (1, ["", "net"])])
def test_rows_go_as_deep_as_asked(depth, paths):
    found = summary(set_up(zoo.Noisy()), depth=depth)
    assert [row.path for row in found.rows] == paths
    assert found.parameters == 66


def test_columns_are_aligned():
    lines = str(summary(set_up(zoo.Noisy()), BATCH)).splitlines()
    at = lines[0].index("type")
    assert all(line[at - 1] == " " and line[at] != " " for line in lines[2:-2])
    assert lines[-1].startswith("66 parameters, 66 of them trained")


def test_a_module_without_parameters_has_a_table():
    assert summary(nn.ReLU(), torch.zeros(2)).parameters == 0


def test_a_lazy_module_counts_nothing_yet():
    assert summary(nn.LazyLinear(3)).parameters == 0


def test_wrong_arguments_are_refused():
    with pytest.raises(TypeError, match="received a int"):
        summary(3)
    with pytest.raises(ValueError, match="depth: received -1"):
        summary(nn.ReLU(), depth=-1)


def test_a_trainer_prints_it(capsys):
    made = trainer(print_summary=True)
    assert made.fit(zoo.Line(), Batches(zoo.regression(2)))
    assert "4 parameters, 4 of them trained" in capsys.readouterr().out


class BySideEffect(helios.ImperativeModel):
    def setup(self, fast_init=False):
        self._net = nn.Linear(4, 8)
        self._heads = [nn.Linear(8, 2)]


def test_the_networks_of_a_model_that_trains_by_side_effect_are_found():
    model = BySideEffect("imperative")
    table = summary(model)
    assert [(row.path, row.kind) for row in table.rows][1:] == [
        ("_net", "Linear"),
        ("_heads_0", "Linear"),
    ]
    assert table.parameters == 4 * 8 + 8 + 8 * 2 + 2
    with pytest.raises(TypeError, match="one of its networks"):
        summary(model, torch.zeros(2, 4))

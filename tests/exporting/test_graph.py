"""Exported programs and ONNX files compute what the network computes in eval mode."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import helios
from helios.errors import ModelError
from helios.exporting import export_onnx, export_program
from tests import zoo
from tests.trainer import runs


class Net(helios.Model):
    """Dropout, batch normalisation and an average."""

    def setup(self, fast_init=False):
        self.net = nn.Sequential(
            nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2)
        )
        self.optimizer = helios.optim.AdamW(lr=0.05)
        self.average = helios.optim.average(0.5)

    def loss(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root, model = tmp_path_factory.mktemp("net"), Net("net")
    made = runs.run(root, model, runs.Batches(zoo.classes(5)), steps=4)
    return model, made.state, helios.trainer.find_last_checkpoint(root / "net")


def expected(model, state, x, average=False):
    values = {**state.carry.params, **state.carry.buffers}
    values |= state.carry.average if average else {}
    fresh = Net("net")
    fresh.prepare(0)
    fresh.net.load_state_dict({n.removeprefix("net."): v for n, v in values.items()})
    with torch.no_grad():
        return fresh.net.eval()(x)


X = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("average", [False, True])
def test_a_program_has_the_bits_of_the_network_for_any_batch(trained, average):
    model, state, _ = trained
    program = export_program(model, X[:2], weights=state, average=average)
    for size in (1, 2, 7):
        found = program.module()(X[:size])
        assert torch.equal(found, expected(model, state, X[:size], average))


def test_a_checkpoint_is_exported_with_a_fresh_model(trained):
    model, state, checkpoint = trained
    program = export_program(Net("net"), X, weights=checkpoint)
    assert torch.equal(program.module()(X), expected(model, state, X))


def test_model_and_state_stay_as_they_are(trained):
    model, state, _ = trained
    before, modes = helios.digest(state), [m.training for m in model.modules()]
    weights = runs.params(model)
    export_program(model, X, weights=state, average=True)
    assert helios.digest(state) == before
    assert [m.training for m in model.modules()] == modes
    assert helios.first_difference(runs.params(model), weights) is None
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_program_is_saved_and_loaded(trained, tmp_path):
    model, state, _ = trained
    torch.export.save(export_program(model, X), tmp_path / "net.pt2")
    program = torch.export.load(tmp_path / "net.pt2")
    assert torch.equal(program.module()(X), expected(model, state, X))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("average", [False, True])
def test_an_onnx_file_has_the_numbers_of_the_network(trained, tmp_path, average):
    import onnx
    from onnx.reference import ReferenceEvaluator

    model, state, checkpoint = trained
    path = tmp_path / "net.onnx"
    export_onnx(model, path, X[:2], weights=checkpoint, average=average)
    onnx.checker.check_model(str(path))
    evaluator = ReferenceEvaluator(str(path))
    for size in (1, 7):
        [found] = evaluator.run(None, {evaluator.input_names[0]: X[:size].numpy()})
        wanted = expected(model, state, X[:size], average)
        assert torch.allclose(torch.from_numpy(found), wanted, rtol=1e-6, atol=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


class Whole(Net):
    """Has a forward of its own, of two inputs."""

    def forward(self, x, scale):
        return self.net(x) * scale


def test_a_forward_of_the_model_is_its_network():
    model, scale = Whole("whole"), torch.rand(7, 1)
    model.prepare(0)
    program = export_program(model, (X, scale))
    model.eval()
    with torch.no_grad():
        assert torch.equal(program.module()(X, scale), model(X, scale))


def test_a_part_is_named_by_its_path():
    model = zoo.Adversarial("game")
    model.prepare(0)
    with pytest.raises(ModelError, match="generator, discriminator; name the one to export"):
        export_program(model, X)
    program = export_program(model, X, network="discriminator")
    with torch.no_grad():
        assert torch.equal(program.module()(X), model.discriminator(X))


def test_wrong_arguments_say_what_is_expected(trained, tmp_path):
    model, state, _ = trained
    with pytest.raises(ModelError, match="at least 2"):
        export_program(model, X[:1])
    with pytest.raises(TypeError, match="expected a tensor or a tuple of tensors"):
        export_program(model, [X])
    with pytest.raises(ModelError, match="average: received True without weights"):
        export_program(model, X, average=True)
    with pytest.raises(ModelError, match="network: received 'nut'"):
        export_program(model, X, network="nut")
    with pytest.raises(ModelError, match="those of another model"):
        export_program(zoo.Line(), X, weights=state)
    with pytest.raises(ValueError, match=r"ends in \.onnx"):
        export_onnx(model, tmp_path / "net.bin", X)

"""Weights of checkpoints open in other programs, with their bits."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import helios
from helios.cli.main import main
from helios.errors import ModelError
from helios.exporting import network_weights, write_weights
from helios.trainer.store import read_checkpoint
from tests.trainer import runs


class Tied(helios.Model):
    """Two names for one weight, a buffer, and an average."""

    def setup(self, fast_init=False):
        self.net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
        self.net[2].weight = self.net[0].weight
        self.optimizer = helios.optim.SGD(lr=0.1)
        self.average = helios.optim.average(0.5)

    def loss(self, batch):
        return (self.net(batch[0]) - batch[1]).square().mean()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    root = tmp_path_factory.mktemp("tied")
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    runs.run(root, Tied("tied"), helios.data.from_datasets(train=(x, x), batch_size=4), steps=3)
    return helios.trainer.find_last_checkpoint(root / "tied")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("average", [False, True])
def test_what_is_exported_has_the_bits_of_the_checkpoint(checkpoint, tmp_path, suffix, average):
    output = tmp_path / f"out{suffix}"
    options = ["--average"] if average else []
    assert main(["export", str(checkpoint), "-o", str(output), "--prefix", "net.", *options]) == 0
    read = load_file(output) if suffix != ".pt" else torch.load(output, weights_only=True)
    content = read_checkpoint(checkpoint)
    expected = {name.removeprefix("net."): value for name, value in content["model"].items()}
    if average:
        found = content["carry"]["average"]
        expected |= {name.removeprefix("net."): value for name, value in found.items()}
        expected["2.weight"] = expected["0.weight"]
    assert (
        helios.first_difference(dict(sorted(read.items())), dict(sorted(expected.items()))) is None
    )
    net = Tied("tied")
    net.prepare(0)
    net.net.load_state_dict(read)


def test_a_run_is_exported_from_its_newest_checkpoint(checkpoint, tmp_path, capsys):
    output = tmp_path / "out.pt"
    assert main(["export", str(checkpoint.parent), "-o", str(output)]) == 0
    assert checkpoint.name in capsys.readouterr().out


def test_a_changed_checkpoint_is_not_exported(checkpoint, tmp_path, capsys):
    for suffix in (".pth", ".json"):
        path = checkpoint.with_suffix(suffix)
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = bytearray((tmp_path / checkpoint.name).read_bytes())
    data[200] ^= 1
    (tmp_path / checkpoint.name).write_bytes(data)
    output = tmp_path / "out.pt"
    assert main(["export", str(tmp_path / checkpoint.name), "-o", str(output)]) == 2
    assert "does not hold its digest" in capsys.readouterr().err
    assert not output.exists()


def test_what_is_there_is_replaced_only_if_that_is_asked_for(checkpoint, tmp_path, capsys):
    output = tmp_path / "out.pt"
    output.write_text("precious")
    assert main(["export", str(checkpoint), "-o", str(output)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert output.read_text() == "precious"
    assert main(["export", str(checkpoint), "-o", str(output), "--force"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "out.bin"], "ends in .safetensors or .pt"),
        (["-o", "out.pt", "--prefix", "none."], "with which no weight begins"),
        (["-o", "out.pt", "--prefix", "net.0.weight"], "the name of a weight"),
    ],
)
def test_bad_arguments_have_the_status_2(
    checkpoint, tmp_path, monkeypatch, capsys, options, message
):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(checkpoint), *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_average_that_was_not_kept_is_an_error(checkpoint):
    content = read_checkpoint(checkpoint)
    content["carry"]["average"] = None
    with pytest.raises(ModelError, match="the checkpoint has none"):
        network_weights(content, average=True)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8]
)
def test_every_dtype_keeps_its_bits(tmp_path, dtype):
    tensors = {
        "a": torch.arange(3).to(dtype),
        "scalar": torch.ones((), dtype=dtype),
        "none": torch.empty(0, 2, dtype=dtype),
        "turned": torch.arange(6).reshape(2, 3).t().to(torch.float32),
    }
    write_weights(tensors, tmp_path / "w.safetensors")
    read = load_file(tmp_path / "w.safetensors")
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_a_dtype_that_safetensors_does_not_know_is_an_error(tmp_path):
    with pytest.raises(ModelError, match=r"complex64.*write a \.pt"):
        write_weights({"a": torch.zeros(1, dtype=torch.complex64)}, tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())

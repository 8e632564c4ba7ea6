"""Pretrained weights in safetensors."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

import helios
from helios.errors import CorruptCheckpointError, PretrainedError
from tests.trainer.runs import same


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_safetensors_are_loaded(tmp_path):
    source, target = net(), net()
    save_file(source.state_dict(), tmp_path / "a.safetensors")
    helios.load_pretrained(target, tmp_path / "a.safetensors")
    assert same(dict(target.state_dict()), dict(source.state_dict()))


def test_what_is_loaded_does_not_depend_on_the_file_any_more(tmp_path):
    source, target = net(), net()
    path = tmp_path / "a.safetensors"
    save_file(source.state_dict(), path)
    helios.load_pretrained(target, path)
    path.write_bytes(bytes(path.stat().st_size))
    assert same(dict(target.state_dict()), dict(source.state_dict()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_safetensors_of_other_dtypes_are_cast_when_asked(tmp_path, dtype):
    target = nn.Linear(2, 1, bias=False)
    weight = torch.tensor([[1.5, -2.0]]).to(dtype)
    save_file({"weight": weight}, tmp_path / "a.safetensors")
    with pytest.raises(PretrainedError, match="cast=True"):
        helios.load_pretrained(target, tmp_path / "a.safetensors")
    helios.load_pretrained(target, tmp_path / "a.safetensors", cast=True)
    assert same(target.weight.detach(), weight.float())


def test_a_tied_model_that_was_saved_once_is_loaded_by_a_mapping(tmp_path):
    def tied():
        model = nn.ModuleDict({"emb": nn.Embedding(4, 2), "head": nn.Linear(2, 4, bias=False)})
        model["head"].weight = model["emb"].weight
        return model

    source, target = tied(), tied()
    save_model(source, str(tmp_path / "a.safetensors"))
    mapping = {"": "", "head.weight": "emb.weight"}
    helios.load_pretrained(target, tmp_path / "a.safetensors", mapping=mapping)
    assert same(target["head"].weight.detach(), source["emb"].weight.detach())
    assert target["head"].weight is target["emb"].weight


def test_safetensors_that_are_cut_short_anywhere_are_corrupt(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"weight": torch.ones(2, 3), "bias": torch.ones(2)}, path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptCheckpointError, match="cannot be read as safetensors"):
            helios.load_pretrained(nn.Linear(3, 2), path)


@pytest.mark.parametrize(
    "shape", [[10**6, 10**6], [2**63, 2], [3]], ids=["huge", "overflowing", "larger"]
)
def test_a_shape_beyond_the_bytes_of_safetensors_is_corrupt(tmp_path, shape):
    header = json.dumps({"weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, 8]}})
    content = struct.pack("<Q", len(header)) + header.encode() + bytes(8)
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(CorruptCheckpointError):
        helios.load_pretrained(nn.Linear(2, 1, bias=False), tmp_path / "a.safetensors")


def test_a_pickle_that_is_called_safetensors_is_corrupt(tmp_path):
    torch.save(nn.Linear(2, 1).state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(CorruptCheckpointError):
        helios.load_pretrained(nn.Linear(2, 1), tmp_path / "a.safetensors")


def test_safetensors_without_tensors_are_refused(tmp_path):
    save_file({}, tmp_path / "a.safetensors")
    with pytest.raises(PretrainedError, match="none of them a tensor"):
        helios.load_pretrained(nn.Linear(2, 1), tmp_path / "a.safetensors")

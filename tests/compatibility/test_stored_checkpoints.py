"""Checkpoints that earlier versions wrote: they are opened, resumed from, and come to the same."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
import torch

import helios
from tests.compatibility.line import Line, data, trainer

FOLDERS = sorted(Path(__file__).parent.glob("schema_*"))


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def stored(request, tmp_path):
    """A copy of a stored run: its files are never touched."""
    return shutil.copytree(request.param, tmp_path / "runs")


def quietly(run, *args):
    with warnings.catch_warnings():
        # Another machine is another fingerprint, which a resume warns of.
        warnings.simplefilter("ignore")
        return run(*args)


def test_plain_torch_opens_them(stored):
    for path in (stored / "line").glob("*.pth"):
        content = torch.load(path, weights_only=True)
        assert content["model"]["net.0.weight"].shape == (4, 2)


def test_a_run_goes_on_from_them(stored, tmp_path):
    resumed, model = trainer(stored, 6), Line("line")
    assert quietly(resumed.fit, model, data())
    assert resumed.state.current_iteration == 6
    assert resumed.plugins["counting"].starts == 2
    whole, same = trainer(tmp_path / "whole", 6), Line("line")
    assert whole.fit(same, data())
    # Bits are promised on one machine alone.
    for name, tensor in whole.state.carry.params.items():
        torch.testing.assert_close(resumed.state.carry.params[name], tensor)
    for name, tensor in whole.state.carry.average.items():
        torch.testing.assert_close(resumed.state.carry.average[name], tensor)


def test_they_hold_what_was_computed(stored):
    paths = sorted((stored / "line").glob("*.pth"), key=lambda path: path.name)
    states = quietly(list, helios.replay(Line("line"), data(), paths[0], plugins=_plugins()))
    assert [state.current_iteration for state in states][-1] == 4
    last = torch.load(paths[-1], weights_only=True)
    for name, tensor in states[-1].carry.params.items():
        torch.testing.assert_close(tensor, last["model"][name])


def _plugins():
    from tests.compatibility.line import Counting

    return [Counting()]

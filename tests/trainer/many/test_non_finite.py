"""An update that is not finite belongs to one member."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import helios
from helios.errors import NonFiniteError
from helios.functional.stacked import member_state
from tests import zoo
from tests.trainer.many.runs import fit
from tests.trainer.runs import Batches, same, trainer


class Rooted(helios.Model):
    """Its loss has the gradient of a root, infinite where the member's offset is met."""

    def __init__(self, name, offset=0.0, norm=False):
        super().__init__(name)
        self.offset, self.norm = offset, norm

    def setup(self, fast_init=False):
        self.net = nn.Linear(3, 1).double()
        self.register_buffer("edge", torch.tensor(self.offset, dtype=torch.float64))
        self.register_buffer("least", torch.zeros((), dtype=torch.float64))
        self.optimizer = helios.optim.AdamW(lr=0.01)
        self.average = helios.optim.average(decay=0.5)

    def loss(self, batch):
        x, y = batch
        if self.training:
            self.least.copy_((x.sum() - self.edge).sqrt() if self.norm else self.least + 1)
        root = (x.sum() - self.edge).sqrt()  # NaN below the edge
        return (self.net(x) - y).square().mean() + 0 * root, {"size": self.net(x).abs().detach()}


def lines(count=6):
    """Return batches whose inputs sum up to 0, 1, 2, ..."""
    return [
        (torch.full((4, 3), k / 12, dtype=torch.float64), torch.ones(4, 1, dtype=torch.float64))
        for k in range(count)
    ]


EDGES = (-1.0, 1.5, 2.5)


def models(norm=False):
    return [Rooted(name, edge, norm) for name, edge in zip("abc", EDGES, strict=True)]


def test_the_member_is_named():
    with pytest.raises(NonFiniteError, match=r"update 1 .*of member 'b' and of 1 more: loss = nan"):
        fit(None, models(), Batches(lines()))


def test_nothing_of_it_is_saved(tmp_path):
    with pytest.raises(NonFiniteError):
        fit(tmp_path, models()[:2], Batches(lines()[2:] + lines()), chkpt_frequency=1, steps=8)
    for name in "ab":
        content = helios.trainer.find_last_checkpoint(tmp_path / name)
        assert content.name == f"{name}_epoch_1_iter_4.pth"


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_its_update_alone_is_left_out(norm, accumulation):
    arguments = {"non_finite": "skip", "accumulation_steps": accumulation, "steps": 6}
    arguments["random_seed"] = 3
    together = fit(None, models(norm), Batches(lines()), seeds=[0, 1, 2], **arguments).state
    left_out = []
    for k, edge in enumerate(EDGES):
        alone = Rooted("alone", edge, norm)
        alone.prepare(k)
        made = trainer(**arguments)
        assert made.fit(alone, Batches(lines()))
        own, expected = member_state(together, k).carry, made.state.carry
        assert own.skipped == expected.skipped
        left_out.append(own.skipped)
        received = dict(helios.functional.tree.leaves_with_paths(own))
        wanted = dict(helios.functional.tree.leaves_with_paths(expected))
        assert list(received) == list(wanted)
        for path, value in wanted.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(
                    received[path], value, rtol=1e-12, atol=1e-12, equal_nan=True, msg=path
                )
            elif not path.startswith("metrics"):
                assert received[path] == value, path
    assert left_out[0] == 0 < left_out[1] <= left_out[2]
    assert together.carry.skipped == sum(left_out)


def test_the_others_keep_their_bits():
    batches = Batches(lines())
    arguments = {"non_finite": "skip", "steps": 1}
    bad = fit(None, models()[:2], batches, **arguments).state
    first = helios.init_state(Rooted("b", EDGES[1]), 1).carry
    own = member_state(bad, 1).carry
    assert own.skipped == 1
    assert same(own.params, first.params)
    assert same(own.average, first.average)
    assert same(own.opt_state, first.opt_state)


def test_resuming_after_updates_that_were_left_out(tmp_path):
    arguments = {"non_finite": "skip", "chkpt_frequency": 1}
    whole = fit(None, models(), Batches(lines()), steps=6, non_finite="skip").state
    fit(tmp_path, models(), Batches(lines()), steps=3, **arguments)
    parts = fit(tmp_path, models(), Batches(lines()), steps=6, **arguments).state
    assert same(
        [member_state(parts, k).carry for k in range(3)],
        [member_state(whole, k).carry for k in range(3)],
    )


def test_it_is_said(capsys):
    fit(None, models(), Batches(lines()), steps=2, non_finite="skip")
    assert "update 1 was left out" in capsys.readouterr().out


def test_zoo_models_have_none():
    assert fit(None, [zoo.Noisy("a"), zoo.Noisy("b")]).state.carry.skipped == 0

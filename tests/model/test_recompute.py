import copy
import pickle

import pytest
import torch
from torch import nn

import helios
from helios.model import checkpoint_activations
from tests import zoo
from tests.trainer.runs import Batches, run, same


class Deep(helios.Model):
    """Blocks with dropout and batch normalisation, and a buffer that each pass replaces."""

    def __init__(self, patterns=(), window=1):
        super().__init__("deep")
        self.patterns = patterns

    def setup(self, fast_init=False):
        self.inp = nn.Linear(3, 16)
        self.blocks = nn.ModuleList([Block() for _ in range(3)])
        self.out = nn.Linear(16, 2)
        self.optimizer = helios.optim.AdamW(lr=1e-2)
        if self.patterns:
            checkpoint_activations(self, *self.patterns)

    def loss(self, batch):
        x, y = batch
        x = self.inp(x)
        for block in self.blocks:
            x = block(x)
        return nn.functional.cross_entropy(self.out(x), y)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.Tanh(), nn.Dropout(0.3), nn.Linear(64, 16))
        )
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.passes = self.passes + 1
        return x + self.net(x) / self.passes.clamp(min=1)


DATA = zoo.classes(4)


@pytest.mark.parametrize(
    "options", [{}, {"accumulation_steps": 2}, {"cpu_ranks": None, "valid_frequency": 2}]
)
def test_a_run_has_the_bits_of_one_without_it(options):
    one, other = (
        run(None, Deep(patterns), Batches(DATA, DATA), steps=5, **options).state
        for patterns in ((), ("blocks.*",))
    )
    assert helios.digest(one) == helios.digest(other)


def test_a_pure_step_has_the_bits_of_one_without_it():
    states = []
    for patterns in ((), ("blocks.*",)):
        model = Deep(patterns)
        state = helios.init_state(model, seed=0)
        states.append(helios.make_step(model)(state, DATA[0]))
    assert same(states[0].carry.params, states[1].carry.params)
    assert same(states[0].carry.buffers, states[1].carry.buffers)


def saved_bytes(model):
    """The bytes that autograd keeps at the end of the forward pass."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.loss(zoo.classes(1, size=256)[0])
    loss.backward()
    return sum(kept.values())


def test_fewer_bytes_are_kept_for_the_backward_pass():
    plain, less = Deep(), Deep(("blocks.*",))
    plain.prepare()
    less.prepare()
    assert saved_bytes(less) < saved_bytes(plain) / 3


def test_names_stay_as_they_are():
    plain, less = Deep(), Deep(("blocks.*",))
    plain.prepare()
    less.prepare()
    assert list(plain.state_dict()) == list(less.state_dict())
    assert [n for n, _ in plain.named_modules()] == [n for n, _ in less.named_modules()]


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compute_with_parameters_of_their_own(twin):
    block = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
    checkpoint_activations(block, "0")
    other = twin(block)
    with torch.no_grad():
        other[0][0].weight.zero_()
        other[0][0].bias.zero_()
    x = torch.ones(1, 2, requires_grad=True)
    assert other(x).abs().sum() == 0
    assert block(x).abs().sum() > 0


def test_evaluation_is_left_alone(monkeypatch):
    block = nn.Sequential(nn.Linear(2, 2))
    checkpoint_activations(block, "0")
    monkeypatch.setattr("helios.functional.recomputed.checkpoint", None)
    block.eval()(torch.ones(1, 2))
    with torch.no_grad():
        block.train()(torch.ones(1, 2))


def test_a_compiled_step_says_that_it_runs_uncompiled():
    told = []
    model = Deep(("blocks.*",))
    step = helios.make_step(model, compile="aot_eager", tell=told.append)
    step(step(helios.init_state(model), DATA[0]), DATA[1])
    [sentence] = told
    assert "computed again in the backward pass (checkpoint_activations)" in sentence


def test_a_list_of_modules_is_no_match_but_its_members_are():
    model = Deep()
    model.prepare()
    assert checkpoint_activations(model, "block*") == ("blocks.0", "blocks.1", "blocks.2")
    again = checkpoint_activations(model, "blocks.0")
    assert again == ("blocks.0",)
    assert model.blocks[0].forward.inner is None


def test_the_laws_hold():
    import helios.testing

    x, y = (torch.cat(column) for column in zip(*DATA, strict=True))
    data = helios.data.from_datasets(train=(x, y), batch_size=4)
    helios.testing.check_laws(lambda: Deep(("blocks.*",)), data, workers=(0,))


def test_a_pattern_that_matches_nothing_is_an_error_with_the_names():
    with pytest.raises(ValueError, match=r"'layers' matches no submodule .* it has '0'"):
        checkpoint_activations(nn.Sequential(nn.ReLU()), "layers")
    with pytest.raises(ValueError, match="received none"):
        checkpoint_activations(nn.Sequential(nn.ReLU()))

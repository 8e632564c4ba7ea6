"""What a hook changes in the model is part of the state: it is saved, resumed and replayed."""

import pytest
import torch

import helios
from tests.zoo import Line, regression


class Changing(Line):
    """Replaces, in every hook, a buffer by its half and the data of the weight by its double."""

    def __init__(self, hook):
        super().__init__("changing")
        self.hook = hook
        setattr(self, hook, self.change)

    def setup(self, fast_init=False):
        super().setup()
        self.register_buffer("rate", torch.ones(()))

    def loss(self, batch):
        return super().loss(batch) * self.rate

    def change(self, *_, **__):
        self.rate = self.rate / 2
        self.net.weight.data = self.net.weight.data * 2


HOOKS = [
    "on_training_epoch_start",
    "on_training_batch_start",
    "on_training_batch_end",
    "on_training_epoch_end",
]


def run(root, hook, steps):
    x, y = regression(1, size=8)[0]
    data = helios.data.from_datasets(train=(x, y), batch_size=4)
    trainer = helios.Trainer(
        total_steps=steps, chkpt_frequency=1, chkpt_root=root, print_banner=False
    )
    model = Changing(hook)
    assert trainer.fit(model, data)
    return trainer.state, model, data


@pytest.mark.parametrize("hook", HOOKS)
def test_it_reaches_the_state(tmp_path, hook):
    state, model, _ = run(tmp_path, hook, 3)
    calls = 6 if "batch" in hook else 3
    assert state.carry.buffers["rate"] == 0.5**calls
    assert model.rate is state.carry.buffers["rate"]
    assert model.net.weight.data_ptr() == state.carry.params["net.weight"].data_ptr()


@pytest.mark.parametrize("hook", HOOKS)
def test_it_is_resumed_and_replayed(tmp_path, hook):
    whole, _, data = run(tmp_path / "whole", hook, 3)
    run(tmp_path / "legs", hook, 1)
    resumed, _, _ = run(tmp_path / "legs", hook, 3)
    assert helios.first_difference(whole.carry, resumed.carry) is None
    first = tmp_path / "whole" / "changing" / "changing_epoch_1_iter_2.pth"
    states = helios.replay(Changing(hook), data, first)
    digests = helios.recorded_digests(first.parent)
    assert helios.verify(states, digests) is None

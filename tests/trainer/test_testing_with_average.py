"""A model that keeps an average of its parameters is tested with it, as it is validated."""

import pytest
import torch

import helios
from tests.zoo import Line, regression


class Averaged(Line):
    def setup(self, fast_init=False):
        super().setup()
        self.average = helios.optim.average(decay=0.9)

    def test_step(self, batch, step):
        return {"weight": self.net.weight.detach().double().sum()}


def data():
    x, y = regression(1, size=12)[0]
    return helios.data.from_datasets(train=(x, y), test=(x, y), batch_size=4)


def averaged_weight(trainer):
    return float(trainer.state.carry.average["net.weight"].double().sum())


def test_the_checkpoint_is_tested_with_its_average(tmp_path):
    trainer = helios.Trainer(total_steps=3, chkpt_root=tmp_path, print_banner=False)
    assert trainer.fit(Averaged("averaged"), data())
    model = Averaged("averaged")
    assert helios.Trainer(chkpt_root=tmp_path, print_banner=False).test(model, data())
    assert model.test_metrics["weight"] == pytest.approx(averaged_weight(trainer), rel=1e-12)
    last = float(trainer.state.carry.params["net.weight"].double().sum())
    assert model.test_metrics["weight"] != last


def test_a_model_just_trained_is_tested_with_its_average():
    trainer = helios.Trainer(total_steps=3, print_banner=False)
    model = Averaged("averaged")
    assert trainer.fit(model, data())
    weights = model.net.weight.detach().clone()
    assert trainer.test(model, data())
    assert model.test_metrics["weight"] == pytest.approx(averaged_weight(trainer), rel=1e-12)
    assert torch.equal(model.net.weight, weights)

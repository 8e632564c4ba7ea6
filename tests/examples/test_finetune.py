"""Fine-tuning learns new classes from few images, and leaves the frozen layers as they were."""

import torch

import helios
from helios.examples import finetune


def test_the_new_head_learns_and_the_body_keeps_its_bits(tmp_path):
    first, second = finetune.main(["--epochs", "3", "--runs", str(tmp_path)])
    assert first > 0.9
    assert second > 0.6
    before, after = (
        torch.load(helios.trainer.find_last_checkpoint(tmp_path / name), weights_only=True)["model"]
        for name in ("digits_0_to_4", "digits_5_to_9")
    )
    body = [name for name in before if name.startswith("body.")]
    assert any("running_mean" in name for name in body)
    assert all(torch.equal(before[name], after[name]) for name in body)
    assert not torch.equal(before["head.weight"], after["head.weight"])

import pytest

from helios.examples import config_driven

TEXT = config_driven.DEFAULT.read_text()


def written(tmp_path, *changes):
    text = TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "config.toml"
    path.write_text(text)
    return [str(path)]


def test_it_learns_and_prints_what_was_built(capsys):
    assert config_driven.main([])["accuracy"] > 0.9
    said = capsys.readouterr().out
    for line in ("model: Classifier", "loss: CrossEntropyLoss()", "optimizer: AdamW(", "noise"):
        assert line in said


def test_a_metric_of_torchmetrics_measures_the_same(tmp_path):
    change = ('"correct"', '{ type = "MulticlassAccuracy", num_classes = 3, average = "micro" }')
    assert config_driven.main(written(tmp_path, change))["accuracy"] == pytest.approx(
        config_driven.main([])["accuracy"], rel=1e-6
    )


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[network]", "[netwrk]", "netwrk: received an unknown key; .*Did you mean 'network'"),
        ('"perceptron"', '"percptron"', "network.type: .*Did you mean 'perceptron'"),
        ("sizes = [2, 32, 3]", 'sizes = [2, "x"]', r"network.sizes\[1\]: received .*list\[int\]"),
        ("weight_decay", "weigth_decay", "optimizer.weigth_decay: .*Did you mean 'weight_decay'"),
        ("peak = 1e-2", 'peak = "high"', "optimizer.lr.peak: received 'high'; expected float"),
        ("label_smoothing", "smoothing", "loss.smoothing: received an unknown key; .*label_smooth"),
        ("samples = 512", "sample = 512", "data.train.sample: .*Did you mean 'samples'"),
        ("scale = 0.1", "", r"plugins\[0\].scale: is missing"),
        ("total_steps", "total_step", "trainer.total_step: .*Did you mean 'total_steps'"),
        ("total_steps = 10", "total_steps = -1", "trainer: total_steps: received -1"),
        ('save_name = "blobs"', 'save_name = "a b"', "model: save_name: received 'a b'"),
    ],
)
def test_a_mistake_ends_it_with_the_path_of_its_key(tmp_path, old, new, says):
    with pytest.raises(SystemExit, match=says):
        config_driven.main(written(tmp_path, (old, new)))

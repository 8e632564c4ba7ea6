import pytest

from helios.examples import digits


def checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints" / "digits").glob("*.pth"))


def test_the_defaults_reach_97_percent_on_the_test_set_and_a_second_run_trains_nothing(
    tmp_path, capsys
):
    accuracy = digits.main(["--runs", str(tmp_path)])
    assert accuracy >= 0.97
    assert f"Test accuracy: {accuracy:.2%}" in capsys.readouterr().out
    assert len(checkpoints(tmp_path)) == 15
    assert list(tmp_path.glob("tensorboard/*/events.*"))
    assert list(tmp_path.glob("logs/*.log"))

    assert digits.main(["--runs", str(tmp_path)]) == accuracy
    assert "Finished already, after 15 epochs" in capsys.readouterr().out
    assert len(checkpoints(tmp_path)) == 15


def test_more_epochs_go_on_to_where_one_longer_run_would_be(tmp_path, capsys):
    digits.main(["--runs", str(tmp_path / "a"), "--epochs", "1"])
    resumed = digits.main(["--runs", str(tmp_path / "a"), "--epochs", "2"])
    assert "Resuming training from checkpoint" in capsys.readouterr().out
    assert resumed == digits.main(["--runs", str(tmp_path / "b"), "--epochs", "2"])
    assert checkpoints(tmp_path / "a") == checkpoints(tmp_path / "b")


def test_an_interrupted_run_goes_on_in_the_middle_of_its_epoch(tmp_path, capsys, monkeypatch):
    loss = digits.Digits.loss
    calls = []

    def interrupted(self, batch):
        calls.append(batch)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return loss(self, batch)

    monkeypatch.setattr(digits.Digits, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        digits.main(["--runs", str(tmp_path), "--epochs", "1"])
    digits.main(["--runs", str(tmp_path), "--epochs", "1"])
    assert checkpoints(tmp_path)[-1] == "digits_epoch_1_iter_40.pth"

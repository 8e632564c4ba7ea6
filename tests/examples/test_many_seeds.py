from helios.examples import many_seeds


def test_members_learn_and_a_second_run_trains_nothing(tmp_path, capsys):
    arguments = ["--runs", str(tmp_path), "--epochs", "5", "--seeds", "2", "--lr", "0.003"]
    best = many_seeds.main(arguments)
    assert list(best) == ["lr0.003_seed0", "lr0.003_seed1"]
    assert min(best.values()) >= 0.94
    assert many_seeds.main(arguments) == best
    assert "Nothing is left to train" in capsys.readouterr().out

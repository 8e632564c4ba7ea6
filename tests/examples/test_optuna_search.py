from helios.examples import optuna_search


def test_a_search_finds_something_and_a_second_one_goes_on(tmp_path):
    whole = optuna_search.main(["--runs", str(tmp_path / "whole")])
    assert whole.best_value < 0.2
    for trials in ("2", "6"):
        cut = optuna_search.main(["--runs", str(tmp_path / "cut"), "--trials", trials])
    assert [t.params for t in cut.trials] == [t.params for t in whole.trials]
    assert [t.values for t in cut.trials] == [t.values for t in whole.trials]

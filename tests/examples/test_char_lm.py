from helios.examples import char_lm

TINY = ["--context", "16", "--dim", "16", "--layers", "1", "--limit", "64"]


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints" / "char_lm").glob("*.pth"))


def test_it_trains_and_prints_a_sample(tmp_path, capsys):
    bits = char_lm.main([*TINY, "--updates", "40", "--runs", str(tmp_path)])
    assert 0 < bits < 8  # a byte of which nothing is known has 8
    assert "def " in capsys.readouterr().out


def test_it_resumes(tmp_path, capsys):
    for updates in ("4", "8"):
        char_lm.main([*TINY, "--updates", updates, "--runs", str(tmp_path)])
    assert "Resuming training from checkpoint" in capsys.readouterr().out
    assert any(name.endswith("_iter_8.pth") for name in names(tmp_path))


def test_a_finished_run_still_prints_its_sample(tmp_path, capsys):
    for _ in range(2):
        char_lm.main([*TINY, "--updates", "4", "--runs", str(tmp_path)])
    first, second = (part for part in capsys.readouterr().out.split("def ")[-2:])
    assert first.split("helios:")[0].strip() == second.strip()

"""The GAN reaches spots, its judge alone does not decide it, and it goes on where it was left."""

import helios
from helios.examples import gan


def test_a_few_epochs_bring_the_points_nearer(tmp_path):
    first = gan.main(["--epochs", "5", "--runs", str(tmp_path)])
    later = gan.main(["--epochs", "15", "--runs", str(tmp_path)])
    assert later["distance"] < first["distance"]
    assert later["reached"] > 0


def test_an_interrupted_run_comes_to_the_same_bits(tmp_path):
    gan.main(["--epochs", "5", "--runs", str(tmp_path / "a")])
    gan.main(["--epochs", "10", "--runs", str(tmp_path / "a")])
    gan.main(["--epochs", "10", "--runs", str(tmp_path / "b")])
    a, b = (helios.recorded_digests(tmp_path / name / "gan") for name in "ab")
    assert a[160] == b[160]

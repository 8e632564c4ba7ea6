"""Fits and tests in processes that are started for them, in a group of the user's, and alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import helios
from helios.functional.tree import first_difference
from tests import zoo
from tests.trainer.ranks import world

ROOT = Path(__file__).parents[3]


def sgd():
    return helios.optim.SGD(lr=0.05, momentum=0.9)


class Weighted(zoo.Weighted):
    """What can be pickled."""

    def __init__(self, save_name):
        super().__init__(save_name, sgd)


class Telling(Weighted):
    """Says on every rank what it sees, and fails where it is told to."""

    fails_on = -1

    def on_training_epoch_end(self, epoch):
        trainer = self.trainer
        trainer.queue.put([trainer.rank, trainer.local_rank, self.is_distributed, epoch])
        if trainer.rank == self.fails_on:
            raise LookupError("not found on purpose")


class Data(helios.DataModule):
    """Counts where ``prepare_data`` runs."""

    def __init__(self, folder):
        self.folder = folder

    def prepare_data(self):
        Path(self.folder, f"prepared-{os.getpid()}").write_text("")

    def setup(self):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(23, 3, generator=generator).double()
        y = torch.randn(23, 1, generator=generator).double()
        samples = torch.utils.data.TensorDataset(x, y, torch.ones(23).double())
        self._train_dataset = self._create_dataset(samples, {"batch_size": 6, "shuffle": True})
        self._valid_dataset = self._create_dataset(samples, {"batch_size": 6})
        self._test_dataset = self._create_dataset(samples, {"batch_size": 6})


def trainer(**arguments):
    given = {"total_steps": 2, "valid_frequency": 1, "print_banner": False, "use_cpu": True}
    return helios.Trainer(**{**given, **arguments})


def test_ranks_are_started_and_what_they_end_with_comes_back(tmp_path):
    made, model = trainer(cpu_ranks=2, chkpt_root=tmp_path), Telling("telling")
    assert made.fit(model, Data(tmp_path))
    said = [made.queue.get_nowait() for _ in range(4)]
    assert sorted(said) == [[rank, rank, True, epoch] for rank in (0, 1) for epoch in (1, 2)]
    assert list(tmp_path.glob("prepared-*")) == [tmp_path / f"prepared-{os.getpid()}"]
    assert made.state.current_iteration == 8
    assert (made.rank, made.is_distributed) == (0, False)
    alone, other = trainer(), zoo.Weighted("other")
    assert alone.fit(other, Data(tmp_path))
    assert model.valid_metrics["loss"] == pytest.approx(other.valid_metrics["loss"], rel=1e-12)
    for mine, its in zip(model.parameters(), other.parameters(), strict=True):
        assert (mine - its).abs().max() < 1e-12
    assert first_difference(made.state.carry.params, dict(model.named_parameters())) is None


def test_what_a_started_rank_raises_is_raised_here_with_its_traceback(tmp_path, capfd):
    made, model = trainer(cpu_ranks=2), Telling("telling")
    model.fails_on = 1
    made.train_exceptions.append(LookupError)
    with pytest.raises(LookupError, match="not found on purpose") as caught:
        made.fit(model, Data(tmp_path))
    assert "on_training_epoch_end" in str(caught.value.__cause__)
    made.train_exceptions.clear()
    assert not made.fit(model, Data(tmp_path))
    assert "not found on purpose" in capfd.readouterr().err


class Slow(Weighted):
    def loss(self, batch):
        if self.trainer.state.global_iteration == 3 and self.trainer.rank == 0:
            Path(os.environ["STARTED"]).write_text("")
        return super().loss(batch)


def run_slowly(folder):
    made = trainer(total_steps=float("inf"), cpu_ranks=2, chkpt_root=folder)
    made.fit(Slow("slow"), Data(folder))


def test_a_signal_to_the_parent_saves_on_all_ranks_and_ends_by_convention(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from tests.trainer.ranks.test_launch import run_slowly\n"
        f"if __name__ == '__main__':\n    run_slowly({str(tmp_path)!r})\n"
    )
    started = tmp_path / "started"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "STARTED": str(started)}
    process = subprocess.Popen([sys.executable, str(script)], env=environment)
    try:
        while not started.exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()
    assert helios.trainer.find_last_checkpoint(tmp_path / "slow") is not None


def fit_in_own_group(folder):
    rank = world.join()
    made, model = trainer(rank_timeout=10), zoo.Weighted("own")
    assert made.fit(model, Data(folder))
    assert made.test(model, Data(folder))
    value = torch.tensor(rank)
    dist.all_reduce(value)  # the group is left as it was
    assert made.queue is None
    world.leave()
    return [value.item(), made.state.current_iteration, model.test_metrics["loss"]]


def test_a_group_of_the_users_is_used_and_left_alive(tmp_path):
    one, two = world.values(world.run(fit_in_own_group, 2, args=(str(tmp_path),)))
    assert one == two
    assert one[:2] == [1, 8]
    assert len(list(tmp_path.glob("prepared-*"))) == 1


def fit_and_test_twice(folder):
    found = []
    for steps in (1, 2):
        made, model = trainer(total_steps=steps, chkpt_root=Path(folder)), zoo.Weighted("twice")
        assert made.fit(model, Data(folder))
        assert made.test(model, Data(folder))
        found.append([made.state.current_iteration, model.test_metrics["loss"]])
    return found


def test_a_process_may_fit_and_test_as_often_as_it_likes(tmp_path):
    one, two, three = world.values(world.run(fit_and_test_twice, 3, args=(str(tmp_path),)))
    assert one == two == three
    assert [count for count, _ in one] == [4, 8]

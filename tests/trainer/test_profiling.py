"""A profile of some updates: the trace, the table, and a run that has the bits of any other."""

from __future__ import annotations

import gzip
import json

import pytest

import helios
from helios.trainer.profiling import Profile
from tests import zoo
from tests.trainer.runs import Batches, Stopper, run, trainer


class Hooked(zoo.Noisy):
    def on_training_batch_start(self, state):
        pass

    def on_training_batch_end(self, state, should_log=False):
        pass


def data():
    return Batches(zoo.classes(5), zoo.classes(2, seed=1))


OPTIONS = {"unit": "epoch", "steps": 2, "valid_frequency": 1, "accumulation_steps": 2}


def profiled(folder, root=None, **arguments):
    profile = Profile(wait=1, warmup=1, updates=3, to=folder, **arguments)
    return run(root, Hooked(), data(), profile=profile, **OPTIONS)


def events(folder):
    (path,) = folder.rglob("*.pt.trace.json.gz")
    with gzip.open(path, "rt") as file:
        return json.load(file)["traceEvents"]


def ranges(folder):
    names = [event.get("name", "") for event in events(folder) if event.get("ph") == "X"]
    return [name for name in names if name.startswith("helios::")]


def test_bits_are_those_without_it(tmp_path):
    made = profiled(tmp_path, memory=True, shapes=True, stacks=True, flops=True)
    plain = run(model=Hooked(), data=data(), **OPTIONS)
    assert helios.digest(made.state) == helios.digest(plain.state)


def test_the_trace_has_so_many_updates(tmp_path):
    profiled(tmp_path)
    # Updates 3 to 5 of two epochs of 5 micro-batches: 1, and 2 + 2.
    assert ranges(tmp_path).count("helios::step") == 1 + 2 + 2


def test_the_trace_has_the_ranges_of_the_run(tmp_path):
    profiled(tmp_path / "traces", tmp_path / "root")
    expected = {"step", "data", "move", "validation", "on_training_batch_start"}
    expected |= {"on_training_batch_end", "on_training_epoch_end", "on_training_epoch_start"}
    assert {f"helios::{name}" for name in expected} <= set(ranges(tmp_path / "traces"))


def test_a_checkpoint_is_a_range(tmp_path):
    profile = Profile(wait=0, warmup=0, updates=2, to=tmp_path / "traces")
    options = {"steps": 3, "chkpt_frequency": 1}
    run(tmp_path / "root", Hooked(), data(), profile=profile, **options)
    assert "helios::checkpoint" in ranges(tmp_path / "traces")


def test_the_table_is_printed_and_written(tmp_path, capsys):
    profiled(tmp_path)
    table = (tmp_path / "noisy_rank0_updates_3-5.txt").read_text()
    assert "helios::step" in table
    out = capsys.readouterr().out
    assert "Profile of the updates 3-5:" in out
    assert table in out


def test_without_a_folder_the_table_is_printed_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    profiled(None)
    assert "helios::step" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_with_tensorboard_the_trace_is_in_the_folder_of_the_run(tmp_path):
    run(
        None, Hooked(), data(), profile=Profile(updates=1),
        enable_tensorboard=True, run_path=tmp_path, **OPTIONS,
    )  # fmt: skip
    (trace,) = tmp_path.rglob("*.pt.trace.json.gz")
    assert [path for path in trace.parent.iterdir() if "tfevents" in path.name]


def test_memory_and_shapes_are_in_the_table(tmp_path):
    profiled(tmp_path, memory=True, shapes=True)
    table = (tmp_path / "noisy_rank0_updates_3-5.txt").read_text()
    assert "CPU Mem" in table
    assert "Input Shapes" in table


def test_a_run_that_ends_early_shows_what_there_is(tmp_path, capsys):
    run(None, Hooked(), data(), steps=3, profile=Profile(updates=9, to=tmp_path))
    assert "Profile of the updates 3-3:" in capsys.readouterr().out
    assert ranges(tmp_path).count("helios::step") == 1


@pytest.mark.parametrize(
    ("updates", "said"), [(1, "nothing is profiled"), (2, "while the profiler was warming up")]
)
def test_a_run_that_ends_before_says_so(updates, said, capsys):
    plugins = [Stopper(updates)]
    profile = Profile(wait=1, warmup=2)
    run(None, Hooked(), data(), unit="iteration", steps=9, plugins=plugins, profile=profile)
    assert said in capsys.readouterr().out


def test_a_step_that_fails_stops_the_profiler(tmp_path, capsys):
    class Fails(Hooked):
        def loss(self, batch):
            if self.trainer.state.global_iteration == 4:
                raise ArithmeticError("boom")
            return super().loss(batch)

    profile = Profile(wait=0, warmup=0, updates=9, to=tmp_path / "failed")
    assert not trainer(profile=profile).fit(Fails(), data())
    assert "boom" in capsys.readouterr().err
    profiled(tmp_path / "again")
    assert ranges(tmp_path / "again")


def test_something_else_is_refused():
    with pytest.raises(TypeError, match="profile: received 3"):
        trainer(profile=3)
    with pytest.raises(TypeError, match=r"Profile\.wait"):
        Profile(wait=True)


def test_without_a_profile_the_loop_is_the_ordinary_one():
    made = run()
    assert type(made.loop).__name__ == "Loop"


def test_a_relative_folder_is_that_of_the_moment_the_trainer_was_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert trainer(profile=Profile(to="traces")).profile.to == tmp_path / "traces"

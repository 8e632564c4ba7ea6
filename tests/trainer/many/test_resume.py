"""A run of several members that was interrupted has the bits of one that was not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import helios
from helios.errors import ResumeError
from tests import zoo
from tests.trainer.many.runs import NAMES, data, fit, last, members, one_thread
from tests.trainer.runs import Stopper, same

ARGUMENTS = {"steps": 5, "accumulation_steps": 2, "valid_frequency": 2, "chkpt_frequency": 2}


def contents(root):
    return [last(root, name) for name in NAMES]


@pytest.mark.parametrize("batches", range(1, 10))
def test_a_stop_after_any_micro_batch(tmp_path, batches):
    fit(tmp_path / "whole", **ARGUMENTS)
    fit(tmp_path / "parts", plugins=[Stopper(batches)], **ARGUMENTS)
    made = fit(tmp_path / "parts", **ARGUMENTS)
    assert made.state.current_iteration == 5
    for whole, parts in zip(
        contents(tmp_path / "whole"), contents(tmp_path / "parts"), strict=True
    ):
        # The plugin's state and the number of a name that is taken are beside the point.
        for content in (whole, parts):
            del content["plugins"], content["name"]
        assert same(parts, whole)


def test_a_finished_run_trains_nothing_more(tmp_path, capsys):
    fit(tmp_path, **ARGUMENTS)
    before = contents(tmp_path)
    fit(tmp_path, **ARGUMENTS)
    assert "Nothing is left to train" in capsys.readouterr().out
    assert same(contents(tmp_path), before)


class Killed(zoo.Noisy):
    """Ends its process where its checkpoint of an update is to be named."""

    update = 0

    def append_metadata_to_chkpt_name(self, chkpt_name):
        if self.save_name == "b" and self.update == self.trainer.state.current_iteration:
            os.kill(os.getpid(), signal.SIGKILL)
        return chkpt_name


def killed(root: Path, update: int, last_only: bool) -> None:
    """Run in a process of its own: it is killed between the saves of a and b."""
    one_thread()
    Killed.update = update
    retention = helios.Retention(last=1) if last_only else None
    fit(root, members(Killed), retention=retention, **ARGUMENTS)


@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("update", [2, 4])
def test_a_kill_between_the_saves_of_two_members(tmp_path, update, last_only):
    code = (
        "from pathlib import Path; from tests.trainer.many.test_resume import killed; "
        f"killed(Path({str(tmp_path / 'parts')!r}), {update}, {last_only})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}, capture_output=True,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    saved = [len(list((tmp_path / "parts" / name).glob("*.pth"))) for name in NAMES]
    assert saved[0] == saved[1] + 1 == saved[2] + 1  # the old one of a is still there
    retention = helios.Retention(last=1) if last_only else None
    fit(tmp_path / "parts", members(Killed), retention=retention, **ARGUMENTS)
    fit(tmp_path / "whole", members(Killed), **ARGUMENTS)
    for whole, parts in zip(
        contents(tmp_path / "whole"), contents(tmp_path / "parts"), strict=True
    ):
        assert same(parts, whole)


class Signalled(zoo.Noisy):
    """Sends a signal to its own process at a micro-batch, once."""

    at = 0

    def loss(self, batch):
        if self.training and self.trainer.state.global_iteration == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().loss(batch)


@pytest.mark.parametrize("at", [3, 4])
def test_a_signal_saves_all_members_and_leaves(tmp_path, monkeypatch, at):
    monkeypatch.setattr(Signalled, "at", at)
    with pytest.raises(SystemExit) as left:
        fit(tmp_path / "parts", members(Signalled), **ARGUMENTS)
    assert left.value.code == 128 + signal.SIGTERM
    for content in contents(tmp_path / "parts"):
        assert content["training_state"]["global_iteration"] == at
    monkeypatch.setattr(Signalled, "at", 0)
    fit(tmp_path / "parts", members(Signalled), **ARGUMENTS)
    fit(tmp_path / "whole", members(Signalled), **ARGUMENTS)
    for whole, parts in zip(
        contents(tmp_path / "whole"), contents(tmp_path / "parts"), strict=True
    ):
        assert same(parts, whole)


def test_members_that_share_no_place_are_refused(tmp_path):
    fit(tmp_path, members(names=["a", "b"]), **ARGUMENTS)
    with pytest.raises(ResumeError, match=r"no place in common .*\(a: 3, b: 3, c: 0\)"):
        fit(tmp_path, members(), **ARGUMENTS)


def test_a_run_of_one_alone_is_not_begun_anew(tmp_path):
    alone = helios.Trainer(total_steps=1, chkpt_root=tmp_path, use_cpu=True, print_banner=False)
    assert alone.fit(zoo.Noisy("a"), data())
    with pytest.raises(ResumeError, match=r"a: 1, b: 0, c: 0"):
        fit(tmp_path, members())


def test_a_broken_checkpoint_is_passed_over_by_all(tmp_path):
    fit(tmp_path / "whole", **ARGUMENTS)
    fit(tmp_path / "parts", **ARGUMENTS)
    newest = helios.trainer.find_last_checkpoint(tmp_path / "parts" / "b")
    newest.write_bytes(newest.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="is passed over"):
        fit(tmp_path / "parts", **ARGUMENTS)
    for whole, parts in zip(
        contents(tmp_path / "whole"), contents(tmp_path / "parts"), strict=True
    ):
        del whole["name"], parts["name"]
        assert same(parts, whole)


def test_runs_of_other_seeds_are_refused(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        fit(tmp_path, members(names=[name]), random_seed=seed, **ARGUMENTS)
    with pytest.raises(ResumeError, match="with the seeds"):
        fit(tmp_path, members(names=["a", "b"]), **ARGUMENTS)

"""Checkpoints: names, content, how they are written, and what is refused."""

from __future__ import annotations

import os
import stat
import warnings

import pytest
import torch

import helios
from helios.data import from_datasets
from helios.errors import (
    CheckpointError,
    CheckpointVersionError,
    CorruptCheckpointError,
    ResumeError,
)
from helios.trainer import find_last_checkpoint
from helios.trainer.store import checkpoint_name, read_checkpoint
from tests import zoo
from tests.trainer.runs import Batches, Stopper, names, params, run, same, trainer
from tests.trainer.store.sealing import forge


def touch(folder, *files):
    for name in files:
        (folder / name).touch()
    return folder


def bits(folder):
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.name: path.read_bytes() for path in files}


# Names.


def test_a_checkpoint_is_named_after_model_epoch_and_update(tmp_path):
    run(tmp_path, zoo.Line("digits"), steps=7, chkpt_frequency=3)
    assert names(tmp_path) == [
        "digits_epoch_1_iter_3.pth",
        "digits_epoch_2_iter_6.pth",
        "digits_epoch_2_iter_7.pth",
    ]
    assert {path.parent for path in tmp_path.rglob("*.pth")} == {tmp_path / "digits"}


@pytest.mark.parametrize(
    ("metadata", "name"),
    [
        ("", "m_epoch_1_iter_2.pth"),
        ("m_epoch_1_iter_2", "m_epoch_1_iter_2.pth"),
        ("m_epoch_1_iter_2_acc_0.5", "m_epoch_1_iter_2_acc_0.5.pth"),
        ("acc_0.5", "m_epoch_1_iter_2_acc_0.5.pth"),
        ("_acc", "m_epoch_1_iter_2_acc.pth"),
        ("a/../b c", "m_epoch_1_iter_2_a-..-b-c.pth"),
    ],
)
def test_metadata_comes_after_the_counters(metadata, name):
    assert checkpoint_name("m", 1, 2, metadata) == name


@pytest.mark.parametrize("extra", ["epoch_9_iter_99", "iter_7", "loss_0.2", "epoch_x"])
def test_metadata_hides_no_checkpoint(tmp_path, extra):
    class Names(zoo.Line):
        def append_metadata_to_chkpt_name(self, chkpt_name):
            return f"{chkpt_name}_{extra}"

    run(tmp_path, Names(), steps=4, chkpt_frequency=1)
    assert len(names(tmp_path)) == 4
    assert find_last_checkpoint(tmp_path / "line").name == f"line_epoch_1_iter_4_{extra}.pth"


# The last one.


def test_without_a_folder_there_is_no_last_checkpoint(tmp_path):
    assert find_last_checkpoint(None) is None
    assert find_last_checkpoint(tmp_path / "missing") is None
    assert find_last_checkpoint(tmp_path) is None


@pytest.mark.parametrize(
    ("files", "last"),
    [
        (["m_epoch_9_iter_1.pth", "m_epoch_10_iter_2.pth"], "m_epoch_10_iter_2.pth"),
        (["m_epoch_1_iter_9.pth", "m_epoch_1_iter_10.pth"], "m_epoch_1_iter_10.pth"),
        (["m_epoch_2_iter_5.pth", "m_epoch_1_iter_50.pth"], "m_epoch_2_iter_5.pth"),
        (["m_epoch_1_iter_2.pth", "best.pth"], "m_epoch_1_iter_2.pth"),
        (["m_epoch_1_iter_2.pth", "m_epoch_3_iter_4.txt"], "m_epoch_1_iter_2.pth"),
        (["m_epoch_1_iter_2.pth", ".m_epoch_3_iter_4.pth.7.tmp"], "m_epoch_1_iter_2.pth"),
        (["epoch_3.pth", "epoch_12.pth"], "epoch_12.pth"),
        (["iter_30.pth", "iter_4.pth"], "iter_30.pth"),
        (["notes.pth"], None),
    ],
)
def test_the_last_checkpoint_goes_by_epoch_and_iteration_as_numbers(tmp_path, files, last):
    found = find_last_checkpoint(touch(tmp_path, *files))
    assert (found.name if found else None) == last


def test_folders_named_as_checkpoints_are_passed_over(tmp_path):
    (tmp_path / "m_epoch_9_iter_9.pth").mkdir()
    touch(tmp_path, "m_epoch_1_iter_1.pth")
    assert find_last_checkpoint(tmp_path).name == "m_epoch_1_iter_1.pth"


def test_a_path_may_be_a_string(tmp_path):
    touch(tmp_path, "m_epoch_1_iter_1.pth")
    assert find_last_checkpoint(str(tmp_path)) == tmp_path / "m_epoch_1_iter_1.pth"


# Writing.


class Full:
    """A file on a full disk: it takes 100 bytes."""

    def __init__(self, file):
        self.file, self.room = file, 100

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(28, "No space left on device")
        return self.file.write(data)

    def flush(self):
        self.file.flush()


def test_a_full_disk_ends_a_fit_with_its_error(tmp_path, capfd, monkeypatch):
    save = torch.save
    run(tmp_path, steps=2, chkpt_frequency=2)
    before = bits(tmp_path)
    monkeypatch.setattr(torch, "save", lambda content, file: save(content, Full(file)))
    assert not trainer(tmp_path, steps=4).fit(zoo.Line(), Batches(zoo.regression(5)))
    assert bits(tmp_path) == before
    assert "No space left on device" in capfd.readouterr().err


def test_a_root_that_is_a_file_is_refused_before_training(tmp_path, capfd):
    (tmp_path / "root").write_text("")
    assert not trainer(tmp_path / "root").fit(zoo.Line(), Batches(zoo.regression(1)))
    assert "CheckpointError: chkpt_root: cannot write into" in capfd.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_root_without_permission_is_refused_before_training(tmp_path, capfd):
    tmp_path.chmod(0o500)
    assert not trainer(tmp_path / "root").fit(zoo.Line(), Batches(zoo.regression(1)))
    tmp_path.chmod(0o700)
    assert "Permission denied" in capfd.readouterr().err


def test_checkpoints_are_their_owner_s_alone(tmp_path):
    run(tmp_path, steps=1)
    modes = {
        path.suffix: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "line").iterdir()
    }
    assert modes == {".pth": 0o600, ".json": 0o600, "": 0o600}
    assert stat.S_IMODE((tmp_path / "line").stat().st_mode) == 0o700


def test_a_save_leaves_the_checkpoint_its_manifest_and_the_lock(tmp_path):
    run(tmp_path, steps=2)
    assert sorted(path.name for path in (tmp_path / "line").iterdir()) == [
        ".lock",
        "line_epoch_1_iter_2.json",
        "line_epoch_1_iter_2.pth",
    ]


@pytest.mark.parametrize("unit", ["iteration", "epoch"])
def test_the_final_state_is_saved_once(tmp_path, unit):
    class Counts(zoo.Line):
        def append_metadata_to_chkpt_name(self, chkpt_name):
            saved.append(chkpt_name)
            return ""

    saved = []
    run(tmp_path, Counts(), unit=unit, steps=3, chkpt_frequency=1)
    assert len(saved) == len(set(saved)) == 3


def test_the_final_state_is_saved_without_a_frequency(tmp_path):
    run(tmp_path, steps=3)
    assert names(tmp_path) == ["line_epoch_1_iter_3.pth"]


# Content.


def test_plain_torch_opens_it_and_the_network_loads(tmp_path):
    model = zoo.Noisy()
    run(tmp_path, model, Batches(zoo.classes(3)), steps=3)
    content = torch.load(next(tmp_path.rglob("*.pth")), weights_only=True)
    fresh = zoo.Noisy()
    fresh.prepare(seed=1)
    fresh.load_state_dict(content["model"])
    assert same(dict(fresh.state_dict()), dict(model.state_dict()))


def test_it_is_opened_without_helios(tmp_path):
    import subprocess
    import sys

    run(tmp_path, steps=1)
    (path,) = tmp_path.rglob("*.pth")
    code = (
        "import sys, torch\n"
        f"content = torch.load({str(path)!r}, weights_only=True)\n"
        "assert 'helios' not in sys.modules\n"
        "torch.nn.Linear(3, 1).load_state_dict(\n"
        "    {n.removeprefix('net.'): v for n, v in content['model'].items()})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr


def test_it_holds_the_eight_counters(tmp_path):
    made = run(tmp_path, steps=4)
    content = read_checkpoint(next(tmp_path.rglob("*.pth")))
    assert made.state.dict().items() <= content["training_state"].items()


def test_a_state_dict_of_the_model_s_own_is_kept(tmp_path):
    class Keeps(zoo.Line):
        def setup(self, fast_init=False):
            super().setup(fast_init)
            self.words = ["a"]

        def get_extra_state(self):
            return {"words": self.words}

        def set_extra_state(self, state):
            self.words = state["words"]

        def on_training_end(self):
            pass

        def on_training_epoch_end(self, current_epoch):
            self.words.append("b")

    run(tmp_path, Keeps(), steps=5)
    again = Keeps()
    run(tmp_path, again, steps=6)
    assert again.words == ["a", "b"]


class Counter(helios.Plugin):
    def __init__(self, name="counter"):
        super().__init__(name)
        self.batches = torch.zeros((), dtype=torch.int64)

    def should_training_stop(self):
        self.batches += 1
        return False

    def state_dict(self):
        return {"batches": self.batches}

    def load_state_dict(self, state_dict):
        self.batches = state_dict["batches"]


def test_a_plugin_s_state_goes_round(tmp_path):
    first, second = Counter(), Counter()
    run(tmp_path, steps=3, plugins=[first])
    content = read_checkpoint(next(tmp_path.rglob("*.pth")))
    run(tmp_path, steps=3, plugins=[second])
    assert int(second.batches) == int(content["plugins"]["counter"]["batches"]) > 0


def test_a_plugin_that_is_new_at_a_resume_keeps_its_own_state(tmp_path):
    run(tmp_path, steps=3, plugins=[Counter()])
    other = Counter("other")
    run(tmp_path, steps=3, plugins=[other])
    assert int(other.batches) == 0


# Refusals.


@pytest.fixture(autouse=True)
def _passed_over():
    """The only checkpoint is broken, which is said twice: as a warning, and as the error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is passed over for the one before it")
        yield


def refused(root, capfd, model, data=None, **arguments):
    """Fit, expect an error, and return its last line; nothing on disk may change."""
    before = bits(root)
    made = trainer(root, **{"steps": 8, **arguments})
    made.train_exceptions.append(Exception)
    with pytest.raises(CheckpointError) as caught:
        made.fit(model, data or Batches(zoo.regression(5)))
    assert bits(root) == before
    return caught.value


class Wide(zoo.Line):
    def setup(self, fast_init=False):
        super().setup(fast_init)
        self.net = torch.nn.Linear(3, 2)


class Deep(zoo.Line):
    def setup(self, fast_init=False):
        super().setup(fast_init)
        self.more = torch.nn.Linear(1, 1)


@pytest.mark.parametrize(
    ("model", "place"),
    [
        (lambda: Wide(), "net.weight"),
        (lambda: Deep(), "more"),
        (lambda: zoo.Line(optimizer=lambda: helios.optim.AdamW(lr=0.1)), "opt_state"),
        (lambda: zoo.Line(dtype=torch.float64), "float64"),
        (lambda: zoo.Adversarial("line"), "critic"),
    ],
    ids=["shape", "network", "optimizer", "dtype", "objectives"],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, capfd, model, place):
    run(tmp_path, steps=4)
    error = refused(tmp_path, capfd, model())
    assert type(error) is ResumeError
    assert place in str(error)


def test_a_checkpoint_of_a_newer_schema_is_refused(tmp_path, capfd):
    run(tmp_path, steps=4)
    (path,) = tmp_path.rglob("*.pth")
    forge(path, {**read_checkpoint(path), "schema": 99, "version": "9.0"}, schema=99, version="9.0")
    error = refused(tmp_path, capfd, zoo.Line())
    assert type(error) is CheckpointVersionError
    assert "schema 99" in str(error)
    assert "helios 9.0 wrote it" in str(error)


@pytest.mark.parametrize("keep", [0, 10, 500, -1])
def test_a_truncated_checkpoint_is_refused(tmp_path, capfd, keep):
    run(tmp_path, steps=4)
    (path,) = tmp_path.rglob("*.pth")
    path.write_bytes(path.read_bytes()[:keep])
    error = refused(tmp_path, capfd, zoo.Line())
    assert type(error) is CorruptCheckpointError
    assert str(path) in str(error)


@pytest.mark.parametrize(
    "content", [{"weights": torch.ones(2)}, [1], torch.ones(3), {"schema": "1"}]
)
def test_a_file_of_something_else_is_refused(tmp_path, capfd, content):
    folder = tmp_path / "line"
    folder.mkdir()
    forge(folder / "line_epoch_1_iter_1.pth", content)
    assert "not a checkpoint of helios" in str(refused(tmp_path, capfd, zoo.Line()))


@pytest.mark.parametrize("part", ["training_state", "carry", "model", "plan", "rng", "data"])
def test_a_checkpoint_that_lacks_a_part_is_refused(tmp_path, capfd, part):
    run(tmp_path, steps=4)
    (path,) = tmp_path.rglob("*.pth")
    content = read_checkpoint(path)
    del content[part]
    forge(path, content)
    error = refused(tmp_path, capfd, zoo.Line())
    assert type(error) is CorruptCheckpointError
    assert f"it lacks {part}" in str(error)


def test_a_checkpoint_that_lacks_a_counter_is_refused(tmp_path, capfd):
    run(tmp_path, steps=4)
    (path,) = tmp_path.rglob("*.pth")
    content = read_checkpoint(path)
    del content["training_state"]["dataset_iter"]
    forge(path, content)
    assert "lacks the counters dataset_iter" in str(refused(tmp_path, capfd, zoo.Line()))


def test_a_file_that_runs_code_is_not_run(tmp_path, capfd):
    folder = tmp_path / "line"
    folder.mkdir()

    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    forge(folder / "line_epoch_1_iter_1.pth", Code())
    refused(tmp_path, capfd, zoo.Line())
    assert not (tmp_path / "ran").exists()


def samples(batch_size):
    x = torch.zeros(12, 3)
    return from_datasets(train=(x, x[:, :1]), batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [1, 3, 6])
def test_another_batch_size_in_mid_epoch_is_refused(tmp_path, capfd, batch_size):
    run(tmp_path, data=samples(2), steps=4)
    error = refused(tmp_path, capfd, zoo.Line(), samples(batch_size))
    assert "batch 4 of an epoch of 6 batches" in str(error)
    assert f"now has {12 // batch_size}" in str(error)


def test_another_batch_size_between_epochs_is_accepted_with_a_warning(tmp_path):
    run(tmp_path, data=samples(2), steps=6)
    with pytest.warns(UserWarning, match="micro_batch was 2 and is 4"):
        assert run(tmp_path, data=samples(4), steps=9).state.global_epoch == 2


def test_another_optimizer_implementation_is_accepted_with_a_warning(tmp_path):
    adam = [helios.optim.Adam(lr=0.1), helios.optim.Adam(lr=0.1, foreach=True)]
    for steps, optimizer in zip((2, 4), adam, strict=True):
        made = helios.Trainer(
            train_unit="iteration", total_steps=steps, chkpt_root=tmp_path, print_banner=False
        )
        model = zoo.Line("line", lambda optimizer=optimizer: optimizer)
        if steps == 2:
            assert made.fit(model, samples(2))
            continue
        with pytest.warns(UserWarning, match=r"Adam\(\) and is Adam\(foreach=True\)"):
            assert made.fit(model, samples(2))


def test_testing_a_checkpoint_of_another_model_is_refused(tmp_path):
    run(tmp_path, steps=2)
    made = trainer(tmp_path)
    made.test_exceptions.append(Exception)
    with pytest.raises(ResumeError, match=r"net\.weight"):
        made.test(Wide(), Batches(test=zoo.regression(1)))


def test_another_seed_at_a_resume_is_said_and_the_run_keeps_its_own(tmp_path):
    run(tmp_path, steps=2, random_seed=1)
    with pytest.warns(UserWarning, match="random_seed: received 2; the checkpoint's run has 1"):
        made = run(tmp_path, steps=3, random_seed=2)
    assert made.state.seed == 1


def test_another_environment_at_a_resume_is_said(tmp_path):
    run(tmp_path, steps=2)
    torch.set_num_threads(2)
    with pytest.warns(UserWarning, match="threads was 1 and is 2"):
        run(tmp_path, steps=3)


def test_raising_total_steps_goes_on(tmp_path):
    whole, resumed = zoo.Line(), zoo.Line()
    run(tmp_path / "a", whole, steps=9)
    for steps in (2, 5, 5, 9):
        run(tmp_path / "b", resumed, steps=steps)
    assert same(params(resumed), params(whole))


def test_a_stop_inside_of_a_window_is_resumed_inside_of_it(tmp_path):
    arguments = {"steps": 4, "accumulation_steps": 4, "unit": "iteration"}
    whole, resumed = zoo.Line(), zoo.Line()
    run(tmp_path / "a", whole, **arguments)
    made = run(tmp_path / "b", zoo.Line(), plugins=[Stopper(7)], **arguments)
    assert made.state.window_iter == 3
    run(tmp_path / "b", resumed, **arguments)
    assert same(params(resumed), params(whole))


def test_unresumable_root_contents_are_left_alone(tmp_path):
    (tmp_path / "line").mkdir()
    (tmp_path / "line" / "notes.pth").write_text("mine")
    run(tmp_path, steps=1)
    assert (tmp_path / "line" / "notes.pth").read_text() == "mine"

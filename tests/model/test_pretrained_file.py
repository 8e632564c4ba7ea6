"""Files of weights: which are read, and that none of them runs code or makes the reader wait."""

from __future__ import annotations

import argparse
import os
import shutil
import sys

import pytest
import torch
from torch import nn

import helios
from helios.errors import CheckpointError, CorruptCheckpointError, PretrainedError
from helios.model.weights_file import read_weights
from tests.trainer.runs import run, same

WEIGHTS = {"w": torch.arange(3.0), "b": torch.ones(())}


def saved(path, content=WEIGHTS, **arguments):
    torch.save(content, path, **arguments)
    return path


def error_of(path, key=None, kind=PretrainedError) -> str:
    with pytest.raises(kind) as caught:
        read_weights(path, key)
    return str(caught.value)


# Formats.


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.PTH"])
@pytest.mark.parametrize("as_text", [True, False])
def test_a_file_of_torch_is_read(tmp_path, name, as_text):
    path = saved(tmp_path / name)
    assert same(read_weights(str(path) if as_text else path), WEIGHTS)


def test_the_older_format_of_torch_is_read(tmp_path):
    path = saved(tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert same(read_weights(path), WEIGHTS)


def test_a_state_dict_with_its_metadata_is_read(tmp_path):
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    weights = read_weights(saved(tmp_path / "a.pth", net.state_dict()))
    assert same(dict(weights), dict(net.state_dict()))


def test_a_link_to_a_file_is_read(tmp_path):
    saved(tmp_path / "a.pth")
    (tmp_path / "link.pth").symlink_to(tmp_path / "a.pth")
    assert same(read_weights(tmp_path / "link.pth"), WEIGHTS)


@pytest.mark.parametrize("name", ["a.bin", "a.ckpt", "a.pkl", "a", "a.pth.tmp"])
def test_another_ending_is_refused_with_what_is_accepted(tmp_path, name):
    message = error_of(saved(tmp_path / name))
    assert (
        "expected a .pt or .pth that torch.save wrote, a .safetensors, or a checkpoint" in message
    )


@pytest.mark.parametrize("path", [None, 3, b"a.pth"])
def test_a_path_of_another_type_is_refused(path):
    assert "path: received" in error_of(path, kind=TypeError)


def test_a_key_of_another_type_is_refused(tmp_path):
    assert "key: received 3" in error_of(saved(tmp_path / "a.pth"), 3, kind=TypeError)


# What is no regular file.


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_missing_file_is_refused(tmp_path, ending):
    assert "does not exist" in error_of(tmp_path / f"a.{ending}", kind=CheckpointError)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_folder_is_refused(tmp_path, ending):
    (tmp_path / f"a.{ending}").mkdir()
    assert "is a folder" in error_of(tmp_path / f"a.{ending}", kind=CheckpointError)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("linked", [True, False])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, ending, linked):
    path = tmp_path / f"a.{ending}"
    os.mkfifo(tmp_path / "pipe" if linked else path)
    if linked:
        path.symlink_to(tmp_path / "pipe")
    assert "is not a regular file" in error_of(path, kind=CheckpointError)


def test_a_link_to_nothing_is_refused(tmp_path):
    (tmp_path / "a.pth").symlink_to(tmp_path / "b.pth")
    assert "a link to a file that does not exist" in error_of(
        tmp_path / "a.pth", kind=CheckpointError
    )


def test_a_link_to_itself_is_refused(tmp_path):
    (tmp_path / "a.pth").symlink_to(tmp_path / "a.pth")
    assert "a link to a file that does not exist" in error_of(
        tmp_path / "a.pth", kind=CheckpointError
    )


# Bytes that are not to be trusted.


class Runs:
    """Calls a function with a path when it is unpickled."""

    def __init__(self, function, path):
        self.call = function, (str(path),)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("function", "why"),
    [(shutil.rmtree, "shutil.rmtree, which may run code"), (os.rmdir, "posix.rmdir")],
)
def test_a_file_with_code_is_refused_and_the_code_not_run(tmp_path, function, why, zipped):
    (tmp_path / "folder").mkdir()
    content = {**WEIGHTS, "code": Runs(function, tmp_path / "folder")}
    path = saved(tmp_path / "a.pth", content, _use_new_zipfile_serialization=zipped)
    assert why in error_of(path, kind=CheckpointError)
    assert (tmp_path / "folder").is_dir()


def test_an_object_is_refused_by_its_type(tmp_path):
    path = saved(tmp_path / "a.pth", {"args": argparse.Namespace(lr=1), "model": WEIGHTS})
    assert "argparse.Namespace" in error_of(path, "model", kind=CheckpointError)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_is_cut_short_anywhere_is_refused(tmp_path, zipped):
    path = saved(tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for size in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:size])
        # The older format, cut inside of a type's name, seems to hold a type that is not allowed.
        error_of(path, kind=CorruptCheckpointError if zipped else CheckpointError)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_a_changed_byte_is_never_another_error_than_a_named_one(tmp_path):
    path = saved(tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    outcomes = set()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        try:
            read_weights(path)
            outcomes.add("read")
        except (CheckpointError, PretrainedError) as error:
            outcomes.add(type(error).__name__)
    assert "CorruptCheckpointError" in outcomes


@pytest.mark.parametrize("content", [b"", b"hello, this is text", bytes(1000), b"PK\x03\x04"])
def test_garbage_is_corrupt(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    error_of(tmp_path / "a.pth", kind=CorruptCheckpointError)


def test_a_zip_of_something_else_is_corrupt(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.pth", "w") as file:
        file.writestr("a/readme", "text")
    error_of(tmp_path / "a.pth", kind=CorruptCheckpointError)


# Where the tensors are.


def test_a_key_opens_a_nested_file(tmp_path):
    path = saved(tmp_path / "a.pth", {"state_dict": WEIGHTS, "epoch": 3})
    assert same(read_weights(path, "state_dict"), WEIGHTS)


def test_a_key_may_lead_through_several_levels(tmp_path):
    path = saved(tmp_path / "a.pth", {"model": {"ema": WEIGHTS}})
    assert same(read_weights(path, "model.ema"), WEIGHTS)


def test_a_key_may_have_dots_of_its_own(tmp_path):
    path = saved(tmp_path / "a.pth", {"model": {"a": 1}, "model.v2": {"ema.0": WEIGHTS}})
    assert same(read_weights(path, "model.v2.ema.0"), WEIGHTS)


def test_a_nested_file_without_a_key_lists_the_keys_that_would_do(tmp_path):
    content = {"model": WEIGHTS, "ema": {"shadow": WEIGHTS, "decay": 0.9}, "args": {"lr": 1}}
    message = error_of(saved(tmp_path / "a.pth", content))
    assert "is no flat dict of tensors" in message
    assert "key= one of 'model', 'ema.shadow'" in message
    assert "args" not in message


def test_a_tensor_beside_a_nested_dict_does_not_make_a_file_flat(tmp_path):
    path = saved(tmp_path / "a.pth", {"model": WEIGHTS, "decay": torch.ones(())})
    assert "key= one of 'model'" in error_of(path)


def test_a_key_that_is_not_there_lists_the_keys_that_would_do(tmp_path):
    path = saved(tmp_path / "a.pth", {"state_dict": WEIGHTS})
    message = error_of(path, "model")
    assert "key: received 'model'" in message
    assert "key= one of 'state_dict'" in message


def test_a_key_of_a_flat_file_is_refused(tmp_path):
    assert "leave key out" in error_of(saved(tmp_path / "a.pth"), "state_dict")


def test_a_key_of_something_else_is_refused(tmp_path):
    path = saved(tmp_path / "a.pth", {"model": WEIGHTS, "epoch": 3})
    assert "holds 'int'; expected a dict of tensors" in error_of(path, "epoch")


@pytest.mark.parametrize("content", [3, None, torch.ones(2), [torch.ones(2)], "text"])
def test_what_is_no_dict_is_refused(tmp_path, content):
    assert "expected a dict of tensors by name" in error_of(saved(tmp_path / "a.pth", content))


@pytest.mark.parametrize("content", [{}, {"lr": 0.1}])
def test_a_dict_without_tensors_is_refused(tmp_path, content):
    assert "none of them a tensor" in error_of(saved(tmp_path / "a.pth", content))


def test_names_that_are_not_strings_are_refused(tmp_path):
    path = saved(tmp_path / "a.pth", {"w": torch.ones(1), 7: torch.ones(1), 8: torch.ones(1)})
    message = error_of(path)
    assert "has 7 (int) as a name and 1 more like it; expected strings" in message


def test_a_dict_that_holds_itself_many_times_is_looked_through_once(tmp_path):
    content = {"model": {"w": torch.ones(1)}}
    content.update({f"self{n}": content for n in range(300)})
    assert "key= one of 'model'" in error_of(saved(tmp_path / "a.pth", content))


def test_many_keys_are_counted(tmp_path):
    path = saved(tmp_path / "a.pth", {f"model{n}": WEIGHTS for n in range(25)})
    assert "'model19' and 5 more" in error_of(path)


def test_extra_state_does_not_make_a_file_nested(tmp_path):
    content = {**WEIGHTS, "_extra_state": {"scale": torch.ones(1)}}
    assert set(read_weights(saved(tmp_path / "a.pth", content))) == {*WEIGHTS, "_extra_state"}


# Checkpoints of helios.


def test_a_checkpoint_of_helios_gives_its_model(tmp_path):
    made = run(tmp_path, steps=2)
    weights = read_weights(next(tmp_path.rglob("*.pth")))
    assert same(dict(weights), dict(made.state.carry.params))


def test_a_key_opens_another_part_of_a_checkpoint_of_helios(tmp_path):
    from tests import zoo

    class Averaged(zoo.Line):
        def setup(self, fast_init=False):
            super().setup(fast_init)
            self.average = helios.optim.average(decay=0.5)

    made = run(tmp_path, Averaged(), steps=2)
    weights = read_weights(next(tmp_path.rglob("*.pth")), "carry.average")
    assert same(weights, dict(made.state.carry.average))


# The package of an extra.


def test_without_safetensors_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert "pip install 'helios[safetensors]'" in error_of(tmp_path / "a.safetensors")


def test_importing_helios_imports_no_safetensors():
    import subprocess

    code = "import sys, helios; sys.exit('safetensors' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""``helios inspect`` shows what a checkpoint is; its numbers are those of the file itself."""

from __future__ import annotations

import json
import os

import pytest
import torch

import helios
from helios.cli.main import main
from helios.trainer.store import read_checkpoint
from tests import zoo
from tests.cli.test_verify import MIDDLE, NEW, OLD, flip
from tests.trainer import runs


def inspected(capsys, *arguments, status=0):
    assert main(["inspect", "--json", *map(str, arguments)]) == status
    return json.loads(capsys.readouterr().out)


def tensors(shown, name):
    [group] = [g for g in shown["checkpoint"]["groups"] if g["name"] == name]
    return {
        leaf["path"]: (leaf["dtype"], leaf["shape"], leaf["bytes"]) for leaf in group["tensors"]
    }


def test_a_checkpoint_shows_its_state(capsys, folder):
    path = folder / f"{MIDDLE}.pth"
    found = inspected(capsys, path)["checkpoint"]
    content = torch.load(path, weights_only=True)
    counters = {k: content["training_state"][k] for k in found["manifest"]["counters"]}
    assert found["status"] == "valid"
    assert found["save_name"] == "line"
    assert found["logs"]["log_file"] == content["log"]["log_file"]
    assert found["logs"]["log_file"].startswith("try_")
    assert found["manifest"]["counters"] == counters
    assert found["manifest"]["seed"] == 7
    assert found["manifest"]["plan"] == content["plan"]
    assert found["manifest"]["fingerprint"] == content["fingerprint"]
    assert found["size"] == path.stat().st_size


def test_its_tensors_have_their_shapes_dtypes_and_bytes(capsys, folder):
    shown = inspected(capsys, folder / f"{NEW}.pth")
    assert tensors(shown, "parameters") == {
        "net.weight": ("float32", [1, 3], 12),
        "net.bias": ("float32", [1], 4),
    }
    assert tensors(shown, "optimizer state")["loss/slots/net.weight/exp_avg"] == (
        *("float32", [1, 3], 12),
    )
    assert [g["name"] for g in shown["checkpoint"]["groups"]] == [
        *("parameters", "optimizer state", "rng")
    ]
    for group in shown["checkpoint"]["groups"]:
        assert group["count"] == len(group["tensors"])
        assert group["elements"] == sum(leaf["elements"] for leaf in group["tensors"])
        assert group["bytes"] == sum(leaf["bytes"] for leaf in group["tensors"])


def test_buffers_averages_and_open_windows_are_groups_of_their_own(capsys, tmp_path):
    class Full(zoo.Line):
        def setup(self, fast_init=False):
            super().setup()
            self.norm = torch.nn.BatchNorm1d(3)
            self.average = helios.optim.average(0.9)

        def loss(self, batch):
            return super().loss((self.norm(batch[0]), batch[1]))

    data = runs.Batches(zoo.regression(5))
    trainer = runs.trainer(
        tmp_path, accumulation_steps=2, print_frequency=10, plugins=[runs.Stopper(3)]
    )
    assert trainer.fit(Full(), data)
    [path] = (tmp_path / "line").glob("*_micro_3.pth")
    shown = inspected(capsys, path)
    numbers = {
        name: sum(t.numel() for t in kind.values())
        for name, kind in (
            ("parameters", trainer.state.carry.params),
            ("buffers", trainer.state.carry.buffers),
            ("average of the parameters", trainer.state.carry.average),
        )
    }
    groups = {g["name"]: g["elements"] for g in shown["checkpoint"]["groups"]}
    assert {name: groups[name] for name in numbers} == numbers
    window = tensors(shown, "open accumulation window")
    assert {path for path in window if "/grads/" in path} == {
        f"loss/grads/{name}" for name in trainer.state.carry.params
    }
    assert shown["checkpoint"]["manifest"]["window_iter"] == 1


def test_a_carry_of_another_form_is_one_group(capsys, tmp_path):
    class Own(zoo.Line):
        def init_carry(self):
            return {"w": torch.zeros(2, 5, dtype=torch.float64), "n": 0}

        def step(self, state, batch):
            return state

    data = runs.Batches(zoo.regression(5))
    assert runs.trainer(tmp_path, steps=1).fit(Own(), data)
    [path] = (tmp_path / "line").glob("*.pth")
    assert tensors(inspected(capsys, path), "carry") == {"w": ("float64", [2, 5], 80)}


def test_a_sharded_checkpoint_is_described_whole(capsys, sharded):
    shown = inspected(capsys, sharded)
    assert shown["checkpoint"]["status"] == "valid"
    content = read_checkpoint(sharded / shown["checkpoints"][0]["file"])
    params = content["carry"]["params"]
    assert {p: v[:2] for p, v in tensors(shown, "parameters").items()} == {
        path: (str(value.dtype).removeprefix("torch."), list(value.shape))
        for path, value in params.items()
    }
    average = content["carry"]["average"]
    assert tensors(shown, "average of the parameters").keys() == average.keys()
    names = {g["name"] for g in shown["checkpoint"]["groups"]}
    assert "state_dict beside the carry" not in names
    files = list(sharded.glob(f"{shown['checkpoint']['manifest']['file'][:-4]}.*"))
    sizes = [f.stat().st_size for f in files if f.suffix != ".json"]
    assert len(sizes) == 4
    assert shown["checkpoint"]["size"] == sum(sizes)


def test_a_broken_part_is_found(capsys, sharded):
    newest = max(sharded.glob("*.pth"), key=lambda path: path.stem)
    flip(newest.with_suffix(".1.shard"), at=10)
    shown = inspected(capsys, newest, status=1)["checkpoint"]
    assert shown["status"] == "broken"
    assert "does not hold its digest" in shown["problem"]


def test_a_folder_shows_its_newest(capsys, folder):
    shown = inspected(capsys, folder)
    assert [one["status"] for one in shown["checkpoints"]] == ["valid"] * 3
    assert shown["checkpoint"]["manifest"]["file"] == f"{NEW}.pth"


def test_a_folder_with_a_broken_one_shows_the_one_before(capsys, folder):
    flip(folder / f"{NEW}.pth")
    helios.pin_checkpoint(folder / f"{OLD}.pth")
    shown = inspected(capsys, folder, status=1)
    assert [one["status"] for one in shown["checkpoints"]] == ["broken", "valid", "valid"]
    assert [one["pinned"] for one in shown["checkpoints"]] == [False, False, True]
    assert shown["checkpoint"]["manifest"]["file"] == f"{MIDDLE}.pth"


def test_a_folder_of_broken_ones_shows_none(capsys, folder):
    for path in folder.glob("*.pth"):
        flip(path)
    shown = inspected(capsys, folder, status=1)
    assert shown["checkpoint"] is None
    assert len(shown["checkpoints"]) == 3


def test_of_a_broken_file_the_manifest_is_shown(capsys, folder):
    path = folder / f"{NEW}.pth"
    flip(path)
    shown = inspected(capsys, path, status=1)["checkpoint"]
    assert shown["status"] == "broken"
    assert shown["manifest"]["counters"]["current_iteration"] == 6
    assert shown["groups"] == []


def test_weights_of_another_origin_are_uncommitted(capsys, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"w": torch.zeros(2)}, path)
    shown = inspected(capsys, path, status=1)["checkpoint"]
    assert shown["status"] == "uncommitted"
    assert "helios.load_pretrained()" in shown["problem"]


def test_the_summary_leaves_out_single_tensors(capsys, folder):
    assert main(["inspect", str(folder), "--summary"]) == 0
    out = capsys.readouterr().out
    assert "parameters: 2 tensors, 4 elements, 16 B" in out
    assert "net.weight" not in out


def test_the_text_has_a_line_for_every_fact(capsys, folder):
    assert main(["inspect", str(folder / f"{NEW}.pth")]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for expected in (
        "status valid: its bytes are those that were committed",
        "save name line",
        "seed 7",
        "current_iteration 6",
        "unit iteration",
        "valid_frequency 2",
        "early_stop_cycles none",
        f"torch {torch.__version__}",
        "net.weight float32[1, 3] 12 B",
    ):
        assert expected in lines


def test_a_name_cannot_command_the_terminal(capsys, tmp_path):
    class Named(zoo.Line):
        def setup(self, fast_init=False):
            super().setup()
            self.register_buffer("\x1b[2J", torch.zeros(1))

    assert runs.trainer(tmp_path, steps=1).fit(Named(), runs.Batches(zoo.regression(5)))
    assert main(["inspect", str(tmp_path / "line")]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\\x1b[2J" in out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.pth", "there is nothing at"),
        (f"{NEW}.json", "is no .pth file; expected one, or the folder of a run"),
        ("a\0b", "cannot read"),
        ("x" * 300, "cannot read"),
    ],
)
def test_a_bad_path_is_a_wrong_call(capsys, folder, name, message):
    assert main(["inspect", os.path.join(folder, name)]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert message in err

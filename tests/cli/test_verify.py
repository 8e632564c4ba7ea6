"""``helios verify`` finds every file of a run that is not the one that was committed."""

from __future__ import annotations

import json
import os

import pytest

import helios
from helios.cli.main import main
from helios.cli.survey import survey
from helios.trainer.store import manifest
from helios.trainer.store.fs import OsFs

OLD, MIDDLE, NEW = (f"line_epoch_{e}_iter_{i}" for e, i in ((1, 2), (1, 4), (2, 6)))


def verify(capsys, folder):
    status = main(["verify", str(folder)])
    out, err = capsys.readouterr()
    assert not err
    *lines, last = out.splitlines()
    return status, {words[1]: words[0] for words in map(str.split, lines)}, last


def flip(path, at=100):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_run_as_it_was_written_is_valid(capsys, folder):
    status, found, last = verify(capsys, folder)
    assert status == 0
    assert list(found.items()) == [(f"{stem}.pth", "valid") for stem in (NEW, MIDDLE, OLD)]
    assert last == "3 checkpoints: 3 valid"


@pytest.mark.parametrize("stem", [OLD, MIDDLE, NEW])
@pytest.mark.parametrize("suffix", [".pth", ".json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_file_that_was_changed_is_broken(capsys, folder, stem, suffix, damage):
    path = folder / f"{stem}{suffix}"
    if damage == "flip":
        flip(path)
    else:
        os.truncate(path, path.stat().st_size // 2 if damage == "cut" else 0)
    status, found, last = verify(capsys, folder)
    assert status == 1
    assert {name for name, kind in found.items() if kind == "broken"} == {f"{stem}.pth"}
    assert sorted(last.split(": ")[1].split(", ")) == ["1 broken", "2 valid"]


def test_a_checkpoint_that_is_gone_is_broken(capsys, folder):
    (folder / f"{OLD}.pth").unlink()
    status, found, _ = verify(capsys, folder)
    assert status == 1
    assert found == {f"{NEW}.pth": "valid", f"{MIDDLE}.pth": "valid", f"{OLD}.pth": "broken"}


def test_a_checkpoint_without_a_manifest_is_uncommitted(capsys, folder):
    (folder / f"{MIDDLE}.json").unlink()
    status, found, _ = verify(capsys, folder)
    assert status == 1
    assert found[f"{MIDDLE}.pth"] == "uncommitted"


def test_a_save_under_way_is_not_looked_at(capsys, folder):
    (folder / f"{MIDDLE}.json").rename(folder / f".{MIDDLE}.json")
    status, found, _ = verify(capsys, folder)
    assert status == 0
    assert set(found) == {f"{NEW}.pth", f"{OLD}.pth"}


class RunsOn(OsFs):
    """Lets a run do something before the n-th look into the folder."""

    def __init__(self, look, act):
        self.look, self.act = look, act

    def listdir(self, folder):
        self.look -= 1
        if self.look == 0:
            self.act()
        return super().listdir(folder)


@pytest.mark.parametrize("look", [1, 2, 3])
def test_what_a_run_saves_meanwhile_is_not_broken(folder, tmp_path, look):
    aside = [(folder / f"{NEW}{end}").rename(tmp_path / f"{NEW}{end}") for end in (".pth", ".json")]
    fs = RunsOn(look, lambda: [path.rename(folder / path.name) for path in aside])
    found = list(survey(fs, folder))
    assert {one.status for one in found} == {"valid"}
    assert len(found) == (3 if look == 1 else 2)


@pytest.mark.parametrize("look", [1, 2, 3])
def test_what_a_run_removes_meanwhile_is_not_broken(folder, look):
    def remove():
        (folder / f"{OLD}.json").unlink()
        (folder / f"{OLD}.pth").unlink()

    found = list(survey(RunsOn(look, remove), folder))
    assert [(one.file, one.status) for one in found] == [
        *((f"{NEW}.pth", "valid"), (f"{MIDDLE}.pth", "valid"))
    ]


def test_a_format_of_a_newer_helios_is_named_so(capsys, folder):
    path = folder / f"{NEW}.json"
    known = manifest.decode(path.read_bytes(), f"{NEW}.pth")
    newer = {name: getattr(known, name) for name in known.__struct_fields__}
    path.write_bytes(manifest.encode(manifest.Manifest(**newer | {"schema": manifest.SCHEMA + 1})))
    status, found, _ = verify(capsys, folder)
    assert status == 1
    assert found[f"{NEW}.pth"] == "newer"


def test_a_pinned_checkpoint_is_marked(capsys, folder):
    helios.pin_checkpoint(folder / f"{OLD}.pth")
    assert main(["verify", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith("pinned") for line in lines] == [False, False, True, False]


def test_json_has_the_same_facts(capsys, folder):
    flip(folder / f"{OLD}.pth")
    helios.pin_checkpoint(folder / f"{OLD}.pth")
    assert main(["verify", str(folder), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["checkpoints"]
    assert [one["status"] for one in found] == ["valid", "valid", "broken"]
    assert "does not hold its digest" in found[2]["problem"]
    assert [one["pinned"] for one in found] == [False, False, True]
    assert found[0]["size"] == (folder / f"{NEW}.pth").stat().st_size


def test_a_run_in_another_place_under_another_name_is_valid(capsys, folder):
    status, found, _ = verify(capsys, folder.rename(folder.with_name("backup")))
    assert status == 0
    assert len(found) == 3


def test_nothing_is_changed(folder):
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    main(["verify", str(folder)])
    main(["inspect", str(folder)])
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("number", [0, 1, 2])
def test_every_part_of_a_sharded_checkpoint_is_read(capsys, sharded, number):
    assert main(["verify", str(sharded)]) == 0
    capsys.readouterr()
    stem = sorted(path.stem for path in sharded.glob("*.pth"))[-1]
    flip(sharded / manifest.part_names(stem, 3)[number], at=10)
    status, found, _ = verify(capsys, sharded)
    assert status == 1
    assert [name for name, kind in found.items() if kind != "valid"] == [f"{stem}.pth"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "there is nothing at"),
        (lambda path: path.write_text("x"), "is a file; expected a folder of checkpoints"),
        (lambda path: path.mkdir(), "has no checkpoints; expected <chkpt_root>/<save_name>"),
    ],
    ids=["nothing", "file", "empty"],
)
def test_a_bad_path_is_a_wrong_call(capsys, tmp_path, make, message):
    make(tmp_path / "runs")
    assert main(["verify", str(tmp_path / "runs")]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert message in err


def test_the_folder_above_leads_to_the_runs(capsys, folder):
    assert main(["verify", str(folder.parent)]) == 2
    assert "expected the folder of one run. Those in it: line" in capsys.readouterr().err

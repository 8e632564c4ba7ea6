"""The CSV and the JSON log: a row for each update, and what becomes of it in a resumed run."""

from __future__ import annotations

import csv
import json
import math

import pytest

from helios.loggers import CSVLog, JSONLog, Run

KINDS = {"csv": CSVLog, "jsonl": JSONLog}


def read(path):
    """Return the rows of a log as dicts of what is in them, but the time."""
    if path.suffix == ".csv":
        lines = path.read_text().splitlines()
        rows = [{n: c for n, c in row.items() if c} for row in csv.DictReader(lines)]
    else:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{n: v if n == "time" else float(v) for n, v in row.items()} for row in rows]


def timeless(path):
    return [{n: v for n, v in row.items() if n != "time"} for row in read(path)]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def path(tmp_path, kind):
    return tmp_path / f"log.{kind}"


def write(path, updates, resumed_from=None, is_test=False, name="loss"):
    log = KINDS[path.suffix[1:]](path)
    log.open(Run("run", resumed_from, is_test=is_test))
    for update in updates:
        log.scalars(update, 1, {name: update / 8})
    log.close()


def test_there_is_a_row_for_each_update(path):
    write(path, [1, 2])
    assert timeless(path) == [
        {"update": 1, "epoch": 1, "loss": 0.125},
        {"update": 2, "epoch": 1, "loss": 0.25},
    ]


def test_what_is_reported_at_one_update_is_in_one_row(path):
    log = KINDS[path.suffix[1:]](path)
    log.open(Run("run"))
    log.scalars(1, 1, {"a": 1.0})
    log.scalars(1, 1, {"b": 2.0})
    log.scalars(2, 1, {"a": 3.0})
    log.close()
    first, second = timeless(path)
    assert first == {"update": 1, "epoch": 1, "a": 1, "b": 2}
    assert second == {"update": 2, "epoch": 1, "a": 3}


def test_a_resumed_run_cuts_off_what_is_computed_again(path):
    write(path, [1, 2, 3, 4])
    write(path, [3, 4, 5], resumed_from=2)
    assert [row["update"] for row in read(path)] == [1, 2, 3, 4, 5]


def test_a_number_that_was_only_in_rows_that_are_cut_off_is_gone(path):
    write(path, [1, 2])
    write(path, [3], resumed_from=2, name="other")
    write(path, [3], resumed_from=2)
    assert "other" not in path.read_text()


def test_the_row_of_the_checkpoint_is_gone_on_with(path):
    write(path, [1, 2])
    write(path, [2], resumed_from=2, name="other")
    assert timeless(path)[1] == {"update": 2, "epoch": 1, "loss": 0.25, "other": 0.25}


def test_a_new_run_overwrites_nothing(path, kind):
    write(path, [1])
    before = path.read_text()
    write(path, [1, 2])
    assert path.with_name(f"log.1.{kind}").read_text() == before
    assert len(read(path)) == 2


def test_a_test_adds_to_what_is_there(path):
    write(path, [1, 2])
    write(path, [2], is_test=True, name="test/loss")
    assert len(read(path)) == 2
    assert read(path)[1]["test/loss"] == 0.25


def test_a_file_that_ends_in_half_a_row_is_gone_on_with(path):
    write(path, [1, 2])
    path.write_text(path.read_text()[:-3])
    write(path, [2, 3], resumed_from=1)
    assert [row["update"] for row in read(path)] == [1, 2, 3]


def test_numbers_are_read_back_as_the_same_bits(path):
    log = KINDS[path.suffix[1:]](path)
    log.open(Run("run"))
    log.scalars(1, 1, {"third": 1 / 3, "tiny": 5e-324})
    log.close()
    assert (read(path)[0]["third"], read(path)[0]["tiny"]) == (1 / 3, 5e-324)


def test_csv_writes_what_is_not_finite_by_name(tmp_path):
    log = CSVLog(tmp_path / "log.csv")
    log.open(Run("run"))
    log.scalars(1, 1, {"a": math.nan, "b": math.inf})
    log.close()
    (row,) = read(tmp_path / "log.csv")
    assert math.isnan(row["a"])
    assert math.isinf(row["b"])


def test_json_has_null_for_what_is_not_finite(tmp_path):
    log = JSONLog(tmp_path / "log.jsonl")
    log.open(Run("run"))
    log.scalars(1, 1, {"a": math.nan})
    log.close()
    assert json.loads((tmp_path / "log.jsonl").read_text())["a"] is None


def test_a_name_with_a_comma_is_one_column(tmp_path):
    log = CSVLog(tmp_path / "log.csv")
    log.open(Run("run"))
    log.scalars(1, 1, {"a, b": 1.0})
    log.close()
    assert read(tmp_path / "log.csv")[0]["a, b"] == 1


@pytest.mark.parametrize("make", KINDS.values())
def test_no_path_is_refused(make):
    with pytest.raises(TypeError, match="expected the path of a file"):
        make(3)


def test_a_relative_path_is_that_of_the_moment(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    log = KINDS[kind](f"log.{kind}")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    log.open(Run("run"))
    log.scalars(1, 1, {"a": 1.0})
    log.close()
    assert (tmp_path / f"log.{kind}").exists()

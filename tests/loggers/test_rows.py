"""A file of rows: nothing is overwritten, the last row may be written again, torn lines go."""

from __future__ import annotations

import pytest

from helios.loggers.rows import RowFile, move_away


@pytest.fixture
def rows(tmp_path):
    made = RowFile(tmp_path / "folder" / "rows.txt")
    made.begin(["a"])
    yield made
    made.close()


def test_a_row_is_in_the_file_as_soon_as_it_is_written(rows):
    rows.append("b")
    assert rows.path.read_text() == "a\nb\n"


@pytest.mark.parametrize("row", ["longer than before", "b", ""])
def test_the_last_row_can_be_written_again(rows, row):
    rows.append("bbb")
    rows.replace_last(row)
    rows.append("c")
    assert rows.path.read_text() == f"a\n{row}\nc\n"


def test_the_row_that_it_begins_with_can_be_written_again(rows):
    rows.begin(["a", "b"])
    rows.replace_last("c")
    assert rows.path.read_text() == "a\nc\n"


def test_a_line_that_was_torn_is_not_read(rows):
    rows.append("b")
    rows.path.write_text("a\nb\nto")
    assert rows.read() == ["a", "b"]


def test_beginning_leaves_no_other_file(rows):
    rows.begin(["a", "b"])
    assert [path.name for path in rows.path.parent.iterdir()] == ["rows.txt"]


def test_what_is_written_after_closing_is_dropped(rows):
    rows.close()
    rows.append("b")
    assert rows.path.read_text() == "a\n"


def test_files_of_earlier_runs_are_kept_by_number(tmp_path):
    for content in "abc":
        move_away(tmp_path / "log.csv")
        (tmp_path / "log.csv").write_text(content)
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == {"log.1.csv": "a", "log.2.csv": "b", "log.csv": "c"}

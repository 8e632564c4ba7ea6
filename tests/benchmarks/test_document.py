import json

import pytest

from benchmarks.document import keep, put, table

PAGE = (
    "# Page\n\n<!-- begin a -->\n\nold\n\n<!-- end a -->\n\ntext\n<!-- begin b --><!-- end b -->\n"
)


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    return path


def test_text_is_put_between_its_markers_alone(page):
    put(page, "a", "new | \\1")
    assert page.read_text() == PAGE.replace("old", "new | \\1")


def test_putting_the_same_text_again_changes_nothing(page):
    put(page, "b", "x")
    once = page.read_text()
    put(page, "b", "x")
    assert page.read_text() == once
    assert "<!-- begin b -->\n\nx\n\n<!-- end b -->" in once


@pytest.mark.parametrize("text", ["", "<!-- end a --><!-- begin a -->", PAGE + PAGE])
def test_a_page_without_its_markers_is_left_as_it_is(page, text):
    page.write_text(text)
    with pytest.raises(ValueError, match="once each"):
        put(page, "a", "new")
    assert page.read_text() == text
    assert list(page.parent.iterdir()) == [page]


def test_a_section_of_results_replaces_itself_alone(tmp_path):
    path = tmp_path / "results" / "cpu.json"
    keep(path, "steps", {"rounds": [1.5, 2.5], "old": 1})
    whole = keep(path, "memory", {"peak": 3})
    assert whole == {"steps": {"rounds": [1.5, 2.5], "old": 1}, "memory": {"peak": 3}}
    keep(path, "steps", {"rounds": []})
    assert json.loads(path.read_text()) == {"steps": {"rounds": []}, "memory": {"peak": 3}}


def test_lists_of_numbers_stay_on_one_line(tmp_path):
    path = tmp_path / "cpu.json"
    keep(path, "steps", {"rounds": [1.5, -2e-07, 3]})
    assert '"rounds": [ 1.5, -2e-07, 3 ]' in path.read_text()


def test_a_table_has_a_line_under_its_header():
    assert table(["a", "b"], [["1", "2"], ["3", "4"]]).splitlines()[1] == "|---|---|"

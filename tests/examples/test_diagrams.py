"""The diagrams of the documentation are those that the code draws now."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
SPEC = importlib.util.spec_from_file_location("diagrams", DOCS / "diagrams.py")
diagrams = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(diagrams)


@pytest.mark.parametrize("name", diagrams.DIAGRAMS)
def test_a_diagram_is_drawn_from_the_code_of_today(name):
    drawn = diagrams.DIAGRAMS[name]()
    kept = (DOCS / "images" / f"{name}.svg").read_text()
    assert kept == drawn, "run python docs/diagrams.py"

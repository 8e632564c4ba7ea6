"""Every Python block of the README and of docs/ runs as it stands, in the order of its file."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page):
    text = page.read_text()
    # Blank lines before a block make the numbers in a traceback those of the page.
    return [(text[: match.start(1)].count("\n"), match[1]) for match in BLOCK.finditer(text)]


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p)], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_the_python_blocks_run(page, tmp_path):
    # A process of its own: a page is one script, and a folder of its own takes its files.
    script = ""
    for line, block in blocks(page):
        script += "\n" * (line - script.count("\n")) + block
    path = tmp_path / f"{page.stem}.py"
    path.write_text(script)
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", str(path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # fit reports a failure on standard error, and returns False.
    assert "Traceback" not in done.stderr, done.stderr


def test_the_quickstart_has_at_most_15_lines():
    _, quickstart = blocks(ROOT / "README.md")[0]
    assert "fit(" in quickstart
    assert len([line for line in quickstart.splitlines() if line.strip()]) <= 15


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target

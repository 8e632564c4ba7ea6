"""Write the diffs of the page ``docs/migrating.md`` anew, from the files beside this one."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "migrating.md"
PAIRS = ("from_imperative", "from_lightning", "from_loop")
_CONTEXT = {"from_imperative": 3}  # the others are shown whole
_BLOCK = re.compile(r"(<!-- (\w+) -->\n```diff\n)(.*?)(```\n)", re.DOTALL)


def diff(pair: str) -> str:
    """Return the diff of two files, as the page has it."""
    names = [f"{pair}_{which}.py" for which in ("before", "after")]
    before, after = ((HERE / name).read_text().splitlines(keepends=True) for name in names)
    lines = difflib.unified_diff(before, after, *names, n=_CONTEXT.get(pair, len(before)))
    # A line that is the same on both sides begins with a blank, an empty one needs none.
    return "".join(line if line.strip() else "\n" for line in lines)


def blocks(page: str) -> dict[str, str]:
    """Return the diffs of a page by their names."""
    return {name: block for _, name, block, _ in _BLOCK.findall(page)}


def rewritten(page: str) -> str:
    """Return a page with its diffs made anew."""
    return _BLOCK.sub(lambda found: found[1] + diff(found[2]) + found[4], page)


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))

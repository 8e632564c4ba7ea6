"""Figures into pages: the text between two markers of a Markdown file is the command's own."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown.

    Example:
        >>> print(table(["who", "us"], [["a", "1"]]))
        | who | us |
        |---|---|
        | a | 1 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(_row(line) for line in lines)


def put(page: Path, name: str, text: str) -> None:
    """Put text between the markers of a name, in the place of what is there.

    Args:
        page: the file; it has the lines ``<!-- begin NAME -->`` and ``<!-- end NAME -->``, once.
        name: the name.
        text: the new text, without a line at its end.

    Raises:
        ValueError: if the markers are not there, or more than once.
    """
    before = page.read_text(encoding="utf-8")
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if before.count(begin) != 1 or before.count(end) != 1 or before.find(end) < before.find(begin):
        raise ValueError(f"{page}: expected {begin!r} and, after it, {end!r}, once each")
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    write(page, pattern.sub(lambda _: f"{begin}\n\n{text}\n\n{end}", before))


def keep(path: Path, section: str, results: Any) -> dict[str, Any]:
    """Put one section into a file of results; the others stay.

    Args:
        path: the file, made if it is not there.
        section: which benchmark.
        results: its figures.

    Returns:
        All sections.
    """
    whole = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    whole[section] = results
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(whole, indent=1)
    # Lists of numbers on one line: a file that can be read, and compared.
    flat = re.sub(r"\[[\s\d.,e+-]*\]", lambda match: re.sub(r"\s+", " ", match[0]), text)
    write(path, flat + "\n")
    return whole


def write(path: Path, text: str) -> None:
    """Write a file whole, or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(name, 0o644)
    Path(name).replace(path)


def _row(cells: Sequence[str]) -> str:
    inside = "|".join(cells) if set(cells) == {"---"} else " " + " | ".join(cells) + " "
    return f"|{inside}|"

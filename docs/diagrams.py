"""The diagrams of the concepts, drawn from the code: ``python docs/diagrams.py`` writes them anew.

Names, fields and events are read from helios, so a diagram cannot speak of what is not there; a
test compares the files with what this script would write.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import msgspec

import helios
from helios.functional.schedule import Batch, EpochEnd, EpochStart, Stop, Validate, schedule
from helios.functional.state import COUNTERS

IMAGES = Path(__file__).parent / "images"
SOURCES = Path(helios.__file__).parent
INK, SOFT, LINE, FILL = "#1f2933", "#616e7c", "#9aa5b1", "#f5f7fa"
COLOURS = {
    "Batch": "#d9e8fb",
    "Validate": "#dcf2dd",
    "Checkpoint": "#fdeccf",
    "Stop": "#f9d7d7",
}


class Drawing:
    """Boxes, arrows and words, as SVG. Units are pixels, and y grows downwards."""

    def __init__(self, width: int, height: int) -> None:
        self._size = width, height
        self._parts: list[str] = []

    def box(
        self, x: float, y: float, width: float, height: float, *lines: str, fill: str = FILL
    ) -> None:
        """Draw a box with a title and further lines in it."""
        self._parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" '
            f'stroke="{LINE}"/>'
        )
        top = y + height / 2 - 8 * (len(lines) - 1)
        for number, line in enumerate(lines):
            self.text(x + width / 2, top + 16 * number + 4, line, soft=number > 0)

    def text(self, x: float, y: float, words: str, soft: bool = False, left: bool = False) -> None:
        """Write one line, centred unless it is to begin at ``x``."""
        size, colour = (11, SOFT) if soft else (12, INK)
        anchor = "start" if left else "middle"
        words = words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        self._parts.append(
            f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}" text-anchor="{anchor}">'
            f"{words}</text>"
        )

    def arrow(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """Draw an arrow."""
        self._parts.append(
            f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{SOFT}" stroke-width="1.3" '
            'marker-end="url(#tip)"/>'
        )

    def svg(self) -> str:
        """Return the file."""
        width, height = self._size
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" font-family="DejaVu Sans Mono, monospace">\n'
            f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="{SOFT}"/></marker>'
            f'</defs>\n<rect width="{width}" height="{height}" fill="white"/>\n'
            + "\n".join(self._parts)
            + "\n</svg>\n"
        )


def fold() -> str:
    """Draw states, the steps between them, and what a state is made of."""
    drawing = Drawing(760, 300)
    step = helios.Model.step.__name__
    state = helios.TrainingState.__name__
    for number in range(4):
        x = 20 + 190 * number
        drawing.box(x, 80, 130, 54, state, f"{COUNTERS[0]}={number}")
        if number < 3:
            drawing.arrow(x + 130, 107, x + 190, 107)
            drawing.text(x + 160, 100, step)
            drawing.text(x + 160, 34, f"batch {number + 1}", soft=True)
            drawing.arrow(x + 160, 42, x + 160, 84)
    fields = [field.name for field in msgspec.structs.fields(helios.TrainingState)]
    others = [name for name in fields if name not in COUNTERS and name != "carry"]
    carried = [field.name for field in msgspec.structs.fields(helios.Carry)]
    drawing.text(20, 178, f"{state}: one frozen value", left=True)
    for row, (title, names) in enumerate(
        (("counters", COUNTERS), ("also", others), (helios.Carry.__name__, carried))
    ):
        drawing.text(20, 204 + 42 * row, title, left=True)
        for part, line in enumerate(_wrapped(names, 82)):
            drawing.text(120, 204 + 42 * row + 16 * part, line, soft=True, left=True)
    return drawing.svg()


def _wrapped(names: list[str] | tuple[str, ...], width: int) -> Iterator[str]:
    line = ""
    for name in names:
        if len(line) + len(name) > width:
            yield line.rstrip()
            line = ""
        line += name + "  "
    yield line.rstrip()


def events() -> str:
    """Draw the calendar of a small plan, event by event, as `helios.schedule` yields it."""
    plan = helios.Plan(
        total_steps=2,
        batches_per_epoch=4,
        accumulation_steps=2,
        valid_frequency=1,
        chkpt_frequency=2,
    )
    listed = list(schedule(plan, helios.TrainingState()))
    across = 8
    drawing = Drawing(760, 84 + 74 * -(-len(listed) // across))
    given = ", ".join(
        f"{name}={getattr(plan, name)}"
        for name in ("total_steps", "batches_per_epoch", "accumulation_steps")
    )
    drawing.text(20, 24, f"schedule(Plan({given},", left=True)
    drawing.text(
        20,
        42,
        f"              valid_frequency={plan.valid_frequency}, "
        f"chkpt_frequency={plan.chkpt_frequency}), TrainingState())",
        left=True,
    )
    for number, event in enumerate(listed):
        row, column = divmod(number, across)
        name = type(event).__name__
        x, y = 16 + 92 * column, 62 + 74 * row
        drawing.box(x, y, 82, 54, name, _detail(event), fill=COLOURS.get(name, FILL))
        if number + 1 < len(listed) and column + 1 < across:
            drawing.arrow(x + 82, y + 27, x + 92, y + 27)
    return drawing.svg()


def _detail(event: object) -> str:
    if isinstance(event, Batch):
        return f"{event.iteration}{', update' if event.update else ''}"
    if isinstance(event, (EpochStart, EpochEnd)):
        return f"epoch {event.epoch}"
    if isinstance(event, Validate):
        return f"cycle {event.cycle}"
    return str(event.reason) if isinstance(event, Stop) else "save"


PLACES = {
    "cli": (40, 20),
    "trainer": (300, 20),
    "testing": (560, 20),
    "model": (40, 130),
    "data": (213, 130),
    "plugins": (387, 130),
    "optim": (560, 130),
    "core": (213, 240),
    "functional": (387, 240),
}
"""Where the packages are drawn; which arrows there are is read from their imports."""

SAYS = {
    "cli": "helios ...",
    "trainer": "files, devices, ranks",
    "testing": "check_laws",
    "model": "loss, setup, hooks",
    "data": "position = integer",
    "plugins": "hooks around a run",
    "optim": "init, update",
    "core": "registries, logs",
    "functional": "state, step, schedule",
}


def packages() -> str:
    """Draw the packages, with an arrow from each to those that it imports."""
    drawing = Drawing(760, 320)
    for name, (x, y) in PLACES.items():
        for other in sorted(_imported(name) & PLACES.keys() - {name}):
            to_x, to_y = PLACES[other]
            if to_y > y:
                drawing.arrow(x + 80, y + 54, to_x + 80, to_y)
            else:
                start, end = (x + 160, to_x) if to_x > x else (x, to_x + 160)
                drawing.arrow(start, y + 27, end, to_y + 27)
    for name, (x, y) in PLACES.items():
        fill = "#d9e8fb" if name == "functional" else FILL
        drawing.box(x, y, 160, 54, f"helios.{name}", SAYS[name], fill=fill)
    return drawing.svg()


def _imported(package: str) -> set[str]:
    """Return the packages of helios that the modules of a package import when they run."""
    found = set()
    for path in (SOURCES / package).rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                parts = node.module.split(".")
                if parts[0] == "helios" and len(parts) > 1:
                    found.add(parts[1])
    return found


DIAGRAMS = {"fold": fold, "calendar": events, "packages": packages}

if __name__ == "__main__":
    for name, draw in DIAGRAMS.items():
        (IMAGES / f"{name}.svg").write_text(draw())

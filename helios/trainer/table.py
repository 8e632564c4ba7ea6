"""A table that grows row by row."""

from __future__ import annotations

from collections.abc import Mapping

_NARROWEST = 9  # a number of four digits with its exponent


class Table:
    """Lines up rows under a header, which comes again if the columns change.

    Example:
        >>> table = Table()
        >>> for line in table.lines({"epoch": "1", "loss": "0.5"}):
        ...     print(line)
            epoch       loss
                1        0.5
        >>> for line in table.lines({"epoch": "2", "loss": "0.25"}):
        ...     print(line)
                2       0.25
    """

    def __init__(self) -> None:
        self._columns: dict[str, int] = {}

    def lines(self, row: Mapping[str, str]) -> list[str]:
        """Return the lines that show a row.

        Args:
            row: the cells by column.
        """
        lines = []
        if list(row) != list(self._columns):
            self._columns = {name: max(len(name), _NARROWEST) for name in row}
            lines.append(self._line({name: name for name in row}))
        lines.append(self._line(row))
        return lines

    def _line(self, row: Mapping[str, str]) -> str:
        return "  ".join(row[name].rjust(width) for name, width in self._columns.items())

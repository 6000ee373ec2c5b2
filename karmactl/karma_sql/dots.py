"""Dots on a terminal: a raster whose letters are those of Unicode's braille block, two by four dots each."""

from __future__ import annotations

_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of the dots of a letter, four rows of two, as Unicode numbers them from U+2800 on."""


class Dots:
    """A raster of `columns` by `rows` letters, empty at first. Dot (0, 0) is at the top left."""

    def __init__(self, columns: int, rows: int) -> None:
        self._cells = [[0] * columns for _ in range(rows)]

    def draw(self, x: int, y: int) -> tuple[int, int]:
        """Draw a dot; return the row and column of its letter."""
        row, column = y // 4, x // 2
        self._cells[row][column] |= _BITS[y % 4][x % 2]
        return row, column

    def lines(self) -> list[str]:
        """Return the letters, topmost line first; blanks where nothing is drawn."""
        return ["".join(chr(0x2800 + cell) if cell else " " for cell in row) for row in self._cells]

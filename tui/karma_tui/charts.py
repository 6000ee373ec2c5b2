"""Charts made of letters: sparklines and bars of block letters, lines of braille dots. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from karma_sql.dots import Dots

Value = float | None
BLOCKS = " ▁▂▃▄▅▆▇█"


class Line(NamedTuple):
    """A named row of values, oldest first, for a chart of several."""

    name: str
    values: tuple[Value, ...]


class Piece(NamedTuple):
    """Letters of one colour: `line` is the index of the chart's line, None for axes."""

    text: str
    line: int | None = None


def sparkline(values: Sequence[Value], width: int, *, top: float | None = None) -> str:
    """Return the newest values as block letters, at the right; gaps are blank.

    Scaled to `top`, or to the largest value shown.
    """
    shown = list(values[-width:]) if width > 0 else []
    known = [value for value in shown if value is not None]
    limit = max([*known, top or 0.0], default=0.0)
    letters = [" " if value is None else BLOCKS[_level(value, limit)] for value in shown]
    return "".join(letters).rjust(width)


def _level(value: float, limit: float) -> int:
    """1 to 8: also nothing is something, in contrast to a gap."""
    return max(1, min(8, 1 + round(7 * value / limit))) if limit > 0 else 1


def bars(values: Sequence[Value], height: int) -> list[str]:
    """Return lines of letters, topmost first: each value a bar, in eighths of a line. Zero is no bar."""
    top = max((value for value in values if value), default=0.0)
    eighths = [0 if not value else max(1, round(value / top * height * 8)) for value in values]
    return [
        "".join(BLOCKS[max(0, min(8, eighth - 8 * row))] for eighth in eighths)
        for row in range(height - 1, -1, -1)
    ]


def spread(values: Sequence[Value], width: int) -> list[Value]:
    """Return at most `width` values: neighbours become their sum, short rows stay as they are."""
    if len(values) <= width:
        return list(values)
    found: list[Value] = []
    for at in range(width):
        part = values[at * len(values) // width : (at + 1) * len(values) // width]
        known = [value for value in part if value is not None]
        found.append(sum(known) if known else None)
    return found


def braille(lines: Sequence[Line], width: int, height: int, *, top: float) -> list[list[Piece]]:
    """Return rows of pieces: lines of dots from 0 to `top`, two values a letter, the newest at the right.

    Where lines meet, the letter has the colour of the one named last.
    """
    columns, most = width * 2, height * 4 - 1
    dots = Dots(width, height)
    owner: list[list[int | None]] = [[None] * width for _ in range(height)]
    for index, line in enumerate(lines):
        shown = line.values[-columns:]
        offset = columns - len(shown)
        previous: int | None = None
        for at, value in enumerate(shown, offset):
            if value is None:
                previous = None
                continue
            level = 0 if top <= 0 else max(0, min(most, round(value / top * most)))
            # A jump is drawn as a stroke, so that a line stays one.
            low, high = (level, level) if previous is None else sorted((previous, level))
            low = low + 1 if previous is not None and previous < level else low
            high = high - 1 if previous is not None and previous > level else high
            for dot in range(low, max(low, high) + 1):
                row, column = dots.draw(at, most - dot)
                owner[row][column] = index
            previous = level
    return [_pieces(letters, owners) for letters, owners in zip(dots.lines(), owner, strict=True)]


def _pieces(letters: str, owners: Sequence[int | None]) -> list[Piece]:
    found: list[Piece] = []
    for letter, owner in zip(letters, owners, strict=True):
        if found and found[-1].line == owner:
            found[-1] = Piece(found[-1].text + letter, owner)
        else:
            found.append(Piece(letter, owner))
    return found


def graph(lines: Sequence[Line], width: int, height: int, spell: Callable[[float], str]) -> list[list[Piece]]:
    """Return a line chart with a scale at its left and its legend on top, `width` by `height` letters.

    The legend names each line with its newest value. The scale begins at 0.
    """
    rows = max(1, height - 1)
    known = [value for line in lines for value in line.values if value is not None]
    top = max(known, default=0.0) or 1.0
    scale = [spell(top), spell(top / 2), spell(0.0)]
    margin = max(map(len, scale))
    marks = {0: scale[0], rows // 2: scale[1], rows - 1: scale[2]} if rows > 2 else {0: scale[0]}
    legend = [Piece(" " * (margin + 1))]
    room = width - margin - 1
    for index, line in enumerate(lines):
        newest = next((value for value in reversed(line.values) if value is not None), None)
        text = f"{line.name} {'-' if newest is None else spell(newest)}  "
        if len(text) > room:
            break
        room -= len(text)
        legend.append(Piece(text, index))
    drawn = braille(lines, max(1, width - margin - 1), rows, top=top)
    return [legend] + [
        [Piece(marks.get(number, "").rjust(margin) + "│"), *row] for number, row in enumerate(drawn)
    ]


def days_chart(
    points: Sequence[tuple[str, float]], width: int, height: int, spell: Callable[[float], str]
) -> list[str]:
    """Return a bar chart of (day, value) pairs in order, `width` by `height` letters, with both axes.

    More days than letters are summed side by side, and the axis says how many days a bar is.
    """
    if not points:
        return ["nothing in these days"]
    rows = max(1, height - 2)
    values: list[Value] = [value for _, value in points]
    margin = len(spell(max(value for _, value in points)))
    room = max(1, width - margin - 1)
    shown = spread(values, room)
    thick = max(1, min(6, room // len(shown)))
    top = max((value or 0.0) for value in shown)
    margin = max(margin, len(spell(top)))
    lines = []
    for number, line in enumerate(bars(shown, rows)):
        wide = "".join(letter * thick for letter in line) if thick < 3 else _gapped(line, thick)
        mark = spell(top) if number == 0 else spell(0) if number == rows - 1 else ""
        lines.append(f"{mark.rjust(margin)}│{wide}"[:width])
    length = min(len(shown) * thick, room)
    lines.append(" " * margin + "└" + "─" * length)
    first, last = points[0][0], points[-1][0]
    per_bar = -(-len(points) // len(shown))
    between = f"{per_bar} days a bar" if per_bar > 1 else ""
    gap = length - len(first) - len(last)
    if gap <= 0:
        lines.append(f"{' ' * (margin + 1)}{first} … {last}"[:width])
    else:
        middle = between.center(gap) if gap >= len(between) + 2 else " " * gap
        lines.append(" " * (margin + 1) + first + middle + last)
    return lines


def _gapped(line: str, thick: int) -> str:
    return "".join(letter * (thick - 1) + " " for letter in line)

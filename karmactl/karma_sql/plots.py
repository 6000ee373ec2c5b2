"""Results as plots of text: curves of braille dots along days, bars along anything else.

A plot takes the first column with days, or else the first with texts, as its axis, and each column of numbers
as a curve or a group of bars. A second column of texts splits a curve: every text gets a plot of its own, all
with the column's scale, because curves on top of each other cannot be told apart without colours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from karma_sql.dots import Dots
from karma_sql.errors import SqlError

LEAST_WIDTH = 20
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_MOST_PLOTS = 8
_MOST_BARS = 40


def plot(names: Sequence[str], rows: Iterable[Sequence[Any]], width: int, height: int = 8) -> list[str]:
    """Return the lines of a plot, at most `width` columns wide, curves `height` lines high.

    Raises SqlError for a result that has no axis or no numbers.
    """
    table = [tuple(row) for row in rows]
    if not table:
        return ["(no rows to plot)"]
    width = max(width, LEAST_WIDTH)
    kinds = [_kind(row[at] for row in table) for at in range(len(names))]
    days = [at for at, kind in enumerate(kinds) if kind == "day"]
    texts = [at for at, kind in enumerate(kinds) if kind == "text"]
    numbers = [at for at, kind in enumerate(kinds) if kind == "number"]
    if days and numbers:
        return list(_curves(names, table, days[0], texts, numbers, width, height))
    if not texts and len(numbers) > 1:
        # A key, say: numbers that name something come first.
        texts, numbers = numbers[:1], numbers[1:]
    if texts and numbers:
        return list(_bars(names, table, texts, numbers[-1:], width))
    raise SqlError(
        "usage",
        "there is nothing to plot: it takes a column of days or texts and one of numbers",
        'as: --plot "SELECT day, sum(value) FROM counters GROUP BY day ORDER BY day"',
    )


def _kind(values: Iterable[Any]) -> str:
    found = {
        "day"
        if isinstance(value, date | datetime)
        else "number"
        if isinstance(value, int | float | Decimal) and not isinstance(value, bool)
        else "text"
        for value in values
        if value is not None
    }
    return found.pop() if len(found) == 1 else "text" if found else ""


# -- Curves -----------------------------------------------------------------------------------------------

_Points = list[tuple[float, float]]


def _curves(
    names: Sequence[str],
    table: Sequence[Sequence[Any]],
    axis: int,
    texts: Sequence[int],
    numbers: Sequence[int],
    width: int,
    height: int,
) -> Iterator[str]:
    groups: dict[str, tuple[int, _Points]] = {}
    for row in table:
        if row[axis] is None:
            continue
        split = ", ".join(_word(row[at]) for at in texts)
        for at in numbers:
            title = f"{split}: {names[at]}" if split and len(numbers) > 1 else split or names[at]
            if row[at] is not None:
                groups.setdefault(title, (at, []))[1].append((_place(row[axis]), float(row[at])))
    xs = [x for _, points in groups.values() for x, _ in points]
    if not xs:
        yield "(no rows to plot)"
        return
    first, last = min(xs), max(xs)
    scales: dict[int, tuple[float, float]] = {}
    for at, points in groups.values():
        low, high = scales.get(at, (0.0, 0.0))
        scales[at] = min(low, *(y for _, y in points)), max(high, *(y for _, y in points))
    margin = max(len(_short(end)) for scale in scales.values() for end in scale)
    columns = max(width - margin - 2, 4)
    shown = list(groups.items())[:_MOST_PLOTS]
    for title, (at, points) in shown:
        yield title[:width]
        low, high = scales[at]
        labels = [_short(high), *[""] * (height - 2), _short(low)]
        lines = _braille(sorted(points), (first, last), (low, high), columns, height)
        for label, line in zip(labels, lines, strict=True):
            yield f"{label:>{margin}} {'┤' if label else '│'}{line}".rstrip()
    left, right = _spelt(first), _spelt(last)
    yield " " * margin + " └" + "─" * columns
    gap = max(columns - len(left) - len(right), 1)
    yield (" " * (margin + 2) + left + (" " * gap + right if first < last else "")).rstrip()
    if len(groups) > len(shown):
        yield f"({len(groups) - len(shown)} more are not drawn)"


def _place(value: date) -> float:
    """Days since the beginning of the calendar."""
    fraction = 0.0
    if isinstance(value, datetime):
        fraction = (value.hour * 3600 + value.minute * 60 + value.second + value.microsecond / 1e6) / 86_400
    return value.toordinal() + fraction


def _spelt(place: float) -> str:
    day = date.fromordinal(int(place)).isoformat()
    seconds = round((place - int(place)) * 86_400)
    return f"{day} {seconds // 3600:02d}:{seconds // 60 % 60:02d}" if seconds else day


def _braille(
    points: _Points, x_range: tuple[float, float], y_range: tuple[float, float], columns: int, height: int
) -> list[str]:
    """Points joined by lines, as letters of two by four dots each."""
    wide, high = 2 * columns - 1, 4 * height - 1
    dots = Dots(columns, height)

    def dot(x: float, y: float) -> tuple[int, int]:
        span_x, span_y = x_range[1] - x_range[0], y_range[1] - y_range[0]
        return (
            round((x - x_range[0]) / span_x * wide) if span_x else 0,
            round((y_range[1] - y) / span_y * high) if span_y else high,
        )

    before = dot(*points[0])
    dots.draw(*before)
    for point in points[1:]:
        here = dot(*point)
        steps = max(abs(here[0] - before[0]), abs(here[1] - before[1]), 1)
        for step in range(steps + 1):
            dots.draw(
                before[0] + round((here[0] - before[0]) * step / steps),
                before[1] + round((here[1] - before[1]) * step / steps),
            )
        before = here
    return [line.rstrip() for line in dots.lines()]


# -- Bars -------------------------------------------------------------------------------------------------


def _bars(
    names: Sequence[str],
    table: Sequence[Sequence[Any]],
    texts: Sequence[int],
    numbers: Sequence[int],
    width: int,
) -> Iterator[str]:
    (at,) = numbers
    shown = table[:_MOST_BARS]
    labels = [" ".join(_word(row[text]) for text in texts) for row in shown]
    values = [float(row[at] or 0) for row in shown]
    figures = [_short(row[at]) if row[at] is not None else "-" for row in shown]
    label_width = min(max(map(len, labels)), width // 2)
    room = max(width - label_width - max(map(len, figures)) - 2, 4)
    most = max(map(abs, values)) or 1.0
    yield names[at]
    for label, value, figure in zip(labels, values, figures, strict=True):
        eighths = round(abs(value) / most * room * 8)
        bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
        # What goes down is drawn as long as what goes up; its figure has the sign.
        name = label if len(label) <= label_width else label[: label_width - 1] + "…"
        yield f"{name:<{label_width}} {bar}{' ' if bar else ''}{figure}"
    if len(table) > len(shown):
        yield f"({len(table) - len(shown)} more rows are not drawn)"


def _word(value: Any) -> str:
    text = "-" if value is None else str(value)
    # A series may have any name; it must not steer the terminal.
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _short(value: Any) -> str:
    """A number in at most six letters: 950, 1.2k, 34M."""
    number = float(value)
    for limit, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:.4g}"

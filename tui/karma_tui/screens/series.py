"""Series: the list, one series' keys paged by the server, one key's days."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.widget import Widget

from karma_client import day_number
from karma_client.days import dashed
from karma_tui import views
from karma_tui.model import Fleet
from karma_tui.screens.asking import Asking, Looking, Told
from karma_tui.screens.modals import LimitPrompt
from karma_tui.spelling import count, printable
from karma_tui.tables import Row, Table
from karma_tui.widgets.chart import Days
from karma_tui.widgets.grid import Grid
from karma_tui.widgets.plain import Plain

PAGE_KEYS = 500
TOP_KEYS = 100
SPANS_DAYS = (30, 90, 366)
CANARY = "__karma_canary"
"""Where canary writes go; hidden, as in all tools, until somebody asks for everything."""


class SeriesPage(Looking):
    """All series by name."""

    NAME = "series"
    LOOK_SECONDS = 5.0
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "choose", "its keys", key_display="Enter"),
        Binding("a", "all", "show hidden ones", show=False),
        Binding("R", "load", "read again", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._names: list[str] = []
        self._shows_all = False

    def body(self) -> Iterable[Widget]:
        """Return the list and what is known of the series under the cursor."""
        yield Grid(Table(views.SERIES, note="asking"), id="series")
        yield Plain(id="info")

    def action_load(self) -> None:
        """Read the list again."""
        self.look()

    def look(self) -> None:
        """Read the list."""
        self.ask("list", self.question("tree.list"))

    def on_told(self, event: Told) -> None:
        """Take an answer."""
        if event.problem:
            self.query_one("#info", Plain).update(Text(printable(event.problem)))
        elif event.what == "list":
            self._names = event.response
            self._fill()
        else:
            info = event.response
            self.query_one("#info", Plain).update(
                f"{count(info['key_count'])} keys  {count(info['bucket_count'])} buckets  "
                f"{info['total']:,} in total"
            )

    def _fill(self) -> None:
        names = [name for name in self._names if self._shows_all or name != CANARY]
        rows = tuple(Row(name, (name,)) for name in names)
        self.query_one("#series", Grid).show(Table(views.SERIES, rows, "no series yet"))

    def command(self) -> str:
        """Return `karmactl series list`."""
        return self.host.target.command("series", "list")

    def on_grid_moved(self, event: Grid.Moved) -> None:
        """Ask for what the series holds, if the cursor rests there."""
        self.query_one("#info", Plain).update("")
        if event.row is not None:
            key = event.row.key
            self.set_timer(0.3, lambda: self._ask_info(key))

    def _ask_info(self, name: str) -> None:
        row = self.query_one("#series", Grid).current
        if self.is_current and row is not None and row.key == name:
            self.ask("info", self.question("tree.info", series=name))

    def on_grid_chosen(self, event: Grid.Chosen) -> None:
        """Open a series."""
        self.app.push_screen(KeysPage(event.row.key))

    def action_all(self) -> None:
        """Show or hide the series of canary writes."""
        self._shows_all = not self._shows_all
        self._fill()


class KeysPage(Asking):
    """One series' keys: page by page as the server has them, or the largest ones."""

    NAME = "keys"
    FILTER_HINT = "a number goes to the first key from there on, on the server; words filter this page"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "choose", "its days", key_display="Enter"),
        Binding("right_square_bracket", "next", "next page", key_display="]"),
        Binding("left_square_bracket", "previous", "page before", key_display="["),
        Binding("t", "top", "largest keys"),
        Binding("R", "load", "read again", show=False),
        Binding("escape", "back", "back", key_display="Esc"),
    ]

    def __init__(self, series: str) -> None:
        super().__init__()
        self.series = series
        self._starts = [0]
        """The first key asked for of each page so far."""
        self._next: int | None = None
        self._is_top = False

    def title_words(self) -> str:
        """Return the series and which part of it is shown."""
        part = f"largest {TOP_KEYS}" if self._is_top else f"page {len(self._starts)}"
        return f"{printable(self.series)}: {part}"

    def body(self) -> Iterable[Widget]:
        """Return the table and what went wrong."""
        yield Grid(Table(views.KEYS, note="asking"), id="keys")
        yield Plain(id="info")

    def on_mount(self) -> None:
        """Ask for the first page."""
        super().on_mount()
        self.action_load()

    def action_load(self) -> None:
        """Read this page."""
        if self._is_top:
            self.ask("top", self.question("tree.top", series=self.series, limit=TOP_KEYS))
        else:
            start = self._starts[-1]
            fields = {"cursor": start - 1} if start else {}
            self.ask("keys", self.question("tree.keys", series=self.series, limit=PAGE_KEYS, **fields))
        self.paint()

    def on_told(self, event: Told) -> None:
        """Show a page."""
        info, grid = self.query_one("#info", Plain), self.query_one("#keys", Grid)
        if event.problem:
            info.update(Text(printable(event.problem)))
            return
        if event.what == "top":
            rows = tuple(
                Row(str(item["key"]), (rank, item["key"], item["value"]))
                for rank, item in enumerate(event.response["items"], 1)
            )
            grid.show(Table(views.TOP, rows, "this series holds nothing"))
            info.update("the largest totals, as the server ranks them")
        else:
            found = event.response["keys"]
            self._next = event.response["next_cursor"]
            rows = tuple(Row(str(one["key"]), (one["key"], one["total"])) for one in found)
            grid.show(Table(views.KEYS, rows, "no key from there on"))
            info.update(
                f"{len(rows)} keys" + (", ] shows the next" if self._next is not None else ", the last")
            )

    def command(self) -> str:
        """Return `karmactl series top` or `series keys`."""
        target = self.host.target
        if self._is_top:
            return target.command("series", "top", self.series, "-n", str(TOP_KEYS))
        start = self._starts[-1]
        after = ("--after", str(start - 1)) if start else ()
        return target.command("series", "keys", self.series, "--limit", str(PAGE_KEYS), *after)

    def filtered(self, wanted: str) -> None:
        """Go to a key on the server."""
        if wanted.isdigit() and not self._is_top:
            self.filter("")
            self._starts.append(int(wanted))
            self.action_load()

    def filter(self, wanted: str) -> None:
        """Filter this page by words; a number waits for Enter."""
        super().filter("" if wanted.isdigit() and not self._is_top else wanted)

    def action_next(self) -> None:
        """Show the next page."""
        if not self._is_top and self._next is not None:
            self._starts.append(self._next + 1)
            self._next = None
            self.action_load()

    def action_previous(self) -> None:
        """Show the page before."""
        if not self._is_top and len(self._starts) > 1:
            self._starts.pop()
            self.action_load()

    def action_top(self) -> None:
        """Show the largest keys, or all page by page."""
        self._is_top = not self._is_top
        self.action_load()

    def on_grid_chosen(self, event: Grid.Chosen) -> None:
        """Open a key."""
        self.app.push_screen(KeyPage(self.series, int(event.row.key)))


class KeyPage(Asking):
    """One key's days as bars and as a table, and what is used of a limit."""

    NAME = "key"
    FILTER_HINT = "part of a day, as 2026-05"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "span", "days shown"),
        Binding("l", "limit", "check a limit"),
        Binding("R", "load", "read again"),
        Binding("escape", "back", "back", key_display="Esc"),
    ]

    def __init__(self, series: str, key: int) -> None:
        super().__init__()
        self.series = series
        self.key = key
        self._span_days = SPANS_DAYS[0]

    def title_words(self) -> str:
        """Return the key."""
        return f"{printable(self.series)} {self.key}: {self._span_days} days"

    def body(self) -> Iterable[Widget]:
        """Return the chart, the limits and the table."""
        yield Days(f"{printable(self.series)} {self.key}", count, id="days")
        yield Plain(id="info")
        yield Grid(Table(views.DAYS, note="asking"), id="points")

    def on_mount(self) -> None:
        """Ask for the days."""
        super().on_mount()
        self.action_load()

    def _range(self) -> tuple[date, date]:
        """The days shown, both ends included."""
        today = datetime.fromtimestamp(self.host.fleet.now, UTC).date()
        return today - timedelta(days=self._span_days - 1), today

    def action_load(self) -> None:
        """Read the days."""
        first, last = self._range()
        bounds = {"from": day_number(first), "to": day_number(last)}
        self.ask("points", self.question("counter.series", series=self.series, key=self.key, range=bounds))
        self.paint()

    def on_told(self, event: Told) -> None:
        """Draw the days."""
        if event.problem:
            self.query_one("#info", Plain).update(Text(printable(event.problem)))
        elif event.what == "points":
            self._draw(event.response)
        else:
            lines = [
                f"{window}: {one['used']:,} used, {one['remaining']:,} left"
                for window, one in zip(("day", "month", "total"), event.response, strict=True)
            ]
            self.query_one("#info", Plain).update("  ·  ".join(lines))

    def _draw(self, points: Mapping[str, int]) -> None:
        first, last = self._range()
        days = [day_number(first + timedelta(days=at)) for at in range((last - first).days + 1)]
        self.query_one("#days", Days).show([(dashed(day), points.get(str(day), 0)) for day in days])
        self.query_one("#points", Grid).show(views.days(points))
        self.query_one("#info", Plain).update(
            f"{sum(points.values()):,} in these {self._span_days} days, {len(points)} of them with something"
        )

    def show(self, fleet: Fleet) -> None:
        """Nothing here follows from the nodes' answers to a tick."""

    def command(self) -> str:
        """Return `karmactl points`."""
        first, last = self._range()
        return self.host.target.command(
            "points", self.series, str(self.key), "--from", first.isoformat(), "--to", last.isoformat()
        )

    def action_span(self) -> None:
        """Show more days, or few again."""
        self._span_days = SPANS_DAYS[(SPANS_DAYS.index(self._span_days) + 1) % len(SPANS_DAYS)]
        self.action_load()

    def action_limit(self) -> None:
        """Ask for a limit."""
        self.app.push_screen(LimitPrompt(self.series, self.key), self._check_limit)

    def _check_limit(self, limit: int | None) -> None:
        if limit is not None:
            items = [
                {"series": self.series, "key": self.key, "limit": limit, "window": window}
                for window in ("day", "month", "total")
            ]
            self.ask("limits", self.question("limit.check", items=items))

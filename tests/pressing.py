"""What pressing keys on the dashboard's stage leads to: checks, and ways through its screens."""

from collections.abc import Callable

from stage import Show

from karma_tui.widgets.grid import Grid

Check = Callable[[Show], object]
Way = list[tuple[str, Check]]


def page(show: Show) -> str:
    return type(show.app.screen).__name__


def grid(show: Show) -> Grid:
    found = show.app.screen.query(Grid).first()
    assert isinstance(found, Grid)
    return found


def on(name: str) -> Check:
    return lambda show: page(show) == name


def at(row: int) -> Check:
    return lambda show: grid(show).cursor == row


def sees(*texts: str) -> Check:
    return lambda show: all(text in show.frame() for text in texts)


def copied(text: str) -> Check:
    return lambda show: text in show.app.clipboard


def notified(text: str) -> Check:
    return lambda show: any(text in one.message for one in show.app._notifications)

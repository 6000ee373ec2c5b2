"""The screens that `:` and the number keys reach. A new screen is a line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from karma_tui.screens.events import EventsPage
from karma_tui.screens.fleet import FleetPage
from karma_tui.screens.measures import ClientsPage, LatencyPage, ReplicationPage
from karma_tui.screens.page import Page
from karma_tui.screens.playbooks import PlaybooksPage
from karma_tui.screens.series import SeriesPage
from karma_tui.screens.snapshots import SnapshotsPage
from karma_tui.screens.sql import SqlPage
from karma_tui.screens.wal import WalPage


class Entry(NamedTuple):
    """A screen: its number key, its name, what it is for, how it is made."""

    key: str
    name: str
    help: str
    make: Callable[[], Page]


SCREENS: tuple[Entry, ...] = (
    Entry("1", "fleet", "every node: role, lag, load, alarms, topology", FleetPage),
    Entry("2", "series", "series, their keys, a key's days", SeriesPage),
    Entry("3", "wal", "the log as it grows, of all nodes merged", WalPage),
    Entry("4", "replication", "followers and their lag over time", ReplicationPage),
    Entry("5", "latency", "each operation's latencies over time", LatencyPage),
    Entry("6", "clients", "open connections", ClientsPage),
    Entry("7", "snapshots", "snapshot files: verify, fetch, take", SnapshotsPage),
    Entry("8", "playbooks", "what there is to mend things with, step by step", PlaybooksPage),
    Entry("9", "events", "actions and their states, the event log", EventsPage),
    Entry("0", "sql", "questions in SQL about snapshots and logs", SqlPage),
)
BY_NAME: dict[str, Entry] = {entry.name: entry for entry in SCREENS}

"""Snapshots of one node: list, verify, fetch with progress, take."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.widget import Widget

from karma_client import FetchProgress
from karma_tui import actions, views
from karma_tui.screens.asking import Asking, Told
from karma_tui.spelling import in_bytes, printable
from karma_tui.tables import Table
from karma_tui.widgets.grid import Grid
from karma_tui.widgets.plain import Plain

BAR_WIDTH = 30


class SnapshotsPage(Asking):
    """The snapshot files of a node."""

    NAME = "snapshots"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "choose", "ask it in SQL", key_display="Enter"),
        Binding("v", "verify", "verify"),
        Binding("f", "fetch", "fetch"),
        Binding("c", "create", "take snapshots"),
        Binding("n", "node(1)", "next node"),
        Binding("N", "node(-1)", "the node before", show=False),
        Binding("R", "load", "read again", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.address = ""
        self._command: tuple[str, ...] = ("snapshot", "list")

    def title_words(self) -> str:
        """Return whose snapshots these are."""
        return f"snapshots of {self._node()}"

    def _node(self) -> str:
        return self.address or self.host.fleet.reader

    def body(self) -> Iterable[Widget]:
        """Return the table and what is going on."""
        yield Grid(Table(views.SNAPSHOTS, note="asking"), id="snapshots")
        yield Plain(id="info")

    def on_screen_resume(self) -> None:
        """Ask."""
        super().on_screen_resume()
        self.action_load()

    def action_load(self) -> None:
        """Read the list again."""
        self.ask("list", self._list())

    async def _list(self) -> Any:
        ask, node = self.host.source.ask, self._node()
        return await ask(node, "snapshot.info"), await ask(node, "snapshot.list")

    def on_told(self, event: Told) -> None:
        """Show an answer."""
        if event.problem:
            self._say(event.problem)
        elif event.what == "list":
            info, paths = event.response
            self.query_one("#snapshots", Grid).show(views.snapshots(info, paths, self.host.fleet.now))
        elif event.what == "verify":
            found = event.response
            self._say(
                f"verified: {found['dump_count']} files, {found['trees']} series, {found['keys']:,} keys, "
                f"{found.get('wal_entries_checked', 0):,} log entries"
            )
        else:
            self._say(f"fetched {event.response}")

    def _say(self, text: str) -> None:
        self.query_one("#info", Plain).update(Text(printable(text)))

    def command(self) -> str:
        """Return the last thing done here as karmactl does it, `karmactl snapshot list` at first."""
        return self.host.target.command(*self._command, node=self._node())

    def _doing(self, *words: str) -> None:
        self._command = words
        self.paint()

    def on_grid_chosen(self, event: Grid.Chosen) -> None:
        """Ask this snapshot in SQL."""
        self.host.jump(f"sql {self._node()} {event.row.key}")

    # -- Doing ---------------------------------------------------------------------------------

    def action_verify(self) -> None:
        """Let the node restore its directory aside and check it."""
        self._doing("snapshot", "verify")
        self._say("verifying: the server restores its directory aside")
        self.ask("verify", self.host.source.ask(self._node(), "snapshot.verify"))

    def action_fetch(self) -> None:
        """Download the file under the cursor into the working folder."""
        row = self.query_one("#snapshots", Grid).current
        if row is not None:
            self._doing("snapshot", "fetch", row.key)
            fetched = self.host.source.fetch(self._node(), row.key, self.host.folder(), self._show_progress)
            self.ask("fetch", fetched)

    def _show_progress(self, progress: FetchProgress) -> None:
        share = progress.done_bytes / progress.total_bytes if progress.total_bytes else 1.0
        bar = ("█" * round(share * BAR_WIDTH)).ljust(BAR_WIDTH, "░")
        self._say(f"{bar} {share:.0%} of {in_bytes(progress.total_bytes)}")

    def action_create(self) -> None:
        """Take a snapshot of every series, after a question."""
        self.host.propose(actions.save_all(self._node()))

    def action_node(self, step: int) -> None:
        """Look at another node."""
        addresses = [node.address for node in self.host.fleet.nodes]
        self.address = addresses[(addresses.index(self._node()) + step) % len(addresses)]
        self.action_load()
        self.paint()

"""Replication, Latency, Clients: figures of all nodes, side by side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.widget import Widget

from karma_tui import views
from karma_tui.charts import Line
from karma_tui.model import Fleet
from karma_tui.screens.fleet import NodePage
from karma_tui.screens.page import Page
from karma_tui.spelling import count, in_ms, in_us
from karma_tui.tables import Table
from karma_tui.widgets.chart import Graph
from karma_tui.widgets.grid import Grid


class ReplicationPage(Page):
    """Every follower, the laggiest first, with graphs of their lag."""

    NAME = "replication"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "choose", "open the follower", key_display="Enter"),
        Binding("m", "measure", "lag in time or entries"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._is_in_time = False

    def body(self) -> Iterable[Widget]:
        """Return the table and the graph."""
        yield Grid(Table(views.REPLICAS), id="replicas")
        yield Graph("lag in entries", self._spell, id="lags")

    def _spell(self, value: float) -> str:
        return in_ms(value) if self._is_in_time else count(value)

    def show(self, fleet: Fleet) -> None:
        """Draw the followers."""
        self.query_one("#replicas", Grid).show(views.replicas(fleet))
        name = "lag_ms" if self._is_in_time else "lag_entries"
        lines = [Line(node.address, node.series(name)) for node in fleet.nodes if node.known.role == "slave"]
        self.query_one("#lags", Graph).show(lines, f"lag in {'time' if self._is_in_time else 'entries'}")

    def command(self) -> str:
        """Return `karmactl replication watch`."""
        return self.host.target.command("replication", "watch")

    def on_grid_chosen(self, event: Grid.Chosen) -> None:
        """Open a follower, if it is a node of this context."""
        if any(node.address == event.row.key for node in self.host.fleet.nodes):
            self.app.push_screen(NodePage(event.row.key))

    def action_measure(self) -> None:
        """Draw the other figure."""
        self._is_in_time = not self._is_in_time
        self.paint()


class LatencyPage(Page):
    """Each operation's latencies over the last minute, of one node, and the chosen one's over time."""

    NAME = "latency"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "node(1)", "next node"),
        Binding("N", "node(-1)", "the node before", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.address = ""

    def title_words(self) -> str:
        """Return whose latencies these are."""
        return f"latency of {self._node()}"

    def _node(self) -> str:
        return self.address or self.host.fleet.reader

    def body(self) -> Iterable[Widget]:
        """Return the table and the graph."""
        yield Grid(Table(views.OPS), id="ops")
        yield Graph("p50, p95 and p99", in_us, id="percentiles")

    def show(self, fleet: Fleet) -> None:
        """Draw the operations."""
        node = fleet.node(self._node())
        grid = self.query_one("#ops", Grid)
        grid.show(views.operations(node))
        op = grid.current.key if grid.current else ""
        samples = node.ops.get(op, ())
        lines = [
            Line("p50", tuple(sample.p50_us for sample in samples)),
            Line("p95", tuple(sample.p95_us for sample in samples)),
            Line("p99", tuple(sample.p99_us for sample in samples)),
        ]
        self.query_one("#percentiles", Graph).show(lines, op or "p50, p95 and p99")

    def command(self) -> str:
        """Return `karmactl latency` of this node."""
        return self.host.target.command("latency", node=self._node())

    def on_grid_moved(self) -> None:
        """Draw the other operation's graph."""
        self.show(self.host.fleet)

    def action_node(self, step: int) -> None:
        """Look at another node."""
        addresses = [node.address for node in self.host.fleet.nodes]
        self.address = addresses[(addresses.index(self._node()) + step) % len(addresses)]
        self.paint()


class ClientsPage(Page):
    """Open connections of every node."""

    NAME = "clients"

    def body(self) -> Iterable[Widget]:
        """Return the table."""
        yield Grid(Table(views.CLIENTS), id="clients")

    def on_screen_resume(self) -> None:
        """Ask for connections from now on."""
        self.host.source.wants_clients = True
        super().on_screen_resume()

    def on_screen_suspend(self) -> None:
        """Ask no longer."""
        self.host.source.wants_clients = False

    def show(self, fleet: Fleet) -> None:
        """Draw the connections."""
        self.query_one("#clients", Grid).show(views.clients(fleet))

    def command(self) -> str:
        """Return `karmactl clients` of the node under the cursor."""
        row = self.query_one("#clients", Grid).current
        return self.host.target.command("clients", node=row.cells[0] if row else self.host.fleet.reader)

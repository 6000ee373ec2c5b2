"""Fleet: every node at a glance, and one node in full."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.widget import Widget

from karma_tui import actions, views
from karma_tui.charts import Line
from karma_tui.model import Fleet, NodeView, laggiest
from karma_tui.screens.page import Page
from karma_tui.spelling import count, in_ms, in_us, printable
from karma_tui.tables import Table
from karma_tui.widgets.chart import Graph
from karma_tui.widgets.grid import Grid
from karma_tui.widgets.plain import Plain, say


class FleetPage(Page):
    """The table of nodes, followers below what they follow, and what is wrong."""

    NAME = "fleet"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "choose", "open the node", key_display="Enter"),
        Binding("L", "laggiest", "go to the laggiest follower"),
        Binding("p", "pause", "pause writes", show=False),
        Binding("r", "resume", "resume writes", show=False),
        Binding("u", "unfence", "unfence", show=False),
        Binding("P", "promote", "promote to master", show=False),
    ]

    def body(self) -> Iterable[Widget]:
        """Return the table and the problems."""
        yield Grid(Table(views.NODES), id="nodes")
        yield Plain(id="problems")

    def show(self, fleet: Fleet) -> None:
        """Draw the nodes."""
        self.query_one("#nodes", Grid).show(views.nodes(fleet))
        problems = fleet.verdict.problems if fleet.is_heard else ()
        text = "\n".join(f"• {printable(problem)}" for problem in problems)
        pane = self.query_one("#problems", Plain)
        pane.display = bool(problems)
        pane.update(Text(text, no_wrap=True, overflow="ellipsis"))

    def command(self) -> str:
        """Return `karmactl topology`."""
        return self.host.target.command("topology", "--watch", "1")

    # -- Going on ------------------------------------------------------------------------------

    @property
    def node(self) -> NodeView | None:
        """The node under the cursor."""
        grid = self.query_one("#nodes", Grid)
        return None if grid.current is None else self.host.fleet.node(grid.current.key)

    def on_grid_chosen(self, event: Grid.Chosen) -> None:
        """Open a node."""
        self.app.push_screen(NodePage(event.row.key))

    def action_laggiest(self) -> None:
        """Open the follower that is furthest behind."""
        node = laggiest(self.host.fleet)
        if node is None:
            say(self, "no node of this context follows another")
        else:
            self.app.push_screen(NodePage(node.address))

    # -- Doing ---------------------------------------------------------------------------------

    def action_pause(self) -> None:
        """Pause writes for a while."""
        if self.node is not None:
            self.host.propose(actions.pause(self.node.address))

    def action_resume(self) -> None:
        """Let writes go on."""
        if self.node is not None:
            self.host.propose(actions.resume(self.node.address))

    def action_promote(self) -> None:
        """Make the node the master."""
        if self.node is not None:
            self.host.propose(actions.promote(self.node.address))

    def action_unfence(self) -> None:
        """Take the node's fence away."""
        fence: Any = self.node and self.node.known.replication.get("fenced_by")
        if self.node is None or not isinstance(fence, dict):
            say(self, "this node is not fenced")
        else:
            self.host.propose(actions.unfence(self.node.address, fence["epoch"]))


class NodePage(Page):
    """One node: its figures over time and all that it says of itself."""

    NAME = "node"
    AUTO_FOCUS = "#facts"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "back", key_display="Esc"),
        Binding("b", "app.goto('playbooks')", "playbooks"),
        Binding("l", "latency", "its latency"),
        Binding("w", "app.goto('wal')", "log"),
        Binding("n", "app.goto('snapshots')", "snapshots"),
    ]

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address = address

    def title_words(self) -> str:
        """Return the node's address."""
        return f"node {self.address}"

    def body(self) -> Iterable[Widget]:
        """Return facts beside graphs."""
        with Horizontal():
            with VerticalScroll(id="facts"):
                yield Plain(id="facts-text")
            with VerticalScroll(id="graphs", can_focus=False):
                yield Graph("lag in entries", count, id="lag")
                yield Graph("lag in time", in_ms, id="lag-ms")
                yield Graph("operations per second", count, id="ops")
                yield Graph("latency, last minute", in_us, id="latency")

    def show(self, fleet: Fleet) -> None:
        """Draw the node."""
        node = fleet.node(self.address)
        text = Text()
        for name, value in views.facts(fleet, node):
            text.append(f"{name:<18}", "bold")
            text.append(f" {printable(value)}\n")
        self.query_one("#facts-text", Plain).update(text)
        is_follower = node.known.role == "slave"
        for name, column in (("lag", "lag_entries"), ("lag-ms", "lag_ms"), ("ops", "ops_per_second")):
            graph = self.query_one(f"#{name}", Graph)
            graph.show([Line("now", node.series(column))])
            graph.display = is_follower or name == "ops"
        lines = [Line(name, node.series(f"{name}_us")) for name in ("p50", "p95", "p99")]
        self.query_one("#latency", Graph).show(lines)

    def command(self) -> str:
        """Return `karmactl replication status` of this node."""
        return self.host.target.command("replication", "status", "--watch", "1", node=self.address)

    def action_latency(self) -> None:
        """Show the node's operations."""
        self.host.jump(f"latency {self.address}")

"""What the dashboard can do to a node, and the karmactl command that does the same. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from karma_tui.target import Target

PAUSE_MS = 30_000
"""How long the dashboard pauses writes: it ends by itself, also when this terminal is closed."""


class Action(NamedTuple):
    """An operation on one node. `effect` completes "this will …"; a `typed` one wants a name to be typed."""

    title: str
    op: str
    node: str
    effect: str
    words: tuple[str, ...]
    fields: Mapping[str, Any] = {}
    is_typed: bool = False

    def command(self, target: Target) -> str:
        """Return the karmactl command that does the same."""
        return target.command(*self.words, node=self.node)

    def name_to_type(self, target: Target) -> str:
        """Return what must be typed before it is done, "" when a plain yes will do.

        As with karmactl: in production the context's name, whatever it is; else the node where much is at
        stake.
        """
        if target.is_production:
            return target.context or self.node
        return self.node if self.is_typed else ""


def pause(node: str) -> Action:
    """Refuse writes for half a minute."""
    seconds = f"{PAUSE_MS // 1000}s"
    return Action(
        "Pause writes",
        "replication.pause",
        node,
        f"refuse writes on {node} for {seconds}, or until they are resumed",
        ("replication", "pause", "--for", seconds),
        {"ttl_ms": PAUSE_MS},
    )


def resume(node: str) -> Action:
    """End a pause."""
    return Action(
        "Resume writes",
        "replication.resume",
        node,
        f"let {node} take writes again",
        ("replication", "resume"),
    )


def unfence(node: str, epoch: int) -> Action:
    """Take a fence away."""
    return Action(
        "Unfence",
        "replication.unfence",
        node,
        f"let {node} take writes again, although it was fenced for epoch {epoch}; "
        "if another node is master, two nodes take writes",
        ("replication", "unfence", "--epoch", str(epoch)),
        {"epoch": epoch},
        is_typed=True,
    )


def promote(node: str) -> Action:
    """Make a slave the master."""
    return Action(
        "Promote",
        "replication.promote",
        node,
        f"make {node} a master of a new epoch; unless the old one is fenced first, two nodes take writes",
        ("replication", "promote"),
        is_typed=True,
    )


def save_all(node: str) -> Action:
    """Take snapshots of every series."""
    return Action(
        "Take snapshots", "snapshot.create_all", node, f"save every series on {node}", ("snapshot", "create")
    )

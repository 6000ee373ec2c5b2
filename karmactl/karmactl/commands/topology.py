"""health and topology: the nodes, judged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from karma.protocol.texts import spelled_out
from karma_client.fleet import Verdict, judge, parents_of
from karmactl import fleet
from karmactl.commands.observe import raise_if_silent
from karmactl.diagnostics import Exit
from karmactl.fleet import NodeState
from karmactl.output import Paper, Row, Shown, in_seconds, shortened, state_style
from karmactl.run import Run


def health(run: Run) -> list[Row]:
    """Show every node's health. Exit code 8 when one is not ok."""
    nodes = fleet.read(run)
    raise_if_silent(run, [node.error for node in nodes])
    if any(node.state != "ok" for node in nodes):
        run.exit_code = Exit.UNHEALTHY
    return [
        {
            "node": node.address,
            "status": node.state,
            "role": node.role,
            "uptime_seconds": node.health.get("uptime_seconds"),
            "wal_enabled": node.health.get("wal_enabled"),
            "error": node.reason or "; ".join(node.troubles) or None,
        }
        for node in nodes
    ]


def topology(run: Run, max_lag: int) -> Shown:
    """Draw the nodes. Exit code 0 healthy, 8 degraded, 9 split brain; 5 when no node answers."""
    nodes = fleet.read(run)
    raise_if_silent(run, [node.error for node in nodes])
    verdict = judge(nodes, max_lag)
    run.exit_code = fleet.exit_code(verdict)
    parents = parents_of(nodes)
    data = {
        "health": verdict.health,
        "problems": list(verdict.problems),
        "nodes": [_described(node, parents[node.address]) for node in nodes],
    }
    return Shown(data, lambda paper: draw(nodes, parents, verdict, paper))


def _described(node: NodeState, parent: str | None) -> dict[str, Any]:
    said = node.replication
    return {
        "node": node.address,
        "node_id": said.get("node_id"),
        "role": node.role,
        "state": node.state,
        "epoch": said.get("epoch"),
        "lsn": node.lsn if node.error is None else None,
        "lag_entries": node.lag_entries,
        "lag_ms": said.get("lag_ms") if node.role == "slave" else None,
        "follows": parent or said.get("source"),
        "version": node.stats.get("version"),
        "error": node.reason,
    }


def draw(
    nodes: Sequence[NodeState], parents: dict[str, str | None], verdict: Verdict, paper: Paper
) -> Iterator[str]:
    """Return the lines of a tree of nodes, `parents` as of `parents_of`, with the verdict below."""
    roots = [node for node in nodes if parents[node.address] is None]
    # Two nodes that claim to follow each other hang on no root; they are shown all the same.
    reached: set[str] = set()
    for root in [*roots, *nodes]:
        if root.address not in reached:
            yield from _branch(root, nodes, parents, ("", ""), paper, reached)
    yield ""
    yield paper.styled(verdict.health, state_style(verdict.health))
    for problem in verdict.problems:
        yield f"- {spelled_out(problem)}"


def _branch(
    node: NodeState,
    nodes: Sequence[NodeState],
    parents: dict[str, str | None],
    indents: tuple[str, str],
    paper: Paper,
    reached: set[str],
) -> Iterator[str]:
    """The lines of a node and what follows it; `indents` are those of its own line and of those below."""
    reached.add(node.address)
    yield _line(node, parents[node.address], indents[0], paper)
    followers = [one for one in nodes if parents[one.address] == node.address and one.address not in reached]
    for follower in followers:
        is_last = follower is followers[-1]
        below = indents[1] + ("└─ " if is_last else "├─ "), indents[1] + ("   " if is_last else "│  ")
        yield from _branch(follower, nodes, parents, below, paper, reached)


def _line(node: NodeState, parent: str | None, indent: str, paper: Paper) -> str:
    said = node.replication
    words = [node.address, node.role]
    if node.error is not None:
        words.append(f"({node.reason})")
    else:
        if node.state != "ok":
            words.append(node.state)
        words += [f"epoch {said['epoch']}"] if said.get("epoch") is not None else []
        words.append(f"LSN {node.lsn}")
        if node.role == "slave":
            lag_ms = said.get("lag_ms") or 0
            delay = f"{lag_ms} ms" if lag_ms < 1000 else in_seconds(lag_ms / 1000)
            words.append(f"{node.lag_entries} behind" + (f" ({delay})" if lag_ms else ""))
            words += [f"of {said['source']}"] if parent is None and said.get("source") else []
    plain = indent + "  ".join(spelled_out(word) for word in words)
    line = plain if paper.width is None else shortened(plain, paper.width)
    style = state_style(node.role) if node.state == "ok" else state_style(node.state)
    return line.replace(node.role, paper.styled(node.role, style), 1)

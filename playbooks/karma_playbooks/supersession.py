"""Whether another node became master while a run stood still, and what the run left behind. Pure.

Such a run has nothing left to do: its next steps would lead followers to a node that is no longer master, and
what it did before the point of no return cannot be taken back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from karma_playbooks.cluster import diverged_at
from karma_playbooks.history import History
from karma_playbooks.plan import Plan


class Supersession(NamedTuple):
    """Who rules instead of the node that the run promotes, and what each node was left as."""

    why: str
    ruler: str | None
    """The master, None where two promotions stopped each other."""
    left: tuple[str, ...]
    """What the run left on nodes, each in words."""
    rejoin: tuple[str, ...]
    """Nodes that a rejoin brings back, with their tails saved first."""


def judge(
    plan: Plan, history: History, statuses: Mapping[str, Mapping[str, Any]], *, gives_up: bool = False
) -> Supersession | None:
    """Return what superseded a run that stands behind the point of no return, None where nothing did.

    `statuses` are of the nodes that answer. With `gives_up` it is enough that another node's epoch stopped
    the promoted one, though no master is left.
    """
    heir = next(
        (work.target for step in plan.steps for work in step.works if work.doing.action == "karma.promote"),
        None,
    )
    if heir is None or not _is_behind_no_return(plan, history):
        return None
    rulers = [name for name, status in statuses.items() if _rules(status)]
    before = max((int(node.get("epoch") or 0) for node in plan.nodes), default=0)
    newer = [name for name in rulers if name != heir and int(statuses[name].get("epoch") or 0) > before]
    fence = statuses.get(heir, {}).get("fenced_by")
    is_stopped = isinstance(fence, Mapping) and fence.get("node_id") is not None
    if heir in rulers or not (newer or (gives_up and is_stopped and not rulers)):
        return None
    ruler = newer[0] if newer else None
    why = (
        f"{ruler} is master of epoch {statuses[ruler]['epoch']}, and {heir} is not"
        if ruler is not None
        else f"{heir} was stopped by another node's promotion, and no node is master"
    )
    left, rejoin = [], []
    for name, status in statuses.items():
        words = _left(history.run, status, statuses[ruler] if ruler is not None else None)
        if words and name != ruler:
            left.append(f"{name}: {words}")
        if name != ruler and status.get("role") == "master":
            rejoin.append(name)
    silent = [str(node["name"]) for node in plan.nodes if node["name"] not in statuses]
    left += [f"{name}: it does not answer" for name in silent]
    return Supersession(why, ruler, tuple(left), tuple(rejoin))


def _is_behind_no_return(plan: Plan, history: History) -> bool:
    for step in plan.steps:
        for work in step.works:
            attempt = history.last(step.id, work.target)
            is_open = attempt is not None and attempt.is_open
            if step.irreversible and (is_open or history.happened(step.id, work.target)):
                return True
    return False


def _rules(status: Mapping[str, Any]) -> bool:
    return status.get("role") == "master" and not status.get("fenced_by")


def _left(run: str, status: Mapping[str, Any], ruler: Mapping[str, Any] | None) -> str:
    words = []
    fence = status.get("fenced_by")
    if isinstance(fence, Mapping):
        by = (
            "this run"
            if fence.get("run") == run
            else f"node {fence['node_id']}"
            if fence.get("node_id")
            else ""
        )
        words.append(f"fenced for epoch {fence['epoch']}" + (f" by {by}" if by else ""))
    if status.get("paused_by") == run:
        words.append("paused by this run")
    if ruler is not None and (lsn := diverged_at(status, ruler)) is not None:
        words.append(f"{int(status['wal_current_lsn']) - lsn + 1} entries from LSN {lsn} on that only it has")
    return ", ".join(words)

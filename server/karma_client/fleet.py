"""What several nodes said at one time, judged as one cluster.

Pure functions of what the nodes said, so that they can be tested with any answer. `karmactl topology` and the
dashboard judge by them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Health = Literal["healthy", "degraded", "split brain"]
DEFAULT_MAX_LAG_ENTRIES = 10_000
"""As the server's own ready-max-lag-entries."""


class Failure(Protocol):
    """Why a node said nothing. `is_silence`: it did not answer at all; else it refused."""

    @property
    def message(self) -> str:
        """What was wrong."""

    @property
    def is_silence(self) -> bool:
        """Whether no answer came, in contrast to one that refuses."""


@dataclass(frozen=True, slots=True)
class NodeState:
    """What one node said: its health, replication status and stats, or why it said nothing."""

    address: str
    health: Mapping[str, Any] = field(default_factory=dict)
    replication: Mapping[str, Any] = field(default_factory=dict)
    stats: Mapping[str, Any] = field(default_factory=dict)
    error: Failure | None = None

    @property
    def role(self) -> str:
        """master, slave, or unreachable."""
        return str(self.replication.get("role", "unknown")) if self.error is None else "unreachable"

    @property
    def state(self) -> str:
        """One word: ok, fenced, paused, storage_error, unreachable."""
        if self.error is not None:
            return "unreachable" if self.error.is_silence else "refused"
        if self.replication.get("fenced_by"):
            return "fenced"
        if self.replication.get("paused_until"):
            return "paused"
        return str(self.health.get("status", "ok"))

    @property
    def reason(self) -> str | None:
        """Why it is not ok, in words: why it said nothing, what is wrong with its disk, or who fenced it."""
        if self.error is not None:
            return self.error.message.removeprefix(f"{self.address}: ")
        trouble = self.health.get("storage_error") or _fence_in_words(self.replication.get("fenced_by"))
        return None if trouble is None else str(trouble)

    @property
    def troubles(self) -> list[str]:
        """What does not work although it serves, in words."""
        words = {"snapshot_error": "the last snapshot failed", "rotation_error": "the log cannot be rotated"}
        return [f"{text}: {self.health[name]}" for name, text in words.items() if self.health.get(name)]

    @property
    def lsn(self) -> int:
        """The last LSN it has: of its own log, or replayed from its source."""
        return max(int(self.replication.get(name) or 0) for name in ("wal_current_lsn", "replayed_lsn"))

    @property
    def lag_entries(self) -> int | None:
        """How far a slave says it is behind; None for any other node."""
        return int(self.replication.get("replication_lag_entries") or 0) if self.role == "slave" else None

    @property
    def twins(self) -> list[str]:
        """In words, which of its followers share a node id."""
        return [
            f"{' and '.join(map(str, twin['addresses']))} have one node id, {twin['node_id']}: one directory "
            "is a copy of the other, stop that node and run `karma new-id`"
            for twin in self.replication.get("duplicate_node_ids") or ()
        ]

    @property
    def is_filled(self) -> bool:
        """Whether it has what a slave gets first from its source; Karma 1.0 does not tell."""
        return self.replication.get("filled") is not False

    @property
    def is_writable_master(self) -> bool:
        """Whether it takes writes as far as its role goes."""
        return self.role == "master" and not self.replication.get("fenced_by")


# -- Judgements -------------------------------------------------------------------------------------------


def _fence_in_words(fence: Any) -> str | None:
    """Who stopped a node, and why."""
    if not isinstance(fence, dict):
        return None if fence is None else str(fence)
    by = f"node {fence['node_id']}" if fence.get("node_id") else "an operator"
    return f"for epoch {fence.get('epoch')} by {by}: {fence.get('reason')}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the nodes are as one cluster, with a sentence for everything that is not as it should be."""

    health: Health
    problems: tuple[str, ...]


def judge(nodes: Sequence[NodeState], max_lag_entries: int = DEFAULT_MAX_LAG_ENTRIES) -> Verdict:
    """Return the verdict on a cluster. Two masters of one cluster that both take writes are a split brain."""
    problems = [problem for node in distinct(nodes) for problem in problems_of(node, max_lag_entries)]
    masters = masters_of(nodes)
    clusters = {node.replication.get("cluster_id") for node in masters}
    if len(masters) > len(clusters) or (len(masters) > 1 and None in clusters):
        names = ", ".join(f"{node.address} (epoch {node.replication.get('epoch', 0)})" for node in masters)
        both = f"{len(masters)} nodes take writes as master: {names}"
        return Verdict("split brain", (both, *problems))
    if len(masters) > 1:
        names = ", ".join(node.address for node in masters)
        problems.insert(0, f"the nodes belong to {len(clusters)} clusters, with masters {names}")
    if not masters:
        problems.insert(0, "no node takes writes as master")
    return Verdict("degraded" if problems else "healthy", tuple(problems))


def masters_of(nodes: Iterable[NodeState]) -> list[NodeState]:
    """Return the masters that take writes, each once."""
    return distinct(node for node in nodes if node.is_writable_master)


def distinct(nodes: Iterable[NodeState]) -> list[NodeState]:
    """Return each node once, though it may be listed under two addresses."""
    return list({node.replication.get("node_id") or node.address: node for node in nodes}.values())


def problems_of(node: NodeState, max_lag_entries: int = DEFAULT_MAX_LAG_ENTRIES) -> list[str]:
    """Return a sentence for everything about one node that is not as it should be."""
    if node.error is not None:
        return [f"{node.address} is {node.state}: {node.reason}"]
    found = []
    if node.state != "ok":
        found.append(f"{node.address} is {node.state}" + (f": {node.reason}" if node.reason else ""))
    found += [f"{node.address} refuses a follower: {twin}" for twin in node.twins]
    if not node.is_filled:
        found.append(f"{node.address} has received nothing from its source yet")
    if (node.lag_entries or 0) > max_lag_entries:
        found.append(f"{node.address} is {node.lag_entries} entries behind, more than {max_lag_entries}")
    following = node.replication.get("replication_state")
    if following not in (None, "following", "polling"):
        reason = node.replication.get("replication_reason")
        found.append(f"{node.address} is {following}" + (f": {reason}" if reason else ""))
    elif following is None and node.role == "slave" and node.replication.get("replication_last_poll_error"):
        # Karma 1.0 has no state.
        found.append(
            f"{node.address} cannot read its source: {node.replication['replication_last_poll_error']}"
        )
    return found


def parents_of(nodes: Sequence[NodeState]) -> dict[str, str | None]:
    """Return which listed node each one follows; None for one that follows none of them.

    A slave says whose entries it gets (`source_node_id`). Where it does not, its `source` counts when that is
    a listed address; else a node that has it among its connected replicas; else, as with Karma 1.0, which
    says nothing of this, the only master there is. A link that would make a circle is out of date.
    """
    addresses = {node.address for node in nodes}
    by_id = {
        str(node.replication["node_id"]): node.address for node in nodes if node.replication.get("node_id")
    }
    masters = [node.address for node in nodes if node.role == "master"]
    by_replica = {
        replica.get("node_id"): node.address
        for node in nodes
        for replica in node.replication.get("replicas") or ()
        if replica.get("is_connected", True)
    }
    parents: dict[str, str | None] = {}
    for node in nodes:
        parent = None
        if node.role == "slave":
            source = node.replication.get("source")
            parent = by_id.get(str(node.replication.get("source_node_id")))
            parent = parent or (source if source in addresses else None)
            parent = parent or by_replica.get(node.replication.get("node_id"))
            if parent is None and source is None and len(masters) == 1:
                parent = masters[0]
        parents[node.address] = None if _leads_back(parent, node.address, parents) else parent
    return parents


def _leads_back(parent: str | None, address: str, parents: Mapping[str, str | None]) -> bool:
    """Whether the way up from a parent comes back to the node itself."""
    while parent is not None and parent != address:
        parent = parents.get(parent)
    return parent is not None

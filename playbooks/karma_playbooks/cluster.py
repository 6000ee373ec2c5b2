"""What the nodes of a cluster said about themselves at one time, and what follows from it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from karma_playbooks.inventory import Entry, Phase


class Branch(NamedTuple):
    """Entries that a node has and the master has not: from which LSN on, how many, of which series.

    `series` has those of which that is known.
    """

    from_lsn: int
    entries: int
    series: Mapping[str, int]


class Clock(NamedTuple):
    """How far another machine's clock is ahead of the one here, and whether it is another day there (UTC)."""

    ahead_seconds: float
    is_other_day: bool


class HostFacts(NamedTuple):
    """What a node's host said of itself, or why it said nothing."""

    where: str
    """As it is really reached: `ssh karma@10.0.0.1:22`."""
    facts: Mapping[str, str] = {}
    clock: Clock | None = None
    error: str = ""
    phase: Phase | None = None
    """How far the way to it was gone, where it could not be reached at all."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One node: its entry, its replication.status if it answered, else why not."""

    entry: Entry
    status: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    version: str = ""
    """Of its server; empty where it did not say, as Karma 1.0 does not."""
    clock: Clock | None = None
    host: HostFacts | None = None
    """None where it has no host."""
    branch: Branch | None = None
    missing: Mapping[str, int] = field(default_factory=dict)
    """Entries by series that others have and it has not, as far as somebody can tell."""

    @property
    def name(self) -> str:
        """The node's name."""
        return self.entry.name

    @property
    def place(self) -> str:
        """Its host in words."""
        return self.host.where if self.host is not None else self.entry.place

    @property
    def host_error(self) -> str:
        """Why no command can be run on its host, empty where one can."""
        return self.host.error if self.host is not None else ""

    @property
    def is_reachable(self) -> bool:
        """Whether it answered."""
        return not self.error

    @property
    def role(self) -> str:
        """master, slave, or unreachable."""
        return str(self.status.get("role", "unreachable"))

    @property
    def epoch(self) -> int:
        """The newest epoch it knows, 0 for a Karma 1.0 or a silent one."""
        return int(self.status.get("epoch") or 0)

    @property
    def lsn(self) -> int:
        """The last LSN it has."""
        return int(self.status.get("wal_current_lsn") or 0)

    @property
    def lag_entries(self) -> int:
        """How far behind its source it says it is."""
        return int(self.status.get("replication_lag_entries") or 0)

    @property
    def is_writable(self) -> bool:
        """Whether it takes writes as far as role and fence go."""
        return self.role == "master" and not self.status.get("fenced_by")

    @property
    def known_epoch(self) -> int:
        """The highest epoch number it has heard of: its own, or that of its fence."""
        fence = self.status.get("fenced_by")
        return max(self.epoch, int(fence.get("epoch") or 0) if isinstance(fence, Mapping) else 0)


@dataclass(frozen=True, slots=True)
class Cluster:
    """All nodes of a cluster. `name` is the context's, or that of its first node."""

    name: str
    is_production: bool
    nodes: tuple[NodeFacts, ...]

    def node(self, name: str) -> NodeFacts:
        """Return a node by name or address. Raises KeyError with a sentence."""
        for node in self.nodes:
            if name in {node.name, node.entry.address}:
                return node
        raise KeyError(f"{name} is none of the nodes {', '.join(node.name for node in self.nodes)}")

    @property
    def cluster_id(self) -> str:
        """The id that the nodes agree on, of the first that tells one."""
        return next(
            (str(node.status["cluster_id"]) for node in self.nodes if node.status.get("cluster_id")), ""
        )

    @property
    def masters(self) -> list[NodeFacts]:
        """Nodes that take writes."""
        return [node for node in self.nodes if node.is_writable]

    @property
    def old_master(self) -> NodeFacts | None:
        """The master, whether it lives or not: by its word, by that of its followers, or the only silent
        node.
        """
        fenced = [node for node in self.nodes if node.role == "master"]
        sources = {str(node.status.get("source")) for node in self.nodes if node.role == "slave"}
        named = [node for node in self.nodes if not node.is_reachable and node.entry.address in sources]
        silent = [node for node in self.nodes if not node.is_reachable]
        for found in (self.masters, fenced, named, silent):
            if len(found) == 1:
                return found[0]
        return None

    @property
    def followers(self) -> list[NodeFacts]:
        """Reachable slaves."""
        return [node for node in self.nodes if node.role == "slave"]

    @property
    def best(self) -> NodeFacts | None:
        """The follower to promote: the highest epoch and LSN; of equals the one nearest to the master."""
        fit = [node for node in self.followers if not node.status.get("must_rebuild")]
        return max(fit, key=rank, default=None)

    def lookup(self, field_name: str) -> Any:
        """Return what `cluster.FIELD` stands for; nodes by their names. Raises KeyError with a sentence."""
        match field_name:
            case "name":
                return self.name
            case "master":
                return self._one(self.masters[0] if len(self.masters) == 1 else None, self._no_master())
            case "old_master":
                return self._one(self.old_master, "no node can be told to be the master, dead or alive")
            case "best":
                return self._one(self.best, "there is no reachable follower that could take over")
            case "followers":
                return [node.name for node in self.followers]
            case "writable":
                return [node.name for node in self.masters]
            case "reachable":
                return [node.name for node in self.nodes if node.is_reachable]
            case "nodes":
                return [node.name for node in self.nodes]
            case "epoch":
                return max(node.known_epoch for node in self.nodes)
            case "next_epoch":
                return max(node.known_epoch for node in self.nodes) + 1
        raise KeyError(f"there is no cluster.{field_name}")

    def _no_master(self) -> str:
        if len(self.masters) > 1:
            both = ", ".join(node.name for node in self.masters)
            return f"{both} take writes, all of them: a split brain, which `karmactl topology` shows"
        return "no node takes writes as master: `karmactl topology` shows why"

    @staticmethod
    def _one(node: NodeFacts | None, problem: str) -> str:
        if node is None:
            raise KeyError(problem)
        return node.name


def rank(node: NodeFacts) -> tuple[int, int, int]:
    """Return what decides who has more: the epoch of the last entry, the LSN, the nearness to the master."""
    epochs: Sequence[Mapping[str, Any]] = node.status.get("epochs") or ()
    written = [each["epoch"] for each in epochs if each["start_lsn"] <= node.lsn]
    return max(written, default=0), node.lsn, -len(node.status.get("path") or ())


def diverged_at(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> int | None:
    """Return the first LSN of my log that was written in another epoch than theirs; None where histories
    agree.

    Both are replication.status. What they lack at the end is no difference as long as they go on in my epoch.
    """
    last_lsn = int(mine.get("wal_current_lsn") or 0)
    starts = {1, *(int(each["start_lsn"]) for each in (*mine.get("epochs", ()), *theirs.get("epochs", ())))}
    for lsn in sorted(start for start in starts if start <= last_lsn):
        if _writer(mine, lsn) != _writer(theirs, lsn):
            return lsn
    return None


def _writer(status: Mapping[str, Any], lsn: int) -> tuple[int, str]:
    for epoch in reversed(status.get("epochs") or ()):
        if epoch["start_lsn"] <= lsn:
            return int(epoch["epoch"]), str(epoch["node_id"])
    return 0, ""

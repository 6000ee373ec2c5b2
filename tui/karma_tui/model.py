"""What the dashboard knows: a fleet as a value, made of the nodes' answers. Pure: time is an argument.

`observe` takes an answer into a fleet and returns the next fleet; everything that a screen shows of nodes
follows from one, so a picture can be drawn again from a recording.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from karma_client.fleet import (
    DEFAULT_MAX_LAG_ENTRIES,
    NodeState,
    Verdict,
    judge,
    masters_of,
    parents_of,
    problems_of,
)
from karma_tui.spelling import age
from karma_tui.tables import Mood

HISTORY = 300
"""Answers that are remembered of each node: five minutes at one a second."""
LATE_TICKS = 3
"""Ticks without an answer after which a node is called slow."""
LOW_DISK = 0.1
"""Share of free disk below which a node has an alarm, as `karmactl check` warns."""
NONE: Mapping[str, Any] = MappingProxyType({})


class Problem(NamedTuple):
    """Why a node gave no answer. `is_silence`: nothing came; else it refused."""

    message: str
    is_silence: bool


class Answer(NamedTuple):
    """What one node said to one tick's questions, or why it said nothing. `at` is unix seconds.

    `latency` and `clients` are None when they were not asked for, or not told.
    """

    address: str
    at: float
    rtt_ms: float
    health: Mapping[str, Any] = NONE
    status: Mapping[str, Any] = NONE
    stats: Mapping[str, Any] = NONE
    latency: Mapping[str, Any] | None = None
    clients: Sequence[Mapping[str, Any]] | None = None
    clients_problem: str = ""
    problem: Problem | None = None


class Sample(NamedTuple):
    """A node's figures at one time; all None while it was silent."""

    at: float
    lsn: int | None = None
    lag_entries: int | None = None
    lag_ms: float | None = None
    ops_per_second: float | None = None
    p50_us: int | None = None
    p95_us: int | None = None
    p99_us: int | None = None


class OpSample(NamedTuple):
    """An operation's latencies over the last minute, at one time; None while it was not used."""

    p50_us: int | None
    p95_us: int | None
    p99_us: int | None
    max_us: int | None
    recent: int
    total: int


class Alarm(NamedTuple):
    """Something that somebody should look at."""

    mood: Mood
    text: str


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node: its last answer, since when it is silent if it is, and its figures over time."""

    address: str
    last: Answer | None = None
    problem: Problem | None = None
    problem_since: float | None = None
    samples: tuple[Sample, ...] = ()
    ops: Mapping[str, tuple[OpSample, ...]] = field(default_factory=dict)
    clients: Sequence[Mapping[str, Any]] = ()
    clients_problem: str = ""

    @property
    def state(self) -> NodeState:
        """The node as it is judged: its last answer, or its silence."""
        if self.problem is not None:
            return NodeState(self.address, error=self.problem)
        if self.last is None:
            return NodeState(self.address, error=Problem("not answered yet", is_silence=True))
        return self.known

    @property
    def known(self) -> NodeState:
        """The node as it last said it was, though it may be silent now."""
        last = self.last
        if last is None:
            return NodeState(self.address)
        return NodeState(self.address, last.health, last.status, last.stats)

    @property
    def has_been_heard(self) -> bool:
        """Whether it answered or failed at least once."""
        return self.last is not None or self.problem is not None

    @property
    def newest(self) -> Sample:
        """The newest figures, all None while it is silent."""
        return self.samples[-1] if self.samples else Sample(0.0)

    def series(self, name: str) -> tuple[float | None, ...]:
        """Return one figure over time, oldest first."""
        at = Sample._fields.index(name)
        return tuple(sample[at] for sample in self.samples)


@dataclass(frozen=True, slots=True)
class Fleet:
    """Every node of a context at `now` (unix seconds). `tick_seconds` is the time between two questions."""

    nodes: tuple[NodeView, ...]
    now: float = 0.0
    tick_seconds: float = 1.0
    max_lag_entries: int = DEFAULT_MAX_LAG_ENTRIES
    _by_address: Mapping[str, int] = field(default_factory=dict, repr=False)

    def node(self, address: str) -> NodeView:
        """Return a node. Raises KeyError for one that is not of the fleet."""
        return self.nodes[self._by_address[address]]

    @property
    def is_heard(self) -> bool:
        """Whether every node answered or failed at least once; before that nothing is judged."""
        return all(node.has_been_heard for node in self.nodes)

    @property
    def verdict(self) -> Verdict:
        """The judgement that `karmactl topology` would give."""
        return judge([node.state for node in self.nodes], self.max_lag_entries)

    @property
    def parents(self) -> dict[str, str | None]:
        """Which listed node each one follows, silent ones as they last said."""
        return parents_of([node.known for node in self.nodes])

    @property
    def reader(self) -> str:
        """The node to read data from: the master, else the first that answers, else the first."""
        masters = masters_of(node.state for node in self.nodes)
        if masters:
            return masters[0].address
        return next((node.address for node in self.nodes if node.state.error is None), self.nodes[0].address)


def empty(addresses: Sequence[str], tick_seconds: float = 1.0) -> Fleet:
    """Return a fleet of which nothing is known yet."""
    by_address = {address: at for at, address in enumerate(addresses)}
    return Fleet(tuple(map(NodeView, addresses)), tick_seconds=tick_seconds, _by_address=by_address)


def observe(fleet: Fleet, answer: Answer) -> Fleet:
    """Return the fleet after an answer. One of a node that is not of the fleet changes nothing."""
    at = fleet._by_address.get(answer.address)  # noqa: SLF001 - of this module's own class
    if at is None:
        return fleet
    node = _heard(fleet.nodes[at], answer, _lag_told(fleet, answer))
    nodes = (*fleet.nodes[:at], node, *fleet.nodes[at + 1 :])
    return replace(fleet, nodes=nodes, now=max(fleet.now, answer.at))


def _lag_told(fleet: Fleet, answer: Answer) -> Mapping[str, Any]:
    """What its source says of a follower: one that is cut off cannot know how far behind it is."""
    node_id = answer.status.get("node_id")
    return next(
        (
            replica
            for node in fleet.nodes
            if node.problem is None and node.address != answer.address
            for replica in node.known.replication.get("replicas") or ()
            if node_id is not None and replica.get("node_id") == node_id
        ),
        NONE,
    )


def _heard(node: NodeView, answer: Answer, told: Mapping[str, Any]) -> NodeView:
    sample = sample_of(answer)
    if sample.lag_entries is not None:
        sample = sample._replace(
            lag_entries=max(sample.lag_entries, told.get("lag_entries") or 0),
            lag_ms=max(sample.lag_ms or 0, told.get("lag_ms") or 0),
        )
    samples = (*node.samples[1 - HISTORY :], sample)
    if answer.problem is not None:
        since = node.problem_since if node.problem is not None else answer.at
        return replace(node, problem=answer.problem, problem_since=since, samples=samples)
    return NodeView(
        node.address,
        answer,
        samples=samples,
        ops=node.ops if answer.latency is None else _with_latency(node.ops, answer.latency),
        clients=node.clients if answer.clients is None else answer.clients,
        clients_problem=answer.clients_problem,
    )


def sample_of(answer: Answer) -> Sample:
    """Return the figures of an answer."""
    if answer.problem is not None:
        return Sample(answer.at)
    state = NodeState(answer.address, answer.health, answer.status, answer.stats)
    minute = answer.stats.get("latency_last_minute") or {}
    is_used = bool(minute.get("count"))
    return Sample(
        answer.at,
        state.lsn,
        state.lag_entries,
        answer.status.get("lag_ms") if state.role == "slave" else None,
        answer.stats.get("ops_per_second"),
        *(minute.get(name) if is_used else None for name in ("p50_us", "p95_us", "p99_us")),
    )


def _with_latency(
    known: Mapping[str, tuple[OpSample, ...]], response: Mapping[str, Any]
) -> Mapping[str, tuple[OpSample, ...]]:
    found = {}
    for op, spans in response.get("ops", {}).items():
        minute = spans["last_minute"]
        is_used = bool(minute["count"])
        p50, p95, p99, most = (
            minute[name] if is_used else None for name in ("p50_us", "p95_us", "p99_us", "max_us")
        )
        sample = OpSample(p50, p95, p99, most, minute["count"], spans["total"]["count"])
        found[op] = (*known.get(op, ())[1 - HISTORY :], sample)
    return found


# -- Alarms -----------------------------------------------------------------------------------------------


def screams(fleet: Fleet) -> list[str]:
    """Return what must be seen on every screen: several writers, and fences that guard nothing any more."""
    if not fleet.is_heard:
        return []
    verdict = fleet.verdict
    found = [f"SPLIT BRAIN: {verdict.problems[0]}"] if verdict.health == "split brain" else []
    return found + [
        f"STALE FENCE: {node.address} {reason}"
        for node in fleet.nodes
        if (reason := stale_fence(fleet, node)) is not None
    ]


def stale_fence(fleet: Fleet, node: NodeView) -> str | None:
    """Return why a fence is stale; None for one that guards something, and for no fence.

    A fence holds a node back for an epoch. Where nobody takes writes in that epoch, the promotion that it was
    set for never came, or its master has gone: writes are refused for nothing.
    """
    fence = node.state.replication.get("fenced_by")
    if not isinstance(fence, Mapping):
        return None
    epoch = fence.get("epoch")
    writers = masters_of(other.state for other in fleet.nodes)
    if any((writer.replication.get("epoch") or 0) >= (epoch or 0) for writer in writers):
        return None
    if any(other.problem is not None for other in fleet.nodes):
        return f"is fenced for epoch {epoch}, and no node that answers takes writes in it"
    return f"is fenced for epoch {epoch}, which no node opened: writes are refused for nothing"


def alarms(fleet: Fleet, node: NodeView) -> list[Alarm]:
    """Return everything about a node that deserves a look, worst first."""
    if not node.has_been_heard:
        return [Alarm("dim", "waiting for its first answer")]
    if node.problem is not None:
        return [_silence(fleet, node, node.problem)]
    state = node.state
    is_torn = fleet.verdict.health == "split brain" and state.is_writable_master
    found = [Alarm("bad", "SPLIT BRAIN")] if is_torn else []
    if stale_fence(fleet, node) is not None:
        found.append(Alarm("bad", "STALE FENCE"))
    for problem in problems_of(state, fleet.max_lag_entries):
        following = state.replication.get("replication_state")
        is_bad = state.state == "storage_error" or following == "diverged" or not state.is_filled
        text = problem.removeprefix(f"{node.address} ").removeprefix("is ")
        found.append(Alarm("bad" if is_bad else "warn", text))
    if until_ms := state.replication.get("paused_until"):
        found.append(Alarm("warn", f"writes go on in {age(max(0.0, until_ms / 1000 - fleet.now))}"))
    if state.replication.get("sync_degraded"):
        found.append(Alarm("warn", "too few replicas hold its writes"))
    found += [Alarm("warn", trouble) for trouble in state.troubles]
    total, free = state.stats.get("disk_total_bytes"), state.stats.get("disk_free_bytes")
    if total and free is not None and free < total * LOW_DISK:
        found.append(Alarm("warn", f"disk {free / total:.0%} free"))
    waited = fleet.now - (node.last.at if node.last else fleet.now)
    if waited > LATE_TICKS * fleet.tick_seconds:
        found.append(Alarm("warn", f"slow: last answer {age(waited)} ago"))
    return sorted(found, key=lambda alarm: alarm.mood != "bad")


def _silence(fleet: Fleet, node: NodeView, problem: Problem) -> Alarm:
    since = node.problem_since or fleet.now
    reason = problem.message.removeprefix(f"{node.address}: ")
    word = "silent" if problem.is_silence else "refused"
    return Alarm("bad", f"{word} for {age(fleet.now - since)}: {reason}")


# -- Order ------------------------------------------------------------------------------------------------


class Branch(NamedTuple):
    """A line of the topology tree: what stands before the node, and the node."""

    indent: str
    node: NodeView


def tree(fleet: Fleet) -> list[Branch]:
    """Return the nodes as a tree: each below the one it follows. `parents_of` leaves no circle."""
    parents = fleet.parents
    found: list[Branch] = []

    def branch(node: NodeView, own: str, below: str) -> None:
        found.append(Branch(own, node))
        followers = [one for one in fleet.nodes if parents[one.address] == node.address]
        for follower in followers:
            is_last = follower is followers[-1]
            branch(follower, below + ("└─ " if is_last else "├─ "), below + ("   " if is_last else "│  "))

    for node in fleet.nodes:
        if parents[node.address] is None:
            branch(node, "", "")
    return found


def laggiest(fleet: Fleet) -> NodeView | None:
    """Return the follower that is furthest behind, by time and then by entries; None without followers."""
    followers = [node for node in fleet.nodes if node.known.role == "slave"]
    return max(
        followers, key=lambda node: (node.newest.lag_ms or 0, node.newest.lag_entries or 0), default=None
    )

"""Facts: what every node says of itself, all asked at once, and what its branch would cost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

from karma_client import KarmaError
from karma_playbooks import preflight
from karma_playbooks.cluster import Branch, Clock, Cluster, HostFacts, NodeFacts, diverged_at, rank
from karma_playbooks.shell_words import UnusableWordError
from karma_playbooks.transports.shell import LinkLostError, UnreachableError
from karma_playbooks.world import World

DAY_SECONDS = 86_400
_MOST_ENTRIES = 100_000
"""Counted by series of what a node lacks: about a second of reading while a fleet has no master."""


async def gather(
    world: World,
    name: str,
    *,
    is_production: bool,
    heard: Callable[[NodeFacts], None] | None = None,
) -> Cluster:
    """Return the cluster as it is now. A node or a host that does not answer is a fact like any other.

    `heard` is called with each node as soon as it answered, or did not.
    """

    async def look(each: str) -> NodeFacts:
        found = await _node(world, each)
        if heard is not None:
            heard(found)
        return found

    nodes = await asyncio.gather(*map(look, world.entries))
    cluster = Cluster(name, is_production, tuple(nodes))
    if len(cluster.masters) != 1:
        return cluster
    (master,) = cluster.masters
    found = await asyncio.gather(*(_with_branch(world, node, master) for node in nodes))
    return Cluster(name, is_production, tuple(found))


async def _node(world: World, name: str) -> NodeFacts:
    found, host = await asyncio.gather(_server(world, name), _host(world, name))
    return replace(found, host=host)


async def _server(world: World, name: str) -> NodeFacts:
    entry = world.entries[name]
    try:
        status = await world.ask(name, "replication.status")
        before = world.now()
        stats = await world.ask(name, "system.stats")
        after = world.now()
        server_ms = stats.get("server_time_unix_ms")
        clock = None if server_ms is None else _clock(server_ms / 1000, before, after)
        return _readable(NodeFacts(entry, status, version=str(stats.get("version", "")), clock=clock))
    except KarmaError as problem:
        return NodeFacts(entry, error=str(problem))
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        return NodeFacts(entry, error="it is no Karma server, or one of another version")


def _readable(node: NodeFacts) -> NodeFacts:
    """Return a node after a look at what plans read of it. Raises what Python does of an odd answer."""
    if node.role not in {"master", "slave"}:
        raise ValueError(node.role)
    _ = rank(node), node.known_epoch, node.lag_entries, node.is_writable
    return node


async def _host(world: World, name: str) -> HostFacts | None:
    entry = world.entries[name]
    if not entry.has_host:
        return None
    where = entry.place
    try:
        where = entry.place_at(world.host(name).shell.where())
        before = world.now()
        ran = await world.ask_host(name, preflight.script(entry, world.secret(entry)), preflight.SECONDS)
        after = world.now()
    except UnreachableError as problem:
        return HostFacts(where, error=str(problem), phase=problem.phase)
    except (LinkLostError, UnusableWordError) as problem:
        return HostFacts(where, error=str(problem))
    facts = preflight.parse(ran.output)
    seconds = facts.get("clock", "")
    # The host has whole seconds only.
    clock = _clock(int(seconds), before - 1, after) if seconds.isdigit() else None
    return HostFacts(where, facts, clock)


def _clock(there: float, before: float, after: float) -> Clock:
    """Return how a clock differs that was read between two moments of the one here."""
    ahead_seconds = there - before if there < before else max(there - after, 0.0)
    return Clock(ahead_seconds, there // DAY_SECONDS not in {before // DAY_SECONDS, after // DAY_SECONDS})


async def _with_branch(world: World, node: NodeFacts, master: NodeFacts) -> NodeFacts:
    if not node.is_reachable or node.name == master.name:
        return node
    lsn = diverged_at(node.status, master.status)
    if lsn is None:
        return node
    series = await _series(world, node.name, lsn - 1, node.lsn)
    return replace(node, branch=Branch(lsn, node.lsn - lsn + 1, series))


async def with_missing(world: World, cluster: Cluster) -> Cluster:
    """Return the cluster with what each follower lacks of the node that has the most, by series."""
    top = max((node for node in cluster.nodes if node.is_reachable), key=rank, default=None)
    if top is None:
        return cluster

    async def look(node: NodeFacts) -> NodeFacts:
        is_behind = node.role == "slave" and node.lsn < top.lsn
        # Of a branch, what the other one has at those LSNs says nothing.
        if not is_behind or diverged_at(node.status, top.status) is not None:
            return node
        return replace(node, missing=await _series(world, top.name, node.lsn, top.lsn))

    return replace(cluster, nodes=tuple(await asyncio.gather(*map(look, cluster.nodes))))


async def _series(world: World, name: str, after_lsn: int, to_lsn: int) -> Mapping[str, int]:
    """Count a node's entries by series, those of one series each, as far as its log and the bound go."""
    series: Counter[str] = Counter()
    to_lsn = min(to_lsn, after_lsn + _MOST_ENTRIES)
    while after_lsn < to_lsn:
        try:
            page = (await world.ask(name, "replication.entries", after_lsn=after_lsn))["entries"]
        except KarmaError:
            # Its log may be truncated; how many entries there are is known without it.
            break
        if not page:
            break
        series.update(
            found["entry"]["series"]
            for found in page
            if found["lsn"] <= to_lsn and isinstance(found["entry"].get("series"), str)
        )
        after_lsn = page[-1]["lsn"]
    return dict(series)

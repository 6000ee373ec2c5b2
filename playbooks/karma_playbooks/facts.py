"""Facts: what every node says of itself, all asked at once, and what its branch would cost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

from karma_client import KarmaError
from karma_playbooks.cluster import Branch, Cluster, NodeFacts, diverged_at, rank
from karma_playbooks.transports.shell import LinkLostError, UnreachableError
from karma_playbooks.world import World

_MOST_ENTRIES = 100_000
"""Counted by series of what a node lacks: about a second of reading while a fleet has no master."""


async def gather(
    world: World,
    name: str,
    *,
    is_production: bool,
    with_hosts: bool,
    heard: Callable[[NodeFacts], None] | None = None,
) -> Cluster:
    """Return the cluster as it is now. A node or a host that does not answer is a fact like any other.

    `heard` is called with each node as soon as it answered, or did not.
    """

    async def look(each: str) -> NodeFacts:
        found = await _node(world, each, with_hosts=with_hosts)
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


async def _node(world: World, name: str, *, with_hosts: bool) -> NodeFacts:
    entry = world.entries[name]
    status, error, host_error, host = {}, "", "", ""
    try:
        status = await world.ask(name, "replication.status")
    except KarmaError as problem:
        error = str(problem)
    if with_hosts and entry.has_host:
        try:
            host = entry.place_at(world.host(name).shell.where())
            ran = await world.ask_host(name, "command -v setsid >/dev/null")
            host_error = "it has no setsid" if ran.code else ""
        except (UnreachableError, LinkLostError) as problem:
            host_error = str(problem)
    return NodeFacts(entry, status, error, host_error, host)


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

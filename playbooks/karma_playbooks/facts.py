"""Facts: what every node says of itself, all asked at once, and what its branch would cost."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

from karma_client import KarmaError
from karma_playbooks.cluster import Branch, Cluster, NodeFacts, diverged_at
from karma_playbooks.transports.shell import LinkLostError, UnreachableError
from karma_playbooks.world import World


async def gather(world: World, name: str, *, is_production: bool, with_hosts: bool) -> Cluster:
    """Return the cluster as it is now. A node or a host that does not answer is a fact like any other."""
    nodes = await asyncio.gather(*(_node(world, each, with_hosts=with_hosts) for each in world.entries))
    cluster = Cluster(name, is_production, tuple(nodes))
    if len(cluster.masters) != 1:
        return cluster
    (master,) = cluster.masters
    found = await asyncio.gather(*(_with_branch(world, node, master) for node in nodes))
    return Cluster(name, is_production, tuple(found))


async def _node(world: World, name: str, *, with_hosts: bool) -> NodeFacts:
    entry = world.entries[name]
    status, error, host_error = {}, "", ""
    try:
        status = await world.ask(name, "replication.status")
    except KarmaError as problem:
        error = str(problem)
    if with_hosts and entry.has_host:
        try:
            ran = await world.ask_host(name, "command -v setsid >/dev/null")
            host_error = "it has no setsid" if ran.code else ""
        except (UnreachableError, LinkLostError) as problem:
            host_error = str(problem)
    return NodeFacts(entry, status, error, host_error)


async def _with_branch(world: World, node: NodeFacts, master: NodeFacts) -> NodeFacts:
    if not node.is_reachable or node.name == master.name:
        return node
    lsn = diverged_at(node.status, master.status)
    if lsn is None:
        return node
    series: Counter[str] = Counter()
    after = lsn - 1
    try:
        while page := (await world.ask(node.name, "replication.entries", after_lsn=after))["entries"]:
            series.update(str(found["entry"].get("series", "")) for found in page)
            after = page[-1]["lsn"]
    except KarmaError:
        # The log there may be truncated; how many entries there are is known without it.
        series["?"] += 1
    return replace(node, branch=Branch(lsn, node.lsn - lsn + 1, dict(series)))

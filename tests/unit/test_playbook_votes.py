"""Votes without nodes: who has one, what a majority is, and how long it is sure."""

from __future__ import annotations

import asyncio
from typing import Any

from karma_client import ForbiddenError, UnreachableError
from karma_playbooks.votes import Votes


class Nodes:
    """Nodes as the votes see them, at a time that stands still unless it is moved."""

    def __init__(self, **statuses: Any) -> None:
        self.statuses = {
            name: {"cluster_id": "c", **each} for name, each in statuses.items() if each is not None
        }
        self.held = dict.fromkeys(self.statuses, "")
        self.now = 100.0
        self.orders: list[tuple[str, str, int]] = []
        self.votes = Votes(self.ask, list(statuses), "r", "ann", lambda: self.now, 10_000)

    async def ask(self, name: str, op: str, **fields: Any) -> Any:
        if name not in self.statuses:
            raise UnreachableError("down")
        if op == "replication.status":
            return self.statuses[name]
        if self.held[name]:
            lease = {"run": self.held[name], "holder": "bob", "expires_in_ms": 5}
            raise ForbiddenError("leased", detail={"reason": "leased", **lease})
        self.orders.append((fields["do"], name, fields.get("ttl_ms", 0)))
        return {"number": 7}

    def take(self) -> None:
        async def go() -> None:
            await self.votes.look()
            for name in self.votes.voters:
                if self.votes.can_lease(name):
                    await self.votes.take(name)

        asyncio.run(go())


def node(node_id: str, **more: Any) -> dict[str, Any]:
    return {"node_id": node_id, "lease_number": 3, "lease": None, **more}


def test_a_silent_node_counts_and_a_karma_1_0_does_not() -> None:
    nodes = Nodes(a=None, b=node("1"), c={"role": "slave"})
    nodes.take()
    assert nodes.votes.voters == ["b", "a"]
    assert nodes.votes.needed == 2
    assert nodes.votes.sure_until() == 0.0
    # The file on the silent node's host is the second vote.
    assert nodes.votes.sure_until(1) == nodes.now + 10


def test_nodes_that_are_not_in_the_context_count_once() -> None:
    far = {"node_id": "9", "is_connected": True}
    gone = {"node_id": "8", "is_connected": False}
    nodes = Nodes(a=node("1", replicas=[far, gone]), b=node("2", source_node_id="1"))
    nodes.take()
    assert (nodes.votes.strangers, nodes.votes.needed) == (1, 2)
    # A silent node of the context is the one that others name.
    nodes = Nodes(a=None, b=node("2", source_node_id="1"), c=node("3", source_node_id="1"))
    nodes.take()
    assert (nodes.votes.strangers, nodes.votes.needed) == (0, 2)


def test_a_majority_is_sure_for_as_long_as_its_oldest_lease() -> None:
    nodes = Nodes(a=node("1"), b=node("2"), c=node("3"))
    nodes.take()
    nodes.now += 6
    nodes.held["c"] = nodes.held["b"] = "other"
    refused = asyncio.run(nodes.votes.renew())
    assert {name: each.run for name, each in refused.items()} == {"b": "other", "c": "other"}
    assert nodes.votes.sure_until() == 0.0
    nodes.held["c"] = ""
    asyncio.run(nodes.votes.retake("c"))
    assert nodes.votes.sure_until() == nodes.now + 10


def test_a_promotion_is_bound_to_what_is_left_of_the_majority() -> None:
    nodes = Nodes(a=node("1"), b=node("2"), c=node("3"))
    nodes.take()
    nodes.now += 4
    assert asyncio.run(nodes.votes.bind("b")) is None
    # Ten seconds from the start, four gone, and one for the clocks.
    assert nodes.orders[-1] == ("renew", "b", 5_000)
    nodes.now += 5.5
    assert asyncio.run(nodes.votes.bind("b")) is not None
    assert nodes.orders[-1] == ("renew", "b", 5_000)

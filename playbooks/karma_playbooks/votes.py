"""Votes: one run at a time holds a lease on a majority of all nodes of the cluster.

Why two runs never both rely on a majority: each node grants its lease to one run, two majorities share a
node, and a run trusts a lease only for its length from the moment it asked. Before a promotion the lease of
the node to promote is renewed for no longer than the majority is sure, and the order carries its number: a
late order finds the lease over, and the node refuses.

Nothing here knows hosts, folders or people: it needs a way to ask nodes, and a clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from karma_client import KarmaError
from karma_client import errors as client

LEASE_MS = 10_000
"""How long a lease lasts unless it is renewed: a dead operator's machine holds others off for no longer, and
neither does a node that was down when its run ended."""
_MARGIN_SECONDS = 1.0
"""Of the time that a majority is sure, kept free: two clocks run at almost the same speed."""


class NodeLease(NamedTuple):
    """A lease that was granted: its number, and until when it surely lives, by the caller's clock."""

    number: int
    until: float


class Refusal(NamedTuple):
    """Why a node's lease was not granted: another run has it, or no answer that counts."""

    text: str
    run: str = ""
    holder: str = ""
    expires_in_ms: int = 0


@dataclass(slots=True)
class Votes:
    """The leases of one run. `ask(node, op, **fields)` returns a node's response and raises KarmaError."""

    ask: Callable[..., Awaitable[Any]]
    names: Sequence[str]
    run: str
    holder: str
    clock: Callable[[], float]
    lease_ms: int = LEASE_MS
    statuses: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """What the nodes that answered said when they were looked at last."""
    leases: dict[str, NodeLease] = field(default_factory=dict)
    cluster_id: str = ""

    async def look(self) -> None:
        """Ask every node for its status."""
        found = await asyncio.gather(*map(self._status, self.names))
        self.statuses = {
            name: status for name, status in zip(self.names, found, strict=True) if status is not None
        }
        ids = [str(each["cluster_id"]) for each in self.statuses.values() if each.get("cluster_id")]
        self.cluster_id = self.cluster_id or next(iter(ids), "")

    async def _status(self, name: str) -> Mapping[str, Any] | None:
        try:
            found: Mapping[str, Any] = await self.ask(name, "replication.status")
        except KarmaError:
            return None
        return found

    # -- Who has a vote ------------------------------------------------------------------------------------

    @property
    def voters(self) -> list[str]:
        """The nodes with a vote, in an order that all runs share. A silent node has one, a Karma 1.0 none."""
        able = [name for name in self.names if name not in self.statuses or self.can_lease(name)]
        return sorted(able, key=lambda name: (name not in self.statuses, self._id(name), name))

    def can_lease(self, name: str) -> bool:
        """Whether a node answered and knows leases."""
        return "lease_number" in self.statuses.get(name, {})

    def _id(self, name: str) -> str:
        return str(self.statuses.get(name, {}).get("node_id") or "")

    @property
    def strangers(self) -> int:
        """How many nodes of the cluster others told of that are not among the names: they vote for no one."""
        heard = set()
        for status in self.statuses.values():
            replicas = status.get("replicas") or ()
            heard |= {each.get("node_id") for each in replicas if each.get("is_connected")}
            heard.add(status.get("source_node_id"))
        unknown = heard - {None, ""} - set(map(self._id, self.names))
        # A silent node is among those that others name.
        return max(len(unknown) - sum(name not in self.statuses for name in self.names), 0)

    @property
    def needed(self) -> int:
        """How many votes are a majority of all nodes of the cluster."""
        return (len(self.voters) + self.strangers) // 2 + 1

    def others(self) -> dict[str, Refusal]:
        """Return the nodes whose lease somebody else holds, as they said when they were looked at."""
        found = {}
        for name, status in self.statuses.items():
            lease = status.get("lease")
            if lease and (lease["run"], lease["holder"]) != (self.run, self.holder):
                found[name] = _refusal(lease)
        return found

    # -- Leases --------------------------------------------------------------------------------------------

    async def take(self, name: str) -> Refusal | None:
        """Take a node's lease, if no one else did since it was looked at; None when it was granted."""
        number = self.statuses.get(name, {}).get("lease_number")
        return await self._lease(name, "take", self.lease_ms, lease=number)

    async def take_over(self, name: str) -> Refusal | None:
        """Take a node's lease from a run that cannot have a majority, because this one has it."""
        return await self._lease(name, "take", self.lease_ms, force=True)

    async def renew(self) -> dict[str, Refusal]:
        """Renew every lease at once; returns those that were not."""
        names = list(self.leases)
        found = await asyncio.gather(*(self._lease(name, "renew", self.lease_ms) for name in names))
        return {name: each for name, each in zip(names, found, strict=True) if each is not None}

    async def retake(self, name: str) -> Refusal | None:
        """Take the lease of a node again: orders that are still on their way there carry an old number."""
        return await self._lease(name, "take", self.lease_ms)

    async def bind(self, name: str, other_votes: int = 0) -> Refusal | None:
        """Let a node's lease live no longer than the majority is sure; None when that is so.

        `other_votes` are those that do not run out.
        """
        ends = self.sure_until(other_votes) - _MARGIN_SECONDS
        left_ms = int((ends - self.clock()) * 1000)
        if left_ms <= 0:
            return Refusal("the majority of the nodes has not answered for too long")
        refusal = await self._lease(name, "renew", left_ms)
        if refusal is None and self.clock() + left_ms / 1000 > ends + _MARGIN_SECONDS:
            return Refusal("its lease took too long to renew")
        return refusal

    def sure_until(self, other_votes: int = 0) -> float:
        """Return until when a majority surely holds, by the caller's clock; 0 without one."""
        ends = sorted((lease.until for lease in self.leases.values()), reverse=True)
        missing = max(self.needed - other_votes, 0)
        if missing > len(ends):
            return 0.0
        return ends[missing - 1] if missing else self.clock() + self.lease_ms / 1000

    async def release(self) -> None:
        """Give every lease back."""
        names, self.leases = list(self.leases), {}
        await asyncio.gather(*(self._lease(name, "release", 0) for name in names))

    async def note_cooldown(self, until_unix_ms: int) -> None:
        """Let every node that answers tell of this run until then."""
        await self.look()
        about = {"text": f"{self.run} by {self.holder}", "at_unix_ms": until_unix_ms, "kind": "cooldown"}
        names = filter(self.can_lease, self.names)
        await asyncio.gather(*(self._lease(name, "park", 0, **about) for name in names))

    def cooldowns(self) -> dict[str, float]:
        """Return the runs that nodes tell of, with the unix time until which each counts."""
        records = [each for status in self.statuses.values() for each in status.get("parked") or ()]
        return {each["run"]: each["at_unix_ms"] / 1000 for each in records if each["kind"] == "cooldown"}

    async def break_(self) -> list[Refusal]:
        """Take every lease away from its holder; returns who that was."""
        await self.look()
        held = self.others()
        await asyncio.gather(*(self._lease(name, "release", 0, force=True) for name in held))
        self.leases = {}
        return list(held.values())

    async def _lease(self, name: str, do: str, ttl_ms: int, **more: Any) -> Refusal | None:
        about = {"cluster_id": self.cluster_id, "run": self.run, "holder": self.holder, **more}
        if ttl_ms:
            about["ttl_ms"] = ttl_ms
        sent = self.clock()
        try:
            state = await self.ask(name, "replication.lease", do=do, **about)
        except client.ForbiddenError as error:
            if error.reason == "leased":
                self.leases.pop(name, None)
                return _refusal(error.detail, str(error))
            return Refusal(str(error))
        except KarmaError as error:
            return Refusal(str(error))
        if do in {"take", "renew"}:
            self.leases[name] = NodeLease(state["number"], sent + ttl_ms / 1000)
        return None


def _refusal(lease: Mapping[str, Any], text: str = "") -> Refusal:
    run, holder = str(lease.get("run") or ""), str(lease.get("holder") or "")
    return Refusal(text, run, holder, int(lease.get("expires_in_ms") or 0))

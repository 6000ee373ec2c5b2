"""This node's vote on who may change roles in its cluster, and its maintenance: both end by themselves.

A run takes a lease on a majority of the cluster's nodes before it changes anything, and renews it while it
works. One node's lease only says that this node promised itself to one run; that no two runs act at once
follows from the majority. Time is monotonic: a clock that is set ends no lease early. After a restart a lease
lasts in full again, because no one can tell how long the node was down.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from karma.engine.effects import LeaseRequest, Order
from karma.errors import ErrorCode, RequestError
from karma.limits import MAX_PARKED_RUNS
from karma.service.roles import Roles
from karma.storage.node_file import Lease, Maintenance, ParkedRun


@dataclass(slots=True)
class Leases:
    """The lease, the parked runs and the maintenance of one node, by the clocks of its roles."""

    roles: Roles
    _ends: float = field(init=False, default=0.0)
    _maintenance: Maintenance | None = field(init=False, default=None)
    _maintenance_ends: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        node, now = self.roles.node, self.roles.monotonic()
        if node.lease is not None:
            self._ends = now + node.lease.ttl_ms / 1000
        if node.maintenance is not None:
            left_ms = min(node.maintenance.until_unix_ms - self.roles.clock_ms(), node.maintenance.ttl_ms)
            self._maintenance, self._maintenance_ends = node.maintenance, now + left_ms / 1000

    # -- The lease ---------------------------------------------------------------------------------------

    @property
    def live(self) -> Lease | None:
        """The lease that holds other runs off now."""
        lease = self.roles.node.lease
        return lease if lease is not None and self.roles.monotonic() < self._ends else None

    def describe(self) -> dict[str, Any]:
        """Return what replication.lease answers; without a live lease run and holder are None."""
        lease = self.live
        return {
            "number": self.roles.node.lease_number,
            "run": lease.run if lease else None,
            "holder": lease.holder if lease else None,
            "expires_in_ms": max(round((self._ends - self.roles.monotonic()) * 1000), 1) if lease else 0,
        }

    def check(self, order: Order) -> None:
        """Raise RequestError for an order that is not of the run that holds the lease.

        One with a number counts only while the lease of that number lives: whoever sent it may have lost the
        majority since.
        """
        lease = self.live
        is_stale = order.lease is not None and (lease is None or lease.number != order.lease)
        if not is_stale and (lease is None or lease.run == order.run):
            return
        if not order.force:
            raise self._leased(order.run)
        by = f"run {order.run}" if order.run else "an order without a run"
        held = f"Run {lease.run} holds the lease" if lease else f"Lease {order.lease} is over"
        self.roles.note_forced(f"{held}; {by} overrode that")

    def _leased(self, run: str | None) -> RequestError:
        lease, number = self.live, self.roles.node.lease_number
        if lease is None:
            text = f"The lease of run {run} on this node is over; the last one here had number {number}"
        else:
            text = (
                f"Run {lease.run} of {lease.holder} holds this node's lease {number} for another "
                f"{self.describe()['expires_in_ms']} ms: wait for that run to end"
            )
        return RequestError(ErrorCode.FORBIDDEN, text, {"reason": "leased", **self.describe()})

    def order(self, request: LeaseRequest) -> dict[str, Any]:
        """Carry out replication.lease. Raises RequestError, with nothing changed."""
        node = self.roles.node
        if node.cluster_id != request.cluster_id:
            raise RequestError(
                ErrorCode.REPLICATION_ERROR,
                f"This node belongs to cluster {node.cluster_id or '(none yet)'}, not {request.cluster_id}",
                {"reason": "cluster", "cluster_id": node.cluster_id},
            )
        match request.do:
            case "take":
                self._take(request)
            case "renew":
                self._renew(request)
            case "release":
                self._release(request)
            case "park":
                self._park(request)
        return {**self.describe(), "parked": self.parked()}

    def _is_others(self, request: LeaseRequest) -> bool:
        lease, number = self.live, self.roles.node.lease_number
        is_stale = request.lease is not None and request.lease != number
        return is_stale or (lease is not None and lease.run != request.run)

    def _take(self, request: LeaseRequest) -> None:
        if self._is_others(request):
            if not request.force:
                raise self._leased(request.run)
            self.roles.note_forced(f"Run {request.run} took the lease of {self.describe()['run']}")
        number = self.roles.node.lease_number + 1
        lease = Lease(number, request.run, request.holder, request.ttl_ms)
        self.roles.save(replace(self.roles.node, lease_number=number, lease=lease))
        self._ends = self.roles.monotonic() + request.ttl_ms / 1000
        self.roles.log.info("leased", f"Lease {number} is held by run {request.run} of {request.holder}")

    def _renew(self, request: LeaseRequest) -> None:
        # One that ran out may go on as long as no one took another: its number is still the last.
        lease = self.roles.node.lease
        if lease is None or (lease.run, lease.holder) != (request.run, request.holder):
            raise self._leased(request.run)
        if self._is_others(request):
            raise self._leased(request.run)
        if request.ttl_ms > lease.ttl_ms:
            # A shorter one is not kept: only a restart asks, and then too long is safe.
            self.roles.save(replace(self.roles.node, lease=replace(lease, ttl_ms=request.ttl_ms)))
        self._ends = self.roles.monotonic() + request.ttl_ms / 1000

    def _release(self, request: LeaseRequest) -> None:
        node, lease = self.roles.node, self.live
        is_held = lease is not None and lease.run == request.run
        if is_held and request.lease is not None and request.lease != node.lease_number:
            raise self._leased(request.run)
        if lease is not None and not is_held and request.force:
            self.roles.note_forced(f"The lease of run {lease.run} was broken by {request.holder}")
            is_held = True
        parked = tuple(each for each in node.parked if each.run != request.run)
        if lease is not None and not is_held and parked == node.parked:
            raise self._leased(request.run)
        if is_held or parked != node.parked:
            kept = None if is_held else node.lease
            self.roles.save(replace(node, lease=kept, parked=parked))

    # -- Parked runs -------------------------------------------------------------------------------------

    def parked(self) -> list[dict[str, Any]]:
        """Return the records of runs whose time has not come."""
        now_ms = self.roles.clock_ms()
        return [asdict(each) for each in self.roles.node.parked if each.at_unix_ms > now_ms]

    def _park(self, request: LeaseRequest) -> None:
        now_ms, node = self.roles.clock_ms(), self.roles.node
        others = [each for each in node.parked if each.at_unix_ms > now_ms and each.run != request.run]
        if len(others) >= MAX_PARKED_RUNS:
            raise RequestError(
                ErrorCode.VALIDATION_ERROR,
                f"{MAX_PARKED_RUNS} runs are parked here already: release one of them first",
            )
        found = ParkedRun(request.run, request.text, request.at_unix_ms, request.kind)
        self.roles.save(replace(node, parked=(*others, found)))

    # -- Maintenance -------------------------------------------------------------------------------------

    @property
    def maintenance(self) -> dict[str, Any] | None:
        """Return the maintenance that is on, None without one."""
        found, left = self._maintenance, self._maintenance_ends - self.roles.monotonic()
        if found is None or left <= 0:
            return None
        is_durable = self.roles.node.maintenance == found
        return {"reason": found.reason, "ends_in_ms": max(round(left * 1000), 1), "durable": is_durable}

    def maintain(self, reason: str, ttl_ms: int, *, is_durable: bool) -> dict[str, Any]:
        """Carry out replication.maintenance; a `ttl_ms` of 0 ends it."""
        found = Maintenance(reason, self.roles.clock_ms() + ttl_ms, ttl_ms) if ttl_ms else None
        kept = found if is_durable else None
        if kept != self.roles.node.maintenance:
            self.roles.save(replace(self.roles.node, maintenance=kept))
        self._maintenance, self._maintenance_ends = found, self.roles.monotonic() + ttl_ms / 1000
        words = f"Maintenance for {ttl_ms} ms: {reason}" if found else "The maintenance is over"
        self.roles.log.info("maintenance", words)
        return {"maintenance": self.maintenance}

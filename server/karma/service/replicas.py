"""The followers of this node: what each one holds durably, and what a write waits for.

A follower says with each request up to where its log is durable. With `sync_replicas` set, replies wait
until so many hold what they show. When that takes longer than the timeout, the node reports itself
degraded and waits no more, until a follower keeps up again; it reports that only when enough followers
hold every write that was answered without them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from karma.limits import MAX_KNOWN_REPLICAS
from karma.service.log import Log
from karma.storage.node_file import KnownReplica

MEMORY_SECONDS = 86_400
"""How long after its last request log is kept for a follower: a day, so that one may be down over night."""
_TWINS_SECONDS = 60.0
"""The one that is refused asks again every few seconds."""
_CONNECTED_SECONDS = 15.0
"""A follower that waits for entries asks again after 5 seconds at the latest."""


@dataclass(slots=True)
class Replica:
    """One follower. Times are those of `Replicas.clock`; `caught_up` is when it last held everything."""

    node_id: str
    address: str
    acked_lsn: int
    last_seen: float
    caught_up: float
    is_live: bool = True
    """Whether it asked since this node has its role, so that its entries are known to be ours."""
    answered_at: float = 0.0
    """When its last page left, as the event loop counts."""


@dataclass(slots=True, repr=False)
class Replicas:
    """Known followers by node id; `bytes_behind` returns the size of the log behind an LSN."""

    clock: Callable[[], float]
    """Monotonic seconds: a step of the wall clock must not make a follower look as if it were gone."""
    wall: Callable[[], float]
    """Unix seconds, for what is shown and kept."""
    last_lsn: Callable[[], int]
    bytes_behind: Callable[[int], int]
    on_ack: Callable[[], None] = lambda: None
    has_new: bool = False
    """Whether a follower asked for the first time since this was last cleared."""
    by_id: dict[str, Replica] = field(default_factory=dict)
    twins: dict[str, tuple[str, str, float]] = field(default_factory=dict)
    """By node id, two addresses that used it at once, and when that was last seen."""
    tail_seen: float | None = None
    """When a peer without a name last asked: a slave of Karma 1.0, or a tool that watches the log."""

    def restore(self, known: tuple[KnownReplica, ...]) -> None:
        """Take in whom an earlier process knew.

        One that seems to be gone for longer than followers are remembered has another day: this node was down
        meanwhile, or the clock was set.
        """
        now, wall = self.clock(), self.wall()
        for each in known:
            age_seconds = wall - each.last_seen_unix
            seen = now - age_seconds if 0 <= age_seconds < MEMORY_SECONDS else now
            self.by_id[each.node_id] = Replica(
                each.node_id, each.address, each.acked_lsn, seen, seen, is_live=False
            )

    def known(self) -> tuple[KnownReplica, ...]:
        """Return those that log is kept for, and forget the others."""
        oldest = self.clock() - MEMORY_SECONDS
        self.by_id = {each.node_id: each for each in self.by_id.values() if each.last_seen >= oldest}
        return tuple(
            KnownReplica(each.node_id, each.address, each.acked_lsn, self._unix(each.last_seen))
            for each in self.by_id.values()
        )

    @property
    def are_expected(self) -> bool:
        """Whether log is worth keeping behind a snapshot."""
        is_tailed = self.tail_seen is not None and self.clock() - self.tail_seen < MEMORY_SECONDS
        return is_tailed or bool(self.known())

    def needed_lsns(self) -> list[int]:
        """Return the first LSN that each known follower lacks."""
        return [each.acked_lsn + 1 for each in self.known()]

    def saw(self, node_id: str, address: str | None, acked_lsn: int) -> Replica | None:
        """Note a follower's request and return the follower, None when there are too many to remember it.

        `address` is where it listens, None when it did not say again.
        """
        now, last_lsn = self.clock(), self.last_lsn()
        if node_id not in self.by_id:
            if len(self.by_id) >= MAX_KNOWN_REPLICAS:
                stalest = min(self.by_id.values(), key=lambda each: each.last_seen)
                if now - stalest.last_seen < _CONNECTED_SECONDS:
                    return None
                del self.by_id[stalest.node_id]
            self.by_id[node_id] = Replica(node_id, address or "", acked_lsn, now, now)
            self.has_new = True
        replica = self.by_id[node_id]
        # Nobody holds what is not written yet, whatever it says.
        replica.acked_lsn = min(acked_lsn, last_lsn)
        replica.address = address or replica.address
        replica.last_seen, replica.is_live = now, True
        if acked_lsn >= last_lsn:
            replica.caught_up = now
        self.on_ack()
        return replica

    def saw_twins(self, node_id: str, address: str, other: str) -> None:
        """Note that two followers have one node id."""
        self.twins[node_id] = (address, other, self.clock())

    def describe_twins(self) -> list[dict[str, Any]]:
        """Return the node ids that two addresses used at once within the last minute."""
        oldest = self.clock() - _TWINS_SECONDS
        self.twins = {node_id: found for node_id, found in self.twins.items() if found[2] >= oldest}
        return [
            {"node_id": node_id, "addresses": [address, other]}
            for node_id, (address, other, _) in self.twins.items()
        ]

    def saw_tail(self) -> None:
        """Note a request for entries by one without a name."""
        self.tail_seen = self.clock()

    def _unix(self, seen: float) -> int:
        """Return a time of `clock` by the wall clock as it is now."""
        return int(self.wall() - (self.clock() - seen))

    def forget(self, node_id: str | None = None) -> None:
        """Forget one follower, or all: those that still follow ask again within seconds."""
        if node_id is None:
            self.by_id.clear()
            self.tail_seen = None
        else:
            self.by_id.pop(node_id, None)

    def forget_acks(self) -> None:
        """Trust no acknowledgement from before this node's role changed."""
        for replica in self.by_id.values():
            replica.is_live = False

    def acked_lsn(self, count: int) -> int:
        """Return the LSN up to which at least so many followers hold the log durably."""
        acked = sorted((each.acked_lsn for each in self.by_id.values() if each.is_live), reverse=True)
        return acked[count - 1] if len(acked) >= count else 0

    def count(self, lsn: int) -> int:
        """Return how many followers hold the log durably up to an LSN."""
        return sum(each.is_live and each.acked_lsn >= lsn for each in self.by_id.values())

    def describe(self) -> list[dict[str, Any]]:
        """Return the followers as replication.status shows them."""
        now, last_lsn = self.clock(), self.last_lsn()
        return [
            {
                "node_id": each.node_id,
                "address": each.address,
                "acked_lsn": each.acked_lsn,
                "lag_entries": max(last_lsn - each.acked_lsn, 0),
                "lag_bytes": self.bytes_behind(each.acked_lsn),
                "lag_ms": 0 if each.acked_lsn >= last_lsn else round((now - each.caught_up) * 1000),
                "last_seen_unix": self._unix(each.last_seen),
                "is_connected": each.is_live and now - each.last_seen < _CONNECTED_SECONDS,
            }
            for each in self.by_id.values()
        ]


@dataclass(slots=True, repr=False)
class SyncGate:
    """Holds replies back until enough followers have what they show. `clock` is `time.perf_counter`."""

    needed: int
    timeout_ms: int
    replicas: Replicas
    log: Log
    loop: asyncio.AbstractEventLoop
    clock: Callable[[], float]
    is_master: Callable[[], bool]
    oldest: Callable[[], tuple[float, int] | None]
    """Returns since when the first replies wait and up to which LSN they show, None when none do."""
    release: Callable[[], None]
    """Lets replies leave that may."""
    state: Literal["ok", "degraded", "recovering"] = "ok"
    _timer: asyncio.TimerHandle | None = None
    _marks: tuple[int, int] = (0, 0)
    """The last LSN one and two ticks ago."""
    _recovery_lsn: int = 0
    _acked_lsn: int = 0

    @property
    def is_degraded(self) -> bool:
        """Whether writes were answered that too few followers hold."""
        return self.state != "ok" and self.is_master()

    def allows(self, lsn: int) -> bool:
        """Whether replies that show entries up to an LSN may leave."""
        return self._acked_lsn >= lsn or self.state == "degraded" or not self.is_master()

    def closed(self) -> None:
        """Replies begin to wait: see in time that they do not wait too long."""
        if self._timer is None:
            self._timer = self.loop.call_later(self.timeout_ms / 1000, self._look)

    def acked(self) -> None:
        """A follower acknowledged: let through what that allows."""
        self._acked_lsn = self.replicas.acked_lsn(self.needed)
        if self.state == "degraded" and self._acked_lsn >= self._marks[1]:
            # Close behind the end: replies wait again, and the promise holds once this LSN is reached.
            self.state, self._recovery_lsn = "recovering", self.replicas.last_lsn()
        if self.state == "recovering" and self._acked_lsn >= self._recovery_lsn:
            self.state = "ok"
            self.log.info("sync_restored", f"{self.needed} replicas hold every write again")
        self.release()

    def tick(self) -> None:
        """Note where the log ends; called a few times a second."""
        self._marks = (self.replicas.last_lsn(), self._marks[0])

    def role_changed(self) -> None:
        """Start anew: acknowledgements from before count for nothing."""
        self._acked_lsn = 0
        self.state = "ok"
        self.release()

    def _look(self) -> None:
        """Give up on the replicas when the oldest replies have waited for the whole timeout."""
        self._timer = None
        oldest = self.oldest()
        if oldest is None:
            return
        left_seconds = oldest[0] + self.timeout_ms / 1000 - self.clock()
        if self.allows(oldest[1]):
            # They wait for the disk; those behind them may wait for replicas all the same.
            left_seconds = self.timeout_ms / 1000
        if left_seconds > 0:
            self._timer = self.loop.call_later(left_seconds, self._look)
            return
        self.state = "degraded"
        self._marks = (self.replicas.last_lsn(), self.replicas.last_lsn())
        self.log.error(
            "sync_degraded",
            f"Fewer than {self.needed} replicas acknowledged within {self.timeout_ms} ms: writes are "
            "answered without them until they keep up",
        )
        self.release()

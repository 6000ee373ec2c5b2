"""Clients that write to one node each, and remember exactly what they were told.

A write adds 1 to a key that nobody else uses, its marker: at the end the marker is 1 if the write is
there, 0 if not, and more if it was applied twice. A burst of writes travels between two requests for
replication.status, which tell under which epoch it was acknowledged and, counting on from there, each
write's LSN.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections import deque
from dataclasses import dataclass, field
from random import Random
from typing import Any

from faults.cluster import Node, Pair, Status, pair_at
from harness import Connection, request

DAY = 20260505
MARKERS = "markers"
SHARED = "shared"
"""A series in which all batches add to key 1, and all consumers take from key 2 up to `QUOTA`."""
QUOTA = 20
_PAUSE_SECONDS = 0.004
_IDLE_SECONDS = 0.02
_TOLERATED = {"forbidden", "not_found", "validation_error"}
"""What a write may be answered besides success: the node is no master, or an ingest stream is gone."""


@dataclass(slots=True)
class Write:
    """One request: its markers, and what it adds to the shared keys."""

    op: str
    fields: dict[str, Any]
    markers: tuple[int, ...] = ()
    added: int = 0
    consumed: int = 0


@dataclass(frozen=True, slots=True)
class Ack:
    """A write that a node answered with success. `lsn` is its entry's; one at or before it if not exact."""

    write: Write
    node: str
    pair: Pair
    lsn: int
    is_exact: bool
    is_safe: bool
    """Whether the node said afterwards that enough replicas have every write it answered."""


@dataclass(slots=True)
class Ledger:
    """What all writers know together."""

    acks: list[Ack] = field(default_factory=list)
    unknown: list[Write] = field(default_factory=list)
    """Writes that were sent and not answered."""
    checkpoints: dict[str, int] = field(default_factory=dict)
    """The last acknowledged offset of each source."""
    retries: deque[Write] = field(default_factory=lambda: deque(maxlen=50))
    """Writes with an idempotency key, answered or not: anybody may send them again."""
    problems: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    _markers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def marker(self) -> int:
        """Return a key that nobody has used."""
        with self.lock:
            return next(self._markers)


class Writer(threading.Thread):
    """Writes to a node while it takes writes, until `stop`. Nothing here depends on time but its pace."""

    def __init__(self, node: Node, ledger: Ledger, seed: int, *, is_sync: bool) -> None:
        super().__init__(name=f"writer {node.name}", daemon=True)
        self._node = node
        self._ledger = ledger
        self._random = Random(seed)
        self._is_sync = is_sync
        self._ending = threading.Event()
        self._stream: tuple[str, int] | None = None
        """The open ingest stream and its last chunk."""
        self._streams = 0
        self._offset = 0

    def stop(self) -> None:
        """Finish the burst under way and end."""
        self._ending.set()
        self.join()

    def run(self) -> None:
        """Connect, write, and begin anew when the node goes away."""
        while not self._ending.is_set():
            with contextlib.suppress(OSError), self._node.connect() as connection:
                self._write(connection)
            self._ending.wait(_IDLE_SECONDS)

    def _write(self, connection: Connection) -> None:
        while not self._ending.is_set():
            connection.send(request("replication.status"))
            before = _status(connection.read_line())
            if before["role"] != "master" or before["fenced_by"] or before["paused_until"]:
                self._ending.wait(_IDLE_SECONDS)
                if self._random.random() < 0.8:
                    continue
                # Now and then it is tried in spite of that: it must be refused.
            self._burst(connection, [self._next() for _ in range(self._random.randint(1, 6))])
            self._ending.wait(_PAUSE_SECONDS)

    def _burst(self, connection: Connection, writes: list[Write]) -> None:
        """Send writes in one piece and take note of their fates. Raises OSError when the link breaks."""
        status = request("replication.status")
        lines = [request(write.op, **write.fields) for write in writes]
        replies: list[dict[str, Any]] = []
        before = after = None
        is_safe = False
        try:
            connection.send(b"".join([status, *lines, status]))
            before = _status(connection.read_line())
            replies.extend(_reply(connection.read_line()) for _ in writes)
            after = _status(connection.read_line())
            if self._is_sync:
                # Asked when the replies are there: it says whether those were held back long enough, if it
                # is the same master that answers.
                connection.send(status)
                about = _status(connection.read_line())
                is_same = (about["role"], about["epoch"]) == (before["role"], before["epoch"])
                is_safe = is_same and not about["sync_degraded"]
        finally:
            with self._ledger.lock:
                self._note(writes, replies, before, after, is_safe=is_safe)

    def _note(
        self,
        writes: list[Write],
        replies: list[dict[str, Any]],
        before: Status | None,
        after: Status | None,
        *,
        is_safe: bool,
    ) -> None:
        ledger = self._ledger
        ledger.unknown += writes[len(replies) :]
        if before is None:
            return
        pair, lsn = (before["epoch"], before["epoch_node_id"]), before["wal_current_lsn"]
        for write, reply in zip(writes, replies, strict=False):
            if not reply["success"]:
                if reply["error_code"] not in _TOLERATED:
                    ledger.problems.append(f"{self._node.name} answered {write.op} with {reply}")
                if write.op.startswith("ingest"):
                    self._stream = None
                continue
            if write.op == "recovery.checkpoint":
                ledger.checkpoints[write.fields["source"]] = write.fields["offset"]
                continue
            is_new = not reply.get("idempotent", False)
            if write.op == "limit.consume" and not reply["response"]["allowed"]:
                if not write.markers:
                    continue
                # Its marker is used up: an earlier attempt is there.
                is_new = False
            lsn += is_new
            if write.consumed and reply["response"]["used"] > QUOTA:
                ledger.problems.append(f"{self._node.name} let {reply['response']} through")
            ledger.acks.append(Ack(write, self._node.name, pair, lsn, is_new, is_safe))
        if after is not None and len(replies) == len(writes):
            is_closed = all(about["fenced_by"] or about["role"] != "master" for about in (before, after))
            is_same = all(before[name] == after[name] for name in ("role", "epoch", "fenced_by"))
            if is_closed and is_same and any(reply["success"] for reply in replies):
                ledger.problems.append(f"{self._node.name} takes no writes and answers {replies}: {after}")
            there = (after["epoch"], after["epoch_node_id"])
            if there == pair and after["wal_current_lsn"] != lsn:
                ledger.problems.append(
                    f"{self._node.name} is at LSN {after['wal_current_lsn']} after writes up to {lsn}"
                )
            is_open = before["role"] == "master" and before["fenced_by"] is None
            if is_open and pair_at(before, before["wal_current_lsn"] + 1) != pair:
                ledger.problems.append(f"{self._node.name} writes under another epoch than it says: {before}")

    # -- What to write -----------------------------------------------------------------------------------

    def _next(self) -> Write:
        chance = self._random.random()
        ledger = self._ledger
        if chance < 0.3:
            return self._increment({})
        if chance < 0.45:
            write = self._increment({"idempotency_key": f"{self._node.name}-{ledger.marker()}"})
            ledger.retries.append(write)
            return write
        if chance < 0.55 and ledger.retries:
            return self._random.choice(list(ledger.retries))
        if chance < 0.7:
            markers = tuple(ledger.marker() for _ in range(3))
            items = [[marker, DAY, 1] for marker in markers]
            return Write("series.batch_add", {"series": MARKERS, "items": items}, markers)
        if chance < 0.76:
            return Write("series.batch_add", {"series": SHARED, "items": [[1, DAY, 2]]}, added=2)
        if chance < 0.82:
            fields = {"series": SHARED, "key": 2, "bucket": DAY, "limit": QUOTA, "window": "total"}
            return Write("limit.consume", fields, consumed=1)
        if chance < 0.88:
            marker = ledger.marker()
            fields = {"series": MARKERS, "key": marker, "bucket": DAY, "limit": 1}
            if self._random.random() < 0.5:
                fields["idempotency_key"] = f"{self._node.name}-{marker}"
            return Write("limit.consume", fields, (marker,))
        if chance < 0.92:
            self._offset += 1
            fields = {"source": f"pipeline of {self._node.name}", "offset": self._offset}
            return Write("recovery.checkpoint", fields)
        return self._ingest()

    def _increment(self, more: dict[str, Any]) -> Write:
        marker = self._ledger.marker()
        fields = {"series": MARKERS, "key": marker, "bucket": DAY, **more}
        return Write("counter.increment", fields, (marker,))

    def _ingest(self) -> Write:
        """The next step of an ingest stream that adds."""
        if self._stream is None:
            self._streams += 1
            self._stream = (f"{self._node.name}-{self._streams}", 0)
            return Write("ingest.begin", {"stream_id": self._stream[0], "mode": "add"})
        stream_id, last = self._stream
        if last == 3:
            self._stream = None
            return Write("ingest.commit", {"stream_id": stream_id})
        self._stream = (stream_id, last + 1)
        marker = self._ledger.marker()
        items = [[marker, DAY, 1]]
        fields = {"stream_id": stream_id, "series": MARKERS, "chunk_seq": last + 1, "items": items}
        return Write("ingest.chunk", fields, (marker,))


def _reply(line: bytes) -> dict[str, Any]:
    if not line.endswith(b"\n"):
        raise ConnectionResetError
    found: dict[str, Any] = json.loads(line)
    return found


def _status(line: bytes) -> Status:
    reply = _reply(line)
    found: Status = reply["response"]
    return found

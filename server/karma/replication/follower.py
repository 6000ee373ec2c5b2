"""What a follower asks of its source, and what the answers mean. Pure: replies in, verdicts out.

The first request on a connection is a handshake: it asks for the source's epochs, so that both sides
know whether the follower's log is the beginning of the source's. Then each request acknowledges what is
durable here, asks for what is behind, and lets the reply wait. A Karma 1.0 answers without naming
itself, and is polled its way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from karma.core.entries import entry_crc, group_seed, line_crc
from karma.core.epochs import History, diverged_at
from karma.errors import ErrorCode

FIRST_DELAY_MS = 100
LAST_DELAY_MS = 10_000
WAIT_MS = 5_000
"""How long a request lets its reply wait. Not the 30 seconds allowed: a link that went dead without a word
is noticed when a reply is overdue."""

State = Literal[
    "stopped", "connecting", "following", "polling", "bootstrapping", "diverged", "refused", "storage_error"
]


# -- Verdicts --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Page:
    """Entries to take in; none when the source had nothing before the request ended."""

    first_lsn: int
    entries: Sequence[Mapping[str, Any]]
    bodies: Sequence[bytes]
    times_ms: Sequence[int]
    last_crc: str | None
    """The checksum of the last entry, as the next handshake names it."""
    checkpoints: Sequence[dict[str, Any]] = ()
    is_full: bool = False
    """Whether there is more at the source already."""


@dataclass(frozen=True, slots=True)
class Met:
    """A handshake succeeded: what the source is. All None and empty for a Karma 1.0."""

    cluster_id: str | None
    history: History
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MustBootstrap:
    """The entries that are needed are gone at the source: its snapshots take their place."""

    reason: str


@dataclass(frozen=True, slots=True)
class Diverged:
    """The source's log holds other entries from an LSN on; nothing was taken in."""

    lsn: int
    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The source cannot be followed as things are; somebody must look."""

    reason: str


@dataclass(frozen=True, slots=True)
class Retry:
    """Something passing is in the way."""

    reason: str


Verdict = Page | Met | MustBootstrap | Diverged | Refused | Retry


@dataclass(frozen=True, slots=True)
class Here:
    """What this node is and has, as far as a source wants to know. `last_crc` is its last entry's."""

    node_id: str
    cluster_id: str | None
    history: History
    last_lsn: int
    durable_lsn: int
    last_crc: str | None
    port: int | None
    is_empty: bool
    """Whether there is nothing to lose: then any cluster may be joined."""


@dataclass(slots=True)
class Follower:
    """The state of following one source. Times are unix milliseconds."""

    batch_entries: int
    state: State = "stopped"
    reason: str | None = None
    """Why the state is not the wished one."""
    is_original: bool = False
    """Whether the source is a Karma 1.0."""
    source_lsn: int = 0
    lag_bytes: int = 0
    caught_up_ms: int | None = None
    """When this node last had everything that the source had."""
    master: str | None = None
    """The master's address, where the source is a follower itself."""
    path: tuple[str, ...] = ()
    """Node ids from the master to the source."""
    failures: int = 0
    checkpoint_position: tuple[str, int] = ("", 0)
    _epoch: tuple[int, str] = (0, "")

    # -- Asking --------------------------------------------------------------------------------------

    def handshake(self, here: Here) -> dict[str, Any]:
        """Return the first request on a connection."""
        self.state = "connecting"
        epoch, at = here.history.current, here.history.at(here.last_lsn)
        request: dict[str, Any] = {
            "op": "replication.entries",
            "after_lsn": here.last_lsn,
            "acked_lsn": here.durable_lsn,
            "limit": 1,
            "handshake": True,
            "node_id": here.node_id,
            "after_epoch": at.number,
            # Nobody opened epoch 0.
            "after_epoch_node_id": at.node_id or None,
        }
        if not here.is_empty:
            request |= {
                "cluster_id": here.cluster_id,
                "epoch": epoch.number,
                "epoch_node_id": epoch.node_id or None,
            }
        return _known(request | {"after_crc": here.last_crc, "port": here.port})

    def next(self, here: Here) -> dict[str, Any]:
        """Return a request for what is behind the last entry."""
        request = {"op": "replication.entries", "after_lsn": here.last_lsn, "limit": self.batch_entries}
        if self.is_original:
            return request
        # Who this is was said at the handshake; said again, it would be half of the cost of a page.
        return {
            **request,
            "acked_lsn": here.durable_lsn,
            "wait_ms": WAIT_MS,
            "lines": True,
            "node_id": here.node_id,
            "checkpoint_position": self.checkpoint_position,
        }

    # -- Understanding -------------------------------------------------------------------------------

    def met(self, reply: Any, here: Here) -> Verdict:
        """Understand the reply to a handshake."""
        found = self._response(reply)
        if isinstance(found, Diverged):
            return self._located(found, reply, here)
        if not isinstance(found, dict):
            return found
        source_lsn = found.get("source_lsn")
        if type(source_lsn) is not int:
            return Refused("the source's reply has no source_lsn: it is no Karma, or one of another version")
        self.source_lsn = source_lsn
        self.is_original = "node_id" not in found
        if self.is_original:
            return self._met_original(source_lsn, here)
        try:
            history = History.from_json(found.get("epochs"))
            path = tuple(str(node_id) for node_id in found["path"])
        except (KeyError, TypeError, ValueError) as error:
            return Refused(f"the source's reply cannot be used ({error!r}): it is of another version")
        if found["node_id"] == here.node_id:
            return Refused("the source is this node itself")
        if here.node_id in path:
            return Refused(
                f"the source follows this node ({' > '.join(path)}): one of them must follow another"
            )
        if here.history.current.number > history.current.number and not here.is_empty:
            return Retry(
                f"the source is of epoch {history.current.number}, this node of "
                f"{here.history.current.number}: "
                "it has not caught up yet, or is a master that was left behind"
            )
        lsn = diverged_at(here.history, history, here.last_lsn)
        if lsn is not None:
            return Diverged(lsn, f"this node's entries from LSN {lsn} on are not the source's")
        self.path = path
        self.master = found.get("master")
        self._epoch = history.current.pair
        return Met(found.get("cluster_id"), history, path)

    @staticmethod
    def _located(found: Diverged, reply: Any, here: Here) -> Diverged:
        """Return a divergence with the LSN that both histories tell: the source has seen one epoch only."""
        try:
            history = History.from_json(reply["error_detail"]["epochs"])
        except (KeyError, ValueError):
            return found
        lsn = diverged_at(here.history, history, here.last_lsn)
        return found if lsn is None else Diverged(lsn, found.reason)

    def _met_original(self, source_lsn: int, here: Here) -> Verdict:
        if here.history.current.number and not here.is_empty:
            return Diverged(
                here.history.epochs[0].start_lsn,
                "the source is a Karma 1.0, which knows no epochs: nothing tells whether this node's "
                "entries are its",
            )
        if source_lsn < here.last_lsn:
            return Diverged(
                source_lsn + 1, f"the source is at LSN {source_lsn}, behind this node: it has lost entries"
            )
        return Met(None, History(), ())

    def page(self, reply: Any, here: Here, now_ms: int) -> Verdict:
        """Understand the reply to `next`."""
        found = self._response(reply)
        if not isinstance(found, dict):
            return found
        try:
            return self._page(found, here, now_ms)
        except (KeyError, TypeError, ValueError) as error:
            return Retry(f"the source's page cannot be used: {error!r}")

    def _page(self, found: dict[str, Any], here: Here, now_ms: int) -> Verdict:
        self.source_lsn = source_lsn = int(found["source_lsn"])
        if not self.is_original and (found["epoch"], found["epoch_node_id"]) != self._epoch:
            return Retry("the source has entered another epoch")
        if source_lsn < here.last_lsn and self.is_original:
            return Diverged(
                source_lsn + 1,
                f"the source went back to LSN {source_lsn}, behind this node: it has lost entries",
            )
        entries: list[Mapping[str, Any]] = []
        bodies: list[bytes] = []
        times_ms: list[int] = []
        dumps = orjson.dumps
        due = here.last_lsn
        ts_ms: int | None = None
        group, seed = (-1, -1), 0
        for each in found["entries"]:
            due += 1
            entry = each["entry"]
            if each["lsn"] != due or not isinstance(entry, dict) or not isinstance(entry.get("op"), str):
                raise ValueError(f"entry {due} is missing or none")
            body = dumps(entry)
            ts_ms, crc = each.get("ts"), each.get("crc")
            if crc is not None:
                if "synced" not in each:
                    is_sound = int(crc, 16) == entry_crc(due, ts_ms, body)
                else:
                    # A line of the source's log, with that line's checksum.
                    if group != (ts_ms, each["synced"]):
                        group = ts_ms, each["synced"]
                        seed = group_seed(*group)
                    is_sound = int(crc, 16) == line_crc(body, due, seed)
                if not is_sound:
                    raise ValueError(f"the checksum of entry {due} does not match")
            entries.append(entry)
            bodies.append(body)
            times_ms.append(now_ms if ts_ms is None else ts_ms)
        self.lag_bytes = found.get("lag_bytes", 0)
        self.failures = 0
        self.state = "polling" if self.is_original else "following"
        self.reason = None
        if due >= source_lsn:
            self.caught_up_ms = now_ms
        position = found.get("checkpoint_position")
        if position is not None:
            self.checkpoint_position = (str(position[0]), int(position[1]))
        # An entry without a time gets this node's: its checksum is not the one by which we would know it.
        last_crc = f"{entry_crc(due, ts_ms, bodies[-1]):08x}" if ts_ms is not None else None
        return Page(
            here.last_lsn + 1,
            entries,
            bodies,
            times_ms,
            last_crc,
            found.get("checkpoints", ()),
            is_full=due < source_lsn and bool(entries),
        )

    def _response(self, reply: Any) -> dict[str, Any] | Verdict:
        """Return a reply's response, or what its error means."""
        if not isinstance(reply, dict) or reply.get("protocol_version") != 2 or "success" not in reply:
            return Refused("what answers there is no Karma server")
        found = reply.get("response")
        if reply["success"] is True:
            return (
                found if isinstance(found, dict) else Refused("the source's reply is none of this protocol")
            )
        code, message = reply.get("error_code"), str(found)
        detail = reply.get("error_detail")
        if not isinstance(detail, dict):
            detail = {}
        if code == ErrorCode.REPLICATION_GAP:
            return MustBootstrap(message)
        if detail.get("reason") == "diverged":
            lsn = detail.get("diverged_at_lsn")
            return Diverged(lsn if type(lsn) is int else 0, message)
        if code == ErrorCode.UNAUTHORIZED:
            return Refused("the source does not accept the replication token")
        if detail.get("reason") in ("cluster", "stale") or code in (
            ErrorCode.FORBIDDEN,
            ErrorCode.UNKNOWN_COMMAND,
            ErrorCode.UNSUPPORTED_PROTOCOL,
            ErrorCode.VALIDATION_ERROR,
        ):
            return Refused(f"the source refuses: {message}")
        return Retry(f"the source answers {code}: {message}")

    # -- Waiting -------------------------------------------------------------------------------------

    def delay_ms(self, spread: float) -> int:
        """Return how long to wait after a failure; `spread` is random, 0 to 1, for a fleet comes at once."""
        delay = min(FIRST_DELAY_MS * 2 ** min(self.failures, 10), LAST_DELAY_MS)
        self.failures += 1
        return int(delay * (0.5 + spread / 2))

    def lag_ms(self, last_lsn: int, now_ms: int) -> int:
        """Return since when this node lacks something of the source's, 0 while it has all."""
        if self.state in ("following", "polling") and last_lsn >= self.source_lsn:
            return 0
        return max(now_ms - self.caught_up_ms, 0) if self.caught_up_ms is not None else 0


def _known(request: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in request.items() if value is not None}

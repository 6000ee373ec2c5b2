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

from karma.core.entries import Body, Received, comparable_crc, read_entries
from karma.core.epochs import History, diverged_at, implausible
from karma.errors import ErrorCode, RequestError
from karma.limits import MAX_HOST_BYTES, MAX_PATH_NODES, MAX_PEER_MESSAGE_CHARACTERS, MAX_UNIX_SECONDS
from karma.protocol import fields

MAX_ADDRESS_BYTES = MAX_HOST_BYTES + len("[]:65535")
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

    received: Received
    last_crc: str | None
    """The checksum of the last entry, as the next handshake names it."""
    checkpoints: Sequence[dict[str, Any]] = ()
    checkpoint_sources: frozenset[str] | None = None
    """The names of all recovery checkpoints that the source has; None until they are all known."""
    checkpoint_position: tuple[str, int] | None = None
    """What to set `Follower.checkpoint_position` to once the checkpoints are durable."""
    expiry_unix: int | None = None
    """How far the source's expiry clock is; Karma 1.0 has none."""
    is_full: bool = False
    """Whether there is more at the source already."""


@dataclass(frozen=True, slots=True)
class Met:
    """A handshake succeeded: what the source is. All None and empty for a Karma 1.0."""

    cluster_id: str | None
    history: History
    path: tuple[str, ...]
    is_counted: bool = True
    """Whether what this node acknowledges counts at the source. A reader's token gets entries only."""


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
    """The state of following one source."""

    batch_entries: int
    state: State = "stopped"
    reason: str | None = None
    """Why the state is not the wished one."""
    is_original: bool = False
    """Whether the source is a Karma 1.0."""
    source_lsn: int = 0
    lag_bytes: int = 0
    caught_up_ms: int | None = None
    """When this node last had everything that the source had, in milliseconds of a steady clock."""
    master: str | None = None
    """The master's address, where the source is a follower itself."""
    path: tuple[str, ...] = ()
    """Node ids from the master to the source."""
    source_epoch: tuple[int, str] | None = None
    """The source's epoch (number, node id), where its answer to a handshake told one."""
    failures: int = 0
    checkpoint_position: tuple[str, int] = ("", 0)
    """The last of the source's recovery checkpoints that this node has, as the source numbers them."""
    _epoch: tuple[int, str] = (0, "")
    _checkpoint_sources: frozenset[str] = frozenset()
    """Whose checkpoints came since the source's numbering began anew."""

    # -- Asking --------------------------------------------------------------------------------------

    def handshake(self, here: Here) -> dict[str, Any]:
        """Return the first request on a connection."""
        self.state = "connecting"
        # All of them come once per connection: what this node has besides is of a branch that it gave up.
        self.checkpoint_position = ("", 0)
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
        # No more than a page needs: the rest was said at the handshake.
        return {
            **request,
            "acked_lsn": here.durable_lsn,
            "wait_ms": WAIT_MS,
            "lines": True,
            "node_id": here.node_id,
            "epoch": here.history.current.number,
            "epoch_node_id": here.history.current.node_id or None,
            "checkpoint_position": self.checkpoint_position,
        }

    # -- Understanding -------------------------------------------------------------------------------

    def met(self, reply: Any, here: Here, *, is_rebuild: bool = False) -> Verdict:
        """Understand the reply to a handshake. `is_rebuild`: the source's data will replace those here."""
        self.source_epoch = None
        found = self._response(reply)
        if isinstance(found, Diverged):
            return self._located(found, reply, here)
        if isinstance(found, MustBootstrap) and "error_detail" not in reply:
            # A Karma 1.0 refuses like this. What it has instead may be of another history altogether.
            return self._unknown(here) or found
        if not isinstance(found, dict):
            return found
        try:
            self.source_lsn = fields.lsn(found, "source_lsn")
            self.is_original = "node_id" not in found
            if self.is_original:
                return self._met_original(self.source_lsn, here)
            history = History.from_json(found.get("epochs"))
            path = _path(found)
            cluster_id = fields.identifier(found, "cluster_id")
            master = None if found.get("master") is None else fields.host(found, "master", MAX_ADDRESS_BYTES)
        except (ValueError, RequestError) as error:
            return Refused(
                f"the source's reply cannot be used ({quote(error)}): it is not Karma, or of another version"
            )
        self.source_epoch = history.current.pair
        if found["node_id"] == here.node_id:
            return Refused(
                "the source is this node itself, or one of the two directories is a copy of the other: then "
                "stop this node and run karma new-id on its directory"
            )
        if here.node_id in path:
            return Refused(
                f"the source follows this node ({' > '.join(path)}): one of them must follow another"
            )
        problem = implausible(history.current.number, here.history.current.number)
        if problem is not None and not (here.is_empty or is_rebuild):
            return Refused(f"the source's history is not believed: {problem}. rebuild:true follows it anyway")
        if here.history.current.number > history.current.number and not here.is_empty:
            return Retry(
                f"the source is of epoch {history.current.number}, this node of "
                f"{here.history.current.number}: it has not caught up yet, or is a master left behind"
            )
        lsn = diverged_at(here.history, history, here.last_lsn)
        if lsn is not None:
            return Diverged(lsn, f"this node's entries from LSN {lsn} on are not the source's")
        self.path = path
        self.master = master
        self._epoch = history.current.pair
        return Met(cluster_id, history, path, found.get("is_counted") is not False)

    def _located(self, found: Diverged, reply: Any, here: Here) -> Diverged:
        """Return a divergence with the LSN that both histories tell: the source has seen one epoch only."""
        try:
            history = History.from_json(reply["error_detail"]["epochs"])
        except (LookupError, TypeError, ValueError):
            return found
        self.source_epoch = history.current.pair
        lsn = diverged_at(here.history, history, here.last_lsn)
        return found if lsn is None else Diverged(lsn, found.reason)

    def _met_original(self, source_lsn: int, here: Here) -> Verdict:
        if source_lsn < here.last_lsn:
            return Diverged(
                source_lsn + 1, f"the source is at LSN {source_lsn}, behind this node: it has lost entries"
            )
        return self._unknown(here) or Met(None, History(), ())

    @staticmethod
    def _unknown(here: Here) -> Diverged | None:
        """Return why a node with epochs cannot follow a Karma 1.0; None for one without."""
        if not here.history.epochs or here.is_empty:
            return None
        return Diverged(
            here.history.epochs[0].start_lsn,
            "the source is a Karma 1.0, which knows no epochs: nothing tells whether this node's entries "
            "are its",
        )

    def page(self, reply: Any, here: Here, now_ms: int, steady_ms: int | None = None) -> Verdict:
        """Understand the reply to `next`.

        `now_ms` is unix time, for entries without one; `steady_ms` is the clock of `lag_ms`, where that is
        another.
        """
        found = self._response(reply)
        if not isinstance(found, dict):
            return found
        try:
            return self._page(found, here, now_ms, now_ms if steady_ms is None else steady_ms)
        except (LookupError, TypeError, ValueError, AttributeError, RequestError) as error:
            return Retry(f"the source's page cannot be used: {quote(error)}")

    def _page(self, found: dict[str, Any], here: Here, now_ms: int, steady_ms: int) -> Verdict:
        source_lsn = fields.lsn(found, "source_lsn")
        lag_bytes = fields.u64(found, "lag_bytes", 0)
        self.source_lsn = source_lsn
        if not self.is_original and (found["epoch"], found["epoch_node_id"]) != self._epoch:
            return Retry("the source has entered another epoch")
        if source_lsn < here.last_lsn and self.is_original:
            return Diverged(
                source_lsn + 1,
                f"the source went back to LSN {source_lsn}, behind this node: it has lost entries",
            )
        received = read_entries(found["entries"], here.last_lsn, now_ms)
        last_lsn = received.last_lsn
        last_crc = None
        if received.entries:
            last = Body(last_lsn, received.bodies[-1], received.times_ms[-1])
            last_crc = comparable_crc(here.history.at(last_lsn).number, last)
        checkpoints = [_checkpoint(each) for each in found.get("checkpoints", ())]
        position, sources = fields.position(found, "checkpoint_position"), None
        if position is not None:
            names = {each["source"] for each in checkpoints}
            is_anew = position[0] != self.checkpoint_position[0]
            self._checkpoint_sources = frozenset(names if is_anew else self._checkpoint_sources | names)
            if len(self._checkpoint_sources) == found.get("checkpoint_count"):
                sources = self._checkpoint_sources
        self.lag_bytes = lag_bytes
        self.failures = 0
        self.state = "polling" if self.is_original else "following"
        self.reason = None
        if last_lsn >= source_lsn:
            self.caught_up_ms = steady_ms
        return Page(
            received,
            last_crc,
            checkpoints,
            sources,
            position,
            _number_or_none(found.get("expiry_unix")),
            is_full=last_lsn < source_lsn and bool(received.entries),
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
        code, message = quote(reply.get("error_code")), quote(found)
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
        if detail.get("reason") in ("cluster", "stale", "duplicate") or code in (
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

    def lag_ms(self, last_lsn: int, steady_ms: int) -> int:
        """Return since when this node lacks something of the source's, 0 while it has all."""
        if self.state in ("following", "polling") and last_lsn >= self.source_lsn:
            return 0
        return max(steady_ms - self.caught_up_ms, 0) if self.caught_up_ms is not None else 0


def _number_or_none(value: Any) -> int | None:
    if value is None or type(value) is int:
        return value
    raise TypeError(f"{value!r} is not a number")


def quote(said: object) -> str:
    """Return what another node said, or an error that quotes it, as one short line that can be shown."""
    text = said.message if isinstance(said, RequestError) else str(said)
    if len(text) > MAX_PEER_MESSAGE_CHARACTERS:
        text = text[:MAX_PEER_MESSAGE_CHARACTERS] + "…"
    return "".join(character if character.isprintable() else " " for character in text)


def _path(found: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the node ids from the master to a source. Raises RequestError."""
    path = found.get("path")
    if not isinstance(path, list) or not 1 <= len(path) <= MAX_PATH_NODES:
        raise fields.invalid(f"Field path must be an array of 1 to {MAX_PATH_NODES} node ids")
    return tuple(fields.identifier({"path": node_id}, "path") or "" for node_id in path)


def _checkpoint(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recovery checkpoint of a source. Raises RequestError and AttributeError when it is not one."""
    updated_at_unix = fields.u64(found, "updated_at_unix")
    if updated_at_unix > MAX_UNIX_SECONDS:
        raise fields.invalid(f"Field updated_at_unix must be at most {MAX_UNIX_SECONDS}")
    return {**fields.checkpoint(found), "updated_at_unix": updated_at_unix}


def _known(request: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in request.items() if value is not None}

"""Who a node is and what it was told: identity, epochs, role, fence. One small file, replaced as a whole.

Format of ``karma.node.json``, a file of ours that Karma 1.0 ignores::

    {"format": 1, "node": {node_id, cluster_id, epochs: [{epoch, node_id, start_lsn}], role, source,
     is_runtime, fence, paused_until_unix_ms, pause_ttl_ms, paused_by, former_sources, replicas, epoch_due,
     must_rebuild, running, lease_number, lease, parked, maintenance},
     "crc32": 8 hex digits over the bytes of "node"}

What is decided at run time (promote, follow, fence, pause, lease) is in this file before it takes effect, so
a restart finds it. The file also tells a clean end from any other: `running` is set while a server has
the directory.
"""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, cast

import orjson

from karma.core.epochs import MAX_EPOCH, History
from karma.storage.checked import crc32_hex, damage_in, read_json, take, take_or_none
from karma.storage.disk import Disk

NODE_NAME: Final = "karma.node.json"
_FORMAT = 1

Role = Literal["master", "slave"]
Running = Literal["synced", "unsynced"] | None


@dataclass(frozen=True, slots=True)
class Address:
    """Where a source listens, and the token for it (None: the configured one)."""

    host: str
    port: int
    token: str | None = None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"Address({self})"


@dataclass(frozen=True, slots=True)
class Fence:
    """Why a node must not write: an epoch it does not own rules now."""

    epoch: int
    reason: str
    since_unix_ms: int
    node_id: str | None = None
    """The node whose epoch that is; None when an operator set the fence."""
    run: str | None = None
    """The run that set it: another one may not change it."""

    def describe(self) -> dict[str, Any]:
        """Return what status, health and refusals say."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class KnownReplica:
    """A follower that log is kept for."""

    node_id: str
    address: str
    acked_lsn: int
    last_seen_unix: int


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of one run to change roles in the cluster, as far as this node's vote goes."""

    number: int
    """Rises with each lease that is taken, so that a late order of an earlier holder is told apart."""
    run: str
    holder: str
    """Who carries the run out, for people."""
    ttl_ms: int
    """Counted by a monotonic clock, and in full again after a restart."""


@dataclass(frozen=True, slots=True)
class ParkedRun:
    """What operators on other machines should know of a run until then. It holds no one off."""

    run: str
    text: str
    at_unix_ms: int
    kind: str = "scheduled"
    """``scheduled``, or ``cooldown`` of a failover that is over."""


@dataclass(frozen=True, slots=True)
class Maintenance:
    """Planned work on this node: alerts about it are expected until then."""

    reason: str
    until_unix_ms: int
    ttl_ms: int
    """Caps what is left of it after a restart, whatever the wall clock says by then."""


@dataclass(frozen=True, slots=True)
class Node:
    """The content of the file."""

    node_id: str
    cluster_id: str | None = None
    """None until a follower has met its source."""
    history: History = field(default_factory=History)
    role: Role = "master"
    source: Address | None = None
    is_runtime: bool = False
    """Whether role or source were changed by an operation: then they win over the command line."""
    fence: Fence | None = None
    paused_until_unix_ms: int | None = None
    pause_ttl_ms: int | None = None
    """How long the pause was to last: after a restart it lasts no longer, wherever the clock has gone."""
    paused_by: str | None = None
    """The run that paused it."""
    former_sources: tuple[Address, ...] = ()
    """Where the masters were that this node took over from: they are told of its epoch."""
    replicas: tuple[KnownReplica, ...] = ()
    epoch_due: bool = False
    """LSNs that this master has shown may come again: before it writes, it opens an epoch."""
    must_rebuild: bool = False
    """The data here are a lost branch, or part of a rebuild: a source's snapshots replace them."""
    running: Running = None
    """Set while a server runs, with its fsync policy: found at a start, the last end was not clean."""
    lease_number: int = 0
    """Of the last lease that was taken here; the next one is higher."""
    lease: Lease | None = None
    parked: tuple[ParkedRun, ...] = ()
    maintenance: Maintenance | None = None


def new_node_id() -> str:
    """Return an id for a node or a cluster: 16 random hex digits."""
    return secrets.token_hex(8)


def load(disk: Disk, directory: Path) -> Node | None:
    """Return what the file says, None without one. Raises DamagedDataError."""
    path = directory / NODE_NAME
    content = read_json(disk, path)
    if content is None:
        return None
    with damage_in(path, "repair"):
        if take(content, "format", int) != _FORMAT:
            raise ValueError(f"format {content['format']} is not known to this version")
        found = take(content, "node", dict)
        if crc32_hex(orjson.dumps(found)) != take(content, "crc32", str):
            raise ValueError("its checksum does not match")
        return _from_json(found)


def save(disk: Disk, directory: Path, node: Node) -> None:
    """Replace the file, durably. Raises OSError with the old one in place."""
    content = asdict(node) | {"epochs": node.history.to_json()}
    del content["history"]
    data = orjson.dumps(content)
    document = b'{"format":%d,"node":%b,"crc32":"%b"}\n' % (_FORMAT, data, crc32_hex(data).encode())
    disk.write_file(directory / NODE_NAME, [document])


def _from_json(found: dict[str, Any]) -> Node:
    role, running = take(found, "role", str), take_or_none(found, "running", str)
    if role not in ("master", "slave") or running not in (None, "synced", "unsynced"):
        raise ValueError(f"role {role!r} or running {running!r} is not known")
    source = take_or_none(found, "source", dict)
    fence = take_or_none(found, "fence", dict)
    lease, maintenance = (take_or_none(found, name, dict) for name in ("lease", "maintenance"))
    if fence is not None and not 0 <= take(fence, "epoch", int) <= MAX_EPOCH:
        raise ValueError(f"the fence's epoch {fence['epoch']} is out of bounds")
    return Node(
        node_id=take(found, "node_id", str),
        cluster_id=take_or_none(found, "cluster_id", str),
        history=History.from_json(take(found, "epochs", list)),
        role=cast("Role", role),
        source=None if source is None else _record(Address, source),
        is_runtime=take(found, "is_runtime", bool),
        fence=None if fence is None else _record(Fence, {"run": None, **fence}),
        paused_until_unix_ms=take_or_none(found, "paused_until_unix_ms", int),
        pause_ttl_ms=take_or_none(found, "pause_ttl_ms", int),
        paused_by=take_or_none(found, "paused_by", str),
        former_sources=tuple(_record(Address, each) for each in take(found, "former_sources", list)),
        replicas=tuple(_record(KnownReplica, each) for each in take(found, "replicas", list)),
        epoch_due=take(found, "epoch_due", bool),
        must_rebuild=take(found, "must_rebuild", bool),
        running=cast("Running", running),
        # Files of versions before leases lack the rest.
        lease_number=take_or_none(found, "lease_number", int) or 0,
        lease=None if lease is None else _record(Lease, lease),
        parked=tuple(_record(ParkedRun, each) for each in take_or_none(found, "parked", list) or ()),
        maintenance=None if maintenance is None else _record(Maintenance, maintenance),
    )


def _record(kind: type[Any], found: dict[str, Any]) -> Any:
    return kind(**{each.name: found[each.name] for each in fields(kind)})

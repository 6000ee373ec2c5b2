"""Client library for Karma, blocking and asyncio.

    from karma_client import connect

    with connect("127.0.0.1:8080") as client:
        client.increment("api_requests", 42)
        client.sum("api_requests", 42)

`connect` and `connect_async` take the same arguments, and their clients have the same methods. Importing this
package loads neither asyncio nor ssl; what needs them brings them in.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_client.blocking import BlockingNetwork, Client
from karma_client.calls import Pending
from karma_client.core import Core
from karma_client.days import Day, Days, day_number, to_date
from karma_client.errors import (
    ClosedError,
    ForbiddenError,
    IdempotencyConflictError,
    InternalError,
    InvalidArgumentError,
    InvalidJsonError,
    KarmaError,
    NoMasterError,
    NotFoundError,
    OverloadedError,
    ProtocolError,
    QueryTimeoutError,
    ReadOnlyError,
    ReplicationError,
    ReplicationGapError,
    ReplyError,
    RequestTimeoutError,
    RequestTooLargeError,
    ResponseTooLargeError,
    SplitBrainError,
    StorageError,
    TlsError,
    UnauthorizedError,
    UnknownCommandError,
    UnknownOutcomeError,
    UnreachableError,
    UnsupportedError,
    UnsupportedProtocolError,
    ValidationError,
)
from karma_client.nodes import Node, parse_nodes
from karma_client.operations.counters import LimitQuery
from karma_client.pipeline import AsyncPipeline, Pipeline
from karma_client.settings import Settings, Target, Timeouts, Tls, Token, TokenSource

if TYPE_CHECKING:
    from ssl import SSLContext

    from karma_client.aio import AsyncClient
    from karma_client.results import (
        Acknowledged,
        BatchAdded,
        BatchDeleted,
        BatchReset,
        Checkpoint,
        Checksum,
        ChunkResult,
        Connection,
        EntriesPage,
        Entry,
        FetchProgress,
        FileChunk,
        Health,
        IngestProgress,
        IngestResult,
        KeysPage,
        KeyTotal,
        KeyValue,
        Latency,
        LimitResult,
        LimitStatus,
        OpLatency,
        Replica,
        ReplicationStatus,
        SeriesInfo,
        SeriesKeyValue,
        Snapshot,
        SnapshotInfo,
        SnapshotVerification,
        Stats,
        StreamStatus,
        Summary,
    )

__all__ = [
    "Acknowledged",
    "AsyncClient",
    "AsyncPipeline",
    "BatchAdded",
    "BatchDeleted",
    "BatchReset",
    "Checkpoint",
    "Checksum",
    "ChunkResult",
    "Client",
    "ClosedError",
    "Connection",
    "Day",
    "Days",
    "EntriesPage",
    "Entry",
    "FetchProgress",
    "FileChunk",
    "ForbiddenError",
    "Health",
    "IdempotencyConflictError",
    "IngestProgress",
    "IngestResult",
    "InternalError",
    "InvalidArgumentError",
    "InvalidJsonError",
    "KarmaError",
    "KeyTotal",
    "KeyValue",
    "KeysPage",
    "Latency",
    "LimitQuery",
    "LimitResult",
    "LimitStatus",
    "NoMasterError",
    "Node",
    "Nodes",
    "NotFoundError",
    "OpLatency",
    "OverloadedError",
    "Pending",
    "Pipeline",
    "ProtocolError",
    "QueryTimeoutError",
    "ReadOnlyError",
    "Replica",
    "ReplicationError",
    "ReplicationGapError",
    "ReplicationStatus",
    "ReplyError",
    "RequestTimeoutError",
    "RequestTooLargeError",
    "ResponseTooLargeError",
    "SeriesInfo",
    "SeriesKeyValue",
    "Snapshot",
    "SnapshotInfo",
    "SnapshotVerification",
    "SplitBrainError",
    "Stats",
    "StorageError",
    "StreamStatus",
    "Summary",
    "Target",
    "Timeouts",
    "Tls",
    "TlsError",
    "Token",
    "UnauthorizedError",
    "UnknownCommandError",
    "UnknownOutcomeError",
    "UnreachableError",
    "UnsupportedError",
    "UnsupportedProtocolError",
    "ValidationError",
    "connect",
    "connect_async",
    "day_number",
    "to_date",
]

Nodes = str | Node | Iterable[str | Node]


def connect(
    nodes: Nodes = "127.0.0.1:8080",
    *,
    target: Target = "master",
    token: Token | None = None,
    token_file: str | Path | None = None,
    tls: bool | Tls | SSLContext = False,
    timeout_seconds: float = 5.0,
    slow_timeout_seconds: float = 300.0,
    connect_timeout_seconds: float = 2.0,
    max_attempts: int | None = None,
    pool_size: int = 16,
    read_only: bool = False,
    follow_hints: bool = False,
) -> Client:
    """Return a blocking client. Nothing is sent before the first call.

    `nodes`: "HOST:PORT", "[IPV6]:PORT", "unix:/PATH", or several of them.
    `target`: "master" sends everything to the master, which it finds by asking all nodes, and again after a
        failover; "any" sends to the first node that can be reached and never looks for another role.
    `token`: the token, or a function that returns it; `token_file` names a file that holds it. Function and
        file are asked again after the server refused the token.
    `tls`: True, a `Tls` with files, or an SSLContext of your own.
    `timeout_seconds`: for a call with all its retries; `slow_timeout_seconds` for snapshots and the like.
    `connect_timeout_seconds`: for one attempt to connect.
    `max_attempts`: at most so many attempts per call; as many as there is time for when left out.
    `pool_size`: how many requests may be under way at a time; more wait for their turn.
    `read_only`: refuse every operation that changes something with ReadOnlyError, before it is sent.
    `follow_hints`: also go to a node that is not among `nodes` when one of them names it as its master or
        source. It gets the token, too: only for networks in which no stranger can answer for a node.

    Raises InvalidArgumentError.
    """
    settings = _settings(
        nodes,
        target,
        token,
        token_file,
        tls,
        connect_timeout_seconds,
        max_attempts,
        pool_size,
        read_only,
        follow_hints,
    )
    return Client(Core(settings, BlockingNetwork(settings)), Timeouts(timeout_seconds, slow_timeout_seconds))


def connect_async(
    nodes: Nodes = "127.0.0.1:8080",
    *,
    target: Target = "master",
    token: Token | None = None,
    token_file: str | Path | None = None,
    tls: bool | Tls | SSLContext = False,
    timeout_seconds: float = 5.0,
    slow_timeout_seconds: float = 300.0,
    connect_timeout_seconds: float = 2.0,
    max_attempts: int | None = None,
    pool_size: int = 16,
    read_only: bool = False,
    follow_hints: bool = False,
) -> AsyncClient:
    """Return a client for asyncio; the arguments are those of `connect`. Raises InvalidArgumentError."""
    from karma_client.aio import AsyncClient, AsyncNetwork  # noqa: PLC0415 - brings asyncio in

    settings = _settings(
        nodes,
        target,
        token,
        token_file,
        tls,
        connect_timeout_seconds,
        max_attempts,
        pool_size,
        read_only,
        follow_hints,
    )
    return AsyncClient(
        Core(settings, AsyncNetwork(settings)), Timeouts(timeout_seconds, slow_timeout_seconds)
    )


def _settings(
    nodes: Nodes,
    target: Target,
    token: Token | None,
    token_file: str | Path | None,
    tls: bool | Tls | SSLContext,  # noqa: FBT001 - as in connect
    connect_timeout_seconds: float,
    max_attempts: int | None,
    pool_size: int,
    is_read_only: bool,  # noqa: FBT001 - as in connect
    follow_hints: bool,  # noqa: FBT001 - as in connect
) -> Settings:
    return Settings(
        nodes=parse_nodes(nodes),
        target=target,
        token=TokenSource(token, token_file),
        tls=(Tls() if tls else None) if isinstance(tls, bool) else tls,
        connect_timeout_seconds=connect_timeout_seconds,
        max_attempts=max_attempts,
        pool_size=pool_size,
        is_read_only=is_read_only,
        follow_hints=follow_hints,
    )


def __getattr__(name: str) -> Any:
    """Load the asyncio client and the result classes when somebody first names them."""
    if name in __all__:
        module = import_module("karma_client.aio" if name == "AsyncClient" else "karma_client.results")
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

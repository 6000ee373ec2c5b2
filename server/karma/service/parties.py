"""What the write path needs of those around it: who sends requests, and what may hold replies back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Client(Protocol):
    """What the write path needs of a connection."""

    replies: list[bytes]
    """Replies of the current pass, in request order."""
    backlog: list[bytes]
    """Request lines that wait behind an operation still running for this client."""
    is_blocked: bool
    address: str
    """The peer as ``host:port``, or ``unix``."""

    def send(self, data: bytes) -> None:
        """Send replies that may leave."""

    def resume(self) -> None:
        """The backlog is empty: more may be read."""

    def abort(self) -> None:
        """Close the connection at once, whatever is still to be sent."""


class Gate(Protocol):
    """What else must have happened to a write before its reply leaves: enough replicas hold it."""

    def allows(self, lsn: int) -> bool:
        """Whether replies that show entries up to an LSN may leave."""

    def closed(self) -> None:
        """Replies begin to wait."""


@dataclass(slots=True)
class Batch:
    """The replies of one pass, to leave when the log is durable up to an LSN."""

    lsn: int
    started: float
    sends: list[tuple[Client, bytes]]
    executed: list[str]


@dataclass(slots=True)
class Pending:
    """An operation that is more than a plain request: whose, which, and since when."""

    client: Client
    op: str
    started: float
    is_legacy: bool = False

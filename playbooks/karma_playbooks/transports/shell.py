"""What a way to a host offers: hand a script to a shell there, and tell what came of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from karma_playbooks.inventory import Phase

OnOutput = Callable[[str], None]


class UnreachableError(Exception):
    """The host could not be reached; nothing was sent."""

    def __init__(self, message: str, phase: Phase = "reachable") -> None:
        super().__init__(message)
        self.phase = phase


class LinkLostError(Exception):
    """The connection broke when the script had left: nobody knows what became of it."""


class Ran(NamedTuple):
    """How a script ended."""

    code: int
    output: str
    errors: str


class Shell(Protocol):
    """A way to a host."""

    def where(self) -> str:
        """Return the host as it is really reached, e.g. `karma@10.0.0.1:22`. Raises UnreachableError."""

    async def open(self) -> None:
        """Connect, unless there is a connection. Raises UnreachableError."""

    async def script(self, text: str, on_output: OnOutput | None = None) -> Ran:
        """Run a POSIX shell script, which travels on standard input, so that no process list shows it.

        Raises UnreachableError and LinkLostError.
        """

    async def close(self) -> None:
        """Close the connection."""

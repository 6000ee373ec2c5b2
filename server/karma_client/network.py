"""What the client needs of the world: connections, a clock, chance, and waiting.

The client's logic is written once, as coroutines over a `Network`. There are two of these. With the asyncio
one, coroutines suspend as usual. The methods of the blocking one never suspend: they block instead. A
coroutine over it therefore runs to its end in one step, which is what `run` does, with no event loop (asyncio
is not even imported). Generated code or a second implementation would be the alternatives, and both drift.
"""

from __future__ import annotations

import sys
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

from karma_client.calls import Exchange
from karma_client.errors import TlsCause
from karma_client.nodes import Node

T = TypeVar("T")

RECEIVE_BYTES = 262_144


class Channel(Protocol):
    """One open connection."""

    node: Node

    def is_usable(self) -> bool:
        """Return whether nothing came in since the last reply, neither bytes nor the end."""

    async def exchange(self, exchange: Exchange, timeout_seconds: float) -> None:
        """Send the exchange's data and feed it what comes back until it is complete.

        Reads while it writes, so that two full buffers never wait for each other. Raises TimeoutError when
        the time is up, another OSError when the connection breaks or ends, ProtocolError for an endless line.
        """

    def close(self) -> None:
        """Close at once."""


class Network(Protocol):
    """Opens channels and waits. Times are seconds of a clock that only goes forward."""

    def clock(self) -> float:
        """Return the time."""

    def chance(self) -> float:
        """Return a random number of 0 to 1."""

    async def open(self, node: Node, timeout_seconds: float) -> Channel:
        """Connect. Raises OSError."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""

    async def acquire(self, timeout_seconds: float) -> bool:
        """Take one of the client's slots for requests under way; False when none got free in time."""

    def release(self) -> None:
        """Give the slot back."""

    async def gather(self, works: list[Coroutine[Any, Any, T]]) -> list[T]:
        """Run coroutines at the same time and return their results in order."""


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine over a blocking network to its end."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    coroutine.close()
    raise RuntimeError("a blocking client was given something that only asyncio can wait for")


def tls_cause(error: OSError) -> TlsCause | None:
    """Return what was wrong with a TLS handshake, None for an error that is not of one.

    The numbers are X509_V_ERR_… of OpenSSL's x509_vfy.h.
    """
    # Only those who use TLS pay for the module: where nothing loaded it, the error is not of it.
    ssl: Any = sys.modules.get("ssl")
    if ssl is None or not isinstance(error, ssl.SSLError):
        return None
    if isinstance(error, ssl.SSLCertVerificationError):
        return _VERIFY_CAUSES.get(error.verify_code, "other")
    return "no tls" if error.reason in {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"} else "other"


_VERIFY_CAUSES: dict[int, TlsCause] = {
    2: "authority",
    9: "time",
    10: "time",
    18: "authority",
    19: "authority",
    20: "authority",
    21: "authority",
    62: "name",
    64: "name",
}


def describe(error: OSError) -> str:
    """Say in a few words what broke."""
    if isinstance(error, TimeoutError):
        return "timed out"
    words = error.strerror or str(error) or type(error).__name__
    return words[0].lower() + words[1:]

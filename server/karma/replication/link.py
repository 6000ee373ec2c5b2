"""One connection to a source: requests out, replies in, with bounds on time and size."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from dataclasses import dataclass
from typing import Any

import orjson

from karma.storage.node_file import Address

_CONNECT_SECONDS = 5.0
_REPLY_SECONDS = 15.0
"""A source answers within 5 seconds even if it has nothing to say; more means that the link is dead."""
_MAX_REPLY_BYTES = 64 << 20
"""A source's max-response-bytes is 1 MiB unless its operator raised it; garbage without an end stops here."""


class LinkError(Exception):
    """The connection cannot be had or used; the message says why."""


@dataclass(slots=True)
class Link:
    """An open connection. Requests may be sent ahead; replies come in their order."""

    _reader: asyncio.StreamReader
    _writer: asyncio.StreamWriter
    _token: str | None

    def send(self, request: dict[str, Any]) -> None:
        """Send a request without waiting for its reply. Raises LinkError."""
        if self._writer.is_closing():
            # It broke since the last reply; a write to what is closed is an error of the caller's to asyncio.
            raise LinkError("the connection broke")
        token = {} if self._token is None else {"token": self._token}
        self._writer.write(orjson.dumps({"v": 2, **request, **token}) + b"\n")

    async def receive(self) -> Any:
        """Return the next reply. Raises LinkError."""
        try:
            async with asyncio.timeout(_REPLY_SECONDS):
                line = await self._reader.readuntil(b"\n")
        except TimeoutError:
            raise LinkError(f"no reply within {_REPLY_SECONDS:g} s") from None
        except asyncio.IncompleteReadError as error:
            cut = ", in the middle of a reply" if error.partial else ""
            raise LinkError(f"the source closed the connection{cut}") from None
        except asyncio.LimitOverrunError:
            raise LinkError(f"a reply is longer than {_MAX_REPLY_BYTES} bytes") from None
        except OSError as error:
            raise LinkError(f"the connection broke: {error.strerror or error}") from None
        try:
            return orjson.loads(line)
        except orjson.JSONDecodeError:
            # Not a dict, so whoever reads it says that no Karma answers there.
            return None

    async def ask(self, request: dict[str, Any]) -> Any:
        """Send a request and return its reply. Raises LinkError."""
        self.send(request)
        return await self.receive()

    def close(self) -> None:
        """Close the connection at once."""
        self._writer.transport.abort()


async def connect(address: Address, token: str | None, tls: ssl.SSLContext | None) -> Link:
    """Open a connection to a source. Raises LinkError."""
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection(
                address.host, address.port, ssl=tls, limit=_MAX_REPLY_BYTES
            )
    except TimeoutError:
        raise LinkError(f"{address} did not answer within {_CONNECT_SECONDS:g} s") from None
    except ssl.SSLError as error:
        raise LinkError(f"no TLS with {address}: {error.reason or error}") from None
    except OSError as error:
        raise LinkError(f"{address} cannot be reached: {error.strerror or error}") from None
    except UnicodeError:
        raise LinkError(f"{address} cannot be reached: this is no host name") from None
    with contextlib.suppress(OSError, AttributeError):
        writer.transport.set_write_buffer_limits(1 << 20)
    return Link(reader, writer, address.token or token)

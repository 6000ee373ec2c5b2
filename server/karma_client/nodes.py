"""Where a server listens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from karma_client.errors import InvalidArgumentError

DEFAULT_PORT = 8080


@dataclass(frozen=True)
class Node:
    """An address: a host and a port, or the path of a Unix socket (then the host is empty).

    >>> Node.parse("db1:8080")
    Node(host='db1', port=8080, path=None)
    >>> str(Node.parse("[::1]:9000"))
    '[::1]:9000'
    >>> str(Node.parse("unix:/run/karma.sock"))
    'unix:/run/karma.sock'
    """

    host: str
    port: int = DEFAULT_PORT
    path: str | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, address: str | Node) -> Node:
        """Read "HOST:PORT", "HOST" (port 8080), "[IPV6]:PORT" or "unix:/PATH".

        Raises InvalidArgumentError.
        """
        if isinstance(address, Node):
            return address
        if address.startswith("unix:"):
            if not address.startswith("unix:/"):
                raise _invalid(
                    address, "the path of a Unix socket must be absolute, as in unix:/run/karma.sock"
                )
            return cls("", 0, address.removeprefix("unix:"))
        if address.startswith("["):
            host, bracket, rest = address[1:].partition("]")
            if not bracket or (rest and not rest.startswith(":")):
                raise _invalid(address, "an IPv6 address is written [::1]:8080")
            port = rest[1:] if rest else str(DEFAULT_PORT)
        else:
            host, colon, port = address.rpartition(":")
            if not colon:
                host, port = address, str(DEFAULT_PORT)
            if ":" in host:
                raise _invalid(address, "an IPv6 address is written [::1]:8080")
        if not host or any(char.isspace() or char in "/@?#[]" for char in host):
            raise _invalid(address, "HOST:PORT needs a host name or an IP address")
        if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
            raise _invalid(address, "a port is a number of 1 to 65535")
        return cls(host, int(port))


def parse_nodes(nodes: str | Node | Iterable[str | Node]) -> tuple[Node, ...]:
    """Return the nodes of one address or several, each once. Raises InvalidArgumentError."""
    several = [nodes] if isinstance(nodes, str | Node) else nodes
    parsed = tuple(dict.fromkeys(Node.parse(node) for node in several))
    if not parsed:
        raise InvalidArgumentError(
            'there is no node to talk to: give at least one address, as "127.0.0.1:8080"'
        )
    return parsed


def _invalid(address: str, reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(f'"{address}" is no address of a node: {reason}')

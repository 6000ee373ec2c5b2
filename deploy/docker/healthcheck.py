"""The health check of the image: exit 0 when its server answers /healthz, with or without TLS."""

from __future__ import annotations

import os
import socket
import ssl
import sys

TIMEOUT_SECONDS = 2.0


def is_alive(port: int, context: ssl.SSLContext | None) -> bool:
    """Ask once. A server that ends the connection after the handshake wants a client certificate: alive."""
    connection = socket.create_connection(("127.0.0.1", port), TIMEOUT_SECONDS)
    try:
        if context is not None:
            connection = context.wrap_socket(connection)
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with connection.makefile("rb") as reply:
            line = reply.readline()
        return line.split(b" ")[1:2] == [b"200"] or (context is not None and not line)
    except ssl.SSLError as error:
        return "CERTIFICATE_REQUIRED" in str(error.reason)
    except OSError:
        return False
    finally:
        connection.close()


def main() -> int:
    """Return the exit code."""
    # It checks itself, on its own loopback: whose certificate that is makes no difference.
    unchecked = ssl.create_default_context()
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    port = int(os.environ.get("KARMA_HTTP_PORT", "8081"))
    try:
        return 0 if is_alive(port, None) or is_alive(port, unchecked) else 1
    except OSError:
        return 1


if __name__ == "__main__":
    sys.exit(main())

"""What the kernel has received for a connection and the event loop has not read yet."""

from __future__ import annotations

import asyncio
import fcntl
import termios
from array import array


def has_unread(transport: asyncio.Transport) -> bool:
    """Return whether a peer has sent something that was not read: then it is not silent.

    After a stall timers come before sockets, so whoever closes for silence looks here first.
    """
    sock = transport.get_extra_info("socket")
    if sock is None:
        return False
    size = array("i", [0])
    try:
        fcntl.ioctl(sock.fileno(), termios.FIONREAD, size)
    except OSError:
        return False
    return size[0] > 0

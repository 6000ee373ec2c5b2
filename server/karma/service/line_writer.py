"""Lines for standard output, written by a thread of their own: their reader may stop, the server may not."""

from __future__ import annotations

import atexit
import os
import select
import threading
from collections import deque
from time import monotonic

_MAX_PENDING_BYTES = 1 << 20
"""Lines that may wait, thousands of them: a reader that is only slow loses none."""
_FLUSH_SECONDS = 1.0
"""How long an end waits for the reader of the last lines."""


class LineWriter:
    """Writes to a file descriptor. Call it with a line; a line for which there is no room is refused."""

    def __init__(self, descriptor: int, max_pending_bytes: int = _MAX_PENDING_BYTES) -> None:
        self._descriptor = descriptor
        self._max_pending_bytes = max_pending_bytes
        self._lines: deque[bytes] = deque()
        self._pending_bytes = 0
        """What was taken in and is not written yet."""
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def __call__(self, line: str) -> bool:
        """Take a line, with its newline; returns False without room for it. Never waits for the reader."""
        data = line.encode()
        with self._changed:
            if self._pending_bytes + len(data) > self._max_pending_bytes:
                return False
            self._lines.append(data)
            self._pending_bytes += len(data)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()
                atexit.register(self.flush)
            self._changed.notify_all()
        return True

    def flush(self, seconds: float = _FLUSH_SECONDS) -> None:
        """Wait until everything is written, but no longer than that."""
        deadline = monotonic() + seconds
        with self._changed:
            while self._pending_bytes and (left_seconds := deadline - monotonic()) > 0:
                self._changed.wait(left_seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._lines:
                    self._changed.wait()
                data = b"".join(self._lines)
                self._lines.clear()
            self._write(data)
            with self._changed:
                self._pending_bytes -= len(data)
                self._changed.notify_all()

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                # Past Python's buffer, which would keep what it cannot write and fail once more at the end.
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                # Another process made the pipe that it shares with this one non-blocking.
                select.select([], [self._descriptor], [])
            except OSError:
                # The reader went away, or the disk under the log is full: that must not stop the server.
                return


def write_in_time(descriptor: int, line: str, seconds: float = _FLUSH_SECONDS) -> None:
    """Write a last line, unless its reader does not take it within some seconds."""
    # A pipe that takes anything takes 4 kB at once.
    if select.select([], [descriptor], [], seconds)[1]:
        os.write(descriptor, line.encode()[: select.PIPE_BUF])

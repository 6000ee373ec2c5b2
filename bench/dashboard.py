"""What `karmactl tui` costs: the program itself on a pseudo-terminal, over ten nodes, as a person has it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from replication import CLOCK_TICKS_PER_SECOND
from servers import BenchError, Server

ROWS, COLUMNS = 40, 120
START_SECONDS = 60.0
SETTLE_SECONDS = 5.0
KEY_PAUSE_SECONDS = 0.03
DOWN, UP = b"\x1b[B", b"\x1b[A"


class Dashboard:
    """A dashboard under way; what it draws is read and thrown away, as by a terminal that keeps up."""

    def __init__(self, pid: int, terminal: int) -> None:
        self.pid = pid
        self._terminal = terminal
        self._seen = b""

    def press(self, keys: bytes) -> None:
        """Type."""
        os.write(self._terminal, keys)

    def read(self, seconds: float) -> bytes:
        """Return what is drawn next, b"" when nothing is for so long."""
        ready, _, _ = select.select([self._terminal], [], [], seconds)
        return os.read(self._terminal, 1 << 20) if ready else b""

    def watch(self, seconds: float) -> None:
        """Let it run."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.read(left)

    def wait_for(self, text: bytes) -> None:
        """Wait until a text is drawn. Raises BenchError."""
        deadline = time.monotonic() + START_SECONDS
        seen = b""
        while text not in seen:
            if time.monotonic() > deadline:
                raise BenchError(f"the dashboard never showed {text.decode()!r}: {seen[-300:]!r}")
            seen += self.read(0.1)

    def cpu_seconds(self) -> float:
        """CPU time used so far, in user and kernel."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS_PER_SECOND

    def rss_mb(self) -> float:
        """Resident memory, in MB of 10^6 bytes."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def running(nodes: Sequence[Server]) -> Iterator[Dashboard]:
    """`karmactl tui` over these nodes, with its default refresh."""
    names = [word for node in nodes for word in ("--node", f"127.0.0.1:{node.port}")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KARMACTL_")}
    environment |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        os.execve(sys.executable, [sys.executable, "-m", "karmactl", "tui", *names], environment)
    dashboard = Dashboard(pid, terminal)
    try:
        dashboard.wait_for(f"{len(nodes)}/{len(nodes)} nodes".encode())
        yield dashboard
    finally:
        os.kill(pid, signal.SIGKILL)
        os.close(terminal)
        os.waitpid(pid, 0)


def cost(dashboard: Dashboard, seconds: float) -> tuple[float, float]:
    """Return percent of a core and MB of memory of a dashboard that nobody touches."""
    dashboard.watch(SETTLE_SECONDS)
    before, begin = dashboard.cpu_seconds(), time.monotonic()
    dashboard.watch(seconds)
    used = dashboard.cpu_seconds() - before
    return 100 * used / (time.monotonic() - begin), dashboard.rss_mb()


def key_p95_ms(dashboard: Dashboard, series: str, presses: int) -> float:
    """Return the p95 of the time from a key to what it draws, on a page of a series' keys."""
    dashboard.press(b":")
    dashboard.watch(0.3)
    dashboard.press(f"series {series}\r".encode())
    dashboard.wait_for(b"shows the next")
    dashboard.watch(1.0)
    took_ms = []
    for number in range(presses):
        while dashboard.read(0.0):
            pass
        begin = time.perf_counter()
        dashboard.press(DOWN if number % 20 < 15 else UP)
        if not dashboard.read(10.0):
            raise BenchError("a key drew nothing")
        took_ms.append((time.perf_counter() - begin) * 1000)
        dashboard.watch(KEY_PAUSE_SECONDS)
    return sorted(took_ms)[int(0.95 * (len(took_ms) - 1))]

"""How long `karmactl ping` takes over a bare Python: what an operator waits before anything happens."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

import servers
from servers import BenchError, Server

STARTS = 15
"""Per run; single starts spread more than what is measured."""


def over_bare_python_ms(server: Server) -> float:
    """Return how many milliseconds the median ping of a server takes longer than the median bare Python.

    Raises BenchError when a ping fails.
    """
    environment = servers.tools_environment(server.directory.with_name("ctl-start-bytecode"))
    ping = [sys.executable, "-m", "karmactl", "ping", "--node", f"127.0.0.1:{server.port}"]
    bare_ms, ping_ms = [], []
    # In turn, so that what else the machine does falls on both.
    for _ in range(STARTS):
        bare_ms.append(_took_ms([sys.executable, "-c", "pass"], environment))
        ping_ms.append(_took_ms(ping, environment))
    return statistics.median(ping_ms) - statistics.median(bare_ms)


def _took_ms(command: Sequence[str], environment: dict[str, str]) -> float:
    begin = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    took_ms = (time.perf_counter() - begin) * 1000
    if done.returncode:
        raise BenchError(f"{' '.join(command)} ended with code {done.returncode}: {done.stderr}")
    return took_ms

"""A server that may have no more memory: it answers overloaded, goes on, and nothing is half done."""

from __future__ import annotations

import re
import resource
from pathlib import Path
from typing import Any

from harness import Server

DAY = 20260505
SPAN = {"from": DAY, "to": DAY}
KEYS = 100_000
ROOM_BYTES = 8 << 20


def leave_room(server: Server, room_bytes: int | None) -> None:
    """Let the process have so much more address space than it has now; None is any amount."""
    pid = server.process.pid
    size = re.search(r"VmSize:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert size is not None
    limit = resource.RLIM_INFINITY if room_bytes is None else int(size[1]) * 1024 + room_bytes
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def test_requests_without_memory_are_overloaded_and_the_others_are_served(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "max_request_bytes": 1_000_000,
        "max_response_bytes": 0,
        "max_client_buffer_bytes": 10**9,
        "query_timeout_ms": 0,
        "read_timeout": 0,
    }
    with Server(tmp_path / "data", wal_fsync=False, **options) as server:
        with server.connect(60) as connection:
            for first in range(0, KEYS, 10_000):
                items = [[key, DAY, 1] for key in range(first, first + 10_000)]
                connection.ask("series.batch_add", series="a", items=items)
            written = KEYS
            leave_room(server, ROOM_BYTES)
            refusals = 0
            for first in range(KEYS, KEYS + 60_000, 10_000):
                items = [[key, DAY, 1] for key in range(first, first + 10_000)]
                reply = connection.call("series.batch_add", series="a", items=items)
                assert reply["success"] or reply["error_code"] == "overloaded", reply
                written += 10_000 * reply["success"]
                refusals += not reply["success"]
                reply = connection.call("tree.series", series="a", range=SPAN)
                assert reply["success"] or reply["error_code"] == "overloaded", reply["error_code"]
                refusals += not reply["success"]
            assert refusals, "there was room for everything"
            assert connection.ask("counter.sum", series="a", key=1) == 1
            leave_room(server, None)
            assert connection.ask("system.stats")["out_of_memory_count"] == refusals
            assert connection.ask("tree.info", series="a")["total"] == written
            assert connection.ask("counter.increment", series="a", key=1, bucket=DAY) == 1
            assert len(connection.ask("tree.series", series="a", range=SPAN)) == written
        server.kill()
        server.restart()
        assert server.ask("tree.info", series="a")["total"] == written + 1
        assert "internal_error" not in server.output.read_text()

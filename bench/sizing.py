"""What data take in memory and on disk: the figures of docs/sizing.md. `python bench/sizing.py`, a minute.

Unlike the other benchmarks these hardly depend on the machine, so one run counts, and there is no peer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import servers
import workloads
from servers import Server

KEYS = 1_000_000
HISTORY_KEYS, HISTORY_DAYS = 20_000, 356
WRITES = 200_000
AT_ONCE = 1000
"""Requests sent at once, and items of a batch."""
OPTIONS = ("--max-request-bytes=16777216", "--max-response-bytes=0", "--wal-segment-bytes=0")


def main() -> None:
    """Measure everything and print a table of it."""
    print(f"{'bytes of':48}{'memory':>12}{'snapshot':>10}{'log':>10}")
    with tempfile.TemporaryDirectory(prefix="karma-sizing-", dir=Path.cwd()) as name:
        for what, *sizes in measured(Path(name)):
            cells = ("" if size is None else f"{size:,.1f}" for size in sizes)
            print("{:48}{:>12}{:>10}{:>10}".format(what, *cells), flush=True)


def measured(folder: Path) -> Iterator[tuple[str, float | None, float | None, float | None]]:
    """Yield (what, bytes of memory, of snapshots, of log), each for one."""
    with servers.karma(folder / "empty") as server:
        yield "a server without data", server.rss_bytes(), None, None

    filled: list[tuple[str, Iterable[tuple[bytes, int]], int]] = [
        ("a key with one day", workloads.karma_history(KEYS, 1), KEYS),
        (
            f"a bucket, of keys with {HISTORY_DAYS} days",
            workloads.karma_history(HISTORY_KEYS, HISTORY_DAYS),
            HISTORY_KEYS * HISTORY_DAYS,
        ),
        ("an increment (of few keys)", increments(None), WRITES),
        (
            "an increment under a key of 36 letters",
            increments("f47ac10b-58cc-4372-a567-{:012}"),
            WRITES,
        ),
    ]
    for number, (what, requests, count) in enumerate(filled):
        with servers.karma(folder / str(number), *OPTIONS) as server:
            before = server.rss_bytes()
            servers.load(server.port, requests, servers.KARMA_REPLY)
            memory, log = server.rss_bytes() - before, (server.directory / "karma.wal").stat().st_size
            yield what, memory / count, saved_bytes(server) / count, log / count


def increments(idempotency_key: str | None) -> Iterator[tuple[bytes, int]]:
    """Increments of a hundred keys, sent many at once: (requests, reply lines)."""
    for first in range(0, WRITES, AT_ONCE):
        yield (
            b"".join(
                workloads.karma_increment(number % 100, idempotency_key and idempotency_key.format(number))
                for number in range(first, first + AT_ONCE)
            ),
            AT_ONCE,
        )


def saved_bytes(server: Server) -> int:
    """What a snapshot of everything takes on disk."""
    servers.load(server.port, [(b'{"v":2,"op":"snapshot.create_all"}\n', 1)], servers.KARMA_REPLY)
    return sum(
        path.stat().st_size for path in server.directory.iterdir() if not path.name.startswith("karma.wal")
    )


if __name__ == "__main__":
    main()

"""The log's lines, and what becomes of them when nothing reads them."""

from __future__ import annotations

import os
import threading
from typing import Any

import orjson
import pytest

from karma.service.line_writer import LineWriter
from karma.service.log import Log


def read_all(descriptor: int, count: int) -> bytes:
    """Read so many bytes from a pipe."""
    data = b""
    while len(data) < count:
        data += os.read(descriptor, count - len(data))
    return data


def test_what_is_refused_is_counted_and_reported_in_its_place() -> None:
    lines: list[dict[str, Any]] = []
    is_full = False

    def write(line: str) -> bool:
        if not is_full:
            lines.append(orjson.loads(line))
        return not is_full

    log = Log(write, lambda: 0.0)
    log.info("first", "")
    is_full = True
    for _ in range(3):
        log.warning("lost", "")
    is_full = False
    log.error("last", "")
    log.info("more", "")
    assert [line["event"] for line in lines] == ["first", "log_dropped", "last", "more"]
    assert lines[1]["lines"] == log.dropped_lines == 3


def test_a_writer_never_waits_for_its_reader() -> None:
    reading, writing = os.pipe()
    writer = LineWriter(writing, max_pending_bytes=200_000)
    line = "x" * 999 + "\n"
    taken = 0
    # More than the pipe holds and may wait; without a thread this would never end.
    while writer(line):
        taken += 1
    assert 199 <= taken <= 200 + 64
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(read_all(reading, taken * 1_000)))
    reader.start()
    reader.join()
    writer.flush(20)
    assert received == [line.encode() * taken]
    assert writer(line), "there is room again"
    assert read_all(reading, 1_000) == line.encode()
    os.close(reading)
    os.close(writing)


def test_a_pipe_that_another_process_made_non_blocking_loses_nothing() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    writer = LineWriter(writing)
    for number in range(200):
        assert writer(f"{number:999}\n")
    assert read_all(reading, 200_000).split() == [b"%d" % number for number in range(200)]
    os.close(reading)
    os.close(writing)


def test_a_flush_gives_up_on_a_reader_that_is_not_there() -> None:
    reading, writing = os.pipe()
    writer = LineWriter(writing)
    for _ in range(200):
        writer("x" * 999 + "\n")
    writer.flush(0.01)
    os.close(reading)
    # The reader went away for good: what waits is given up, and the next lines are taken.
    writer.flush(20)
    assert writer("x\n")
    writer.flush(20)
    os.close(writing)


@pytest.mark.parametrize("is_enabled", [True, False])
def test_warnings_are_written_in_any_case(is_enabled: bool) -> None:
    lines: list[str] = []
    log = Log(lines.append, lambda: 0.0, is_enabled=is_enabled)
    log.info("a", "")
    log.warning("b", "")
    log.error("c", "")
    assert [orjson.loads(line)["event"] for line in lines] == ["a", "b", "c"][not is_enabled :]

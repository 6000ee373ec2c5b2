"""The event log with real processes: several that append at once, killed ones, and tails that follow."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest
from events import event, incident
from harness import ROOT

from karma_events import Appended, Consumer, Event, EventLog
from karma_events.changes import Changes

SECONDS = 60.0
KARMACTL = str(Path(sys.executable).parent / "karmactl")

WRITER = """
import sys
from pathlib import Path
from events import event
from karma_events import Event, EventLog

directory, name = Path(sys.argv[1]), sys.argv[2]
count, shared, segment_bytes = map(int, sys.argv[3:])
log = EventLog(directory, segment_bytes=segment_bytes)
for number in range(count):
    key = f"shared-{number}" if number < shared else f"{name}-{number}"
    place = log.append("t", event(key))
    print(key, place.offset, int(place.is_new), flush=True)
"""


def start_writer(
    folder: Path, name: str, count: int, *, shared: int = 0, segment_bytes: int = 4000
) -> subprocess.Popen[str]:
    numbers = map(str, (count, shared, segment_bytes))
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), name, *numbers],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
    )


def told(text: str) -> list[tuple[str, Appended]]:
    """What a writer said, whole lines only."""
    lines = [line.split() for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [(key, Appended(int(offset), is_new == "1")) for key, offset, is_new in lines]


def test_processes_append_one_after_the_other(tmp_path: Path) -> None:
    folder = tmp_path / "events"
    writers = [start_writer(folder, f"w{number}", 60, shared=15) for number in range(4)]
    said = [told(writer.communicate(timeout=SECONDS)[0]) for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 4
    events = list(EventLog.open(folder).read())
    place_of = {one.envelope.idempotency_key: one.offset for one in events}
    assert len(place_of) == len(events) == 15 + 4 * 45
    assert [one.offset for one in events] == list(range(1, len(events) + 1))
    for lines in said:
        assert len(lines) == 60
        # Each was told the right place, and the events of one process are in its order.
        assert all(place_of[key] == place.offset for key, place in lines)
        own = [place.offset for key, place in lines if not key.startswith("shared")]
        assert own == sorted(own)
    shared_new = [key for lines in said for key, place in lines if key.startswith("shared") and place.is_new]
    assert sorted(shared_new) == sorted(f"shared-{number}" for number in range(15))
    assert len(list((folder / "topics" / "t").glob("*.segment"))) > 3


def test_killed_writers_lose_nothing_that_they_were_told(tmp_path: Path) -> None:
    folder = tmp_path / "events"
    chance = random.Random(7)
    acknowledged: dict[str, int] = {}
    for number in range(8):
        writer = start_writer(folder, "w", 400)
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(len(acknowledged) + chance.randrange(1, 25))]
        # Somewhere in what comes next: before, in or behind a write or its sync.
        time.sleep(chance.random() * 0.01)
        writer.kill()
        rest, _ = writer.communicate(timeout=SECONDS)
        for key, place in told("".join(lines) + rest):
            assert acknowledged.setdefault(key, place.offset) == place.offset, number
    assert len(acknowledged) > 50
    with EventLog.open(folder) as log:
        for key, offset in acknowledged.items():
            assert log.append("t", event(key)) == Appended(offset, is_new=False)
        found = [(one.offset, one.envelope.idempotency_key) for one in log.read()]
    assert found == [(number + 1, f"w-{number}") for number in range(len(found))]
    assert len(found) >= len(acknowledged)


def test_readers_keep_their_place_while_files_are_rotated(tmp_path: Path) -> None:
    """Nearly every append rotates, and readers take no lock: each way to look at half a rotation comes up."""
    folder = tmp_path / "events"
    log = EventLog.open(folder)
    follower = log.reader("t")
    seen = 0
    with start_writer(folder, "w", 200, segment_bytes=500) as writer:
        # The pipe takes all that the writer says.
        while writer.poll() is None:
            middle = seen // 2
            for reader, after in ((follower, seen), (log.reader("t"), 0), (log.reader("t", middle), middle)):
                offsets = [one.offset for one in reader.read()]
                assert offsets == list(range(after + 1, after + len(offsets) + 1))
                assert reader.offset >= seen
            seen = follower.offset
    assert len(list(follower.read())) == 200 - seen


# -- Waiting ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_told", [True, False], ids=["told by the kernel", "looking"])
def test_a_wait_ends_when_something_is_appended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_told: bool
) -> None:
    if not is_told:
        monkeypatch.setattr("karma_events.changes.ctypes.CDLL", lambda *_args, **_options: object())
    log = EventLog.open(tmp_path / "events")
    seen: list[int] = []
    has_begun = threading.Event()

    def follow() -> None:
        with Changes(log) as changes:
            reader = log.reader("t")
            has_begun.set()
            while len(seen) < 30:
                seen.extend(one.offset for one in reader.read())
                changes.wait(SECONDS)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    has_begun.wait(SECONDS)
    with EventLog(tmp_path / "events", segment_bytes=2000) as writer:
        for number in range(30):
            writer.append("t", event(f"k{number}"))
    # The last wait has nothing to wait for any more.
    while thread.is_alive() and len(seen) < 30:
        thread.join(0.1)
    assert seen == list(range(1, 31))
    with EventLog.open(tmp_path / "events") as writer:
        while thread.is_alive():
            writer.append("t", event(f"more{time.monotonic_ns()}"))
            thread.join(0.1)


# -- karmactl events tail ---------------------------------------------------------------------------------


class Tail:
    """`karmactl events tail` as a process."""

    def __init__(self, home: Path, *options: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("KARMA", "XDG"))}
        self.process = subprocess.Popen(
            [KARMACTL, "events", "tail", "--output", "jsonl", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**kept, "XDG_STATE_HOME": str(home), "XDG_CONFIG_HOME": str(home)},
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def keys(self, count: int) -> list[str]:
        """The idempotency keys of so many rows."""
        assert self.process.stdout is not None
        lines = [self.process.stdout.readline() for _ in range(count)]
        return [json.loads(line)["idempotency_key"] for line in lines]

    def interrupt(self) -> tuple[int, str, str]:
        self.process.send_signal(signal.SIGINT)
        rest, errors = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, rest, errors


def log_of(home: Path) -> EventLog:
    return EventLog(home / "karmactl" / "events", segment_bytes=2000)


def test_a_tail_follows_what_another_process_writes(tmp_path: Path) -> None:
    with log_of(tmp_path) as log:
        log.append_all([Event("t", event(f"old{number}")) for number in range(4)])
        with Tail(tmp_path, "--follow", "-n", "2") as tail:
            assert tail.keys(2) == ["old2", "old3"]
            writer = start_writer(tmp_path / "karmactl" / "events", "w", 20)
            assert tail.keys(20) == [f"w-{number}" for number in range(20)]
            assert writer.wait(SECONDS) == 0
            writer.communicate()
            # A topic that was not there when it began.
            log.append("later", event("new"))
            assert tail.keys(1) == ["new"]
            assert tail.interrupt() == (130, "", "")


def test_a_tail_may_begin_before_the_first_event(tmp_path: Path) -> None:
    with Tail(tmp_path, "--follow", "--topic", "actions.result") as tail, log_of(tmp_path) as log:
        log.append_all(incident())
        assert tail.keys(4) == [
            "f1-failover/-/1/failed",
            "f2-failover/-/1/succeeded",
            "s1-switchover/-/1/cancelled",
            "s1-switchover/-/1/succeeded",
        ]
        assert tail.interrupt() == (130, "", "")


def test_a_killed_consumer_s_events_come_again_and_none_is_left_out(tmp_path: Path) -> None:
    shown: list[str] = []
    with log_of(tmp_path) as log:
        for number in range(3):
            log.append_all([Event("t", event(f"k{number}-{part}")) for part in range(5)])
            with Tail(tmp_path, "--follow", "--consumer", "c") as tail:
                shown += tail.keys(5)
                tail.process.kill()
        with Tail(tmp_path, "--consumer", "c") as tail:
            rest, errors = tail.process.communicate(timeout=SECONDS)
        assert (tail.process.returncode, errors) == (0, "")
        shown += [json.loads(line)["idempotency_key"] for line in rest.splitlines()]
        wanted = [f"k{number}-{part}" for number in range(3) for part in range(5)]
        assert list(dict.fromkeys(shown)) == wanted
        # All of them were committed by the last one, which ended in order.
        with Consumer(log, "c") as consumer:
            assert list(consumer.read()) == []


def test_a_consumer_whose_reader_went_away_keeps_its_place(
    tmp_path: Path, needs: Callable[[str], Path]
) -> None:
    bash = needs("bash")
    with log_of(tmp_path) as log:
        log.append_all([Event("t", event(f"k{number}", text="x" * 20_000)) for number in range(20)])
    line = f"{KARMACTL} events tail --consumer c -o jsonl | head -c 100"
    environ = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    done = subprocess.run(
        [str(bash), "-c", line], env=environ, capture_output=True, check=False, timeout=SECONDS
    )
    assert (len(done.stdout), done.stderr) == (100, b"")
    with Consumer(log_of(tmp_path), "c") as consumer:
        assert consumer.committed == {}


def test_two_tails_of_one_consumer_are_refused(tmp_path: Path) -> None:
    with log_of(tmp_path) as log:
        log.append("t", event("a"))
    with Tail(tmp_path, "--follow", "--consumer", "c") as tail:
        assert tail.keys(1) == ["a"]
        with Tail(tmp_path, "--consumer", "c") as other:
            _, errors = other.process.communicate(timeout=SECONDS)
        assert other.process.returncode == 4
        assert "consumer c is in use by process" in errors
        assert tail.interrupt()[0] == 130

"""The event log under random batches, cut at every byte, and crashed at every step an append is made of."""

import tempfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from events import event
from hypothesis import given, settings
from hypothesis import strategies as st

from karma.storage.disk import AppendFile, Disk
from karma_events import Appended, Consumer, Envelope, Event, EventLog, Source

TOPIC = "t"

texts = st.text(max_size=20)
printable = st.characters(exclude_categories=["C", "Z"]) | st.just(" ")
names = st.text(printable, min_size=1, max_size=20)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
envelopes = st.builds(
    Envelope,
    idempotency_key=names,
    ts_ms=st.integers(0, 253_402_300_799_999),
    event_type=st.from_regex(r"[a-z][a-z0-9_]{0,5}(\.[a-z][a-z0-9_]{0,5}){0,2}", fullmatch=True),
    entity_id=names,
    correlation_id=names,
    source=st.builds(Source, names, names),
    tags=st.dictionaries(names, names, max_size=3),
    attrs=st.dictionaries(texts, values, max_size=4),
)


class QuickDisk(Disk):
    """Syncs nothing: only a power cut would show it, and these tests append thousands of times."""

    def append_to(self, path: Path) -> AppendFile:
        return QuickFile(path)

    def sync_directory(self, directory: Path) -> None:
        pass


class QuickFile(AppendFile):
    def sync(self) -> None:
        pass


@given(envelopes)
def test_any_event_is_read_as_it_was_made(envelope: Envelope) -> None:
    assert Envelope.parse(envelope.encode()) == envelope


batches = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 12)), min_size=1, max_size=6),
    ),
    max_size=8,
)


@settings(max_examples=30, deadline=None)
@given(batches, envelopes)
def test_a_log_holds_what_was_new_in_order(
    batches: list[tuple[int, list[tuple[str, int]]]], sample: Envelope
) -> None:
    """Two logs on one folder, taking turns, against a model: a list a topic."""
    model: dict[str, list[str]] = {"a": [], "b": []}
    with tempfile.TemporaryDirectory() as folder:
        logs = [EventLog(Path(folder), disk=QuickDisk(), segment_bytes=1000) for _ in range(2)]
        for which, batch in batches:
            expected = []
            for topic, number in batch:
                key = f"k{number}"
                is_new = key not in model[topic]
                if is_new:
                    model[topic].append(key)
                expected.append(Appended(model[topic].index(key) + 1, is_new))
            events = [Event(topic, event(f"k{number}", sample=sample.attrs)) for topic, number in batch]
            assert logs[which].append_all(events) == expected
        found = list(EventLog(Path(folder)).read())
        for topic, expected_keys in model.items():
            of_topic = [one for one in found if one.topic == topic]
            assert [one.envelope.idempotency_key for one in of_topic] == expected_keys
            assert [one.offset for one in of_topic] == list(range(1, len(of_topic) + 1))
            assert all(one.envelope.attrs["sample"] == sample.attrs for one in of_topic)
        for log in logs:
            log.close()


def test_a_log_cut_at_any_byte_is_a_prefix(tmp_path: Path) -> None:
    with EventLog(tmp_path) as log:
        for number in range(1, 4):
            log.append(TOPIC, event(f"k{number}", text="ä\\\n"))
    path = tmp_path / "topics" / TOPIC / "karma.wal"
    whole = path.read_bytes()
    reader = EventLog(tmp_path).reader(TOPIC)
    seen = 0
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        complete = whole[:size].count(b"\n")
        assert [one.offset for one in EventLog(tmp_path).read()] == list(range(1, complete + 1))
        # One that has been reading all the time gets each event once.
        seen += sum(1 for _ in reader.read())
        assert seen == complete


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1500))
def test_an_append_behind_any_cut_goes_on_behind_the_prefix(size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with EventLog(Path(folder), disk=QuickDisk()) as log:
            log.append_all([Event(TOPIC, event(f"k{number}")) for number in range(1, 6)])
        path = Path(folder) / "topics" / TOPIC / "karma.wal"
        whole = path.read_bytes()
        path.write_bytes(whole[:size])
        complete = whole[:size].count(b"\n")
        with EventLog(Path(folder), disk=QuickDisk()) as log:
            again = log.append_all([Event(TOPIC, event(f"k{number}")) for number in range(1, 6)])
            assert again == [Appended(number, number > complete) for number in range(1, 6)]
            assert [one.offset for one in log.read()] == [1, 2, 3, 4, 5]
        kept = [file.read_bytes() for file in path.parent.glob("cut/*")]
        assert b"".join(kept) == whole[:size].rpartition(b"\n")[2]


# -- Crashes ----------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The process is gone: nothing of it runs any more."""


class CrashingDisk(QuickDisk):
    """Dies before, in the middle of or behind the n-th thing that it does."""

    def __init__(self, steps: int, share: float) -> None:
        self.steps = steps
        self.share = share

    def step(self) -> bool:
        self.steps -= 1
        return self.steps == 0

    def append_to(self, path: Path) -> AppendFile:
        return CrashingFile(path, self)

    def write_file(self, path: Path, chunks: Iterable[bytes]) -> int:
        if self.step():
            raise Crash
        return super().write_file(path, chunks)

    def move(self, old: Path, new: Path) -> None:
        if self.step():
            raise Crash
        super().move(old, new)
        if self.step():
            raise Crash


class CrashingFile(QuickFile):
    def __init__(self, path: Path, disk: CrashingDisk) -> None:
        super().__init__(path)
        self.disk = disk

    def write(self, data: bytes) -> None:
        if self.disk.step():
            super().write(data[: int(len(data) * self.disk.share)])
            raise Crash
        super().write(data)

    def sync(self) -> None:
        if self.disk.step():
            raise Crash
        super().sync()


OUTBOX = [Event(topic, event(f"k{number}")) for number in range(1, 9) for topic in ("a", "b")]
"""What a journal has to emit. It notes an event as emitted only when it was told that it is appended."""


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0, 1)), max_size=4), st.integers(1, 5))
def test_an_outbox_that_is_emitted_again_after_crashes_is_there_once(
    crashes: list[tuple[int, float]], batch: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        done = 0
        for steps, share in crashes:
            log = EventLog(Path(folder), disk=CrashingDisk(steps, share), segment_bytes=900)
            try:
                for start in range(done, len(OUTBOX), batch):
                    log.append_all(OUTBOX[start : start + batch])
                    # A crash here, before the journal notes it, is what the next round begins with.
                    done = start
            except Crash:
                pass
            acknowledged = {(topic, one.idempotency_key) for topic, one in OUTBOX[:done]}
            found = {(one.topic, one.envelope.idempotency_key) for one in EventLog(Path(folder)).read()}
            assert acknowledged <= found
        with EventLog(Path(folder), disk=QuickDisk()) as log:
            log.append_all(OUTBOX[done:])
            assert not any(place.is_new for place in log.append_all(OUTBOX))
            found_all = list(log.read())
        for topic in ("a", "b"):
            of_topic = [one for one in found_all if one.topic == topic]
            assert [one.envelope for one in of_topic] == [one for its, one in OUTBOX if its == topic]
            assert [one.offset for one in of_topic] == list(range(1, 9))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=8))
def test_a_consumer_that_dies_gets_events_again_and_misses_none(rounds: list[tuple[int, bool]]) -> None:
    """Each round takes some events and is then killed, before or after it commits."""
    with tempfile.TemporaryDirectory() as folder:
        log = EventLog(Path(folder), disk=QuickDisk(), segment_bytes=900)
        log.append_all([Event("a", event(f"k{number}", ts_ms=number)) for number in range(1, 10)])
        done = 0
        for count, commits in [*rounds, (20, True)]:
            with Consumer(log, "c") as consumer:
                taken = [one.offset for one in islice(consumer.read(), count)]
                assert taken == list(range(done + 1, min(done + count, 9) + 1))
                if commits:
                    consumer.commit()
                    done += len(taken)
        assert done == 9
        log.close()

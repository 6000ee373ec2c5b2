"""Replication without a network, whatever happens.

Two nodes know where their logs part; a follower ends with its source's log; what was received is in the log.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import orjson
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from karma.core.entries import Body, Lines, Recent, read_entries
from karma.core.epochs import History, diverged_at
from karma.errors import RequestError
from karma.protocol import replies
from karma.replication import feed
from karma.replication.feed import Claims
from karma.replication.follower import Diverged, Follower, Here, Met, Page
from karma.storage import wal
from karma.storage.disk import Disk
from karma.storage.wal import Wal

NOW_MS = 1_795_253_093_000


@pytest.fixture(autouse=True, scope="module")
def no_syncs() -> Iterator[None]:
    """Nothing crashes here: thousands of syncs would only take time."""
    with patch("os.fsync"), patch("os.fdatasync"):
        yield


# -- Histories -------------------------------------------------------------------------------------------


@dataclass
class Node:
    """A node as a model: its log as epoch pairs by LSN, and what it knows of epochs."""

    name: str
    log: list[tuple[int, str]] = field(default_factory=list)
    history: History = field(default_factory=History)
    is_master: bool = False

    def promote(self) -> None:
        self.history = self.history.opened(self.history.current.number + 1, self.name, len(self.log))
        self.is_master = True

    def write(self, count: int) -> None:
        if self.is_master:
            self.log += [self.history.current.pair] * count

    def lose(self, count: int) -> None:
        """Lose the end of the log, as by a power cut without fsync; a master opens an epoch then."""
        if count:
            del self.log[-count:]
        if self.is_master:
            self.promote()

    def follow(self, source: Node, count: int) -> None:
        """Take some entries of a source, if this log is the beginning of its."""
        self.is_master = False
        is_newer = source.history.current.number >= self.history.current.number
        if is_newer and self.log == source.log[: len(self.log)]:
            self.history = source.history
            self.log += source.log[len(self.log) :][:count]


def parting(mine: Sequence[object], theirs: Sequence[object]) -> int | None:
    """Return the first LSN at which my log is not the beginning of theirs, as far as both go."""
    return next(
        (lsn for lsn, (one, other) in enumerate(zip(mine, theirs, strict=False), 1) if one != other), None
    )


def take(nodes: Sequence[Node], what: str, which: int, count: int) -> None:
    """Take a step with one of two nodes."""
    node, other = nodes[which], nodes[1 - which]
    match what:
        case "write":
            node.write(count)
        case "promote":
            node.promote()
        case "lose":
            node.lose(count)
        case "follow":
            node.follow(other, count)


STEP = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 1), st.integers(1, 5)),
    st.tuples(st.just("promote"), st.integers(0, 1), st.just(0)),
    st.tuples(st.just("lose"), st.integers(0, 1), st.integers(0, 4)),
    st.tuples(st.just("follow"), st.integers(0, 1), st.integers(0, 8)),
)


@settings(max_examples=600, deadline=None)
@given(steps=st.lists(STEP, max_size=25))
def test_two_histories_tell_where_the_logs_differ(steps: list[tuple[str, int, int]]) -> None:
    nodes = [Node("a"), Node("b")]
    nodes[0].promote()
    nodes[1].history = nodes[0].history
    for what, which, count in steps:
        take(nodes, what, which, count)
        for node in nodes:
            # What a node knows of epochs is what its log is made of.
            assert node.log == [node.history.at(lsn).pair for lsn in range(1, len(node.log) + 1)]
            assert History.from_json(node.history.to_json()) == node.history
        for mine, theirs in (nodes, nodes[::-1]):
            found = diverged_at(mine.history, theirs.history, len(mine.log))
            real = parting(mine.log, theirs.log)
            if real is not None:
                assert found == real
            elif found is not None:
                # No entry differs yet, but one that theirs would write there could.
                assert len(theirs.log) < found <= len(mine.log)


@settings(max_examples=300, deadline=None)
@given(steps=st.lists(STEP, max_size=25))
def test_the_source_refuses_who_has_another_branch(steps: list[tuple[str, int, int]]) -> None:
    """`check_history` sees one epoch of its follower only, and lets nobody go on with other entries."""
    source, sender = Node("a"), Node("b")
    source.promote()
    sender.history = source.history
    nodes = [source, sender]
    for what, which, count in steps:
        take(nodes, what, which, count)
    after = sender.history.at(len(sender.log))
    claims = Claims(after_epoch=after.number, after_epoch_node_id=after.node_id or None)
    real = parting(sender.log, source.log)
    try:
        feed.check_history(
            claims, source.history, len(sender.log), len(source.log), None, is_master=source.is_master
        )
    except RequestError as refusal:
        here = Here("b", None, sender.history, len(sender.log), 0, None, None, is_empty=False)
        found = Follower(1).met(orjson.loads(replies.error(refusal)), here)
        assert isinstance(found, Diverged)
        if real is not None:
            assert found.lsn == real
        else:
            assert len(source.log) < len(sender.log)
    else:
        assert real is None or not source.is_master or sender.log[: len(source.log)] == source.log


# -- Pages -----------------------------------------------------------------------------------------------


ENTRY = st.builds(
    lambda series, value: orjson.dumps({"v": 2, "op": "x", "series": series, "value": value}),
    st.sampled_from(["api", "é", 'quote"', "back\\slash", "line\u2028", "x" * 300]),
    st.integers(0, 2**64 - 1),
)


@settings(max_examples=200, deadline=None)
@given(
    logs=st.lists(st.tuples(ENTRY, st.integers(0, 2**63) | st.none()), min_size=1, max_size=40),
    limits=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3000), st.integers(0, 40)), min_size=1),
    harm=st.none() | st.tuples(st.integers(0, 30), st.integers(0, 7)),
)
def test_a_follower_ends_with_its_source_s_log(
    logs: list[tuple[bytes, int | None]],
    limits: list[tuple[int, int, int]],
    harm: tuple[int, int] | None,
) -> None:
    bodies = [Body(lsn, json, ts_ms) for lsn, (json, ts_ms) in enumerate(logs, 1)]
    history = History().opened(1, "a", 0)
    follower, mine = Follower(100), list[tuple[bytes, int]]()

    def here() -> Here:
        return Here("b", "ours", history, len(mine), len(mine), None, None, is_empty=False)

    about = {"node_id": "a", "cluster_id": "ours", "epochs": history.to_json(), "path": ["a"]}
    greeting = replies.success({**about, "source_lsn": len(bodies)})
    assert isinstance(follower.met(orjson.loads(greeting), here()), Met)
    # All the rest, and once more if that was harmed.
    for number, (limit, max_bytes, ahead) in enumerate([*limits, *[(100, 0, len(bodies))] * 2]):
        found = feed.page(
            bodies[len(mine) :],
            after_lsn=len(mine),
            limit=limit,
            source_lsn=min(len(mine) + ahead, len(bodies)),
            max_response_bytes=max_bytes,
            is_plain=False,
        )
        line = bytearray(replies.success(found | {"epoch": 1, "epoch_node_id": "a"}))
        if harm is not None and harm[0] == number < len(limits):
            # A bit of an entry's text: whatever it does to the reply, no other entry may come of it.
            at = line.find(b'"entry":{')
            assume(at >= 0)
            line[at + 10 + harm[0] % 20] ^= 1 << harm[1]
        try:
            reply = orjson.loads(bytes(line))
        except orjson.JSONDecodeError:
            continue
        page = follower.page(reply, here(), NOW_MS)
        if isinstance(page, Page):
            mine += zip(page.received.bodies, page.received.times_ms, strict=True)
    assert mine == [(json, NOW_MS if ts_ms is None else ts_ms) for _, json, ts_ms in bodies]


# -- The log ---------------------------------------------------------------------------------------------


GROUP = st.tuples(
    st.lists(st.tuples(ENTRY, st.integers(0, 3)), min_size=1, max_size=6),
    st.sampled_from(["append", "receive", "take back", "rotate", "truncate"]),
    st.integers(0, 6),
)


@settings(max_examples=200, deadline=None)
@given(groups=st.lists(GROUP, min_size=1, max_size=12), is_recent=st.booleans())
def test_the_log_holds_what_was_received_and_not_taken_back(
    groups: list[tuple[list[tuple[bytes, int]], str, int]], is_recent: bool
) -> None:
    model: list[tuple[bytes, int]] = []
    with tempfile.TemporaryDirectory() as name:
        log = Wal(Disk(), Path(name), next_lsn=1)
        log.recent = Recent() if is_recent else None
        for entries, what, count in groups:
            bodies, times_ms = [each[0] for each in entries], [each[1] for each in entries]
            if what == "append":
                log.append(bodies, 7)
                model += [(body, 7) for body in bodies]
            else:
                before = log.last_lsn
                log.append_received(bodies, times_ms)
                if what == "take back":
                    log.take_back(before + min(count, len(bodies)))
                    del entries[count:]
                model += entries
            if what in ("rotate", "truncate") and log.active_bytes:
                log.rotate()()
            if what == "truncate":
                log.truncate(log.last_lsn - count, count * 200, [log.last_lsn - count + 1])()
            assert log.last_lsn == len(model)
            assert log.bytes_behind(log.last_lsn) == 0
            assert (
                log.bytes_behind(log.first_lsn - 1)
                == sum(segment.size_bytes for segment in [*log.retained, *log.segments]) + log.active_bytes
            )
        again = Wal(Disk(), Path(name), next_lsn=log.last_lsn + 1)
        for reader in (log, again):
            for after in range(reader.first_lsn - 1, len(model) + 1):
                assert [tuple(body) for body in reader.read(after)] == [
                    (lsn, *model[lsn - 1]) for lsn in range(after + 1, len(model) + 1)
                ]
        log.close()
        again.close()


@settings(max_examples=300, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 60)), min_size=1, max_size=12),
    first_lsn=st.integers(1, 1000),
    bound_bytes=st.integers(0, 500),
)
def test_the_newest_entries_in_memory_are_whole_or_not_there(
    sizes: list[tuple[int, int]], first_lsn: int, bound_bytes: int
) -> None:
    recent, held, lsn = Recent(), dict[int, bytes](), first_lsn - 1
    for count, size in sizes:
        lines = Lines(lsn + 1, count, b"".join(b"%d" % size * size + b"\n" for _ in range(count)))
        for line in lines.data.splitlines(keepends=True):
            lsn += 1
            held[lsn] = line
        with patch("karma.core.entries._RECENT_BYTES", bound_bytes):
            recent.add(lines)
    reached = 0
    for after in range(first_lsn - 1, lsn + 1):
        found = recent.read(after)
        if found is not None:
            reached += 1
            assert b"".join(lines.data for lines in found) == b"".join(
                held[each] for each in range(after + 1, lsn + 1)
            )
            assert sum(lines.entries for lines in found) == lsn - after
        else:
            assert reached == 0, "what is newer is there, too"
    kept = sum(len(held[each]) for each in range(lsn - reached + 2, lsn + 1))
    assert kept <= bound_bytes
    assert recent.read(first_lsn - 2) is None


@settings(max_examples=200, deadline=None)
@given(
    counts=st.lists(st.integers(1, 5), max_size=6),
    after_lsn=st.integers(0, 10),
    limit=st.integers(1, 12),
    unsynced=st.integers(0, 6),
    max_response_bytes=st.sampled_from([0, 1, 2200, 2400, 3000, 100_000]),
)
def test_pages_of_lines_hold_what_pages_of_entries_hold(
    counts: list[int], after_lsn: int, limit: int, unsynced: int, max_response_bytes: int
) -> None:
    groups, bodies, lsn = [], [], after_lsn
    for number, count in enumerate(counts):
        group = [b'{"v":2,"op":"tree.create","series":"%d"}' % (lsn + nth) for nth in range(count)]
        groups.append(Lines(lsn + 1, count, wal.encode_lines(group, lsn + 1, number, lsn)))
        bodies += [Body(lsn + nth, body, number) for nth, body in enumerate(group, 1)]
        lsn += count
    source_lsn = max(lsn - unsynced, after_lsn)
    bounds: Any = {
        "after_lsn": after_lsn,
        "limit": limit,
        "source_lsn": source_lsn,
        "max_response_bytes": max_response_bytes,
    }
    found = orjson.loads(orjson.dumps(feed.page_of_lines(groups, **bounds)))
    received = read_entries(found["entries"], after_lsn, now_ms=0)
    assert list(received.bodies) == [body.json for body in bodies[: found["count"]]]
    assert found["next_lsn"] == after_lsn + found["count"] == received.last_lsn
    assert found["count"] <= min(limit, source_lsn - after_lsn)
    if max_response_bytes:
        assert found["count"] <= 1 or len(orjson.dumps(found)) <= max_response_bytes
    if not found["truncated_by_bytes"]:
        assert found["count"] == min(limit, source_lsn - after_lsn)
    else:
        assert found["count"] >= 1

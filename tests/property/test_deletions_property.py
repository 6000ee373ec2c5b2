"""Deletions that are applied bit by bit against those that are applied at once: nobody can tell them apart.

Two stores get the same entries. One applies every deletion when it settles, as recovery does; the other
leaves all of them to chores, of which a few steps are done now and then, as in a server with large series.
What can be read of both is compared after each entry, with reads and pages that are under way meanwhile.
"""

from __future__ import annotations

from array import array
from typing import Any
from unittest.mock import patch

from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from property.test_store_property import DAYS, entries

from karma.core import buckets, key_view, series
from karma.core.digest import digest
from karma.core.key_view import KeyView
from karma.core.series import Series
from karma.core.store import Store
from karma.errors import RequestError

Contents = dict[str, dict[int, dict[int, int]]]
ALL = (DAYS[0], DAYS[-1])


def lazy_store() -> Store:
    made = Store()
    made.inline_keys = 0
    return made


def contents(of: Store) -> Contents:
    """Return what reads of whole series show, each key once."""
    shown: Contents = {}
    for name, one in of.series.items():
        rows = [
            (key, dict(buckets.items(counter)))
            for keys, counters in one.slices(2)
            for key, counter in zip(keys, counters, strict=True)
        ]
        shown[name] = dict(rows)
        assert len(shown[name]) == len(rows), rows
    return shown


def pages(one: Series, view: KeyView, size: int) -> list[int]:
    """Return the keys of a series as pages show them, those that are gone left out."""
    while view.catch_up(one.keys):
        pass
    listed: list[int] = []
    cursor, is_last = -1, False
    while not is_last:
        keys, is_last = view.above(one.keys, cursor, size)
        assert keys == sorted(set(keys))
        assert not keys or keys[0] > cursor
        cursor = keys[-1] if keys else cursor
        listed += [key for key in keys if one.find(key, -1) != -1]
    return listed


class LazyAndEager(RuleBasedStateMachine):
    """Both stores, and reads that are under way."""

    def __init__(self) -> None:
        super().__init__()
        self.eager, self.lazy = Store(), lazy_store()
        self.now = 0
        self.views: dict[Series, KeyView] = {}

    @initialize(keys=st.integers(0, 9))
    def begin(self, keys: int) -> None:
        items = [[key, DAYS[key % len(DAYS)], 1 + key % 3] for key in range(keys)]
        self._apply({"op": "series.batch_add", "series": "a", "items": items})
        self.eager.settle()
        self.lazy.settle()

    def _apply(self, made: dict[str, Any]) -> bool:
        self.now += 1
        outcomes = []
        for each in (self.eager, self.lazy):
            try:
                outcomes.append(each.apply(made, self.now))
            except RequestError as refusal:
                outcomes.append((refusal.code, refusal.message))
        assert outcomes[0] == outcomes[1], made
        return not isinstance(outcomes[0], tuple)

    @rule(made=entries, is_written=st.booleans())
    def write(self, made: dict[str, Any], is_written: bool) -> None:
        """Make a change that the log takes, or refuses: then all of it must be as it was."""
        before = contents(self.lazy)
        self._apply(made)
        for each in (self.eager, self.lazy):
            if is_written:
                each.settle()
            else:
                each.roll_back()
        if not is_written:
            assert contents(self.lazy) == before

    @rule(several=st.lists(entries, min_size=2, max_size=5), is_written=st.booleans())
    def write_a_group(self, several: list[dict[str, Any]], is_written: bool) -> None:
        """Changes of one pass; one that concerns a whole series ends its group, as in the server."""
        before = contents(self.lazy)
        for made in several:
            self._apply(made)
            assert self.eager.must_settle == self.lazy.must_settle
            if self.lazy.must_settle:
                break
        for each in (self.eager, self.lazy):
            if is_written:
                each.settle()
            else:
                each.roll_back()
        if not is_written:
            assert contents(self.lazy) == before

    @rule(steps=st.integers(1, 4))
    def do_chores(self, steps: int) -> None:
        for _ in range(steps):
            if self.lazy.chores:
                self.lazy.do_chore()

    @rule(name=st.sampled_from(["a", "b"]), size=st.integers(1, 3))
    def page(self, name: str, size: int) -> None:
        assume(name in self.lazy.series)
        one = self.lazy.series[name]
        assert pages(one, self.lazy.view_of(one), size) == sorted(contents(self.eager)[name])

    @rule(name=st.sampled_from(["a", "b"]), size=st.integers(1, 3), data=st.data())
    def read_while_chores_go_on(self, name: str, size: int, data: st.DataObject) -> None:
        """A read in slices, none of which sees what a sweep has not come to, or twice what it moved."""
        assume(name in self.lazy.series)
        rows: list[int] = []
        for keys, _ in self.lazy.series[name].slices(size):
            rows += keys
            self.do_chores(data.draw(st.integers(0, 3)))
        assert sorted(rows) == sorted(contents(self.eager)[name])

    @invariant()
    def nothing_differs(self) -> None:
        expected = contents(self.eager)
        assert contents(self.lazy) == expected
        assert list(self.lazy.series) == list(self.eager.series)
        for name, counters in expected.items():
            find = self.lazy.series[name].find
            for key in range(10):
                assert dict(buckets.items(find(key, 0))) == counters.get(key, {})
                assert (find(key, -1) == -1) == (key not in counters)

    def teardown(self) -> None:
        while self.lazy.chores:
            self.lazy.do_chore()
        for name, one in self.lazy.series.items():
            assert one.pending == ()
            assert one.keys == array("Q", one.counters)
            assert one.counters == self.eager.series[name].counters
        assert digest(self.lazy, ()) == digest(self.eager, ())


def test_nobody_can_tell_how_far_a_deletion_is_applied() -> None:
    with (
        patch.object(series, "CHORE_KEYS", 2),
        patch.object(key_view, "RUN_KEYS", 3),
        patch.object(series, "REBUILT_KEYS", 3),
    ):
        run_state_machine_as_test(
            LazyAndEager, settings=settings(max_examples=150, stateful_step_count=30, deadline=None)
        )


def test_a_digest_sees_pending_deletions() -> None:
    lazy, eager = lazy_store(), Store()
    for each in (lazy, eager):
        for key in range(10):
            each.increment("a", key, DAYS[key % 2], 1)
        each.settle()
        each.apply({"op": "series.delete_before", "series": "a", "before": DAYS[1]}, 0)
        each.settle()
    assert lazy.series["a"].pending
    assert digest(lazy, ()) == digest(eager, ())


def test_a_write_that_is_taken_back_leaves_its_key_as_deletions_found_it() -> None:
    """The second deletion empties the key, and the first would remove it: both once more are wrong."""
    lazy = lazy_store()
    for each in (
        {"op": "series.batch_add", "series": "a", "items": [[1, DAYS[0], 1]]},
        {"op": "series.compact", "series": "a"},
        {"op": "tree.delete_range", "series": "a", "range": {"from": DAYS[0], "to": DAYS[0]}},
    ):
        lazy.apply(each, 0)
        lazy.settle()
    for _ in range(2):
        lazy.increment("a", 1, DAYS[0], 5)
        lazy.roll_back()
        assert contents(lazy) == {"a": {1: {}}}
    lazy.sweep()
    assert contents(lazy) == {"a": {1: {}}}

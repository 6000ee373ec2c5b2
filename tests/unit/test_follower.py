"""A follower without a network: what it asks, and what it makes of every answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest

from karma.core.entries import Body, comparable_crc, entry_crc
from karma.core.epochs import Epoch, History
from karma.errors import RequestError
from karma.protocol import replies
from karma.replication import feed
from karma.replication.feed import Claims
from karma.replication.follower import (
    FIRST_DELAY_MS,
    LAST_DELAY_MS,
    Diverged,
    Follower,
    Here,
    Met,
    MustBootstrap,
    Page,
    Refused,
    Retry,
)

NOW_MS = 1_795_253_093_000
HISTORY = History((Epoch(1, "a", 1), Epoch(2, "b", 11)))
HERE = Here("me", "ours", HISTORY, 20, 18, "00c0ffee", 8080, is_empty=False)
EMPTY = Here("me", None, History(), 0, 0, None, None, is_empty=True)


def success(**response: Any) -> dict[str, Any]:
    return {"protocol_version": 2, "success": True, "response": response, "error_code": None}


def failure(code: str, message: str = "no", **detail: Any) -> dict[str, Any]:
    more = {"error_detail": detail} if detail else {}
    return {
        "protocol_version": 2,
        "success": False,
        "response": message,
        "error_code": code,
        **more,
    }


def greeting(**more: Any) -> dict[str, Any]:
    """Return the reply to a handshake of a master of ours."""
    given = {
        "source_lsn": 30,
        "node_id": "b",
        "cluster_id": "ours",
        "epochs": HISTORY.to_json(),
        "path": ["b"],
        "master": "10.0.0.1:8080",
    }
    return success(**given | more)


def entry(lsn: int, ts: int | None = NOW_MS) -> dict[str, Any]:
    written = {"v": 2, "op": "tree.create", "series": f"s{lsn}"}
    return {
        "lsn": lsn,
        "entry": written,
        "ts": ts,
        "crc": f"{entry_crc(lsn, ts, orjson.dumps(written)):08x}",
    }


def page(*entries: dict[str, Any], **more: Any) -> dict[str, Any]:
    given = {"source_lsn": 30, "epoch": 2, "epoch_node_id": "b", "entries": list(entries)}
    return success(**given | more)


@pytest.fixture
def follower() -> Follower:
    """A follower that has met its source."""
    found = Follower(100)
    assert isinstance(found.met(greeting(), HERE), Met)
    return found


# -- Asking ----------------------------------------------------------------------------------------------


def test_a_handshake_tells_what_this_node_has() -> None:
    follower = Follower(100)
    request = follower.handshake(HERE)
    assert request == {
        "op": "replication.entries",
        "after_lsn": 20,
        "acked_lsn": 18,
        "limit": 1,
        "handshake": True,
        "node_id": "me",
        "cluster_id": "ours",
        "epoch": 2,
        "epoch_node_id": "b",
        "after_epoch": 2,
        "after_epoch_node_id": "b",
        "after_crc": "00c0ffee",
        "port": 8080,
    }
    assert follower.state == "connecting"
    # The last entry may be of an older epoch than the newest that is known.
    assert follower.handshake(replace(HERE, last_lsn=10))["after_epoch"] == 1


def test_an_empty_node_claims_no_cluster_and_no_epoch() -> None:
    request = Follower(100).handshake(replace(HERE, is_empty=True))
    assert not {"cluster_id", "epoch", "epoch_node_id"} & request.keys()
    assert Follower(100).handshake(EMPTY)["after_epoch"] == 0


def test_each_further_request_acknowledges_and_lets_the_reply_wait(follower: Follower) -> None:
    follower.checkpoint_position = ("boot", 7)
    request = follower.next(HERE)
    assert (request["after_lsn"], request["acked_lsn"], request["limit"]) == (20, 18, 100)
    assert (request["epoch"], request["epoch_node_id"]) == (2, "b")
    assert request["wait_ms"] > 0
    assert list(request["checkpoint_position"]) == ["boot", 7]


def test_a_karma_1_0_is_asked_in_its_own_words() -> None:
    follower = Follower(100)
    assert isinstance(follower.met(success(source_lsn=5), EMPTY), Met)
    assert follower.next(EMPTY) == {"op": "replication.entries", "after_lsn": 0, "limit": 100}


# -- The handshake ---------------------------------------------------------------------------------------


def test_a_source_that_goes_on_where_this_node_ends_is_followed() -> None:
    follower = Follower(100)
    assert follower.met(greeting(path=["a", "b"]), HERE) == Met("ours", HISTORY, ("a", "b"))
    assert (follower.source_lsn, follower.master, follower.path) == (30, "10.0.0.1:8080", ("a", "b"))
    assert follower.is_original is False


@pytest.mark.parametrize(
    ("reply", "word"),
    [
        pytest.param(None, "no Karma", id="garbage"),
        pytest.param([], "no Karma", id="an array"),
        pytest.param({}, "no Karma", id="an empty object"),
        pytest.param({"protocol_version": 1, "success": True}, "no Karma", id="another protocol"),
        pytest.param({"protocol_version": 2}, "no Karma", id="no outcome"),
        pytest.param(success() | {"response": "pong"}, "protocol", id="a text"),
        pytest.param(success(), "source_lsn", id="no source_lsn"),
        pytest.param(greeting(source_lsn="30"), "source_lsn", id="a text for source_lsn"),
        pytest.param(greeting(source_lsn=True), "source_lsn", id="a truth for source_lsn"),
        pytest.param(greeting(epochs=None), "version", id="no epochs"),
        pytest.param(greeting(epochs=[{"epoch": 1}]), "version", id="half an epoch"),
        pytest.param(greeting(path=None), "version", id="no path"),
        pytest.param(greeting(cluster_id=7), "version", id="a number for a cluster"),
        pytest.param(greeting(master=["x"]), "version", id="an array for the master"),
        pytest.param(greeting(node_id="me", path=["me"]), "itself", id="this node"),
        pytest.param(greeting(path=["a", "me", "b"]), "follows this node", id="an own follower"),
        pytest.param(failure("unauthorized"), "token", id="a wrong token"),
        pytest.param(failure("forbidden"), "refuses", id="protected mode"),
        pytest.param(failure("unknown_command"), "refuses", id="an unknown operation"),
        pytest.param(failure("unsupported_protocol"), "refuses", id="another protocol's refusal"),
        pytest.param(failure("replication_error", reason="cluster"), "refuses", id="another cluster"),
        pytest.param(failure("replication_error", reason="stale"), "refuses", id="a master left behind"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_the_reason(reply: Any, word: str) -> None:
    verdict = Follower(100).met(reply, HERE)
    assert isinstance(verdict, Refused)
    assert word in verdict.reason


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(failure("overloaded"), id="overloaded"),
        pytest.param(failure("replication_error"), id="a log that cannot be read now"),
        pytest.param(failure("replication_error", reason=["odd"]), id="an odd reason"),
        pytest.param(failure("internal_error") | {"error_detail": "odd"}, id="an odd detail"),
        pytest.param(greeting(epochs=HISTORY.to_json()[:1]), id="behind in epochs"),
    ],
)
def test_what_may_pass_is_tried_again(reply: Any) -> None:
    assert isinstance(Follower(100).met(reply, HERE), Retry)


def test_an_empty_node_joins_whatever_the_epoch() -> None:
    here = replace(HERE, history=History((Epoch(9, "x", 1),)), last_lsn=0, is_empty=True)
    assert isinstance(Follower(100).met(greeting(), here), Met)


def test_a_source_with_other_entries_is_not_followed() -> None:
    other = History((Epoch(1, "a", 1), Epoch(2, "c", 16)))
    verdict = Follower(100).met(greeting(epochs=other.to_json()), HERE)
    assert isinstance(verdict, Diverged)
    assert verdict.lsn == 11
    # The source sees one epoch of this node only; both histories together tell the exact place.
    with pytest.raises(RequestError) as refusal:
        feed.check_history(
            Claims(after_epoch=2, after_epoch_node_id="b"), other, 20, 30, None, is_master=True
        )
    verdict = Follower(100).met(orjson.loads(replies.error(refusal.value)), HERE)
    assert isinstance(verdict, Diverged)
    assert verdict.lsn == 11


def test_a_divergence_that_epochs_do_not_tell_is_where_the_source_says() -> None:
    for detail in ({"epochs": HISTORY.to_json()}, {"epochs": "odd"}, {}):
        reply = failure("replication_error", reason="diverged", diverged_at_lsn=15, **detail)
        verdict = Follower(100).met(reply, HERE)
        assert isinstance(verdict, Diverged)
        assert verdict.lsn == 15


def test_a_gap_means_to_bootstrap() -> None:
    assert isinstance(Follower(100).met(failure("replication_gap", reason="gap"), HERE), MustBootstrap)
    assert isinstance(Follower(100).met(failure("replication_gap"), EMPTY), MustBootstrap)


# -- Karma 1.0 as source -----------------------------------------------------------------------------------


OLD = replace(HERE, history=History())


def test_a_karma_1_0_is_followed_from_where_its_entries_end() -> None:
    follower = Follower(100)
    assert follower.met(success(source_lsn=25), OLD) == Met(None, History(), ())
    assert follower.is_original is True
    assert isinstance(follower.page(page(entry(21, None)), OLD, NOW_MS), Page)
    assert follower.state == "polling"


def test_a_karma_1_0_that_is_behind_has_lost_entries() -> None:
    follower = Follower(100)
    verdict = follower.met(success(source_lsn=19), OLD)
    assert isinstance(verdict, Diverged)
    assert verdict.lsn == 20
    follower.met(success(source_lsn=20), OLD)
    assert isinstance(follower.page(success(source_lsn=19, entries=[]), OLD, NOW_MS), Diverged)


def test_a_karma_1_0_cannot_be_followed_with_entries_of_an_epoch() -> None:
    verdict = Follower(100).met(success(source_lsn=30), HERE)
    assert isinstance(verdict, Diverged)
    assert verdict.lsn == 1
    # Nor does a gap there make it one to bootstrap from: its refusals tell nothing of their sender.
    verdict = Follower(100).met(failure("replication_gap"), HERE)
    assert isinstance(verdict, Diverged)


# -- Pages -----------------------------------------------------------------------------------------------


def test_a_page_s_entries_are_taken_as_they_are(follower: Follower) -> None:
    found = follower.page(page(entry(21), entry(22), lag_bytes=700), HERE, NOW_MS + 50)
    assert isinstance(found, Page)
    received = found.received
    assert (received.first_lsn, received.last_lsn, found.is_full) == (21, 22, True)
    assert list(received.times_ms) == [NOW_MS, NOW_MS]
    assert received.bodies[1] == orjson.dumps(entry(22)["entry"])
    assert found.last_crc == comparable_crc(2, Body(22, received.bodies[1], NOW_MS))
    assert (follower.state, follower.lag_bytes) == ("following", 700)
    assert follower.caught_up_ms is None
    found = follower.page(page(entry(21), source_lsn=21), HERE, NOW_MS + 50)
    assert isinstance(found, Page)
    assert not found.is_full
    assert follower.caught_up_ms == NOW_MS + 50


def test_an_empty_page_is_a_sign_of_life(follower: Follower) -> None:
    follower.failures, follower.reason = 7, "it was away"
    found = follower.page(page(source_lsn=20), HERE, NOW_MS)
    assert isinstance(found, Page)
    assert (found.received.last_lsn, found.last_crc, found.is_full) == (20, None, False)
    assert follower.failures == 0
    assert not follower.reason


ODD_PAGES: dict[str, Callable[[], dict[str, Any]]] = {
    "an entry left out": lambda: page(entry(22)),
    "an entry twice": lambda: page(entry(21), entry(21)),
    "no lsn": lambda: page({"entry": {"op": "x"}}),
    "no entry": lambda: page({"lsn": 21}),
    "a text for an entry": lambda: page(entry(21) | {"entry": "x"}),
    "no op": lambda: page({"lsn": 21, "entry": {"v": 2}}),
    "a number for an op": lambda: page({"lsn": 21, "entry": {"op": 7}}),
    "a number instead of an entry": lambda: page(entry(21)) | {"response": {"entries": [7]}},
    "no entries": lambda: success(source_lsn=30, epoch=2, epoch_node_id="b"),
    "a number for entries": lambda: page(entries=7),
    "texts for entries": lambda: page(entries=["x"]),
    "a text for source_lsn": lambda: page(source_lsn="x"),
    "no epoch": lambda: success(source_lsn=30, entries=[]),
    "another checksum": lambda: page(entry(21) | {"crc": "00000000"}),
    "a number for a checksum": lambda: page(entry(21) | {"crc": 7}),
    "a changed entry": lambda: page(entry(21) | {"entry": entry(22)["entry"]}),
    "a changed time": lambda: page(entry(21) | {"ts": NOW_MS + 1}),
    # Not refused, these would be written as lines that nobody can read again.
    "a time before all times": lambda: page({"lsn": 21, "entry": {"op": "x"}, "ts": -1}),
    "a text for a time": lambda: page({"lsn": 21, "entry": {"op": "x"}, "ts": "1"}),
    "a fraction for a time": lambda: page({"lsn": 21, "entry": {"op": "x"}, "ts": 1.5}),
    "a truth for a time": lambda: page({"lsn": 21, "entry": {"op": "x"}, "ts": True}),
    "a checkpoint without a source": lambda: page(checkpoints=[{"offset": 1, "event_id": 1}]),
    "a text for a checkpoint": lambda: page(checkpoints=["x"]),
    "a number for a checkpoint's source": lambda: page(
        checkpoints=[{"source": 7, "offset": 1, "event_id": None, "updated_at_unix": 1}]
    ),
    "an object for an offset": lambda: page(
        checkpoints=[{"source": "x", "offset": {}, "event_id": None, "updated_at_unix": 1}]
    ),
    "half a position": lambda: page(checkpoints=[], checkpoint_position=["boot"]),
    "a number for a position": lambda: page(checkpoints=[], checkpoint_position=7),
    "a text for lag": lambda: page(lag_bytes="x"),
}


@pytest.mark.parametrize("name", ODD_PAGES)
def test_a_page_that_is_not_whole_is_not_taken(follower: Follower, name: str) -> None:
    before = follower.state
    assert isinstance(follower.page(ODD_PAGES[name](), HERE, NOW_MS), Retry)
    assert follower.state == before
    assert follower.checkpoint_position == ("", 0)


@pytest.mark.parametrize("more", [{"epoch": 3}, {"epoch_node_id": "c"}, {"epoch": 3, "epoch_node_id": "c"}])
def test_another_epoch_needs_another_handshake(follower: Follower, more: dict[str, Any]) -> None:
    assert isinstance(follower.page(page(entry(21), **more), HERE, NOW_MS), Retry)


def test_checkpoints_count_as_had_once_they_are_durable(follower: Follower) -> None:
    found = follower.page(
        page(
            checkpoints=[{"source": "p", "offset": "7", "event_id": None, "updated_at_unix": 5, "odd": 1}],
            checkpoint_position=["boot", 3],
        ),
        HERE,
        NOW_MS,
    )
    assert isinstance(found, Page)
    assert found.checkpoints == [{"source": "p", "offset": "7", "event_id": None, "updated_at_unix": 5}]
    assert found.checkpoint_position == ("boot", 3)
    assert follower.checkpoint_position == ("", 0)


def test_an_entry_without_a_time_gets_this_node_s(follower: Follower) -> None:
    found = follower.page(page({"lsn": 21, "entry": {"op": "x"}}), HERE, NOW_MS + 7)
    assert isinstance(found, Page)
    assert found.received.times_ms == [NOW_MS + 7]


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (None, Refused),
        (failure("replication_gap", reason="gap"), MustBootstrap),
        (failure("replication_error", reason="diverged", diverged_at_lsn=4), Diverged),
        (failure("unauthorized"), Refused),
        (failure("overloaded"), Retry),
    ],
)
def test_an_error_instead_of_a_page_means_what_it_means_at_first(
    follower: Follower, reply: Any, kind: type
) -> None:
    assert isinstance(follower.page(reply, HERE, NOW_MS), kind)


# -- Waiting and lag -----------------------------------------------------------------------------------------


def test_delays_double_up_to_a_bound_and_are_spread() -> None:
    follower = Follower(100)
    delays = [follower.delay_ms(1.0) for _ in range(30)]
    assert delays[:3] == [FIRST_DELAY_MS, 2 * FIRST_DELAY_MS, 4 * FIRST_DELAY_MS]
    assert delays == sorted(delays)
    assert set(delays[10:]) == {LAST_DELAY_MS}
    assert follower.delay_ms(0.0) == LAST_DELAY_MS // 2


def test_lag_grows_from_the_moment_this_node_had_everything(follower: Follower) -> None:
    assert follower.lag_ms(20, NOW_MS) == 0
    # The wall clock is for entries without a time; the lag is by the other.
    follower.page(page(entry(21), source_lsn=21), HERE, NOW_MS + 86_400_000, NOW_MS)
    assert follower.lag_ms(21, NOW_MS + 500) == 0
    assert follower.lag_ms(20, NOW_MS + 500) == 500
    follower.state = "connecting"
    assert follower.lag_ms(21, NOW_MS + 900) == 900
    # A clock that was set back makes no lag negative.
    assert follower.lag_ms(20, NOW_MS - 900) == 0

"""The source side without a network: who may have entries, and what a page holds."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from karma.core.entries import Body, comparable_crc, entry_crc, read_entries
from karma.core.epochs import Epoch, History
from karma.errors import ErrorCode, RequestError
from karma.limits import RESPONSE_ENVELOPE_BYTES
from karma.replication import feed
from karma.replication.feed import Claims

HISTORY = History((Epoch(1, "a", 1), Epoch(2, "b", 11)))
NOW_MS = 1_795_253_093_000


def body(lsn: int, ts_ms: int | None = NOW_MS) -> Body:
    return Body(lsn, orjson.dumps({"v": 2, "op": "tree.create", "series": f"s{lsn}"}), ts_ms)


def refused(check: Any, *arguments: Any, **more: Any) -> dict[str, Any]:
    """Return what a refusal says beside its message."""
    with pytest.raises(RequestError) as refusal:
        check(*arguments, **more)
    assert refusal.value.code in (ErrorCode.REPLICATION_ERROR, ErrorCode.REPLICATION_GAP)
    return dict(refusal.value.detail or {})


def check(claims: Claims, after_lsn: int, found: Body | None = None, **more: Any) -> None:
    given: dict[str, Any] = {"source_lsn": 20, "is_master": True, "history": HISTORY} | more
    feed.check_history(
        claims,
        given["history"],
        after_lsn,
        given["source_lsn"],
        found,
        is_master=given["is_master"],
    )


# -- Who may have entries --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claims", "after_lsn"),
    [
        pytest.param(Claims(), 99, id="who says nothing of itself"),
        pytest.param(Claims(after_epoch=0), 0, id="an empty log"),
        pytest.param(Claims(after_epoch=1, after_epoch_node_id="a"), 10, id="the end of an epoch"),
        pytest.param(Claims(after_epoch=2, after_epoch_node_id="b"), 11, id="the start of one"),
        pytest.param(Claims(after_epoch=2, after_epoch_node_id="b"), 20, id="the log's end"),
        pytest.param(Claims(after_epoch=2), 20, id="without the epoch's node"),
    ],
)
def test_who_has_the_beginning_of_this_log_may_go_on(claims: Claims, after_lsn: int) -> None:
    check(claims, after_lsn)


@pytest.mark.parametrize(
    ("claims", "after_lsn", "diverged_at_lsn"),
    [
        pytest.param(Claims(after_epoch=1, after_epoch_node_id="a"), 11, 11, id="an old master"),
        pytest.param(Claims(after_epoch=1, after_epoch_node_id="a"), 99, 11, id="an old master far ahead"),
        pytest.param(Claims(after_epoch=2, after_epoch_node_id="c"), 15, 11, id="another promotion"),
        pytest.param(Claims(after_epoch=3, after_epoch_node_id="c"), 15, 11, id="a later promotion"),
        pytest.param(Claims(after_epoch=1, after_epoch_node_id="x"), 5, 1, id="strangers"),
        pytest.param(Claims(after_epoch=0), 5, 1, id="Karma 1.0's entries"),
        pytest.param(Claims(after_epoch=2, after_epoch_node_id="b"), 21, 21, id="ahead of a master"),
    ],
)
def test_who_has_other_entries_is_told_from_where_on(
    claims: Claims, after_lsn: int, diverged_at_lsn: int
) -> None:
    detail = refused(check, claims, after_lsn)
    assert (detail["reason"], detail["diverged_at_lsn"]) == ("diverged", diverged_at_lsn)
    assert detail["epochs"] == HISTORY.to_json()


def test_a_slave_may_be_asked_by_somebody_who_is_ahead_of_it() -> None:
    check(Claims(after_epoch=2, after_epoch_node_id="b"), 30, is_master=False)


def test_another_entry_at_the_same_lsn_is_found_by_its_checksum() -> None:
    def claims(entry: Body) -> Claims:
        return Claims(after_epoch=2, after_epoch_node_id="b", after_crc=comparable_crc(2, entry))

    check(claims(body(20)), 20, body(20))
    check(claims(body(19)), 20, None)
    for other in (Body(20, body(19).json, NOW_MS), body(20, NOW_MS + 1)):
        assert refused(check, claims(other), 20, body(20))["diverged_at_lsn"] == 20


def test_entries_of_karma_1_0_are_compared_without_the_times_that_each_node_gave_them() -> None:
    upgraded = History((Epoch(1, "a", 21),))

    def claims(entry: Body, epoch: int = 0) -> Claims:
        return Claims(after_epoch=epoch, after_crc=comparable_crc(epoch, entry))

    for here, there in ((NOW_MS, NOW_MS + 5), (None, NOW_MS), (NOW_MS, None)):
        check(claims(body(20, there)), 20, body(20, here), history=upgraded)
    other = claims(Body(20, body(19).json, NOW_MS))
    assert refused(check, other, 20, body(20, None), history=upgraded)["diverged_at_lsn"] == 20
    # It may have written on in the directory of a master of ours, within its epoch.
    check(claims(body(20), 2), 20, body(20, None))


def test_a_follower_of_another_cluster_is_refused_and_one_without_any_is_not() -> None:
    feed.check_cluster(Claims(), "ours")
    feed.check_cluster(Claims(cluster_id="ours"), "ours")
    assert refused(feed.check_cluster, Claims(cluster_id="theirs"), "ours")["reason"] == "cluster"


@pytest.mark.parametrize(
    ("after_lsn", "is_there"), [(3, False), (4, False), (5, True), (20, True), (99, True)]
)
def test_a_gap_is_refused(after_lsn: int, is_there: bool) -> None:
    if is_there:
        feed.check_available(after_lsn, 6, 20)
    else:
        refused(feed.check_available, after_lsn, 6, 20)


def test_an_empty_log_behind_a_snapshot_has_a_gap_before_its_end_only() -> None:
    feed.check_available(20, 21, 20)
    refused(feed.check_available, 19, 21, 20)
    feed.check_available(0, 1, 0)


# -- Pages -----------------------------------------------------------------------------------------------


def page(bodies: list[Body], **more: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"after_lsn": 0, "limit": 100, "source_lsn": 100, "max_response_bytes": 0}
    given |= {"is_plain": False} | more
    found: dict[str, Any] = orjson.loads(orjson.dumps(feed.page(bodies, **given)))
    return found


def test_a_page_holds_what_is_durable_up_to_its_limit() -> None:
    bodies = [body(lsn) for lsn in range(1, 11)]
    assert page(bodies)["count"] == 10
    assert [entry["lsn"] for entry in page(bodies, limit=3)["entries"]] == [1, 2, 3]
    short = page(bodies, source_lsn=4)
    assert (short["count"], short["next_lsn"], short["source_lsn"]) == (4, 4, 4)
    assert page([], after_lsn=7)["next_lsn"] == 7


def test_a_page_is_what_a_follower_reads_from_it() -> None:
    bodies = [body(1), body(2, None), body(3)]
    received = read_entries(page(bodies)["entries"], 0, NOW_MS + 9)
    assert list(received.bodies) == [each.json for each in bodies]
    assert list(received.times_ms) == [NOW_MS, NOW_MS + 9, NOW_MS]
    assert received.last_lsn == 3
    plain = page(bodies, is_plain=True)["entries"]
    assert all(entry.keys() == {"lsn", "entry"} for entry in plain)
    assert page(bodies)["entries"][0]["crc"] == f"{entry_crc(1, NOW_MS, bodies[0].json):08x}"


@pytest.mark.parametrize("spare_bytes", [-5000, -1, 0, 1, 150, 400])
def test_a_page_ends_before_it_is_too_large_but_holds_one_entry(spare_bytes: int) -> None:
    bodies = [body(lsn) for lsn in range(1, 11)]
    found = page(bodies, max_response_bytes=max(RESPONSE_ENVELOPE_BYTES + spare_bytes, 1))
    assert 1 <= found["count"] <= 4
    assert found["truncated_by_bytes"] is True
    assert found["entries_bytes"] <= max(spare_bytes, 110)

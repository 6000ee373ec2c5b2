"""Log entries applied again: what a follower or a start keeps of them."""

from __future__ import annotations

from karma.core.idempotency import Records
from karma.core.replay import Replay
from karma.core.store import Store

DAY = 20260505


def test_a_follower_forgets_retries_when_its_master_does() -> None:
    store = Store(Records(max_records=2, max_age_seconds=100))
    replay = Replay(store)
    for lsn, now_unix in ((1, 1_000), (2, 1_010), (3, 1_020), (4, 1_115)):
        entry = {
            "op": "counter.increment",
            "series": "a",
            "key": 1,
            "bucket": DAY,
            "value": 1,
            "idempotency_key": f"k{lsn}",
            "idempotency_created_at_unix": now_unix,
        }
        assert replay.apply(lsn, entry, now_unix) is None
        # Never more than two, and the second is too old when the fourth comes.
        assert [key for key, _ in store.records.items()] == {
            1: ["k1"],
            2: ["k1", "k2"],
            3: ["k2", "k3"],
            4: ["k3", "k4"],
        }[lsn]

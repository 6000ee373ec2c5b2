"""The source side of replication: what a follower may have, and pages of log entries. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from karma.core.entries import Body, Lines, comparable_crc, entry_crc
from karma.core.epochs import History
from karma.errors import ErrorCode, RequestError
from karma.limits import RESPONSE_ENVELOPE_BYTES


@dataclass(frozen=True, slots=True)
class Claims:
    """What a request for entries says of its sender; None where it says nothing."""

    node_id: str | None = None
    cluster_id: str | None = None
    epoch: int | None = None
    epoch_node_id: str | None = None
    """The node that opened `epoch`."""
    after_epoch: int | None = None
    """The epoch in which the sender's last entry was written."""
    after_epoch_node_id: str | None = None
    after_crc: str | None = None
    port: int | None = None
    """Where the sender itself listens."""
    is_leaving: bool = False
    """Whether the sender follows another node from now on."""


def check_available(after_lsn: int, first_lsn: int, last_lsn: int) -> None:
    """Raise RequestError (replication_gap) when entries behind `after_lsn` are gone."""
    if after_lsn < last_lsn and after_lsn + 1 < first_lsn:
        raise RequestError(
            ErrorCode.REPLICATION_GAP,
            f"Entries after LSN {after_lsn} are gone, the log starts at LSN {first_lsn}; "
            "bootstrap from a snapshot, then continue behind its LSN",
            {"reason": "gap", "first_lsn": first_lsn},
        )


def check_cluster(claims: Claims, cluster_id: str | None) -> None:
    """Raise RequestError (replication_error) for a sender of another cluster."""
    if claims.cluster_id is not None and claims.cluster_id != cluster_id:
        raise RequestError(
            ErrorCode.REPLICATION_ERROR,
            f"This node belongs to cluster {cluster_id}, not to {claims.cluster_id}: the address is wrong, "
            "or the follower must start from an empty directory to join",
            {"reason": "cluster", "cluster_id": cluster_id},
        )


def check_history(
    claims: Claims, history: History, after_lsn: int, source_lsn: int, found: Body | None, *, is_master: bool
) -> None:
    """Raise RequestError (replication_error) when the sender's entries up to `after_lsn` are not this log's.

    `found` is the entry at `after_lsn` here, None when it is not at hand.
    """
    if claims.after_epoch is None:
        return
    here = history.at(after_lsn)
    there = (claims.after_epoch, claims.after_epoch_node_id or "")
    is_same = claims.after_epoch == here.number and claims.after_epoch_node_id in (None, here.node_id)
    if not is_same:
        known = [epoch for epoch in history.epochs if epoch.pair == there]
        later = [epoch for epoch in history.epochs if epoch.number > claims.after_epoch]
        # The sender's epoch ended here where the next one begins; an unknown one began at the latest there.
        point = later[0].start_lsn if later and known else min(here.start_lsn or after_lsn, after_lsn)
        raise _diverged(point, history, f"the follower's entry {after_lsn} is of epoch {_spell(there)}")
    if found is not None and found.ts_ms is None and here.number:
        # Karma 1.0 wrote in the middle of an epoch: its entry has no time here, but one there.
        found = None
    if found is not None and claims.after_crc not in (None, comparable_crc(here.number, found)):
        raise _diverged(
            after_lsn, history, f"entry {after_lsn} is another one there (crc {claims.after_crc})"
        )
    if is_master and after_lsn > source_lsn:
        raise _diverged(source_lsn + 1, history, f"the follower is ahead, at LSN {after_lsn}")


def _spell(pair: tuple[int, str]) -> str:
    return f"{pair[0]} of {pair[1] or 'nobody known'}"


def _diverged(lsn: int, history: History, why: str) -> RequestError:
    return RequestError(
        ErrorCode.REPLICATION_ERROR,
        f"The histories have diverged (diverged_at_lsn {lsn}): {why}. The follower must be rebuilt",
        {"reason": "diverged", "diverged_at_lsn": lsn, "epochs": history.to_json()},
    )


def page(
    bodies: Iterable[Body],
    *,
    after_lsn: int,
    limit: int,
    source_lsn: int,
    max_response_bytes: int,
    is_plain: bool,
) -> dict[str, Any]:
    """Return the response of replication.entries.

    `bodies` are the entries behind `after_lsn`; those beyond `source_lsn` are not shown, because
    they are not durable yet. The page ends at `limit` entries or before the response would be too
    large, but holds at least one entry if there is any. `is_plain` leaves time and checksum out.
    """
    # 0 is for no limit.
    byte_limit = max(max_response_bytes - RESPONSE_ENVELOPE_BYTES, 1) if max_response_bytes else 0
    entries: list[bytes] = []
    entries_bytes = 0
    is_truncated = False
    next_lsn = after_lsn
    for lsn, json, ts_ms in bodies:
        if lsn > source_lsn or len(entries) == limit:
            break
        if is_plain:
            data = b'{"lsn":%d,"entry":%b}' % (lsn, json)
        elif ts_ms is None:
            data = b'{"lsn":%d,"entry":%b,"crc":"%08x"}' % (lsn, json, entry_crc(lsn, ts_ms, json))
        else:
            crc = entry_crc(lsn, ts_ms, json)
            data = b'{"lsn":%d,"entry":%b,"ts":%d,"crc":"%08x"}' % (lsn, json, ts_ms, crc)
        if entries and byte_limit and entries_bytes + len(data) > byte_limit:
            is_truncated = True
            break
        entries.append(data)
        entries_bytes += len(data) + 1
        next_lsn = lsn
    return {
        "after_lsn": after_lsn,
        "limit": limit,
        "byte_limit": byte_limit,
        # The commas count for the budget, as ten thousand of them are ten thousand bytes.
        "entries_bytes": entries_bytes - len(entries),
        "truncated_by_bytes": is_truncated,
        "count": len(entries),
        "source_lsn": source_lsn,
        "entries": orjson.Fragment(b"[" + b",".join(entries) + b"]"),
        "next_lsn": next_lsn,
    }


def page_of_lines(
    groups: Sequence[Lines], *, after_lsn: int, limit: int, source_lsn: int, max_response_bytes: int
) -> dict[str, Any]:
    """Return the response of replication.entries with the log's lines as they are, for a follower of ours.

    `groups` are the lines behind `after_lsn`. The same bounds as `page`, but an entry costs nothing here: a
    master answers its followers between the writes of its clients.
    """
    byte_limit = max_response_bytes - RESPONSE_ENVELOPE_BYTES if max_response_bytes else 0
    taken: list[bytes] = []
    room = min(limit, source_lsn - after_lsn)
    taken_bytes = count = 0
    is_truncated = False
    for group in groups if room > 0 else ():
        lines = group if group.entries <= room - count else group.first(room - count)
        if byte_limit and taken_bytes + len(lines.data) > byte_limit:
            is_truncated = True
            # At least one, even if it alone is too much.
            fitting = max(_fitting(lines, byte_limit - taken_bytes), int(not taken))
            lines = lines.first(fitting) if fitting else Lines(lines.first_lsn, 0, b"")
        taken.append(lines.data)
        taken_bytes += len(lines.data)
        count += lines.entries
        if is_truncated or count == room:
            break
    data = b"".join(taken)[:-1].replace(b"\n", b",")
    return {
        "after_lsn": after_lsn,
        "limit": limit,
        "byte_limit": byte_limit,
        "entries_bytes": len(data),
        "truncated_by_bytes": is_truncated,
        "count": count,
        "source_lsn": source_lsn,
        "entries": orjson.Fragment(b"[" + data + b"]"),
        "next_lsn": after_lsn + count,
    }


def _fitting(lines: Lines, room_bytes: int) -> int:
    """Return how many of the lines have room."""
    return lines.data.count(b"\n", 0, max(room_bytes, 0))

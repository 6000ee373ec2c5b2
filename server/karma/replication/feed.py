"""The source side of replication: a page of log entries behind an LSN. Pure: lines in, response out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from karma.errors import ErrorCode, RequestError
from karma.limits import RESPONSE_ENVELOPE_BYTES


def check_available(after_lsn: int, first_lsn: int, last_lsn: int) -> None:
    """Raise RequestError (replication_gap) when entries behind `after_lsn` are gone."""
    if after_lsn < last_lsn and after_lsn + 1 < first_lsn:
        raise RequestError(
            ErrorCode.REPLICATION_GAP,
            f"Entries after LSN {after_lsn} are gone, the log starts at LSN {first_lsn}; "
            "bootstrap from a snapshot, then continue behind its LSN",
        )


def page(
    lines: Iterable[tuple[int, dict[str, Any]]],
    *,
    after_lsn: int,
    limit: int,
    source_lsn: int,
    max_response_bytes: int,
) -> dict[str, Any]:
    """Return the response of replication.entries.

    `lines` are (LSN, entry) pairs behind `after_lsn`; those beyond `source_lsn` are not shown, because
    they are not durable yet. The page ends at `limit` entries or before the response would be too
    large, but holds at least one entry if there is any.
    """
    byte_limit = max_response_bytes - RESPONSE_ENVELOPE_BYTES if max_response_bytes else 0
    entries: list[orjson.Fragment] = []
    entries_bytes = 0
    is_truncated = False
    next_lsn = after_lsn
    for lsn, entry in lines:
        if lsn > source_lsn or len(entries) == limit:
            break
        data = b'{"lsn":%d,"entry":%b}' % (lsn, orjson.dumps(entry))
        if entries and byte_limit and entries_bytes + len(data) > byte_limit:
            is_truncated = True
            break
        entries.append(orjson.Fragment(data))
        entries_bytes += len(data)
        next_lsn = lsn
    return {
        "after_lsn": after_lsn,
        "limit": limit,
        "byte_limit": byte_limit,
        "entries_bytes": entries_bytes,
        "truncated_by_bytes": is_truncated,
        "count": len(entries),
        "source_lsn": source_lsn,
        "entries": entries,
        "next_lsn": next_lsn,
    }

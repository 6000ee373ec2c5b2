"""A digest of everything a node stores: equal where equal data are stored, in whatever order they came.

SHA-256 over the series by name, each with its counters by key, the idempotency records, the ingest
streams and the recovery checkpoints. Counters are hashed as their 64-bit words (total, day, value, …),
least significant byte first.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

import orjson

from karma.core import buckets
from karma.core.buckets import Counter
from karma.core.ingest import Stream
from karma.core.store import Store

_KEYS_AT_ONCE = 1_000


def digest(store: Store, checkpoints: Iterable[Mapping[str, Any]]) -> str:
    """Return the digest as 64 hex digits. Takes seconds for millions of buckets."""
    store.sweep()
    found = sha256()
    for name in sorted(store.series):
        found.update(b"series %b\n" % orjson.dumps(name))
        _add_counters(found, store.series[name].counters)
    for key, record in sorted(store.records.items()):
        fields = [key, record.operation, record.fingerprint, record.response, record.created_at_unix]
        found.update(b"record %b\n" % _json(fields))
    for stream_id, stream in sorted({**store.streams.committed, **store.streams.active}.items()):
        found.update(b"stream %b %b\n" % (orjson.dumps(stream_id), _json(_stream_fields(stream))))
        if stream.staged is not None:
            _add_counters(found, stream.staged)
    for checkpoint in sorted(checkpoints, key=lambda each: each["source"]):
        found.update(b"checkpoint %b\n" % _json(checkpoint))
    return found.hexdigest()


def _json(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def _stream_fields(stream: Stream) -> dict[str, Any]:
    return {
        **stream.describe("committed" if stream.committed_at_unix is not None else "active"),
        "begin_fingerprint": stream.begin_fingerprint,
        "chunk_fingerprints": {str(number): value for number, value in stream.chunk_fingerprints.items()},
        "committed_at_unix": stream.committed_at_unix,
    }


def _add_counters(found: Any, counters: Mapping[int, Counter]) -> None:
    words = array("Q")
    for number, key in enumerate(sorted(counters), 1):
        counter = counters[key]
        packed = array("Q", _words(counter)) if isinstance(counter, int) else counter
        words.append(key)
        words.append(len(packed))
        words.extend(packed)
        if number % _KEYS_AT_ONCE == 0:
            _flush(found, words)
            words = array("Q")
    _flush(found, words)


def _words(counter: int) -> Iterable[int]:
    return (
        [buckets.total(counter), *(word for pair in buckets.items(counter) for word in pair)]
        if counter
        else ()
    )


def _flush(found: Any, words: array[int]) -> None:
    if sys.byteorder == "big":
        words.byteswap()
    found.update(words.tobytes())

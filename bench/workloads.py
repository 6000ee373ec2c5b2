"""Request bytes, prebuilt: what the load generator and the loaders send to Karma and to its peer."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from datetime import date, timedelta
from pathlib import Path

SERIES = "api_requests"
LAST_DAY = date(2026, 5, 5)
BUCKET = 20260505
FIRST_KEY = 1_000_000
"""Keys look like account numbers, not like array indices: neither side profits from small integers."""

ITEMS_PER_LOAD_REQUEST = 10_000
"""The protocol's limit: filling a server with millions of buckets is not what we measure."""


def write_requests(path: Path, requests: Iterable[bytes]) -> Path:
    """Writes requests as the load generator reads them: little-endian uint32 length, then the bytes."""
    with path.open("wb") as sink:
        for request in requests:
            sink.write(struct.pack("<I", len(request)) + request)
    return path


def resp(*words: str) -> bytes:
    """One Redis command."""
    parts = [f"*{len(words)}\r\n", *(f"${len(word.encode())}\r\n{word}\r\n" for word in words)]
    return "".join(parts).encode()


def keys(count: int, first: int = FIRST_KEY) -> range:
    """`count` neighbouring keys."""
    return range(first, first + count)


def karma_increment(key: int, idempotency_key: str | None = None) -> bytes:
    """One counter.increment, with a bucket, so that both sides store the same thing."""
    once = f',"idempotency_key":"{idempotency_key}"' if idempotency_key else ""
    return (
        f'{{"v":2,"op":"counter.increment","series":"{SERIES}","key":{key},'
        f'"bucket":{BUCKET},"value":1{once}}}\n'
    ).encode()


def redis_increment(key: int) -> bytes:
    """The same write to a hash per key with a field per day."""
    return resp("HINCRBY", f"{SERIES}:{key}", str(BUCKET), "1")


def karma_batch_add(batch: range) -> bytes:
    """One series.batch_add of a bucket of each key."""
    items = ",".join(f"[{key},{BUCKET},1]" for key in batch)
    return f'{{"v":2,"op":"series.batch_add","series":"{SERIES}","items":[{items}]}}\n'.encode()


def karma_batch_sum(batch: range) -> bytes:
    """One counter.batch_sum over whole keys."""
    listed = ",".join(map(str, batch))
    return f'{{"v":2,"op":"counter.batch_sum","series":"{SERIES}","keys":[{listed}]}}\n'.encode()


def redis_batch_add(batch: range) -> bytes:
    """The same writes as one pipeline; its reply has a line a key."""
    return b"".join(redis_increment(key) for key in batch)


def redis_batch_get(batch: range) -> bytes:
    """The same reads as one pipeline of HGET (one day a key, so it is the sum): two reply lines a key."""
    return b"".join(resp("HGET", f"{SERIES}:{key}", str(BUCKET)) for key in batch)


def karma_history(key_count: int, days: int) -> Iterator[tuple[bytes, int]]:
    """Fills `key_count` keys with `days` ascending days each: (request, reply lines), 10,000 items or fewer.

    One text serves all keys: formatting each item by itself would cost more than the server does.
    """
    history = [LAST_DAY - timedelta(days=ago) for ago in reversed(range(days))]
    template = ",".join(f"[K,{day:%Y%m%d},{1 + nth * 37 % 1000}]" for nth, day in enumerate(history)).encode()
    keys_per_request = ITEMS_PER_LOAD_REQUEST // days
    every = keys(key_count)
    for at in range(0, key_count, keys_per_request):
        items = b",".join(template.replace(b"K", b"%d" % key) for key in every[at : at + keys_per_request])
        yield b'{"v":2,"op":"series.batch_add","series":"%s","items":[%s]}\n' % (SERIES.encode(), items), 1


def redis_single_day(key_count: int) -> Iterator[tuple[bytes, int]]:
    """Fills `key_count` hashes with one day each, as pipelines of 1000 commands."""
    every = keys(key_count)
    for at in range(0, key_count, 1000):
        batch = every[at : at + 1000]
        yield redis_batch_add(batch), len(batch)

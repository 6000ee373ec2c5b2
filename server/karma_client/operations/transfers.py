"""Imports and downloads: many requests that belong together."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING, Literal, Protocol

from karma_client.binding import Performer, operation, task
from karma_client.calls import Call, Pending, write
from karma_client.days import Day, day_number
from karma_client.errors import (
    IdempotencyConflictError,
    InvalidArgumentError,
    ProtocolError,
    ResponseTooLargeError,
)
from karma_client.lazy import LazyModule
from karma_client.operations.system import System

if TYPE_CHECKING:
    from karma_client import results
else:
    results = LazyModule("karma_client.results")

Mode = Literal["add", "set", "replace_series"]
Item = tuple[int, Day, int]
"""(key, day, value)"""

DEFAULT_REQUEST_BYTES = 4096
"""The server's max-request-bytes unless its stats say otherwise; Karma 1.0 does not tell."""

MAX_CHUNK_ITEMS = 10_000
"""The protocol's bound for one request."""

MAX_CHUNK_TOTAL = 2**64 - 1
"""The protocol's bound for every number."""

MAX_CHUNK_BYTES = 262_144
"""Longer chunks are no faster, and a server that was given more room since would make a resumed import cut
anew."""

TOKEN_RESERVE_BYTES = 256
"""Kept free in every chunk, so that its cut does not depend on the token."""

WINDOW_CHUNKS = 16
"""Chunks that are sent before their replies are read."""

FETCH_BYTES = 262_144
FETCH_MIN_BYTES = 1024
"""Of a file in one reply: the server's default, halved when that is more than its max-response-bytes
allows."""


class Writer(Protocol):
    """What bytes can be written to: an open binary file."""

    def write(self, data: bytes, /) -> object:
        """Write all of it."""


class Ingest:
    """The steps of an import, for those who drive it themselves. All but the abort may be repeated safely."""

    @operation
    def ingest_begin(self, stream_id: str, mode: Mode = "add") -> Call[results.StreamStatus]:
        """Begin a stream of chunks, or find out how far it got."""
        return write("ingest.begin", results.StreamStatus.of, stream_id=stream_id, mode=mode)

    @operation
    def ingest_chunk(
        self, stream_id: str, series: str, chunk_seq: int, items: Iterable[Item]
    ) -> Call[results.ChunkResult]:
        """Bring the next items; a chunk the server knows is skipped. `chunk_seq` counts from 1."""
        return _chunk(stream_id, series, chunk_seq, [_triple(item) for item in items])

    @operation
    def ingest_commit(self, stream_id: str) -> Call[results.StreamStatus]:
        """End a stream; a replacement takes effect."""
        return write("ingest.commit", results.StreamStatus.of, stream_id=stream_id)

    @operation
    def ingest_abort(self, stream_id: str) -> Call[results.StreamStatus]:
        """Give a stream up; staged data are dropped."""
        return write("ingest.abort", results.StreamStatus.of, stream_id=stream_id)


class Transfers(Performer):
    """Imports and downloads."""

    @task
    async def ingest(
        self,
        stream_id: str,
        series: str,
        items: Iterable[Item] | AsyncIterable[Item],
        *,
        mode: Mode = "add",
        chunk_bytes: int | None = None,
        commit: bool = True,
        progress: Callable[[results.IngestProgress], object] | None = None,
    ) -> results.IngestResult:
        """Import any number of (key, day, value) items, in chunks that fit the server's max-request-bytes.

        `mode`: "add", "set", or "replace_series" (nothing shows before the commit). `progress` is called as
        the server takes chunks. Resumable: after a break call it again with the same arguments and the same
        items in the same order; what the server has already is not sent again, apart from its last chunk,
        which shows whether the items are the same. `chunk_bytes` then has to be the same, too.

        Raises IdempotencyConflictError when the items are others than before under this `stream_id`.

        >>> client.ingest("import-7", "imports", ((key, "2026-05-05", 1) for key in range(1000))).items
        1000
        """
        limit_bytes = chunk_bytes or await self._request_bytes()
        stream = await self._perform(Ingest.ingest_begin(self, stream_id, mode))
        known = stream.last_chunk_seq
        if stream.status == "already_committed":
            return results.IngestResult(stream_id, stream.status, known, 0, 0)
        seq = sent_items = resumed_items = 0
        window: list[Pending[results.ChunkResult]] = []

        async def flush() -> None:
            await self._core.settle(window, self._timeouts)
            for pending in window:
                _check_chunk(pending, stream_id, known)
            window.clear()
            if progress is not None and seq:
                done = results.IngestProgress(stream_id, seq, resumed_items + sent_items, resumed_items)
                progress(done)

        async for chunk in split(items, self._chunk_budget(stream_id, series, limit_bytes)):
            seq += 1
            if seq <= known:
                resumed_items += len(chunk)
            else:
                sent_items += len(chunk)
            if seq >= known:
                window.append(Pending(_chunk(stream_id, series, seq, chunk)))
            if len(window) == WINDOW_CHUNKS or seq == known:
                await flush()
        await flush()
        if seq < known:
            raise InvalidArgumentError(
                f"the server has {known} chunks of stream {stream_id}, and these items make only {seq}. "
                "Pass the same items as before, or abort the stream with ingest_abort and begin another"
            )
        if commit:
            stream = await self._perform(Ingest.ingest_commit(self, stream_id))
        return results.IngestResult(stream_id, stream.status, seq, resumed_items + sent_items, resumed_items)

    @task
    async def fetch_snapshot(
        self, file: str, writer: Writer, *, progress: Callable[[results.FetchProgress], object] | None = None
    ) -> results.Snapshot:
        """Write a snapshot file of the server to `writer` and return what its metadata say.

        Raises ProtocolError when the file was replaced meanwhile.
        """
        limit_bytes = FETCH_BYTES
        offset = 0
        metadata = None
        while True:
            try:
                chunk = await self._perform(
                    System.snapshot_chunk(self, file, offset=offset, limit_bytes=limit_bytes)
                )
            except ResponseTooLargeError:
                if limit_bytes <= FETCH_MIN_BYTES:
                    raise
                limit_bytes //= 2
                continue
            if metadata is not None and chunk.metadata != metadata:
                raise ProtocolError(f"{file} became another file while it was fetched: fetch it again")
            metadata = chunk.metadata
            writer.write(chunk.data)
            offset = chunk.next_offset
            if progress is not None:
                progress(results.FetchProgress(offset, chunk.total_bytes))
            if chunk.done:
                return results.Snapshot.of(metadata)
            if not chunk.data:
                raise ProtocolError(f"the server sent an empty part of {file} before its end")

    async def _request_bytes(self) -> int:
        stats = await self._perform(System.stats(self))
        return min(stats.max_request_bytes or DEFAULT_REQUEST_BYTES, MAX_CHUNK_BYTES)

    def _chunk_budget(self, stream_id: str, series: str, limit_bytes: int) -> int:
        """Return how many bytes the items of a chunk may take."""
        empty = _chunk(stream_id, series, 10**12, [])
        token_bytes = len(empty.line(self._core.settings.token.current())) - len(empty.line(None))
        return limit_bytes - len(empty.line(None)) - max(token_bytes, TOKEN_RESERVE_BYTES)


async def split(
    items: Iterable[Item] | AsyncIterable[Item], budget_bytes: int
) -> AsyncIterator[list[tuple[int, int, int]]]:
    """Cut items into chunks whose JSON takes at most `budget_bytes`, each as long as it may be.

    The server answers a chunk with the sum of its values, so that must stay below 2^64, too.

    The cuts depend on items and budget alone, so that a repeated import makes the same chunks.
    Raises InvalidArgumentError for an item that fits no chunk.
    """
    chunk: list[tuple[int, int, int]] = []
    size_bytes = total = 0
    async for item in _each(items):
        triple = _triple(item)
        # Its JSON with the comma behind it.
        item_bytes = len(f"[{triple[0]},{triple[1]},{triple[2]}],")
        if item_bytes > budget_bytes:
            raise InvalidArgumentError(
                f"an item of {item_bytes} bytes does not fit a chunk of {budget_bytes}: raise chunk_bytes, "
                "or the server's max-request-bytes"
            )
        total += triple[2]
        is_full = size_bytes + item_bytes > budget_bytes or len(chunk) == MAX_CHUNK_ITEMS
        if chunk and (is_full or total > MAX_CHUNK_TOTAL):
            yield chunk
            chunk, size_bytes, total = [], 0, triple[2]
        chunk.append(triple)
        size_bytes += item_bytes
    if chunk:
        yield chunk


async def _each(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[Item]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


def _triple(item: Item) -> tuple[int, int, int]:
    key, day, value = item
    return key, day if type(day) is int else day_number(day), value


def _chunk(
    stream_id: str, series: str, chunk_seq: int, items: list[tuple[int, int, int]]
) -> Call[results.ChunkResult]:
    return write(
        "ingest.chunk",
        results.ChunkResult.of,
        stream_id=stream_id,
        series=series,
        chunk_seq=chunk_seq,
        items=items,
    )


def _check_chunk(pending: Pending[results.ChunkResult], stream_id: str, known: int) -> None:
    """Raise the error of a chunk, if it has one."""
    if isinstance(pending.error, IdempotencyConflictError) and pending.call.fields["chunk_seq"] == known:
        raise IdempotencyConflictError(
            f"stream {stream_id} has {known} chunks on the server, and the last of them holds other items "
            "than now. Pass the same items and chunk_bytes as before, or abort the stream with ingest_abort "
            "and begin another",
            node=pending.error.node,
            op=pending.call.op,
        ) from pending.error
    pending.result()

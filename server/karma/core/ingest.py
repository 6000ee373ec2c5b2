"""Ingest streams: rebuilds, backfills and imports that come in numbered chunks.

A stream is active from its begin to its commit or abort. The series that a ``replace_series``
stream builds is staged next to the live one until the commit; an item that comes again replaces the
one before. Committed streams are remembered, so that a repeated chunk or commit changes nothing, after
a restart neither.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from karma.core.buckets import Counter

MODES = ("add", "set", "replace_series")
GRANULARITY = "day"
STREAMS_FILE = "karma.ingest.msgpack"
"""Where a snapshot keeps the streams; a follower asks for it by this name."""


@dataclass(slots=True)
class Stream:
    """One stream. ``chunk_fingerprints`` maps chunk_seq to SHA-256 hex."""

    stream_id: str
    mode: str
    granularity: str | None
    """As the request named it, None where it did not; what is stored are days in any case."""
    begin_fingerprint: str
    series: str | None = None
    last_chunk_seq: int = 0
    chunk_fingerprints: dict[int, str] = field(default_factory=dict)
    staged: dict[int, Counter] | None = None
    """The series being built, replace_series only: key to counter."""
    staged_keys: array[int] = field(init=False, repr=False, compare=False)
    """Its keys in the order of creation, as `Series.keys`."""
    committed_at_unix: int | None = None

    def __post_init__(self) -> None:
        self.staged_keys = array("Q", self.staged or ())

    def describe(self, status: str) -> dict[str, object]:
        """Return the reply of ingest.begin."""
        return {
            "stream_id": self.stream_id,
            "mode": self.mode,
            "series": self.series,
            "granularity": self.granularity,
            "status": status,
            "last_chunk_seq": self.last_chunk_seq,
        }


class Streams:
    """Active and committed streams by id, each in the order they were begun or committed."""

    __slots__ = ("active", "committed")

    def __init__(self) -> None:
        self.active: dict[str, Stream] = {}
        self.committed: dict[str, Stream] = {}

    def find(self, stream_id: str) -> Stream | None:
        """Return an active stream, else a committed one, else None."""
        return self.active.get(stream_id) or self.committed.get(stream_id)

"""What the op table is made of: operations, their fields, and the fields that many of them share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Access = Literal["R", "W", "A"]
"""R: every token, every role. W: the write token, role master. A: the write (or admin) token, every role."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a request; `kind` is how help spells its type."""

    name: str
    kind: str
    help: str
    required: bool = True
    aliases: tuple[str, ...] = ()
    """Other names of it, which win."""
    element: tuple[Field, ...] = ()
    """The fields of each element, where it is an array of objects."""


@dataclass(frozen=True, slots=True)
class Op:
    """One operation. `example` lacks ``v`` and ``op``; `idempotent` ops accept an idempotency key and a
    fingerprint.
    """

    name: str
    access: Access
    handler: str
    help: str
    fields: tuple[Field, ...] = ()
    example: Mapping[str, Any] | None = None
    aliases: tuple[str, ...] = ()
    idempotent: bool = False
    extension: bool = False
    """Whether Karma 1.0 lacks it."""
    checks_names: bool = False
    """Whether its handler calls `Engine.check_names` itself, behind a plain form that needs no check."""


SERIES = Field("series", "name", "limit name, 1 to 200 bytes; tree is an alias and wins", aliases=("tree",))
KEY = Field("key", "u64", "subject id")
KEYS = Field("keys", "[u64]", "subject ids, at most 10,000")
BUCKET = Field(
    "bucket", "day", "YYYYMMDD or YYYY-MM-DD; today (UTC) if left out", required=False, aliases=("date",)
)
VALUE = Field("value", "u64", "amount; 1 if left out", required=False)
RANGE = Field("range", "{from,to}", "days as YYYYMMDD, both inclusive, at most 366 days apart")
ITEMS = Field("items", "[[key,bucket,value]]", "at most 10,000")
LIMIT = Field("limit", "number", "page size", required=False)
PAGE = (
    Field("limit", "number", "answer a page of so many; 1,000 if left out, 10,000 at most", required=False),
    Field("cursor", "text", "the last page's next_cursor", required=False),
)
PRUNE_LIMIT = Field("limit", "number", "records at most, up to 100,000", required=False)
STREAM = Field("stream_id", "text", "the importer's name for the stream, 1 to 256 bytes")
FILE = Field("file", "name", "snapshot file name, as snapshot.list ends it")
CHUNK_BYTES = Field("limit", "number", "bytes at most; 262,144 if left out, 524,288 at most", required=False)
OFFSET = Field("offset", "number", "byte offset; 0 if left out", required=False)
SOURCE = Field("source", "text", "the external pipeline's name")
CAP = Field("limit", "u64", "most the window may hold")
WINDOW = Field("window", "day|month|total", "what counts; the bucket's day if left out", required=False)
KEY_ITEMS = Field("items", "[{series,key}]", "at most 10,000", element=(SERIES, KEY))
LIMIT_ITEMS = Field(
    "items",
    "[{series,key,limit,window?,bucket?,range?}]",
    "at most 10,000",
    element=(SERIES, KEY, CAP, WINDOW, BUCKET, RANGE),
)
PIPELINE_OFFSET = Field(
    "offset",
    "text or number",
    "the pipeline's position; source_offset wins",
    required=False,
    aliases=("source_offset",),
)
ORDER = (
    Field(
        "run",
        "text",
        "the run that orders it: refused where another run fenced or paused the node",
        required=False,
    ),
    Field("lease", "number", "number of that run's lease: refused when it is not the last", required=False),
    Field(
        "force",
        "true|false",
        "override another run, or fence far above the own epoch; logged and counted",
        required=False,
    ),
)
"""On whose behalf a role is changed."""

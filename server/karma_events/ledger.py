"""The ledger: SQL over events, by DuckDB in memory.

Tables and views, of what the log held when the ledger was made:

- ``events``: one row an event, `ts` in UTC, `tags` and `attrs` as JSON (``tags->>'action_id'``);
- ``transitions``: one row an event of an action, with the state before and after it and whether it was legal;
- ``actions``: one row an action, with its state, its times and how long it took (`karma_events.metrics`).

The rows come through our own reader, so that torn lines and damage are what they are everywhere else; DuckDB
sees neither files nor network. `actions` is computed in SQL, and tests hold it against `actions.fold`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date, datetime, timedelta
from datetime import time as clock_time
from decimal import Decimal
from math import isfinite
from typing import Any, NamedTuple, Self

import orjson

from karma_events.actions import KINDS, TOPICS
from karma_events.envelope import MAX_TS_MS, Recorded
from karma_events.errors import EventError

_CHUNK_BYTES = 4 << 20
"""Events go over as JSON arrays: DuckDB takes no Python rows in bulk without numpy."""

_EVENTS = """
CREATE TABLE events (
    ts TIMESTAMP, ts_ms BIGINT, topic VARCHAR, "offset" BIGINT, event_type VARCHAR, entity_id VARCHAR,
    correlation_id VARCHAR, idempotency_key VARCHAR, source_system VARCHAR, source_ns VARCHAR,
    tags JSON, attrs JSON
)"""

_INSERT = """
INSERT INTO events
SELECT make_timestamp(one.ts * 1000), one.ts, one.topic, one."offset", one.event_type, one.entity_id,
    one.correlation_id, one.idempotency_key, one.source.system, one.source.ns, one.tags, one.attrs
FROM (SELECT unnest(from_json(?, '[{"topic":"VARCHAR","offset":"BIGINT","ts":"BIGINT","event_type":"VARCHAR",
    "entity_id":"VARCHAR","correlation_id":"VARCHAR","idempotency_key":"VARCHAR",
    "source":{"system":"VARCHAR","ns":"VARCHAR"},"tags":"JSON","attrs":"JSON"}]')) AS one)
"""

_KINDS = """
CREATE TABLE kinds (
    event_type VARCHAR, topic VARCHAR, topic_rank INTEGER, allowed VARCHAR[], to_state VARCHAR
)"""

# greatest() takes NULL for nothing at all.
_BETWEEN = """
CREATE MACRO between_ms(begin_ms, end_ms) AS
    CASE WHEN begin_ms IS NOT NULL AND end_ms IS NOT NULL THEN greatest(end_ms - begin_ms, 0) END"""

_TRANSITIONS = """
CREATE VIEW transitions AS
WITH RECURSIVE ordered AS MATERIALIZED (
    SELECT events.*, tags->>'action_id' AS action_id, allowed, to_state,
        row_number() OVER (PARTITION BY tags->>'action_id' ORDER BY topic_rank, "offset") AS n
    FROM events JOIN kinds USING (event_type, topic)
    WHERE tags->>'action_id' IS NOT NULL
), walk AS (
    SELECT DISTINCT action_id, 0::BIGINT AS n, '' AS before, '' AS after, true AS is_legal,
        NULL::BIGINT AS stopped_ms, NULL::BIGINT AS window_ms, false AS is_dead
    FROM ordered
    UNION ALL
    SELECT action_id, n, state, CASE WHEN legal THEN coalesce(to_state, state) ELSE state END, legal,
        CASE WHEN NOT legal THEN stopped_ms
             WHEN event_type = 'action.writes_stopped' THEN ts_ms
             WHEN event_type = 'action.writes_resumed' THEN NULL
             ELSE stopped_ms END,
        CASE WHEN legal AND event_type = 'action.writes_resumed' THEN between_ms(stopped_ms, ts_ms) END,
        is_dead OR (legal AND event_type = 'action.dead_lettered')
    FROM (
        SELECT ordered.*, walk.after AS state, walk.stopped_ms, walk.is_dead,
            list_contains(ordered.allowed, walk.after)
            AND NOT (event_type = 'action.dead_lettered' AND walk.is_dead)
            AND NOT (event_type = 'action.writes_stopped' AND walk.stopped_ms IS NOT NULL)
            AND NOT (event_type = 'action.writes_resumed' AND walk.stopped_ms IS NULL) AS legal
        FROM walk JOIN ordered ON ordered.action_id = walk.action_id AND ordered.n = walk.n + 1
    )
)
SELECT action_id, n, ordered.* EXCLUDE (action_id, n, allowed, to_state), before, after, is_legal,
    stopped_ms, window_ms, is_dead
FROM walk JOIN ordered USING (action_id, n)
"""

_ACTIONS = """
CREATE VIEW actions AS
WITH found AS (
    SELECT action_id,
        coalesce(first(tags->>'action' ORDER BY n), '') AS name,
        first(entity_id ORDER BY n) AS entity_id,
        first(correlation_id ORDER BY n) AS correlation_id,
        last(after ORDER BY n) AS state,
        max(CASE WHEN json_type(attrs->'detected_ms') = 'UBIGINT'
                AND (attrs->>'detected_ms')::UBIGINT <= {latest_ms} THEN (attrs->>'detected_ms')::BIGINT END)
            FILTER (is_legal AND event_type = 'action.requested') AS detected_ms,
        max(ts_ms) FILTER (is_legal AND event_type = 'action.requested') AS requested_ms,
        max(ts_ms) FILTER (is_legal AND event_type = 'action.accepted') AS accepted_ms,
        max(ts_ms) FILTER (is_legal AND event_type = 'action.started') AS started_ms,
        max(ts_ms) FILTER (is_legal AND after IN ('SUCCEEDED', 'FAILED', 'CANCELLED') AND before <> after)
            AS finished_ms,
        count(*) FILTER (is_legal AND event_type = 'action.retrying') AS retries,
        last(CASE event_type
                WHEN 'action.succeeded' THEN NULL
                WHEN 'action.cancelled' THEN
                    CASE WHEN json_type(attrs->'reason') = 'VARCHAR' THEN attrs->>'reason' END
                ELSE CASE WHEN json_type(attrs->'error') = 'VARCHAR' THEN attrs->>'error' END
            END ORDER BY n)
            FILTER (is_legal AND event_type IN ('action.retrying', 'action.failed', 'action.cancelled',
                'action.succeeded')) AS error,
        bool_or(is_dead) AS is_dead_lettered,
        last(stopped_ms ORDER BY n) AS writes_stopped_ms,
        sum(window_ms)::BIGINT AS unavailable_ms,
        count(*) FILTER (NOT is_legal) AS illegal
    FROM transitions GROUP BY action_id
), incidents AS (
    SELECT *, min(coalesce(detected_ms, requested_ms)) OVER (PARTITION BY correlation_id) AS known_ms,
        row_number() OVER (PARTITION BY correlation_id, state ORDER BY finished_ms, action_id) AS place
    FROM found
)
SELECT * EXCLUDE (known_ms, place),
    between_ms(requested_ms, accepted_ms) AS acknowledge_ms,
    between_ms(requested_ms, finished_ms) AS took_ms,
    CASE WHEN state = 'SUCCEEDED' AND place = 1 THEN between_ms(known_ms, finished_ms) END AS recover_ms
FROM incidents ORDER BY requested_ms, action_id
"""


class MissingExtraError(EventError):
    """DuckDB is not installed."""


class QueryError(EventError):
    """SQL that DuckDB does not take."""


class Answer(NamedTuple):
    """What a query found: names of columns, each once, and rows of values that JSON can spell."""

    columns: list[str]
    rows: Iterator[dict[str, Any]]


class Ledger:
    """An in-memory database of events, which SQL can read, and which reaches nothing else."""

    def __init__(self, events: Iterable[Recorded]) -> None:
        """Take events in. Raises MissingExtraError, and whatever reading the events raises."""
        try:
            import duckdb  # noqa: PLC0415  an extra, and heavy
        except ImportError as error:
            raise MissingExtraError(
                "the ledger needs DuckDB, which is not installed",
                "install the extra: pip install 'karma[sql]'",
            ) from error
        self._error = duckdb.Error
        # Without a folder to spill to, it makes none where somebody happens to be.
        self._connection = duckdb.connect(
            config={"autoinstall_known_extensions": "false", "temp_directory": ""}
        )
        self._connection.execute("SET enable_external_access = false")
        self._connection.execute("SET threads = 1")
        create(self._connection, events)
        self._connection.execute("SET lock_configuration = true")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def query(self, sql: str) -> Answer:
        """Return the answer to the last statement of an SQL text. Raises QueryError."""
        try:
            found = self._connection.execute(sql)
            described = found.description or []
        except self._error as error:
            raise QueryError(
                f"the query failed: {error}",
                "`DESCRIBE events`, `transitions` and `actions` show the columns",
            ) from error
        columns: list[str] = []
        for name, *_ in described:
            columns.append(name if name not in columns else f"{name}_{len(columns) + 1}")
        is_json = [str(kind) == "JSON" for _, kind, *_ in described]

        def rows() -> Iterator[dict[str, Any]]:
            while values := found.fetchmany(1000):
                for row in values:
                    plain = [
                        orjson.loads(value) if json and value is not None else _plain(value)
                        for json, value in zip(is_json, row, strict=True)
                    ]
                    yield dict(zip(columns, plain, strict=True))

        return Answer(columns, rows())


def create(connection: Any, events: Iterable[Recorded]) -> None:
    """Make the ledger's tables and views in an open DuckDB connection, for whoever joins them with more."""
    connection.execute(_EVENTS)
    for chunk in _chunks(events):
        connection.execute(_INSERT, [chunk])
    connection.execute(_KINDS)
    connection.executemany(
        "INSERT INTO kinds VALUES (?, ?, ?, ?, ?)",
        [
            [name, kind.topic, TOPICS.index(kind.topic), [str(state) for state in kind.allowed], kind.to]
            for name, kind in KINDS.items()
        ],
    )
    connection.execute(_BETWEEN)
    connection.execute(_TRANSITIONS)
    connection.execute(_ACTIONS.format(latest_ms=MAX_TS_MS))


def _chunks(events: Iterable[Recorded]) -> Iterator[str]:
    parts: list[bytes] = []
    size_bytes = 0
    for topic, offset, envelope in events:
        part = orjson.dumps({"topic": topic, "offset": offset, **envelope.fields()})
        parts.append(part)
        size_bytes += len(part)
        if size_bytes >= _CHUNK_BYTES:
            yield f"[{b','.join(parts).decode()}]"
            parts, size_bytes = [], 0
    if parts:
        yield f"[{b','.join(parts).decode()}]"


def _plain(value: Any) -> Any:
    """Return a value of DuckDB's as JSON can spell it."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if isfinite(value) else str(value)
        case datetime():
            return value.isoformat(sep=" ", timespec="milliseconds")
        case date() | clock_time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case list() | tuple():
            return [_plain(each) for each in value]
        case dict():
            return {str(name): _plain(each) for name, each in value.items()}
        case bytes():
            return value.hex()
    return str(value)

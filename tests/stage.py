"""The dashboard on a stage: a fleet that always says the same, a clock that stands still, frames."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self

import handmade
from events import incident
from handmade import DAY, add
from textual.pilot import Pilot

from karma_client import FetchProgress, KarmaError, NotFoundError
from karma_client.logs import Logged
from karma_client.logs import Page as LogPage
from karma_events import EventLog
from karma_sql.sources import Directory, Source
from karma_tui import model
from karma_tui.actions import Action
from karma_tui.app import KarmaApp
from karma_tui.model import Answer, Fleet, Problem
from karma_tui.statements import Place
from karma_tui.target import Target

NOON = 1_777_982_400.0
"""2026-05-05 12:00:00 UTC."""
MASTER, NEAR, FAR, DEAD = "db1:8080", "db2:8080", "db3:8080", "db4:8080"
NODES = (MASTER, NEAR, FAR, DEAD)
IDS = {MASTER: "a1", NEAR: "b2", FAR: "c3", DEAD: "d4"}
MIB = 1 << 20


def answer(address: str, at: float = NOON, lag: int = 0, **status: Any) -> Answer:
    """What a node says: db1 is the master, the others follow it. `status` replaces what it says of itself."""
    role = status.pop("role", "master" if address == MASTER else "slave")
    lsn = 120_000 - lag
    said = {
        "role": role,
        "wal_current_lsn": lsn,
        "wal_bytes": 48 * MIB,
        "wal_first_lsn": 90_001,
        "replication_lag_entries": lag,
        "lag_ms": lag * 2 if role == "slave" else None,
        "replication_state": "following" if role == "slave" else None,
        "last_snapshot_lsn": 110_000,
        "node_id": IDS.get(address, address),
        "cluster_id": "cafe",
        "epoch": 3,
        "source": MASTER if role == "slave" else None,
        "paused_until": None,
        "fenced_by": None,
        "sync_replicas": 1,
        "sync_degraded": False,
        "replicas": [
            {"node_id": "b2", "address": "10.0.0.2", "acked_lsn": 120_000, "lag_entries": 0, "lag_ms": 0},
            {
                "node_id": "d4",
                "address": "10.0.0.4",
                "acked_lsn": 119_000,
                "lag_entries": 1000,
                "lag_ms": 90_000,
            },
            {"node_id": "e5", "address": "10.0.0.5", "acked_lsn": 119_990, "lag_entries": 10, "lag_ms": 4},
        ]
        if address == MASTER
        else [],
        **status,
    }
    stats = {
        "version": "2.0.0",
        "uptime_seconds": 93_784.0,
        "trees": 3,
        "keys": 1_234_567,
        "ops_per_second": 5200.0 if address == MASTER else 310.5,
        "rss_bytes": 412 * MIB,
        "connections": 12,
        "disk_free_bytes": 80 << 30,
        "disk_total_bytes": 200 << 30,
        "latency_last_minute": {"count": 900, "p50_us": 85, "p95_us": 410, "p99_us": 1250, "max_us": 9000},
    }
    return Answer(
        address, at, 1.25, {"status": "ok", "role": role}, said, stats, _latency(at), _clients(address)
    )


def _latency(at: float) -> dict[str, Any]:
    def spans(p50: int, count: int) -> dict[str, Any]:
        grown = p50 + int(NOON - at) % 7 * p50 // 10
        figures = {"p50_us": grown, "p95_us": grown * 3, "p99_us": grown * 8, "max_us": grown * 20}
        return {"total": {"count": count * 100, **figures}, "last_minute": {"count": count, **figures}}

    return {
        "ops": {
            "counter.increment": spans(90, 54_000),
            "counter.sum": spans(40, 6000),
            "tree.top": spans(7, 0),
        }
    }


def _clients(address: str) -> list[dict[str, Any]]:
    if address != MASTER:
        return []
    return [
        {
            "id": number,
            "address": f"10.1.0.{number}:40{number:03}",
            "access": "write",
            "age_seconds": 3600.0 * number,
            "idle_seconds": 0.2 * number,
            "requests": 1000 * number,
            "last_op": "counter.increment",
            "buffered_in_bytes": 0,
            "buffered_out_bytes": 512 * number,
        }
        for number in range(1, 5)
    ]


def dead(at: float = NOON, address: str = DEAD) -> Answer:
    """A node that cannot be reached."""
    return Answer(
        address, at, 2.0, problem=Problem(f"{address}: cannot connect: connection refused", is_silence=True)
    )


def history() -> list[Answer]:
    """A minute of a fleet: db2 keeps up, db3 falls behind, db4 dies after twenty seconds."""
    found = []
    for second in range(60):
        at = NOON - 59 + second
        found += [answer(MASTER, at), answer(NEAR, at, second % 3), answer(FAR, at, second * 20)]
        found.append(answer(DEAD, at, 5) if second < 20 else dead(at))
    return found


def fleet_of(answers: Sequence[Answer], nodes: Sequence[str] = NODES) -> Fleet:
    """Return what is known after these answers."""
    fleet = model.empty(nodes)
    for one in answers:
        fleet = model.observe(fleet, one)
    return fleet


class Stage:
    """Stands in for the poller: reports what it was given, and answers questions from memory."""

    def __init__(self, answers: Sequence[Answer], report: Callable[[Answer], object]) -> None:
        self.answers = answers
        self.report = report
        self.wants_clients = False
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.acted: list[Action] = []
        self.refusal: KarmaError | None = None
        self.recording: Path | None = None
        self.places: list[Place] = []
        """What SQL was asked of."""
        self.data: Path | None = None
        """The data directory that SQL reads, whichever node is named."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def run(self) -> None:
        for one in self.answers:
            self.report(one)
        await asyncio.Event().wait()

    async def ask(self, node: str, op: str, **fields: Any) -> Any:
        self.asked.append((node, op, fields))
        if self.refusal is not None:
            raise self.refusal
        return RESPONSES[op](fields)

    async def act(self, action: Action) -> Any:
        self.acted.append(action)
        if self.refusal is not None:
            raise self.refusal

    async def fetch(
        self, node: str, file: str, folder: Path, progress: Callable[[FetchProgress], object]
    ) -> Path:
        self.asked.append((node, "fetch", {"file": file}))
        progress(FetchProgress(3 * MIB, 4 * MIB))
        return folder / file

    async def tail(
        self, node: str, entries: int, warn: Callable[[str], object]
    ) -> AsyncIterator[LogPage | KarmaError]:
        if node == DEAD:
            yield KarmaError("cannot connect: connection refused", node=node)
        else:
            yield LogPage(log(), 120_000)
        await asyncio.Event().wait()

    @contextmanager
    def sql_source(self, place: Place, progress: Callable[[str], object]) -> Iterator[Source]:
        del progress
        self.places.append(place)
        if self.refusal is not None:
            raise self.refusal
        assert self.data is not None
        yield Directory(self.data)


def log() -> list[Logged]:
    """The last entries of the log."""
    return [
        Logged(
            lsn,
            {
                "op": "counter.increment",
                "series": "api_requests",
                "key": lsn % 97,
                "bucket": 20260505,
                "value": lsn % 7,
            }
            if lsn % 5
            else {"op": "series.batch_add", "series": "mails", "items": [[1, 20260505, 2], [2, 20260505, 3]]},
            int(NOON * 1000) - (120_000 - lsn) * 37,
            f"{lsn:08x}",
            3,
        )
        for lsn in range(119_951, 120_001)
    ]


def _keys(fields: dict[str, Any]) -> dict[str, Any]:
    first, limit = fields.get("cursor", -1) + 1, fields["limit"]
    last = min(first + limit, 1_000_000)
    keys = [{"key": key, "total": key * 7 % 1000} for key in range(first, last)]
    return {"keys": keys, "next_cursor": last - 1 if last < 1_000_000 else None}


def _missing(fields: dict[str, Any]) -> Any:
    raise NotFoundError(f"series {fields['series']} does not exist", node=MASTER, op="tree.keys")


RESPONSES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "tree.list": lambda _: ["api_requests", "mails", "exports", "__karma_canary"],
    "tree.info": lambda _: {"key_count": 1_000_000, "bucket_count": 3_000_000, "total": 123_456_789},
    "tree.keys": lambda fields: _keys(fields) if fields["series"] != "gone" else _missing(fields),
    "tree.top": lambda fields: {
        "items": [{"key": 1000 - rank, "value": 10_000 - 90 * rank} for rank in range(fields["limit"])]
    },
    "counter.series": lambda _: (
        {str(20260401 + day): (day * 37) % 100 + 1 for day in range(5, 30)} | {"20260505": 60}
    ),
    "limit.check": lambda fields: [
        {"used": 60 * (at + 1), "remaining": max(0, item["limit"] - 60 * (at + 1)), "allowed": True}
        for at, item in enumerate(fields["items"])
    ],
    "snapshot.info": lambda _: {
        "latest_by_tree": [
            {
                "tree": "api_requests",
                "file": "1777978800_api_requests.tree",
                "bytes": 12 * MIB,
                "last_lsn": 110_000,
            }
        ]
    },
    "snapshot.list": lambda _: [
        "/data/1777978800_api_requests.tree",
        "/data/1777975200_api_requests.tree",
        "/data/1777975200_mails.tree",
    ],
    "snapshot.verify": lambda _: {
        "dump_count": 3,
        "trees": 2,
        "keys": 1_234_567,
        "wal_entries_checked": 10_000,
    },
}


def prod(**options: Any) -> Target:
    """Return the context of the stage's nodes."""
    return Target(NODES, "prod", **{"options": ("--context", "prod"), "tick_seconds": 0.25, **options})


def at_home(folder: Path, **options: Any) -> Target:
    """Return the context with folders of its own: an event log, SQL's cache and history."""
    return prod(
        events_path=noted(folder / "events"),
        cache_path=folder / "cache",
        sql_history_path=folder / "state" / "sql_history",
        **options,
    )


def stored(folder: Path) -> Path:
    """Return a data directory of twenty days of two series, and an entry that no snapshot has."""
    node = handmade.Node(folder)
    for day in range(20):
        node.write(
            add("api_requests", 42, 100 + day * day, bucket=DAY + day),
            add("mails", 7, 50 + day, bucket=DAY + day),
        )
    node.snapshot_all(keep_bytes=1 << 30)
    node.write(add("mails", 8, 1000))
    return folder


def noted(folder: Path) -> Path:
    """Return an event log of two failovers, a switchover and one under way."""
    with EventLog.open(folder) as log_file:
        log_file.append_all(incident())
    return folder


class Show:
    """The app under test with its pilot and its stage."""

    def __init__(self, app: KarmaApp, pilot: Pilot[None], stage: Stage) -> None:
        self.app = app
        self.pilot = pilot
        self.stage = stage

    async def press(self, *keys: str) -> None:
        """Press keys, and let everything settle that they set going."""
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def until(self, condition: Callable[[], object], seconds: float = 20.0) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"never came:\n{self.frame()}"
            await self.pilot.pause(0.02)

    async def see(self, *texts: str) -> None:
        """Wait until the screen shows all of these."""
        await self.until(lambda: all(text in self.frame() for text in texts))

    async def type(self, text: str) -> None:
        """Type letters."""
        await self.press(*(NAMED.get(letter, letter) for letter in text))

    def frame(self) -> str:
        """Return the screen's letters, a line each."""
        strips = self.app.screen._compositor.render_strips()
        return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips) + "\n"


NAMED = {" ": "space", ":": "colon", "/": "slash", ".": "full_stop", "-": "minus", "_": "underscore"}


@asynccontextmanager
async def shown(
    answers: Sequence[Answer] | None = None,
    size: tuple[int, int] = (120, 40),
    target: Target | None = None,
    **options: Any,
) -> AsyncIterator[Show]:
    """Show a fleet that says this; its clock stands at noon."""
    chosen = target or prod()
    app = KarmaApp(chosen, clock=lambda: NOON, **options)
    stage = Stage(history() if answers is None else answers, app._poller._report)
    app._poller = stage  # type: ignore[assignment]
    async with app.run_test(size=size) as pilot:
        show = Show(app, pilot, stage)
        await show.until(lambda: app.fleet.is_heard and app.fleet.now == NOON)
        await pilot.pause(0.1)
        yield show

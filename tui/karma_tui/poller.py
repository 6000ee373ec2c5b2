"""The sole caller of the client: asks every node once a tick, and whatever a screen wants to know.

Each node has a task of its own, which asks again when its last question is answered and the tick is over: a
slow node is asked less often, a dead one delays nobody, and questions never pile up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from karma_client import FetchProgress, KarmaError, Pending, ReplicationGapError, connect, connect_async
from karma_client.fleet import NodeState
from karma_client.logs import LogReader, Page
from karma_tui.actions import Action
from karma_tui.model import Answer, Problem
from karma_tui.statements import Place
from karma_tui.target import Target

if TYPE_CHECKING:
    from karma_client import AsyncClient
    from karma_sql.remote import Remote

LOG_WAIT_MS = 2000
"""How long a server may hold a page of its log until there is something."""
RETRY_SECONDS = 1.0
LATENCY_TICKS = 5
"""Latencies are of a minute: asked at every tick they would cost as much as all else."""


class Poller:
    """Connections to every node of a target. `report` is called with each answer.

    `clock` gives unix seconds. Use it as an async context manager: leaving closes the connections.
    """

    def __init__(
        self, target: Target, report: Callable[[Answer], object], clock: Callable[[], float] = time.time
    ) -> None:
        self.target = target
        self.wants_clients = False
        """Whether the next ticks ask for open connections too, which needs an admin token."""
        self.recording: Path | None = None
        """Nodes are shown, and no recording."""
        self._report = report
        self._clock = clock
        self._clients: dict[str, AsyncClient] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for node in self.target.nodes:
            client = connect_async(
                node,
                target="any",
                read_only=self.target.is_read_only,
                max_attempts=2,
                **self.target.client_options,
            )
            self._clients[node] = await self._stack.enter_async_context(client)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def run(self) -> None:
        """Ask every node for ever."""
        async with asyncio.TaskGroup() as group:
            for node in self.target.nodes:
                group.create_task(self._watch(node))

    async def _watch(self, node: str) -> None:
        loop = asyncio.get_running_loop()
        ticks = 0
        while True:
            begun = loop.time()
            self._report(await self._look(node, with_latency=ticks % LATENCY_TICKS == 0))
            ticks += 1
            await asyncio.sleep(max(self.target.tick_seconds - (loop.time() - begun), 0.0))

    async def _look(self, node: str, *, with_latency: bool) -> Answer:
        """Ask one node everything in one round trip."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        pipeline = self._clients[node].pipeline()
        health = pipeline.call("system.health")
        status = pipeline.call("replication.status")
        stats = pipeline.call("system.stats")
        latency = pipeline.call("system.latency") if with_latency else None
        clients = pipeline.call("system.clients") if self.wants_clients else None
        try:
            await pipeline.flush()
            return Answer(
                node,
                self._clock(),
                (loop.time() - begun) * 1000,
                health.result(),
                status.result(),
                stats.result(),
                None if latency is None or latency.error else latency.result(),
                None if clients is None or clients.error else clients.result(),
                clients_problem=_told(clients),
            )
        except KarmaError as error:
            elapsed_ms = (loop.time() - begun) * 1000
            return Answer(node, self._clock(), elapsed_ms, problem=Problem(str(error), error.is_silence))

    # -- What screens want to know -------------------------------------------------------------

    async def ask(self, node: str, op: str, **fields: Any) -> Any:
        """Return the response of an operation from one node. Raises KarmaError."""
        return await self._clients[node].call_paged(op, **fields)

    async def act(self, action: Action) -> Any:
        """Do something to a node. Raises KarmaError; ReadOnlyError when the target is read-only."""
        return await self._clients[action.node].call(action.op, **action.fields)

    async def fetch(
        self, node: str, file: str, folder: Path, progress: Callable[[FetchProgress], object]
    ) -> Path:
        """Download a snapshot file into a folder and return its path; it appears whole or not at all.

        Raises KarmaError, OSError.
        """
        aside = folder / f".{file}.part"
        try:
            with aside.open("wb") as out:
                await self._clients[node].fetch_snapshot(file, out, progress=progress)
            return aside.replace(folder / file)
        finally:
            aside.unlink(missing_ok=True)

    async def tail(
        self, node: str, entries: int, warn: Callable[[str], object]
    ) -> AsyncIterator[Page | KarmaError]:
        """Yield pages of a node's log for ever, so many of its last entries first.

        In place of a page that cannot be had now it yields the error.
        """

        async def ask(op: str, fields: Mapping[str, Any]) -> Any:
            return await self.ask(node, op, **fields)

        reader: LogReader | None = None
        loop = asyncio.get_running_loop()
        while True:
            asked = loop.time()
            try:
                if reader is None:
                    said = NodeState(node, replication=await self.ask(node, "replication.status"))
                    reader = LogReader(ask, max(said.lsn - entries, 0), warn)
                page, _ = await reader.read(wait_ms=LOG_WAIT_MS)
            except ReplicationGapError:
                # The log begins later than that: wherever it begins, then.
                reader = LogReader(ask, None, warn)
                continue
            except KarmaError as error:
                yield error
                await asyncio.sleep(RETRY_SECONDS)
                continue
            yield page
            if not page.entries and loop.time() - asked < RETRY_SECONDS / 2:
                # A server that does not hold its reply.
                await asyncio.sleep(RETRY_SECONDS)

    @contextmanager
    def sql_source(self, place: Place, progress: Callable[[str], object]) -> Iterator[Remote]:
        """Open what SQL asks: connections of its own that block, for a thread, and that refuse to write."""
        from karma_sql.remote import Remote  # noqa: PLC0415  whoever asks no SQL pays for none

        nodes = (place.node,) if place.node else self.target.nodes
        options = self.target.client_options
        with connect(nodes, target="any", read_only=True, max_attempts=2, **options) as client:
            yield Remote(client, nodes[0], self.target.cache_path, progress)


def _told(pending: Pending[Any] | None) -> str:
    return "" if pending is None or pending.error is None else str(pending.error)

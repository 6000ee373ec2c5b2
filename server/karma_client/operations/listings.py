"""Listings of any length: a client fetches them in pages, which Karma 1.0 answers as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from karma_client.binding import Performer, task
from karma_client.errors import ProtocolError
from karma_client.lazy import LazyModule
from karma_client.operations.system import System

if TYPE_CHECKING:
    from karma_client import results
else:
    results = LazyModule("karma_client.results")

LISTINGS: Final = {
    "tree.list": "series",
    "snapshot.list": "files",
    "snapshot.info": "latest_by_tree",
    "recovery.status": "checkpoints",
}
"""What the rows of a page are called, by operation."""
PAGE_ROWS: Final = 1_000


class Listings(Performer):
    """Reads of listings. They replace the operations of the same name, whose single reply has a limit."""

    @task
    async def call_paged(self, op: str, /, **fields: Any) -> Any:
        """Perform any operation as `call` does, a listing in pages; returns what one reply would hold.

        >>> client.call_paged("tree.list")
        ['api_requests', 'emails']
        """
        return await self._perform_paged(op, fields)

    @task
    async def list_series(self) -> list[str]:
        """Return the names of all series in creation order."""
        names: list[str] = await self._perform_paged("tree.list", {})
        return names

    @task
    async def list_snapshots(self) -> list[str]:
        """Return the paths of snapshot files on the server, newest first."""
        paths: list[str] = await self._perform_paged("snapshot.list", {})
        return paths

    @task
    async def snapshot_info(self) -> results.SnapshotInfo:
        """Return the newest snapshot of each series, and the log's position."""
        return results.SnapshotInfo.of(await self._perform_paged("snapshot.info", {}))

    @task
    async def recovery_status(self, source: str | None = None) -> list[results.Checkpoint]:
        """Return remembered checkpoints, of all sources or one."""
        fields = {} if source is None else {"source": source}
        return results.checkpoints(await self._perform_paged("recovery.status", fields))

    async def _perform_paged(self, op: str, fields: dict[str, Any]) -> Any:
        name = LISTINGS.get(op)
        if name is None or not fields.keys().isdisjoint(("limit", "cursor")):
            return await self._perform(System.call(self, op, **fields))
        rows: list[Any] = []
        position: dict[str, str] = {}
        passed: set[str] = set()
        while True:
            page = await self._perform(System.call(self, op, limit=PAGE_ROWS, **position, **fields))
            if not isinstance(page, dict) or "next_cursor" not in page:
                return page
            rows += page[name]
            next_cursor = page.pop("next_cursor")
            if next_cursor is None:
                return {**page, name: rows} if len(page) > 1 else rows
            if str(next_cursor) in passed or not page[name]:
                raise ProtocolError("named a next page that was there before", op=op)
            passed.add(str(next_cursor))
            position = {"cursor": next_cursor}

"""Recovery markers: how far each external pipeline got, kept in ``recovery.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from karma.errors import ErrorCode, RequestError
from karma.limits import CHECKPOINTS_MAX_LIMIT, MAX_CHECKPOINTS, RESPONSE_ENVELOPE_BYTES, STATUS_ITEMS
from karma.protocol import fields
from karma.service.log import Log
from karma.storage import snapshot
from karma.storage.disk import Disk

_AT_ONCE = 100
"""Checkpoints in one page of replication.entries: each is below a kilobyte, and entries want room too."""


@dataclass(slots=True)
class Checkpoints:
    """The newest checkpoint of each source. `clock` is unix seconds."""

    disk: Disk
    directory: Path
    clock: Callable[[], float]
    new_id: Callable[[], str] = lambda: ""
    """Makes an id for a numbering."""
    log: Log | None = None
    max_response_bytes: int = 0
    by_source: dict[str, dict[str, Any]] = field(default_factory=dict)
    boot_id: str = ""
    """Names the numbering of `_numbers`, which begins anew with each process and when some are dropped."""
    on_change: Callable[[], None] = lambda: None
    _numbers: dict[str, int] = field(default_factory=dict)
    """When each source's checkpoint was put, as a count: what a follower lacks is behind its last."""
    _last_number: int = 0

    @property
    def last_unix(self) -> int:
        """When the newest checkpoint was set, 0 without any."""
        return max((checkpoint["updated_at_unix"] for checkpoint in self.by_source.values()), default=0)

    def load(self) -> None:
        """Read ``recovery.json``. Raises DamagedDataError."""
        self.by_source = {
            found["source"]: found for found in snapshot.load_checkpoints(self.disk, self.directory)
        }
        self._number_anew()

    def _number_anew(self) -> None:
        self.boot_id = self.new_id()
        self._numbers = {source: number for number, source in enumerate(self.by_source, 1)}
        self._last_number = len(self._numbers)

    def put(self, source: str, offset: str | None, event_id: str | None) -> dict[str, Any]:
        """Remember a checkpoint durably. Raises RequestError (storage_error) with the old one kept."""
        if source not in self.by_source:
            fields.check_new_name(source, "source")
        checkpoint = {
            "source": source,
            "offset": offset,
            "event_id": event_id,
            "updated_at_unix": int(self.clock()),
        }
        self.receive([checkpoint])
        return checkpoint

    def receive(self, checkpoints: Sequence[dict[str, Any]], sources: frozenset[str] | None = None) -> None:
        """Remember checkpoints durably, a follower those of its source. Raises as `put` does.

        Beyond `MAX_CHECKPOINTS` those that were not set for the longest time are forgotten.
        `sources` names all that the source has: others are of a branch that was given up, and are dropped.
        """
        changed = self.by_source | {found["source"]: found for found in checkpoints}
        if sources is not None:
            changed = {name: found for name, found in changed.items() if name in sources}
        excess = len(changed) - MAX_CHECKPOINTS
        if excess > 0:
            changed = _newest(changed, MAX_CHECKPOINTS, kept=checkpoints)
            if self.log is not None:
                self.log.warning(
                    "checkpoints_dropped",
                    f"More than {MAX_CHECKPOINTS} sources have a recovery checkpoint: the {excess} that were "
                    "not set for the longest time are forgotten. Reuse the names of sources",
                )
        is_dropping = not self.by_source.keys() <= changed.keys()
        if not is_dropping and not checkpoints:
            return
        try:
            snapshot.write_checkpoints(self.disk, self.directory, changed.values())
        except OSError as error:
            raise RequestError(
                ErrorCode.STORAGE_ERROR,
                f"The disk refused the checkpoint ({error.strerror}); the old one stays",
            ) from error
        self.by_source = changed
        if is_dropping:
            # Followers of this node begin anew, too, and see what is not there any more.
            self._number_anew()
        else:
            for found in checkpoints:
                self._last_number += 1
                self._numbers[found["source"]] = self._last_number
        self.on_change()

    def after(self, boot_id: str, number: int) -> tuple[list[dict[str, Any]], list[Any]] | None:
        """Return the checkpoints put behind a number, `_AT_ONCE` at most, and the last one's position.

        A position is [boot_id, number]. One of another numbering counts as the beginning of this one, and is
        answered even if there is no checkpoint at all. None: there is no news.
        """
        is_anew = boot_id != self.boot_id
        since = 0 if is_anew else number
        if since >= self._last_number:
            return ([], [self.boot_id, since]) if is_anew else None
        lacking = sorted((at, source) for source, at in self._numbers.items() if at > since)[:_AT_ONCE]
        return [self.by_source[source] for _, source in lacking], [self.boot_id, lacking[-1][0]]

    def status(
        self, source: str | None, limit: int | None = None, cursor: str | None = None
    ) -> dict[str, Any]:
        """Return the response of recovery.status: all checkpoints, one source's, or a page by source name.

        `cursor` is the last page's next_cursor.
        """
        if source is not None:
            checkpoints = [self.by_source[source]] if source in self.by_source else []
            return {"checkpoint_count": len(checkpoints), "checkpoints": checkpoints}
        if limit is None and cursor is None:
            return {"checkpoint_count": len(self.by_source), "checkpoints": list(self.by_source.values())}
        names = sorted(name for name in self.by_source if cursor is None or name > cursor)
        page: list[str] = []
        room_bytes = self.max_response_bytes - RESPONSE_ENVELOPE_BYTES
        for name in names[: limit or CHECKPOINTS_MAX_LIMIT]:
            room_bytes -= len(orjson.dumps(self.by_source[name])) + 1
            if page and self.max_response_bytes and room_bytes < 0:
                break
            page.append(name)
        return {
            "checkpoint_count": len(self.by_source),
            "checkpoints": [self.by_source[name] for name in page],
            "next_cursor": page[-1] if len(page) < len(names) else None,
        }

    def summary(self) -> dict[str, Any]:
        """Return how many checkpoints there are, and the newest of them, as replication.status shows it."""
        newest = _newest(self.by_source, STATUS_ITEMS)
        return {"checkpoint_count": len(self.by_source), "checkpoints": list(newest.values())}


def _newest(
    by_source: Mapping[str, dict[str, Any]], count: int, kept: Sequence[dict[str, Any]] = ()
) -> dict[str, dict[str, Any]]:
    """Return the newest checkpoints in the order they have; those `kept` count as newer than all others."""
    fresh = {checkpoint["source"] for checkpoint in kept}
    ranked = sorted(
        by_source, key=lambda name: (name in fresh, by_source[name]["updated_at_unix"], name), reverse=True
    )
    chosen = frozenset(ranked[:count])
    return {name: checkpoint for name, checkpoint in by_source.items() if name in chosen}

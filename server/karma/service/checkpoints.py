"""Recovery markers: how far each external pipeline got, kept in ``recovery.json``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from karma.errors import ErrorCode, RequestError
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
    by_source: dict[str, dict[str, Any]] = field(default_factory=dict)
    new_id: Callable[[], str] = lambda: ""
    """Makes an id for a numbering."""
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

    def put(self, source: str, offset: str | int | None, event_id: str | int | None) -> dict[str, Any]:
        """Remember a checkpoint durably. Raises RequestError (storage_error) with the old one kept."""
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

        `sources` names all that the source has: others are of a branch that was given up, and are dropped.
        """
        changed = self.by_source | {found["source"]: found for found in checkpoints}
        is_dropping = sources is not None and not sources.issuperset(changed)
        if is_dropping:
            changed = {name: found for name, found in changed.items() if name in (sources or ())}
        elif not checkpoints:
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

    def status(self, source: str | None) -> dict[str, Any]:
        """Return the response of recovery.status."""
        found = [entry for name, entry in self.by_source.items() if source in (None, name)]
        return {"checkpoint_count": len(found), "checkpoints": found}

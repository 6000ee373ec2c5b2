"""Recovery markers: how far each external pipeline got, kept in ``recovery.json``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from karma.errors import ErrorCode, RequestError
from karma.storage import snapshot
from karma.storage.disk import Disk


@dataclass(slots=True)
class Checkpoints:
    """The newest checkpoint of each source. `clock` is unix seconds."""

    disk: Disk
    directory: Path
    clock: Callable[[], float]
    by_source: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def last_unix(self) -> int:
        """When the newest checkpoint was set, 0 without any."""
        return max((checkpoint["updated_at_unix"] for checkpoint in self.by_source.values()), default=0)

    def load(self) -> None:
        """Read ``recovery.json``. Raises DamagedDataError."""
        self.by_source = {
            found["source"]: found for found in snapshot.load_checkpoints(self.disk, self.directory)
        }

    def put(self, source: str, offset: str | int | None, event_id: str | int | None) -> dict[str, Any]:
        """Remember a checkpoint durably. Raises RequestError (storage_error) with the old one kept."""
        checkpoint = {
            "source": source,
            "offset": offset,
            "event_id": event_id,
            "updated_at_unix": int(self.clock()),
        }
        changed = {**self.by_source, source: checkpoint}
        try:
            snapshot.write_checkpoints(self.disk, self.directory, changed.values())
        except OSError as error:
            raise RequestError(
                ErrorCode.STORAGE_ERROR,
                f"The disk refused the checkpoint ({error.strerror}); the old one stays",
            ) from error
        self.by_source = changed
        return checkpoint

    def status(self, source: str | None) -> dict[str, Any]:
        """Return the response of recovery.status."""
        found = [entry for name, entry in self.by_source.items() if source in (None, name)]
        return {"checkpoint_count": len(found), "checkpoints": found}

"""Consumers: how far somebody has read, by name, kept on disk.

    consumers/NAME/offsets.json    {"actions.requested":12,"actions.result":9}
    consumers/NAME/karma.lock      held by the process that reads under this name

`read` gives events from behind the committed offsets, `commit` notes how far the work is done. Whoever dies
between the two gets the events again: at least once, never not at all. A commit covers all topics at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import orjson

from karma.errors import DirectoryInUseError, StorageFailedError
from karma_events.envelope import Recorded
from karma_events.errors import DamagedLogError, LogBusyError, LogWriteError
from karma_events.log import CONSUMERS_NAME, EventLog, LogReader, check_name

OFFSETS_NAME = "offsets.json"
_LOCK_SECONDS = 1.0


class Consumer:
    """One reader with a name. Two processes may not use a name at once: each would miss half."""

    def __init__(self, log: EventLog, name: str, topics: Sequence[str] | None = None) -> None:
        """Take a name; topics are those named, or whichever there are (None).

        Raises InvalidEventError for names, LogBusyError when another process uses it, LogWriteError, and
        DamagedLogError when its offsets cannot be read or are past the end of a topic.
        """
        self._log = log
        self._name = check_name("consumer", name)
        self._directory = log.directory / CONSUMERS_NAME / name
        try:
            log.disk.make_directory(self._directory)
            self._lock = log.disk.lock(self._directory, _LOCK_SECONDS)
        except DirectoryInUseError as error:
            raise LogBusyError(
                f"consumer {name} is in use by {error.holder}", "end that process, or take another name"
            ) from error
        except OSError as error:
            raise self._refused(error) from error
        try:
            self.committed = _read_offsets(self._path)
            """By topic: the offset up to which the work is done."""
            self._given = dict(self.committed)
            self._reader = LogReader(log, topics, self.committed)
            self._check_ends()
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the name free. What was not committed will be read again."""
        self._lock.release()

    def read(self) -> Iterator[Recorded]:
        """Yield the events behind those read last, as `LogReader.read` does."""
        for event in self._reader.read():
            # A merge reads ahead: what counts is what was given away.
            self._given[event.topic] = event.offset
            yield event

    def commit(self) -> None:
        """Note that every event given so far is done. Raises LogWriteError.

        The topics are made durable first, so that no offset is ever past what a power cut leaves.
        """
        offsets = dict(self._given)
        moved = [topic for topic, offset in offsets.items() if offset != self.committed.get(topic)]
        if not moved:
            return
        self._log.make_durable(moved)
        try:
            self._log.disk.write_file(
                self._path, [orjson.dumps(offsets, option=orjson.OPT_SORT_KEYS) + b"\n"]
            )
        except (OSError, StorageFailedError) as error:
            raise self._refused(error) from error
        self.committed = offsets

    @property
    def _path(self) -> Path:
        return self._directory / OFFSETS_NAME

    def _check_ends(self) -> None:
        for topic, offset in self.committed.items():
            # From one before it, so that the event itself must be there.
            if not any(True for _ in self._log.reader(topic, offset - 1).read_entries()):
                raise DamagedLogError(
                    f"consumer {self._name} stands at offset {offset} of topic {topic}, which ends before: "
                    "it was exchanged",
                    f"remove {self._path} to begin anew, or take another name",
                )

    def _refused(self, error: OSError | StorageFailedError) -> LogWriteError:
        return LogWriteError(
            f"consumer {self._name} cannot be noted in {self._directory}: {error}",
            "make room, or mend the disk",
        )


def _read_offsets(path: Path) -> dict[str, int]:
    try:
        found = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except orjson.JSONDecodeError:
        found = None
    if isinstance(found, dict) and all(type(offset) is int and offset > 0 for offset in found.values()):
        return found
    raise DamagedLogError(
        f"{path} holds no offsets", "mend it, remove it to begin anew, or take another name"
    )

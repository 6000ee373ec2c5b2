"""Wait until something is appended to an event log, by any process.

Linux tells (inotify, called through the C library: no package is worth one system call). Elsewhere, and while
the folders are not there yet, a look every half second has to do.
"""

from __future__ import annotations

import ctypes
import os
import select
import time
from pathlib import Path
from typing import Self

from karma_events.log import EventLog

POLL_SECONDS = 0.5
_MODIFY, _MOVED_TO, _CREATE, _ONLY_DIRECTORIES = 0x2, 0x80, 0x100, 0x0100_0000
_READ_BYTES = 65_536


class Changes:
    """Watches the topics of a folder. Make it before reading, so that nothing falls in between."""

    def __init__(self, log: EventLog) -> None:
        self._root = log.topics_directory
        self._watched: dict[Path, int] = {}
        libc = ctypes.CDLL(None, use_errno=True)
        self._add = getattr(libc, "inotify_add_watch", None)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC) if self._add is not None else -1
        self._watch_new()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def wait(self, seconds: float) -> None:
        """Return when something may have changed since the last call, at the latest after so many seconds."""
        if self._watch_new():
            # What happened in there before it was watched, nobody told.
            return
        if not self._watched:
            time.sleep(min(seconds, POLL_SECONDS))
            return
        ready, _, _ = select.select([self._fd], [], [], seconds)
        if ready:
            os.read(self._fd, _READ_BYTES)

    def _watch_new(self) -> bool:
        """Watch the folders that are not watched yet; return whether there were any."""
        if self._fd < 0:
            return False
        before = dict(self._watched)
        mask = _MODIFY | _MOVED_TO | _CREATE | _ONLY_DIRECTORIES
        for folder in (self._root, *(path for path in self._root.glob("*") if path.is_dir())):
            # Asked for again, the kernel answers with the same number, unless it is another folder now.
            number = self._add(self._fd, os.fsencode(folder), mask) if self._add is not None else -1
            if number >= 0:
                self._watched[folder] = number
        return self._watched != before

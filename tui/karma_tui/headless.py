"""Recording without a screen, as a service does it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from karma_tui.model import Answer
from karma_tui.poller import Poller
from karma_tui.recording import Recorder
from karma_tui.target import Target


class Kept(NamedTuple):
    """A finished recording."""

    file: Path
    answers: int
    seconds: float


def record(
    target: Target,
    path: Path,
    done: Callable[[Kept], object],
    *,
    for_seconds: float | None = None,
    rotate_seconds: float | None = None,
) -> None:
    """Record every node until SIGINT, SIGTERM, or for so long; `done` is told of each file that is finished.

    With `rotate_seconds`, `path` is a folder and gets a file for each such time. Raises RecordingError,
    OSError.
    """
    asyncio.run(_record(target, path, done, for_seconds, rotate_seconds))


async def _record(
    target: Target,
    path: Path,
    done: Callable[[Kept], object],
    for_seconds: float | None,
    rotate_seconds: float | None,
) -> None:
    loop = asyncio.get_running_loop()
    is_stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, is_stopped.set)
    end = None if for_seconds is None else loop.time() + for_seconds
    current = _File(path if rotate_seconds is None else path / _name(time.time()))

    def keep(answer: Answer) -> None:
        current.add(answer)

    async with Poller(target, keep) as poller:
        polling = asyncio.create_task(poller.run())
        try:
            while not is_stopped.is_set():
                times = [one for one in (rotate_seconds, None if end is None else end - loop.time()) if one]
                stopping = asyncio.create_task(is_stopped.wait())
                await asyncio.wait(
                    {stopping, polling}, timeout=min(times, default=None), return_when="FIRST_COMPLETED"
                )
                stopping.cancel()
                if polling.done():
                    polling.result()
                if end is not None and loop.time() >= end:
                    break
                if not is_stopped.is_set():
                    finished, current = current, _File(path / _name(time.time()))
                    done(finished.close())
        finally:
            polling.cancel()
            done(current.close())


class _File:
    """A recording under way."""

    def __init__(self, path: Path) -> None:
        self._begun = time.monotonic()
        self._answers = 0
        self._recorder = Recorder(path)

    def add(self, answer: Answer) -> None:
        self._answers += 1
        self._recorder.add(answer)

    def close(self) -> Kept:
        self._recorder.close()
        return Kept(self._recorder.path, self._answers, time.monotonic() - self._begun)


def _name(unix_seconds: float) -> str:
    return time.strftime("karma-%Y%m%dT%H%M%SZ.parquet", time.gmtime(unix_seconds))

"""Work in a forked child, which sees memory as it was at the fork while the parent goes on writing.

The alternative, copying the store in slices, would double the memory and still show a moving target.
The fork of a 300 MB process takes 7 ms; after that the parent only pays for the pages it changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Protocol

import orjson

_NICENESS = 5


class ChildFailedError(Exception):
    """The child could not do its work; the message says why."""


class RunInChild(Protocol):
    """What `run_in_child` is to its users."""

    def __call__(self, work: Callable[[], Any], keep_fds: Collection[int] = ()) -> Awaitable[Any]:
        """Run work in a child that sees memory as it is now. Raises ChildFailedError."""


async def run_in_child(work: Callable[[], Any], keep_fds: Collection[int] = ()) -> Any:
    """Run `work` in a forked child and return its result, which must be JSON.

    `keep_fds` stay open in the child: the directory's lock, which must outlive the parent's death
    while the child still writes. Raises ChildFailedError.
    """
    loop = asyncio.get_running_loop()
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_child(work, write_fd, keep_fds)
    os.close(write_fd)
    os.set_blocking(read_fd, False)
    answer = bytearray()
    ended: asyncio.Future[None] = loop.create_future()

    def read() -> None:
        data = os.read(read_fd, 65_536)
        answer.extend(data)
        if not data:
            loop.remove_reader(read_fd)
            ended.set_result(None)

    loop.add_reader(read_fd, read)
    try:
        await ended
    except asyncio.CancelledError:
        loop.remove_reader(read_fd)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        raise
    finally:
        os.close(read_fd)
        status = _reap(pid)
    if not answer:
        raise ChildFailedError(f"the snapshot process ended without an answer (wait status {status})")
    result = orjson.loads(answer)
    if "error" in result:
        raise ChildFailedError(result["error"])
    return result["result"]


def is_orphan(parent_pid: int) -> bool:
    """Return whether the server that forked this process is gone, so that nobody wants its work any more."""
    return os.getppid() != parent_pid


def _reap(pid: int) -> int:
    """Return a child's wait status. Its pipe ended with it, so this does not wait noticeably."""
    return os.waitpid(pid, 0)[1]


def _be_child(work: Callable[[], Any], write_fd: int, keep_fds: Collection[int]) -> None:
    """Do the work, send its result, and end without running any of the parent's exit handlers."""
    try:
        gc.disable()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            # Ctrl-C reaches the whole process group; the parent decides when the child ends.
            signal.signal(number, signal.SIG_IGN)
        # Clients must see their connections end when the parent closes them, not when the child does.
        _close_others({0, 1, 2, write_fd, *keep_fds})
        with contextlib.suppress(OSError):
            os.nice(_NICENESS)
        answer = {"result": work()}
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent must hear of it
        answer = {"error": f"{type(error).__name__}: {error}"}
    try:
        data = memoryview(orjson.dumps(answer))
        while data:
            data = data[os.write(write_fd, data) :]
    finally:
        os._exit(0)


def _close_others(keep: Collection[int]) -> None:
    highest = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    lower = 0
    for kept in [*sorted(keep), highest]:
        if lower < kept:
            # An empty range would be taken for one without end.
            os.closerange(lower, kept)
        lower = kept + 1

"""Work in a forked child, which sees memory as it was at the fork while the parent goes on writing.

The alternative, copying the store in slices, would double the memory and still show a moving target.
The fork of a 300 MB process takes 7 ms; after that the parent only pays for the pages it changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any, Protocol

import orjson

_NICENESS = 5
_PR_SET_PDEATHSIG = 1
"""As in linux/prctl.h."""
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class ChildFailedError(Exception):
    """The child could not do its work; the message says why."""


class RunInChild(Protocol):
    """What `run_in_child` is to its users."""

    def __call__(self, work: Callable[[], Any], keep_fds: Collection[int] = ()) -> Awaitable[Any]:
        """Run work in a child that sees memory as it is now. Raises ChildFailedError and OSError."""


async def run_in_child(work: Callable[[], Any], keep_fds: Collection[int] = ()) -> Any:
    """Run `work` in a forked child and return its result, which must be JSON.

    `keep_fds` stay open in the child: the directory's lock, which must outlive the parent's death
    while the child still writes. Raises ChildFailedError, and OSError when the system has no descriptor
    or no process to spare.
    """
    loop = asyncio.get_running_loop()
    read_fd, write_fd = os.pipe()
    parent_pid = os.getpid()
    try:
        pid = os.fork()
    except OSError:
        os.close(read_fd)
        os.close(write_fd)
        raise
    if pid == 0:
        _be_child(work, write_fd, keep_fds, parent_pid)
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


def _be_child(work: Callable[[], Any], write_fd: int, keep_fds: Collection[int], parent_pid: int) -> None:
    """Do the work, send its result, and end without running any of the parent's exit handlers."""
    try:
        _end_with(parent_pid)
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


def _end_with(parent_pid: int) -> None:
    """Let the kernel kill this process when its parent is killed.

    Else it would go on writing a large series, hold the directory's lock, and the next start would find the
    directory in use. Where the kernel cannot, `is_orphan` ends it at the next file.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if is_orphan(parent_pid):
        # It was before that.
        os._exit(0)


def _close_others(keep: Collection[int]) -> None:
    highest = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    lower = 0
    for kept in [*sorted(keep), highest]:
        if lower < kept:
            # An empty range would be taken for one without end.
            os.closerange(lower, kept)
        lower = kept + 1
    # A limit that was lowered while the parent ran leaves what is open above it.
    with contextlib.suppress(OSError):
        for fd in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
            if fd not in keep:
                with contextlib.suppress(OSError):
                    os.close(fd)

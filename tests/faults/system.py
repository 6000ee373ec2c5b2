"""Real servers whose way to the operating system is watched and broken.

`System` takes the place of the `os` functions by which a process changes files, in that process and in its
forked children. Below a directory it notes every call in a trace, with its data and in the true order, and
lets calls fail as its `Faults` say. The replies that leave stand in the same trace. Nothing of the server
is replaced: `storage.disk` makes its calls, and the kernel carries them out.

The processes come from a fork server that has the server's modules loaded: a start takes 50 ms, not 500.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import json
import multiprocessing
import os
import pickle
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self, get_args

import pytest
from harness import START_SECONDS, Connection

CONTEXT: Final = multiprocessing.get_context("forkserver")
# "__main__" is pytest: each process would load it again.
CONTEXT.set_forkserver_preload(["__main__", "pytest", "karma.app", "uvloop", "multiprocessing.sharedctypes"])
FaultKind = Literal["EIO", "ENOSPC", "short", "torn"]
"""A call fails with EIO; or ENOSPC; a write takes half of its bytes; or it does, and the rest has no room."""
FAULT_KINDS: Final[tuple[FaultKind, ...]] = get_args(FaultKind)
_TAKING_SPACE = ("create", "write", "mkdir")


class Event(NamedTuple):
    """One line of a trace. Paths are relative to the directory, `file` names an open file."""

    kind: str
    """open, write, truncate, sync, synced, rename, unlink, mkdir, reply or died."""
    file: str = ""
    path: str = ""
    new_path: str = ""
    data: bytes = b""
    number: int = 0
    """A write's offset (-1: at the end), a size, a sync's number, a client's."""


class Faults:
    """What fails, told to a process and its children while they run; counts their calls."""

    def __init__(self) -> None:
        self.lock = CONTEXT.Lock()
        self._count = CONTEXT.RawValue("q", 0)
        self._at = CONTEXT.RawValue("q", 0)
        self._kind = CONTEXT.RawValue("i", 0)
        self._is_lasting = CONTEXT.RawValue("b", 0)
        self._is_torn = CONTEXT.RawValue("b", 0)
        self._hits = CONTEXT.RawValue("q", 0)

    @property
    def calls(self) -> int:
        """How many calls there were."""
        return int(self._count.value)

    @property
    def hits(self) -> int:
        """How many of them failed."""
        return int(self._hits.value)

    def set(self, at: int, kind: FaultKind, *, is_lasting: bool) -> None:
        """Let the call of this number fail, and all behind it if the fault is lasting."""
        with self.lock:
            self._kind.value, self._is_lasting.value = FAULT_KINDS.index(kind), is_lasting
            self._at.value, self._is_torn.value = at, 0

    def set_next(self, kind: FaultKind, *, is_lasting: bool = False) -> None:
        """Let the next call fail."""
        self.set(self.calls + 1, kind, is_lasting=is_lasting)

    def heal(self) -> None:
        """Let nothing fail any more."""
        self._at.value = self._is_torn.value = 0

    def room(self, call: str, size_bytes: int = 0, path: Any = None) -> int:
        """Count a call; returns how many bytes it may write. Raises OSError. The caller holds the lock."""
        self._count.value += 1
        at, kind = self._at.value, FAULT_KINDS[self._kind.value]
        is_due = at and (self._count.value >= at if self._is_lasting.value else self._count.value == at)
        if self._is_torn.value and call == "write":
            self._is_torn.value = self._is_lasting.value
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if not is_due:
            return size_bytes
        if kind in ("short", "torn"):
            if call != "write":
                return size_bytes
            self._hits.value += 1
            self._is_torn.value = kind == "torn"
            return max(size_bytes // 2, 1)
        if kind == "ENOSPC" and self._is_lasting.value and call not in _TAKING_SPACE:
            return size_bytes
        self._hits.value += 1
        number = errno.EIO if kind == "EIO" else errno.ENOSPC
        # Calls that take a path name it in their error.
        raise OSError(number, os.strerror(number), *(() if path is None else (os.fspath(path),)))


class System:
    """The calls of one process and its children that change files below `root`."""

    def __init__(self, root: Path, trace: Path, faults: Faults) -> None:
        self._root = os.fspath(root)
        self._trace = trace
        self._faults = faults
        self._files: dict[int, str] = {}
        self._syncs = count(1)
        self._pid = 0
        self._trace_fd = -1
        self._real = {name: getattr(os, name) for name in _PATCHED}
        self._real_open = Path.open

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Stand between this process and the system for a while."""
        for name in _PATCHED:
            setattr(os, name, getattr(self, f"_{name}"))
        Path.open = _open_path(self._real_open)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for name, function in self._real.items():
                setattr(os, name, function)
            Path.open = self._real_open  # type: ignore[method-assign]
            if self._trace_fd >= 0:
                os.close(self._trace_fd)

    def note(self, event: Event) -> None:
        """Add an event to the trace."""
        with self._faults.lock:
            self._note(event)

    def _note(self, event: Event) -> None:
        if self._pid != os.getpid():
            # A forked child closes what it inherited.
            self._pid = os.getpid()
            self._trace_fd = self._real["open"](self._trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._real["write"](self._trace_fd, pickle.dumps(tuple(event)))

    def _inside(self, path: Any) -> str | None:
        """Return a path as seen from the directory, None for one elsewhere; the directory itself is ""."""
        text = os.fspath(path)
        if text == self._root:
            return ""
        return text[len(self._root) + 1 :] if text.startswith(self._root + "/") else None

    # -- What takes the place of os.… --------------------------------------------------------------------

    def _open(self, path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        inside = self._inside(path)
        if inside is None:
            return int(self._real["open"](path, flags, mode, **more))
        with self._faults.lock:
            is_writing = flags & (os.O_WRONLY | os.O_RDWR)
            if is_writing:
                is_new = flags & os.O_CREAT and not os.path.lexists(path)
                self._faults.room("create" if is_new else "open", path=path)
            fd = int(self._real["open"](path, flags, mode, **more))
            if is_writing or flags & os.O_DIRECTORY:
                self._files[fd] = f"{os.getpid()}.{next(self._syncs)}"
                self._note(Event("open", self._files[fd], inside, number=flags))
        return fd

    def _close(self, fd: int) -> None:
        self._files.pop(fd, None)
        self._real["close"](fd)

    def _write(self, fd: int, data: Any) -> int:
        if fd not in self._files:
            return int(self._real["write"](fd, data))
        with self._faults.lock:
            room = self._faults.room("write", len(data))
            written = int(self._real["write"](fd, memoryview(data)[:room]))
            self._note(Event("write", self._files[fd], data=bytes(data[:written]), number=-1))
        return written

    def _pwrite(self, fd: int, data: Any, offset: int) -> int:
        if fd not in self._files:
            return int(self._real["pwrite"](fd, data, offset))
        with self._faults.lock:
            self._faults.room("write", len(data))
            written = int(self._real["pwrite"](fd, data, offset))
            self._note(Event("write", self._files[fd], data=bytes(data[:written]), number=offset))
        return written

    def _ftruncate(self, fd: int, size: int) -> None:
        if fd not in self._files:
            self._real["ftruncate"](fd, size)
            return
        with self._faults.lock:
            self._faults.room("truncate")
            self._real["ftruncate"](fd, size)
            self._note(Event("truncate", self._files[fd], number=size))

    def _fsync(self, fd: int) -> None:
        self._sync(self._real["fsync"], fd)

    def _fdatasync(self, fd: int) -> None:
        self._sync(self._real["fdatasync"], fd)

    def _sync(self, call: Callable[[int], None], fd: int) -> None:
        if fd not in self._files:
            call(fd)
            return
        number = next(self._syncs)
        with self._faults.lock:
            self._faults.room("sync")
            file = self._files[fd]
            self._note(Event("sync", file, number=number))
        # Not under the lock: what another thread writes meanwhile is not covered by this sync.
        call(fd)
        self.note(Event("synced", file, number=number))

    def _replace(self, old: Any, new: Any) -> None:
        with self._faults.lock:
            self._faults.room("rename", path=old)
            self._real["replace"](old, new)
            self._note(Event("rename", path=self._inside(old) or "", new_path=self._inside(new) or ""))

    def _unlink(self, path: Any) -> None:
        inside = self._inside(path)
        with self._faults.lock:
            if inside is not None:
                self._faults.room("unlink", path=path)
            self._real["unlink"](path)
            if inside is not None:
                self._note(Event("unlink", path=inside))

    def _mkdir(self, path: Any, mode: int = 0o777) -> None:
        inside = self._inside(path)
        with self._faults.lock:
            if inside is not None:
                self._faults.room("mkdir", path=path)
            self._real["mkdir"](path, mode)
            if inside is not None:
                self._note(Event("mkdir", path=inside))


_PATCHED = (
    "open",
    "close",
    "write",
    "pwrite",
    "ftruncate",
    "fsync",
    "fdatasync",
    "replace",
    "unlink",
    "mkdir",
)


class _Raw(io.RawIOBase):
    """What a file that Python buffers is made of, with calls that `System` sees."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def write(self, data: Any) -> int:
        return os.write(self._fd, data)

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._fd)


def _open_path(real_open: Callable[..., Any]) -> Callable[..., Any]:
    def open_path(path: Path, mode: str = "r", *arguments: Any, **more: Any) -> Any:
        if mode != "wb":
            return real_open(path, mode, *arguments, **more)
        return io.BufferedWriter(_Raw(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)))

    return open_path


def read_trace(path: Path) -> list[Event]:
    """Return a trace; the last event may be missing where a kill came between a call and its note."""
    events = []
    with path.open("rb") as file:
        while True:
            try:
                events.append(Event(*pickle.load(file)))
            except EOFError:
                return events


# -- Processes -------------------------------------------------------------------------------------------


def _run_server(arguments: list[str], output: Path, system: tuple[Path, Path, Faults]) -> None:
    """Be a server; runs in a process of its own."""
    from karma import app  # noqa: PLC0415 - the fork server has it, the tests' process need not
    from karma.net.session import Session  # noqa: PLC0415

    fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(fd, stream)
    sys.stdout, sys.stderr = (builtins.open(stream, "w", closefd=False) for stream in (1, 2))  # noqa: SIM115
    watched = System(*system)
    send = Session.send

    def send_noted(session: Session, data: bytes) -> None:
        watched.note(Event("reply", data=data, number=session.id))
        send(session, data)

    Session.send = send_noted  # type: ignore[method-assign, assignment]
    with watched.installed():
        app.main(arguments)


class Watched:
    """A server process on `directory` under a `System`. Options as those of `harness.Server`.

    Watched is all below `root`, which is the directory if none is given.
    """

    def __init__(
        self,
        directory: Path,
        trace: Path,
        faults: Faults | None = None,
        root: Path | None = None,
        **options: Any,
    ) -> None:
        self.directory = directory
        self.root = root or directory
        self.trace = trace
        self.faults = faults or Faults()
        self.options = {"bind": "127.0.0.1", "port": 0, "directory": directory, **options}
        self.output = trace.with_suffix(".out")
        self.port = 0
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, and come back when it listens or has ended."""
        arguments = [
            f"--{name.replace('_', '-')}={str(value).lower() if isinstance(value, bool) else value}"
            for name, value in self.options.items()
        ]
        self.output.write_text("")
        self.process = CONTEXT.Process(
            target=_run_server,
            args=(arguments, self.output, (self.root, self.trace, self.faults)),
            daemon=True,
        )
        self.process.start()
        deadline = time.monotonic() + START_SECONDS
        self.port = 0
        while not self.port and self.is_up:
            assert time.monotonic() < deadline, self.text
            for event in self.events("listening"):
                self.port = event["port"]
            time.sleep(0.002)

    @property
    def is_up(self) -> bool:
        """Whether the process runs."""
        return self.process.is_alive()

    @property
    def text(self) -> str:
        """What it printed."""
        return self.output.read_text() if self.output.exists() else ""

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return its log lines of one event."""
        lines = self.text.splitlines()
        found = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return [event for event in found if event["event"] == name]

    def connect(self, timeout_seconds: float = 60.0) -> Connection:
        """Connect as a client."""
        return Connection(socket.create_connection(("127.0.0.1", self.port), timeout_seconds))

    def ask(self, op: str, **fields: Any) -> Any:
        """Return the response of one request on a connection of its own."""
        with self.connect() as connection:
            return connection.ask(op, **fields)

    def limit_file_size(self, size_bytes: int) -> None:
        """Let no file of it grow beyond a size."""
        assert self.process.pid is not None
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))

    def kill(self) -> None:
        """End it as a kill -9 does."""
        self.process.kill()
        self.process.join()

    def stop(self) -> int:
        """End it with SIGTERM; returns its exit code."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGTERM)
        return self.wait()

    def wait(self, timeout_seconds: float = 60.0) -> int:
        """Wait for its end; returns its exit code."""
        self.process.join(timeout_seconds)
        code = self.process.exitcode
        assert code is not None, f"it does not end:\n{self.text}"
        return code


@contextlib.contextmanager
def without_syncs() -> Iterator[None]:
    """Let syncs of this process do nothing: the outcome of a recovery does not depend on them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "fdatasync"):
            patch.setattr(os, name, lambda _fd: None)
        yield

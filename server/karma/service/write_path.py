"""The write path: requests run against memory, the log is written, and only then replies leave.

A pass is one turn of the event loop. Whatever its clients sent is executed at once, each request
seeing the changes of those before it; at the end of the pass all log entries go out in one write,
and with fsync on in one sync. Replies, reads included, wait until every entry they could have seen
is durable, so nobody is ever shown a value that a crash takes back.

If the write fails, the log is cut back, the changes are undone, and the pass is run again with
writes refused (`storage_error`); reads then answer from what is left. If even cutting back fails, or
a sync does, the process ends: going on would break the promise.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from karma.core.entries import Received
from karma.engine import Effect, Engine, Outcome
from karma.engine.legacy import strip
from karma.errors import ErrorCode, RequestError, StorageFailedError
from karma.limits import LARGE_REPLY_BYTES, LARGE_REQUEST_BYTES, TURN_REPLY_BYTES
from karma.protocol import replies
from karma.service.latency import Durations, OpLatency
from karma.service.log import Log
from karma.service.parties import Batch, Client, Gate, Pending
from karma.service.turns import Reading, Tidying, Turns, first_of, share_of
from karma.storage.recovery import NOT_AN_ENTRY
from karma.storage.wal import Wal

_OUT_OF_MEMORY = (
    ErrorCode.OVERLOADED,
    "The server ran out of memory; nothing was written. Try again later, or give the server more memory",
)
INLINE_SYNC_CLIENTS = 8
"""Up to so many waiting clients a sync runs on the loop: handing it to a thread costs more than they gain."""

EffectHandler = Callable[..., Any]
"""Takes an effect's arguments; returns a JSON value or an awaitable of one, or raises RequestError."""


@dataclass(slots=True, repr=False)
class WritePath:
    """Runs passes. `clock_ms` is the wall clock in unix milliseconds."""

    engine: Engine
    wal: Wal | None
    log: Log
    clock_ms: Callable[[], int]
    loop: asyncio.AbstractEventLoop
    die: Callable[[StorageFailedError], None]
    """Ends the process; called when a promise cannot be kept."""
    stopwatch: Callable[[], float] = time.perf_counter
    """Seconds, for durations."""
    processor_time: Callable[[], float] = time.thread_time
    """Seconds that this thread worked: what the query timeout bounds, whatever else the machine does."""
    is_synced: bool = True
    max_group_entries: int = 1024
    group_wait_us: int = 0
    query_timeout_ms: int = 1000
    effects: dict[str, EffectHandler] = field(default_factory=dict)
    effects_of_client: dict[str, EffectHandler] = field(default_factory=dict)
    """Those that want to know who asks: they take the client first."""
    gate: Gate | None = None
    on_durable: Callable[[], None] | None = None
    """Called when followers may have more of the log than before."""
    before_write: Callable[[], None] | None = None
    """Called before the log is written, while there is reason to expect that it cannot be. Raises OSError."""
    on_full: Callable[[], None] | None = None
    """Called after a written group when the active log file has reached its size."""
    has_child: bool = False
    """Whether a snapshot is being written: syncs then take long and must not hold the loop."""
    last_us: int = 0
    """How long the last request took, in microseconds."""
    storage_trouble: str | None = None
    """Why the last write failed, until one succeeds."""

    _is_open: bool = False
    _refused: tuple[str, str] = _OUT_OF_MEMORY
    """Error code and message of the last refusal."""
    _started: float = 0.0
    _touched: list[Client] = field(default_factory=list)
    _work: list[tuple[Client, list[bytes], int]] = field(default_factory=list)
    _waiting: list[Batch] = field(default_factory=list)
    _synced_waiters: list[asyncio.Future[None]] = field(default_factory=list)
    _is_syncing: bool = False
    _slicing: int = 0
    _drained: asyncio.Future[None] | None = None
    _durations: Durations = field(default_factory=Durations)
    _tasks: set[asyncio.Future[Any]] = field(default_factory=set)
    _turns: Turns = field(init=False)
    _tidying: Tidying = field(init=False)

    def __post_init__(self) -> None:
        counters = self.engine.counters
        self._turns = Turns(self.loop, self.stopwatch, lambda: counters.commands)
        self._tidying = Tidying(self._turns, self.engine, self._write_group)

    # -- Passes --------------------------------------------------------------------------------

    def submit(self, client: Client, lines: list[bytes]) -> None:
        """Execute what a client sent, behind what it is waiting for."""
        if client.is_blocked:
            client.backlog += lines
            return
        if not self._is_open:
            self._open()
        if not client.replies:
            self._touched.append(client)
        size = self.max_group_entries
        room = size - len(self.engine.entries)
        while lines and not client.is_blocked:
            if room <= 0:
                self._write_group()
                room = size
            part, lines = (lines, []) if len(lines) <= room else (lines[:room], lines[room:])
            self._run(client, part)
            room = size - len(self.engine.entries)
        client.backlog += lines

    def submit_large(self, client: Client, lines: list[bytes]) -> None:
        """Execute what a client sent when its turn comes: a line of megabytes takes a while to be parsed."""
        client.backlog += lines
        if not client.is_blocked:
            self._await_turn(client)

    def _await_turn(self, client: Client, access: str = "") -> None:
        client.is_blocked = True
        self._slicing += 1
        self._turns.add(share_of(client.address, access), partial(self._have_turn, client))

    def _have_turn(self, client: Client) -> bool:
        """Execute the first of a client's lines, at least one; those beyond one long line wait once more."""
        self._slicing -= 1
        lines, later = first_of(client.backlog)
        client.backlog, client.is_blocked = [], False
        if lines:
            self.submit(client, lines)
        client.backlog += later
        if not client.is_blocked:
            if client.backlog:
                self._await_turn(client)
            else:
                client.resume()
        self._wake_drain()
        return True

    def _open(self) -> None:
        self._is_open = True
        self._started = self.stopwatch()
        self.engine.begin_pass(self.clock_ms())
        if self.group_wait_us:
            self.loop.call_later(self.group_wait_us / 1e6, self._end_pass)
        else:
            self.loop.call_soon(self._end_pass)

    def _run(self, client: Client, lines: list[bytes]) -> None:
        engine, store = self.engine, self.engine.store
        execute, append, engine.peer = engine.execute, client.replies.append, client.address
        engine.counters.commands += len(lines)
        begin = large_bytes = 0
        self._work.append((client, lines, len(client.replies)))
        for position, line in enumerate(lines, 1):
            outcome = execute(line)
            if type(outcome) is bytes:
                append(outcome)
                if not store.must_settle:
                    if len(outcome) < LARGE_REPLY_BYTES:
                        continue
                    large_bytes += len(outcome)
                    if large_bytes < TURN_REPLY_BYTES:
                        continue
            # What comes next must see a log that holds everything before it.
            self._work[-1] = (client, lines[begin:position], self._work[-1][2])
            if self._write_group() and type(outcome) is not bytes:
                reply = self._carry_out(client, outcome)
                if reply is not None:
                    append(reply)
                    large_bytes += len(reply)
            if large_bytes >= TURN_REPLY_BYTES and not client.is_blocked:
                # Its other requests come behind the replies to these, and behind those of other clients.
                self._await_turn(client, engine.shown_access)
            if client.is_blocked:
                client.backlog = lines[position:]
                engine.counters.commands -= len(client.backlog)
                return
            begin = position
            self._work.append((client, lines[begin:], len(client.replies)))

    def _end_pass(self) -> None:
        if self.engine.entries:
            self._write_group()
        self._work.clear()
        self._is_open = False
        sends = []
        for client in self._touched:
            found = client.replies
            if found:
                sends.append((client, b"".join(found) if len(found) > 1 else found[0]))
                found.clear()
        self._touched.clear()
        executed, self.engine.executed = self.engine.executed, []
        lsn = self.wal.last_lsn if self.wal else 0
        if not self._waiting and self._may_leave(lsn):
            self._release(sends, executed, self._started)
        else:
            self._waiting.append(Batch(lsn, self._started, sends, executed))
            self._sync()
            if self.gate is not None:
                self.gate.closed()
        if self.engine.counters.internal_errors:
            for text in self.engine.counters.internal_errors:
                self.log.error("internal_error", text)
            self.engine.counters.internal_errors.clear()

    def submit_error(self, client: Client, problem: RequestError) -> None:
        """Answer what is no request with an error. The client must not be blocked."""
        if not self._is_open:
            self._open()
        # A refused write runs the pass again and replaces its replies; this one belongs to no request.
        self._write_group()
        if not client.replies:
            self._touched.append(client)
        self.engine.counters.commands += 1
        client.replies.append(self.engine.fail(problem))

    def is_waiting(self, client: Client) -> bool:
        """Whether replies of a client wait for the log to be durable."""
        return any(waiting is client for batch in self._waiting for waiting, _ in batch.sends)

    # -- The log -------------------------------------------------------------------------------

    def _write_group(self) -> bool:
        """Write the entries so far. Returns False after a refused write: then the work was run again."""
        engine = self.engine
        if engine.must_take_back:
            self._refuse(_OUT_OF_MEMORY)
            return False
        if self.wal is not None and engine.entries:
            try:
                if self.before_write is not None:
                    self.before_write()
                self.wal.append(engine.entries, engine.now_ms)
            except StorageFailedError as error:
                self.die(error)
                raise
            except OSError as error:
                self._refuse(self._storage_error(error))
                return False
            except MemoryError:
                engine.counters.out_of_memory += 1
                self._refuse(_OUT_OF_MEMORY)
                return False
            self.note_written()
            if not self.is_synced and self.on_durable is not None:
                self.on_durable()
        engine.entries.clear()
        engine.store.settle()
        if engine.store.chores:
            self._tidying.begin()
        self._work.clear()
        if self.wal is not None and self.wal.is_full and self.on_full is not None:
            self.on_full()
        return True

    def _storage_error(self, error: OSError) -> tuple[str, str]:
        """Note a refused write of the log; returns what to answer: an error code and a message."""
        self.engine.counters.storage_errors += 1
        reason = error.strerror or str(error)
        if self.storage_trouble is None:
            self.log.error("storage_error", f"The disk refused a write of the log: {reason}. Reads go on")
        self.storage_trouble = reason
        text = f"The disk refused the write ({reason}); nothing was written. Try again later"
        return ErrorCode.STORAGE_ERROR, text

    def _refuse(self, answer: tuple[str, str]) -> None:
        """Take the unwritten part of the pass back and run it again with writes refused."""
        engine = self.engine
        engine.entries.clear()
        engine.store.roll_back()
        engine.must_take_back = False
        self._refused = answer
        work, self._work = self._work, []
        refusal = engine.refusal
        if refusal is None:
            engine.refusal = lambda: RequestError(*answer)
        try:
            for client, lines, start in work:
                del client.replies[start:]
                for line in lines:
                    # Only the last line of a part can be more than a plain request, as it was before.
                    outcome = engine.execute(line)
                    reply = outcome if isinstance(outcome, bytes) else self._carry_out(client, outcome)
                    if reply is not None:
                        client.replies.append(reply)
        finally:
            engine.refusal = refusal

    def _is_durable(self, lsn: int) -> bool:
        return self.wal is None or not self.is_synced or self.wal.durable_lsn >= lsn

    def _may_leave(self, lsn: int) -> bool:
        return self._is_durable(lsn) and (self.gate is None or self.gate.allows(lsn))

    def _sync(self) -> None:
        if self._is_syncing or self.wal is None or self._is_durable(self.wal.last_lsn):
            return
        waiting = sum(len(batch.sends) for batch in self._waiting)
        lsn = self.wal.last_lsn
        if waiting <= INLINE_SYNC_CLIENTS and not self.has_child:
            self._synced(lsn, self._try_sync())
            return
        future = self.loop.run_in_executor(None, self._try_sync)
        self._is_syncing = True
        future.add_done_callback(lambda done: self._synced(lsn, done.result()))

    def _try_sync(self) -> StorageFailedError | None:
        assert self.wal is not None
        try:
            self.wal.sync()
        except StorageFailedError as error:
            return error
        return None

    def _synced(self, lsn: int, error: StorageFailedError | None) -> None:
        assert self.wal is not None
        self._is_syncing = False
        if error is not None:
            self.die(error)
            return
        self._note_durable(lsn)
        self.release_ready()
        if self._waiting:
            self._sync()

    def _note_durable(self, lsn: int) -> None:
        assert self.wal is not None
        self.wal.durable_lsn = max(self.wal.durable_lsn, lsn)
        waiters, self._synced_waiters = self._synced_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        if self.on_durable is not None:
            self.on_durable()

    def release_ready(self) -> None:
        """Let the replies leave that nothing holds back any more."""
        while self._waiting and self._may_leave(self._waiting[0].lsn):
            batch = self._waiting.pop(0)
            self._release(batch.sends, batch.executed, batch.started)

    def abandon(self) -> None:
        """Close the connections of those whose replies wait: what these show is about to be given up."""
        waiting, self._waiting = self._waiting, []
        for batch in waiting:
            for client, _ in batch.sends:
                client.abort()
        self._wake_drain()

    def oldest_waiting(self) -> tuple[float, int] | None:
        """Return when the pass began whose replies have waited longest (by the stopwatch), and its LSN."""
        return (self._waiting[0].started, self._waiting[0].lsn) if self._waiting else None

    def settle(self) -> int:
        """Write and sync everything that was executed; returns the last LSN. May end the process."""
        self._write_group()
        if self.wal is None:
            return 0
        if self.is_synced and self.wal.durable_lsn < self.wal.last_lsn:
            error = self._try_sync()
            if error is not None:
                self.die(error)
                raise error
            self._note_durable(self.wal.last_lsn)
        return self.wal.last_lsn

    def note_written(self) -> None:
        """Take note that the disk takes writes."""
        if self.storage_trouble is not None:
            self.log.info("storage_recovered", "The disk takes writes again")
            self.storage_trouble = None

    def apply(self, entry: Mapping[str, Any]) -> Any:
        """Make a change of the server's own, in the log like any client's. Raises RequestError."""
        self.engine.check_writable()
        if not self._is_open:
            self._open()
        response = self.engine.store.apply(entry, self.engine.now_unix)
        self.engine.log(entry)
        if not self._write_group():
            raise RequestError(*self._refused)
        return response

    def replicate(
        self, received: Received, apply: Callable[[int, Mapping[str, Any], int], str | None]
    ) -> None:
        """Write a source's entries to the log under their LSNs, then apply them.

        `apply` takes LSN, entry and unix seconds, and returns a warning for an entry that failed where it was
        written, too. Raises RequestError (storage_error) with nothing written, and (replication_error)
        at an entry that is none, with those before it applied and nothing of the rest kept.
        """
        self._write_group()
        try:
            if self.before_write is not None:
                self.before_write()
            assert self.wal is not None
            self.wal.append_received(received.bodies, received.times_ms)
        except StorageFailedError as error:
            self.die(error)
            raise
        except OSError as error:
            self.engine.counters.storage_errors += 1
            self.storage_trouble = error.strerror or str(error)
            raise RequestError(
                ErrorCode.STORAGE_ERROR, f"The disk refused the source's entries ({self.storage_trouble})"
            ) from error
        self.note_written()
        lsn = received.first_lsn
        try:
            for entry, ts_ms in zip(received.entries, received.times_ms, strict=True):
                warning = apply(lsn, entry, ts_ms // 1000)
                if warning is not None:
                    self.log.warning("entry_skipped", f"Received {warning}")
                lsn += 1
        except (*NOT_AN_ENTRY, MemoryError) as error:
            # Kept in the log it would keep this node from starting, and nobody has seen it yet.
            self.wal.take_back(lsn - 1)
            self.engine.store.roll_back()
            if isinstance(error, MemoryError):
                self.engine.counters.out_of_memory += 1
                raise RequestError(*_OUT_OF_MEMORY) from error
            raise RequestError(
                ErrorCode.REPLICATION_ERROR,
                f"The source's entry {lsn} is no write that this version knows ({error!r}); see its version",
            ) from error
        if self.engine.store.chores:
            self._tidying.begin()
        if self.wal.is_full and self.on_full is not None:
            self.on_full()
        if not self.is_synced and self.on_durable is not None:
            self.on_durable()

    async def sync_received(self) -> None:
        """Wait until what `replicate` wrote is durable."""
        if self.wal is None or self._is_durable(self.wal.last_lsn):
            return
        # One of a pass's own, so that clients who read meanwhile share the sync.
        if not self._is_open:
            self._open()
        lsn = self.wal.last_lsn
        while not self._is_durable(lsn):
            synced = self.loop.create_future()
            self._synced_waiters.append(synced)
            await synced

    # -- Replies -------------------------------------------------------------------------------

    def _release(self, sends: list[tuple[Client, bytes]], executed: list[str], started: float) -> None:
        for client, data in sends:
            client.send(data)
        if executed:
            microseconds = int((self.stopwatch() - started) * 1e6)
            self.last_us = microseconds
            self._durations.add(executed, microseconds)
        if self._drained is not None:
            self._wake_drain()

    def measured(self) -> dict[str, OpLatency]:
        """Return the durations of all requests so far, per operation; call it about once a second."""
        return self._durations.measured(self.stopwatch())

    # -- Operations that take more than a pass ---------------------------------------------------

    def _carry_out(self, client: Client, outcome: Outcome) -> bytes | None:
        """Carry out an effect or a read in slices.

        Returns the reply if it is there at once; otherwise the client is blocked until it is, and
        only this client.
        """
        pending = Pending(client, self.engine.executed.pop(), self.stopwatch())
        if isinstance(outcome, Effect):
            if outcome.name == "legacy":
                pending.is_legacy = True
                outcome = outcome.arguments["effect"]
                assert isinstance(outcome, Effect)
            try:
                asker = self.effects_of_client.get(outcome.name)
                if asker is not None:
                    result = asker(client, **outcome.arguments)
                else:
                    result = self.effects[outcome.name](**outcome.arguments)
            except Exception as error:  # noqa: BLE001 - as in Engine.execute
                return self._ended(pending, self._failed(error))
            if not inspect.isawaitable(result):
                return self._ended(pending, self._reply(result))
            task = asyncio.ensure_future(self._await(pending, result))
            self._tasks.add(task)
            task.add_done_callback(self._task_ended)
        else:
            assert not isinstance(outcome, bytes)
            reading = Reading(self.engine, outcome, self.processor_time, self.query_timeout_ms)
            reply = reading.take_slice()
            if reply is not None:
                return self._ended(pending, reply)
            self._slicing += 1
            share = share_of(client.address, self.engine.shown_access)
            self._turns.add(share, partial(self._next_slice, pending, reading))
        client.is_blocked = True
        return None

    def _next_slice(self, pending: Pending, reading: Reading) -> bool:
        """Run a further slice between passes: what it sees is in the log."""
        if self.engine.entries:
            self._write_group()
        reply = reading.take_slice()
        if reply is None:
            return False
        self._slicing -= 1
        self._finish(pending, reply)
        return True

    async def _await(self, pending: Pending, result: Awaitable[Any]) -> None:
        try:
            reply = self._reply(await result)
        except Exception as error:  # noqa: BLE001 - as in Engine.execute
            reply = self._failed(error)
        self._finish(pending, reply)

    def _failed(self, error: Exception) -> bytes:
        """Return the reply to an operation that raised. May end the process."""
        if isinstance(error, StorageFailedError):
            self.die(error)
            raise error
        if isinstance(error, RequestError):
            return self.engine.fail(error)
        if isinstance(error, OSError):
            # No descriptor left, or a file that cannot be read: a fault of the machine, not of ours.
            text = f"The system refused what this needs ({error.strerror or error}); try again later"
            return self.engine.fail(RequestError(ErrorCode.STORAGE_ERROR, text))
        return self.engine.internal_error(error)

    def _reply(self, result: Any) -> bytes:
        try:
            return self.engine.bounded(replies.success(result))
        except RequestError as problem:
            return self.engine.fail(problem)

    def _task_ended(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        self._wake_drain()

    def _ended(self, pending: Pending, reply: bytes) -> bytes:
        self._release([], [pending.op], pending.started)
        return strip(reply) if pending.is_legacy else reply

    def _finish(self, pending: Pending, reply: bytes) -> None:
        """Queue the reply of an operation that took longer, and go on with what waited behind it."""
        client = pending.client
        if pending.op == "replication.entries" and not client.replies and not self.is_waiting(client):
            # Shows nothing that is not durable, and must not wait at the gate: its receiver opens it.
            client.send(self._ended(pending, reply))
        else:
            if not self._is_open:
                self._open()
            if not client.replies:
                self._touched.append(client)
            client.replies.append(self._ended(pending, reply))
        self._unblock(client)

    def _unblock(self, client: Client) -> None:
        client.is_blocked = False
        lines, client.backlog = client.backlog, []
        if sum(map(len, lines)) > LARGE_REQUEST_BYTES:
            self.submit_large(client, lines)
        elif lines:
            self.submit(client, lines)
        if not client.is_blocked:
            client.resume()

    async def drain(self) -> None:
        """Wait until nothing runs and every reply has left."""
        while not self._is_idle:
            self._drained = self.loop.create_future()
            await self._drained
            self._drained = None

    @property
    def _is_idle(self) -> bool:
        return not (self._is_open or self._waiting or self._tasks or self._slicing)

    def _wake_drain(self) -> None:
        if self._drained is not None and self._is_idle and not self._drained.done():
            self._drained.set_result(None)

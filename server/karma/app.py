"""The composition root: the only place that meets the real disk, clock, sockets and signals."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
import sys
import time
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any, NoReturn

import orjson

from karma import __version__
from karma import config as configuration
from karma.config import Action, Config
from karma.core.idempotency import Records
from karma.engine import Engine, Settings
from karma.errors import (
    ConfigError,
    DamagedDataError,
    DirectoryInUseError,
    ErrorCode,
    RequestError,
    StorageFailedError,
    describe_bug,
)
from karma.net import http, listener
from karma.net.session import Sessions
from karma.replication import feed
from karma.service.checkpoints import Checkpoints
from karma.service.log import Log
from karma.service.metrics import render, render_latencies
from karma.service.snapshots import Snapshots
from karma.service.status import Status
from karma.service.write_path import WritePath
from karma.storage import recovery, snapshot, wal
from karma.storage.disk import Disk
from karma.storage.recovery import Recovered
from karma.storage.wal import Wal

_FILES_BESIDE_CLIENTS = 256
_TICK_SECONDS = 0.25
"""How often timeouts are looked after: a silent client is closed at most this much later."""
_TICKS_PER_SECOND = 4
_FOLLOWER_MEMORY_SECONDS = 3600.0
"""How long after its last request for entries a follower's log is kept across snapshots."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run `karma`: the server, or one of its offline commands."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and arguments[0] in ("check", "repair"):
            # Only these two pay for the offline module.
            from karma import offline  # noqa: PLC0415

            sys.exit(offline.main(arguments, _write_line, sys.stderr.write, time.time))
        action = configuration.action_of(arguments)
        if action is Action.HELP:
            sys.stdout.write(configuration.help_text())
        elif action is Action.VERSION:
            sys.stdout.write(f"karma {__version__}\n")
        else:
            config = configuration.load(arguments, os.environ, Disk().read_file)
            if action is Action.CHECK_CONFIG:
                listener.tls_context(config)
                sys.stdout.write(
                    orjson.dumps(configuration.describe(config), option=orjson.OPT_INDENT_2).decode() + "\n"
                )
            else:
                serve(config)
    except (ConfigError, DirectoryInUseError, DamagedDataError, StorageFailedError) as error:
        _exit_with(str(error))
    except OSError as error:
        # Whatever the disk refuses before the port opens: a missing right, a full disk, a file for a folder.
        _exit_with(f"{error.filename or 'the data directory'}: {error.strerror or error}")


def _exit_with(message: str) -> NoReturn:
    sys.stderr.write("ERROR: " + " ".join(message.split()) + "\n")
    sys.exit(1)


def serve(config: Config) -> None:
    """Run the server until a signal ends it."""
    import uvloop  # noqa: PLC0415 - the offline commands and --help do without it

    # A request makes a handful of short-lived containers and the counters are invisible to the
    # collector, so its default of a pass each 700 allocations is only overhead.
    gc.set_threshold(50_000, 20, 50)
    # The data and the socket are for the server's user and group, whatever the shell's mask says.
    os.umask(0o027)
    _raise_file_limit(config.max_clients + _FILES_BESIDE_CLIENTS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(Server(config).run())


def _raise_file_limit(files: int) -> None:
    """Let the process open so many files, as far as the system allows; accepting fails beyond that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = files if hard == resource.RLIM_INFINITY else min(files, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Server:
    """One running node: every part of it, put together."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.disk = Disk()
        self.directory = config.directory.absolute()
        self.log = Log(_write_line, time.time, is_enabled=config.log)
        self.started = time.monotonic()
        self.is_ready = False
        self.stopping: asyncio.Event = asyncio.Event()
        self.followers_seen = -_FOLLOWER_MEMORY_SECONDS
        """The monotonic time of the last request for log entries."""
        self.snapshot_due = time.monotonic() + (config.snapshot_interval_seconds or float("inf"))
        self.tasks: set[asyncio.Task[Any]] = set()

    async def run(self) -> None:
        """Restore, serve, and on a signal drain and snapshot."""
        config, disk = self.config, self.disk
        asyncio.get_running_loop().set_exception_handler(self._report_bug)
        if config.replication_source_host is not None or config.sync_replicas:
            # Taking the option and not keeping its promise would be worse than not starting.
            name = "sync-replicas" if config.sync_replicas else "replication-source-host"
            raise ConfigError(
                f"--{name}: this version serves followers but does not follow or wait for others yet"
            )
        # A mistake in the files named is better told before a long restore than after it.
        listener.tls_context(config)
        disk.make_directory(self.directory)
        lock = disk.lock(self.directory)
        self._set_data_aside()
        sidecar = await self._open_sidecar()
        recovered = await self._restore()
        self._assemble(recovered, lock.fd)
        if recovered.must_snapshot:
            await self.snapshots.create_all()
        servers = await listener.listen(config, self.sessions)
        self._handle_signals()
        self.is_ready = True
        self._say_listening(servers)
        ticker = self._spawn(self._tick())
        await self.stopping.wait()
        ticker.cancel()
        await self._stop(servers)
        if sidecar is not None:
            sidecar.close()
        lock.release()

    # -- Starting ------------------------------------------------------------------------------

    def _set_data_aside(self) -> None:
        """Refuse to ignore data, or move it aside when told to discard it."""
        config, disk = self.config, self.disk
        logs = [segment for segment in recovery.log_files(disk, self.directory) if segment.size_bytes]
        ignored = None
        if not config.wal and logs:
            ignored = "--wal=false would ignore the log"
        elif not config.restore and (logs or snapshot.list_snapshots(disk, self.directory)):
            ignored = "--restore=false would ignore the data"
        if ignored is None:
            return
        if not config.discard_data:
            raise ConfigError(
                f"{ignored} in {self.directory}; move the directory aside, or give --discard-data=true "
                "to start empty and keep the old files in a subfolder"
            )
        folder = self.directory / f"discarded-{int(time.time())}"
        disk.make_directory(folder)
        for name in disk.list_names(self.directory):
            if (
                name.startswith("karma.")
                or ".tree" in name
                or name in (wal.RETAINED_NAME, snapshot.CHECKPOINTS_NAME)
            ):
                disk.rename(self.directory / name, folder / name)
        self.log.warning("data_discarded", f"The data found was moved to {folder}")

    async def _restore(self) -> Recovered:
        """Read the data directory and mend it. Raises DamagedDataError."""
        config, disk, directory = self.config, self.disk, self.directory
        records = Records(config.idempotency_max_records, config.idempotency_max_age_seconds)
        started = time.monotonic()
        read = partial(recovery.read, disk, directory, records, int(time.time()), self.log.info)
        # The sidecar says "restoring" meanwhile; without it a thread would only cost time.
        recovered = await asyncio.to_thread(read) if config.http_port else read()
        for warning in recovered.warnings:
            self.log.warning("restore_warning", warning)
        for sentence in recovery.mend(disk, directory, recovered, int(time.time())):
            self.log.warning("repaired", sentence)
        store = recovered.store
        self.log.info(
            "restored",
            f"{len(store.series)} series at LSN {recovered.last_lsn}; {recovered.log_entries} replayed",
            seconds=round(time.monotonic() - started, 3),
            series=len(store.series),
            keys=sum(len(series.counters) for series in store.series.values()),
            lsn=recovered.last_lsn,
        )
        return recovered

    def _assemble(self, recovered: Recovered, lock_fd: int) -> None:
        """Put the parts together around the restored store."""
        config, disk, directory = self.config, self.disk, self.directory
        settings = Settings(
            max_response_bytes=config.max_response_bytes,
            auth_token=config.auth_token,
            read_auth_token=config.read_auth_token,
            admin_auth_token=config.admin_auth_token,
            legacy_protocol=config.legacy_protocol,
        )
        self.engine = Engine(recovered.store, settings)
        if config.role == "slave":
            self.engine.refusal = RequestError(
                ErrorCode.FORBIDDEN,
                "This node is a slave and takes no writes; send them to the master",
                {"reason": "role", "retry_after_ms": 1000, "master": None},
            )
        log_file = self._open_log(recovered) if config.wal else None
        self.write_path = WritePath(
            engine=self.engine,
            wal=log_file,
            log=self.log,
            clock_ms=lambda: int(time.time() * 1000),
            loop=asyncio.get_running_loop(),
            die=self._die,
            is_synced=config.wal_fsync,
            max_group_entries=config.wal_batch_size,
            group_wait_us=config.wal_batch_wait_us,
            query_timeout_ms=config.query_timeout_ms,
        )
        self.snapshots = Snapshots(
            write_path=self.write_path,
            disk=disk,
            directory=directory,
            log=self.log,
            clock=time.time,
            retention=config.dump_retention_per_tree,
            keep_bytes=self._keep_bytes,
            lock_fd=lock_fd,
            last_lsn=recovered.snapshot_lsn if recovered.snapshots else 0,
        )
        self.write_path.on_full = self.snapshots.rotate_log
        checkpoints = Checkpoints(disk, directory, time.time)
        checkpoints.load()
        self.sessions = Sessions(
            write_path=self.write_path,
            log=self.log,
            clock=time.monotonic,
            max_request_bytes=config.max_request_bytes,
            max_clients=config.max_clients,
            max_client_buffer_bytes=config.max_client_buffer_bytes,
            read_timeout_seconds=config.read_timeout_seconds,
            write_timeout_seconds=config.write_timeout_seconds,
            refuse_peer=listener.peer_guard(config),
        )
        self.status = Status(
            config=config,
            write_path=self.write_path,
            snapshots=self.snapshots,
            checkpoints=checkpoints,
            disk=disk,
            directory=directory,
            clock=time.time,
            monotonic=time.monotonic,
            started=self.started,
            connections=lambda: len(self.sessions.open),
            rejected_connections=lambda: self.sessions.rejected,
            torn_tails_cut=int(recovered.tail is not None),
        )
        self.write_path.effects = {
            "system.health": self.status.health,
            "system.stats": self.status.stats,
            "system.metrics": lambda: render(self.status.stats()),
            "system.latency": self.status.latency,
            "system.clients": self.sessions.describe,
            "snapshot.create": self.snapshots.create,
            "snapshot.create_all": self.snapshots.create_all,
            "snapshot.list": self.snapshots.paths,
            "snapshot.info": self.snapshots.info,
            "snapshot.verify": self.snapshots.verify,
            "snapshot.load": self.snapshots.load,
            "snapshot.fetch": self.snapshots.fetch,
            "snapshot.fetch_chunk": self.snapshots.fetch_chunk,
            "idempotency.snapshot_fetch_chunk": self.snapshots.fetch_records_chunk,
            "recovery.checkpoint": checkpoints.put,
            "recovery.status": checkpoints.status,
            "replication.status": self.status.replication,
            "replication.entries": self._entries,
        }
        # What is loaded now stays: the collector need not look at it again.
        gc.collect()
        gc.freeze()

    def _open_log(self, recovered: Recovered) -> Wal:
        config = self.config
        log_file = Wal(
            self.disk,
            self.directory,
            next_lsn=recovered.last_lsn + 1,
            segment_bytes=config.wal_segment_bytes,
            is_synced=config.wal_fsync,
        )
        if recovered.log_entries and recovered.log_last_lsn < recovered.last_lsn:
            # Snapshots are ahead of the log (a power cut without fsync): appending behind it would leave a
            # hole in the LSNs. The snapshot that is due before the port opens truncates what it covers.
            log_file.rotate()()
        if config.wal_fsync:
            # After a kill the log may be in the page cache only; nobody may be shown more than is durable.
            log_file.sync()
            log_file.durable_lsn = log_file.last_lsn
        return log_file

    async def _open_sidecar(self) -> asyncio.Server | None:
        config = self.config
        if not config.http_port:
            return None
        pages = http.Pages(
            metrics=self._metrics_page,
            health=lambda: self.status.health() if self.is_ready else {"status": "restoring"},
            unready=self._unready,
            may_read=lambda token: not self.is_ready or self.engine.may_read(token),
            refuse_peer=listener.peer_guard(config),
        )
        try:
            return await http.listen(config.bind, config.http_port, pages)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {config.bind}:{config.http_port} (--http-port): {error.strerror or error}"
            ) from error

    def _metrics_page(self) -> str:
        if not self.is_ready:
            return "# TYPE karma_restoring gauge\nkarma_restoring 1\n"
        return render(self.status.stats()) + render_latencies(self.write_path.measured())

    def _unready(self) -> str | None:
        if not self.is_ready:
            return "restoring"
        if self.stopping.is_set():
            return "shutting down"
        trouble = self.write_path.storage_trouble
        return None if trouble is None else f"storage trouble: {trouble}"

    def _say_listening(self, servers: list[asyncio.Server]) -> None:
        config = self.config
        addresses = [str(listening.getsockname()) for server in servers for listening in server.sockets]
        port = servers[0].sockets[0].getsockname()[1]
        self.log.info(
            "listening",
            f"karma {__version__} serves {config.directory} on {', '.join(addresses)}",
            port=port,
            pid=os.getpid(),
            role=config.role,
        )
        if listener.is_protected(config):
            self.log.info("protected_mode", "No token and no explicit --bind: only this machine is served")
        elif not self.engine.settings.needs_token and not listener.is_loopback(config.bind):
            self.log.warning(
                "open_server",
                f"No token is set and {config.bind} is open to the network: anybody who reaches it may write",
            )

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self.stopping.set)
        loop.add_signal_handler(signal.SIGTERM, self.stopping.set)
        loop.add_signal_handler(signal.SIGUSR1, lambda: self._spawn(self._try_snapshot("signal")))

    # -- Running -------------------------------------------------------------------------------

    def _keep_bytes(self) -> int:
        is_followed = time.monotonic() - self.followers_seen < _FOLLOWER_MEMORY_SECONDS
        return self.config.wal_keep_bytes if is_followed else 0

    def _entries(self, after_lsn: int, limit: int) -> dict[str, Any]:
        """Carry out replication.entries."""
        log_file = self.write_path.wal
        if log_file is None:
            raise RequestError(
                ErrorCode.REPLICATION_ERROR, "This node keeps no log (--wal=false) and cannot be followed"
            )
        self.followers_seen = time.monotonic()
        source_lsn = log_file.durable_lsn if self.config.wal_fsync else log_file.last_lsn
        feed.check_available(after_lsn, log_file.first_lsn, source_lsn)
        try:
            return feed.page(
                ((line.lsn, line.entry) for line in log_file.read(after_lsn)),
                after_lsn=after_lsn,
                limit=limit,
                source_lsn=source_lsn,
                max_response_bytes=self.config.max_response_bytes,
            )
        except (OSError, ValueError) as error:
            raise RequestError(
                ErrorCode.REPLICATION_ERROR,
                f"The log cannot be read behind LSN {after_lsn}: {error}; try again",
            ) from error

    async def _tick(self) -> None:
        """Look after timeouts, and once a second after everything that is due by time or size."""
        ticks = 0
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self.sessions.sweep()
            ticks += 1
            if ticks % _TICKS_PER_SECOND:
                continue
            self.status.sample()
            self.engine.store.records.trim(int(time.time()))
            config, log_file = self.config, self.write_path.wal
            is_large = (
                config.snapshot_wal_bytes
                and log_file is not None
                and log_file.size_bytes >= config.snapshot_wal_bytes
            )
            if (is_large or time.monotonic() >= self.snapshot_due) and not self.write_path.has_child:
                self.snapshot_due = time.monotonic() + (config.snapshot_interval_seconds or float("inf"))
                self._spawn(self._try_snapshot("log size" if is_large else "interval"))

    async def _try_snapshot(self, reason: str) -> bool:
        """Take a snapshot that no client waits for."""
        try:
            await self.snapshots.create_all()
        except (RequestError, OSError) as error:
            self.log.error("snapshot_failed", f"The snapshot due by {reason} failed: {error}")
            return False
        return True

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def _report_bug(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log an exception that no code of ours expected."""
        error = context.get("exception")
        self.log.error("internal_error", describe_bug(error) if error else str(context.get("message")))

    def _die(self, error: StorageFailedError) -> None:
        """End at once: no waiting reply may leave, and no snapshot may hold what nobody was shown."""
        self.log.error("storage_failed", str(error))
        sys.stderr.write(f"ERROR: {error}\n")
        sys.stderr.flush()
        os._exit(1)

    # -- Stopping ------------------------------------------------------------------------------

    async def _stop(self, servers: list[asyncio.Server]) -> None:
        """Stop accepting, drain, snapshot everything."""
        self.log.info("stopping", "No new connections; open requests are finished and everything is saved")
        self.sessions.is_draining = True
        for server in servers:
            server.close()
        for session in list(self.sessions.open):
            session.close_gracefully()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.shutdown_timeout_seconds or None):
                await self.write_path.drain()
                await self.sessions.closed()
        for session in list(self.sessions.open):
            session.abort()
        if self.config.unix_socket is not None:
            self.config.unix_socket.unlink(missing_ok=True)
        is_saved = await self._try_snapshot("shutdown")
        if self.write_path.wal is not None:
            self.write_path.wal.close()
        self.log.info(
            "stopped", "Saved everything" if is_saved else "The snapshot failed; the log holds everything"
        )
        if not is_saved and self.write_path.wal is None:
            _exit_with("the snapshot at shutdown failed and there is no log: see the lines above")


def _write_line(line: str) -> None:
    # A reader that went away or a full disk under the log's file must not stop the server. Past Python's
    # buffer, which would keep what it cannot write and fail once more with it at the end.
    with contextlib.suppress(OSError):
        os.write(1, line.encode())


if __name__ == "__main__":
    main()

"""The composition root: the only place that meets the real disk, clock, sockets and signals."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from karma import __version__
from karma import config as configuration
from karma.config import Action, Config
from karma.core.digest import digest
from karma.core.idempotency import Records
from karma.engine import Engine
from karma.errors import (
    ConfigError,
    DamagedDataError,
    DirectoryInUseError,
    RequestError,
    StorageFailedError,
    describe_bug,
)
from karma.machine import Machine, clients_that_fit, exit_with, exposed, write_line
from karma.net import http, listener
from karma.net.access import Access, settings_of
from karma.net.session import SWEEP_SECONDS, Sessions
from karma.net.tls import Listening
from karma.replication.node import ReplicationNode
from karma.replication.runner import Runner
from karma.replication.source import Source
from karma.service.checkpoints import Checkpoints
from karma.service.clocks import ClockWatch
from karma.service.leases import Leases
from karma.service.log import Log
from karma.service.metrics import render, render_latencies
from karma.service.opening import Opening
from karma.service.replicas import Replicas, SyncGate
from karma.service.roles import Roles, settle_role
from karma.service.snapshots import Snapshots
from karma.service.status import Status
from karma.service.write_path import WritePath
from karma.storage import install, node_file, recovery, snapshot
from karma.storage.disk import Disk
from karma.storage.node_file import Node
from karma.storage.recovery import Recovered

_TICKS_PER_SECOND = 4


def main(argv: Sequence[str] | None = None) -> None:
    """Run `karma`: the server, or one of its offline commands."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and arguments[0] in ("check", "repair", "fence", "new-id"):
            # Only these pay for the offline module.
            from karma import offline  # noqa: PLC0415

            sys.exit(offline.main(arguments, write_line, sys.stderr.write, time.time))
        action = configuration.action_of(arguments)
        if action is Action.HELP:
            sys.stdout.write(configuration.help_text())
        elif action is Action.VERSION:
            sys.stdout.write(f"karma {__version__}\n")
        else:
            load = partial(configuration.load, arguments, os.environ, Disk().read_file)
            config = load()
            doubts = [*configuration.unknown_variables(os.environ), *exposed(config.secret_files)]
            if action is Action.CHECK_CONFIG:
                listener.tls_context(config)
                sys.stderr.writelines(f"WARNING: {doubt}\n" for doubt in doubts)
                sys.stdout.write(
                    orjson.dumps(configuration.describe(config), option=orjson.OPT_INDENT_2).decode() + "\n"
                )
            else:
                serve(config, load, doubts)
    except (ConfigError, DirectoryInUseError, DamagedDataError, StorageFailedError) as error:
        exit_with(str(error))
    except RequestError as error:
        # Of the snapshot that may be due before the port opens.
        exit_with(error.message)
    except OSError as error:
        # Whatever the disk refuses before the port opens: a missing right, a full disk, a file for a folder.
        exit_with(f"{error.filename or 'the data directory'}: {error.strerror or error}")


def serve(config: Config, load: Callable[[], Config], doubts: Sequence[str] = ()) -> None:
    """Run the server until a signal ends it; `load` reads its configuration again, `doubts` go to the log."""
    import uvloop  # noqa: PLC0415 - the offline commands and --help do without it

    # A request makes a handful of short-lived containers and the counters are invisible to the
    # collector, so its default of a pass each 700 allocations is only overhead.
    gc.set_threshold(50_000, 20, 50)
    # The data and the socket are for the server's user and group, whatever the shell's mask says.
    os.umask(0o027)
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        # Until the server handles them: no signal that asks for something may end it.
        signal.signal(number, signal.SIG_IGN)
    max_clients = clients_that_fit(config.max_clients)
    server = Server(replace(config, max_clients=max_clients), load=load)
    for doubt in doubts:
        server.log.warning("configuration", doubt)
    if max_clients < config.max_clients:
        server.log.warning(
            "max_clients_lowered",
            f"At most {max_clients} clients are served instead of --max-clients={config.max_clients}: the "
            "system lets this process open too few files. Raise its limit (LimitNOFILE=, ulimit -n)",
            max_clients=max_clients,
        )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(server.run())


class Server:
    """One running node: every part of it, put together."""

    def __init__(
        self, config: Config, machine: Machine | None = None, load: Callable[[], Config] | None = None
    ) -> None:
        """`load` reads the configuration once more."""
        self.config = config
        self.load = load or (lambda: config)
        self.machine = machine = machine or Machine()
        self.disk = machine.disk
        self.directory = config.directory.absolute()
        self.log = Log(machine.write_line, machine.clock, is_enabled=config.log)
        self.started = machine.monotonic()
        self.clocks = ClockWatch(machine.clock, machine.monotonic, self.log)
        self.is_ready = False
        self.stopping: asyncio.Event = asyncio.Event()
        self.port = 0
        """Where this node listens, once it does."""
        self.snapshot_due = machine.monotonic() + (config.snapshot_interval_seconds or float("inf"))
        self.tasks: set[asyncio.Task[Any]] = set()

    async def run(self) -> None:
        """Restore, serve, and on a signal drain and snapshot."""
        config, disk = self.config, self.disk
        asyncio.get_running_loop().set_exception_handler(self._report_bug)
        if config.replication_source_host is not None and not config.wal:
            raise ConfigError("--wal=false: a slave keeps what it receives in its log; leave the log on")
        # A mistake in the files named is better told before a long restore than after it.
        self.access = Access(config, self.log, self.machine.monotonic, self.load)
        disk.make_directory(self.directory)
        exposure = disk.exposure(self.directory)
        if exposure is not None:
            self.log.warning(
                "directory_exposed",
                f"The data directory {self.directory} is not private: {exposure}. It holds every counter "
                "and perhaps the token of a source. Give it to this user, with mode 750",
            )
        lock = disk.lock(self.directory)
        aside = install.finish(disk, self.directory)
        if aside is not None:
            self.log.warning(
                "bootstrap", f"A bootstrap that was interrupted is complete; what was here is in {aside}"
            )
        found = node_file.load(disk, self.directory)
        is_discarded = self._set_data_aside()
        sidecar = await self._open_sidecar()
        recovered = await self._restore()
        lost_tail = is_discarded or recovered.tail is not None
        node = settle_role(
            config, found, recovered.last_lsn, self.log, self.machine.new_id, lost_tail=lost_tail
        )
        if node.source is not None and not config.wal:
            raise ConfigError("--wal=false: a slave keeps what it receives in its log; leave the log on")
        self._assemble(recovered, node, lock.fds)
        self.opening.open(found)
        self.machine.keep_in_memory()
        if recovered.must_snapshot:
            await self.snapshots.create_all()
        servers = await listener.listen(config, self.sessions, self.access.tls)
        self.port = servers[0].sockets[0].getsockname()[1]
        self._handle_signals()
        self.is_ready = True
        self._say_listening(servers)
        self.replication.start()
        ticker = self._spawn(self._tick())
        await self.stopping.wait()
        ticker.cancel()
        await self._stop(servers)
        if sidecar is not None:
            sidecar.close()
        lock.release()

    # -- Starting ------------------------------------------------------------------------------

    def _set_data_aside(self) -> bool:
        """Refuse to ignore data, or move it aside when told to discard it; returns whether it was moved."""
        config, disk = self.config, self.disk
        logs = [segment for segment in recovery.log_files(disk, self.directory) if segment.size_bytes]
        ignored = None
        if not config.wal and logs:
            ignored = "--wal=false would ignore the log"
        elif not config.restore and (logs or snapshot.list_snapshots(disk, self.directory)):
            ignored = "--restore=false would ignore the data"
        if ignored is None:
            return False
        if not config.discard_data:
            raise ConfigError(
                f"{ignored} in {self.directory}; move the directory aside, or give --discard-data=true "
                "to start empty and keep the old files in a subfolder"
            )
        folder = install.discarded_folder(disk, self.directory, int(self.machine.clock()))
        install.set_aside(disk, self.directory, folder)
        self.log.warning("data_discarded", f"The data found was moved to {folder}")
        return True

    async def _restore(self) -> Recovered:
        """Read the data directory. Raises DamagedDataError."""
        config, directory = self.config, self.directory
        started = self.machine.monotonic()
        # The sidecar says "restoring" meanwhile; without it a thread would only cost time.
        recovered = (
            await asyncio.to_thread(self._read, directory) if config.http_port else self._read(directory)
        )
        for warning in recovered.warnings:
            self.log.warning("restore_warning", warning)
        store = recovered.store
        self.log.info(
            "restored",
            f"{len(store.series)} series at LSN {recovered.last_lsn}; {recovered.log_entries} replayed",
            seconds=round(self.machine.monotonic() - started, 3),
            series=len(store.series),
            keys=sum(len(series.counters) for series in store.series.values()),
            lsn=recovered.last_lsn,
        )
        return recovered

    def _read(self, directory: Path) -> Recovered:
        """Read a data directory without changing it. Raises DamagedDataError."""
        records = Records(self.config.idempotency_max_records, self.config.idempotency_max_age_seconds)
        return recovery.read(self.disk, directory, records, int(self.machine.clock()), self.log.info)

    def _assemble(self, recovered: Recovered, node: Node, lock_fds: Collection[int]) -> None:
        """Put the parts together around the restored store."""
        config, disk, directory, machine = self.config, self.disk, self.directory, self.machine
        settings = replace(settings_of(config), inline_keys=machine.inline_keys)
        self.engine = Engine(recovered.store, settings)
        self.engine.on_refused_token = self.access.token_refused
        self.engine.expiry = self.clocks.expiry
        self.clocks.start(recovered.store.records.newest_unix)
        self.write_path = WritePath(
            engine=self.engine,
            wal=None,
            log=self.log,
            clock_ms=lambda: int(machine.clock() * 1000),
            loop=asyncio.get_running_loop(),
            die=self._die,
            stopwatch=machine.stopwatch,
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
            clock=machine.clock,
            run_in_child=machine.run_in_child,
            is_orphan=machine.is_orphan,
            retention=config.dump_retention_per_tree,
            keep_log=self._keep_log,
            lock_fds=lock_fds,
            last_lsn=recovered.snapshot_lsn if recovered.snapshots else 0,
        )
        self.write_path.on_full = self.snapshots.rotate_log
        self.checkpoints = Checkpoints(
            disk, directory, machine.clock, machine.new_id, self.log, config.max_response_bytes
        )
        self.checkpoints.load()
        self.sessions = Sessions(
            write_path=self.write_path,
            log=self.log,
            clock=machine.monotonic,
            max_request_bytes=config.max_request_bytes,
            max_clients=config.max_clients,
            max_client_buffer_bytes=config.max_client_buffer_bytes,
            read_timeout_seconds=config.read_timeout_seconds,
            write_timeout_seconds=config.write_timeout_seconds,
            refuse_peer=self.access.refuse_peer,
        )
        self.replication = self._assemble_replication(node)
        self.opening = Opening(
            config=config,
            disk=disk,
            directory=directory,
            log=self.log,
            clock=machine.clock,
            write_path=self.write_path,
            roles=self.replication.roles,
            recovered=recovered,
        )
        self.status = Status(
            config=config,
            write_path=self.write_path,
            snapshots=self.snapshots,
            checkpoints=self.checkpoints,
            disk=disk,
            directory=directory,
            clock=machine.clock,
            monotonic=machine.monotonic,
            started=self.started,
            connections=lambda: len(self.sessions.open) + len(self.sidecar.open),
            access=lambda: (self.access.tokens_refused, self.access.handshakes_failed),
            rejected_connections=lambda: self.sessions.rejected + self.sidecar.rejected,
            roles=self.replication.roles,
            leases=self.replication.leases,
            replicas=self.replication.replicas,
            gate=self.replication.gate,
            following=self.replication.runner.describe,
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
            "recovery.checkpoint": self.checkpoints.put,
            "recovery.status": self.checkpoints.status,
            "replication.status": self.status.replication,
            "replication.checksum": self._checksum,
            **self.replication.effects(),
        }
        self.write_path.effects_of_client = {"replication.entries": self.replication.entries}

    def _assemble_replication(self, node: Node) -> ReplicationNode:
        config, write_path, disk, log = self.config, self.write_path, self.disk, self.log
        machine, clock_ms = self.machine, write_path.clock_ms
        roles = Roles(
            node, disk, self.directory, self.engine, log, clock_ms, machine.new_id, machine.monotonic
        )
        replicas = Replicas(machine.monotonic, machine.clock, self._last_lsn, self._bytes_behind)
        if node.role == "master" and node.fence is None:
            # Followers of any other node are about to leave it, or ask again.
            replicas.restore(node.replicas)
        gate = None
        if config.sync_replicas:
            gate = write_path.gate = SyncGate(
                config.sync_replicas,
                config.sync_timeout_ms,
                replicas,
                log,
                write_path.loop,
                machine.stopwatch,
                is_master=lambda: roles.is_master,
                oldest=write_path.oldest_waiting,
                release=write_path.release_ready,
            )
        tls = listener.peer_context(config)
        runner = Runner(
            write_path=write_path,
            roles=roles,
            checkpoints=self.checkpoints,
            disk=disk,
            log=log,
            clock_ms=clock_ms,
            monotonic=machine.monotonic,
            random=machine.random,
            tls=tls,
            token=config.replication_token,
            poll_interval_ms=config.replication_poll_interval_ms,
            batch_entries=config.replication_batch_size,
            port=lambda: self.port,
            restore=lambda folder: asyncio.to_thread(self._read, folder),
            busy=self.snapshots.busy,
            exchange=self._exchange,
        )
        source = Source(
            write_path,
            roles,
            replicas,
            self.checkpoints,
            config.largest_response[0],
            waits_for_replicas=bool(config.sync_replicas),
            path=lambda: runner.path,
            is_open=self.sessions.is_open,
        )
        roles.master_hint = lambda: runner.master

        def acknowledged() -> None:
            if gate is not None:
                gate.acked()
            source.acknowledged()

        replicas.on_ack = acknowledged
        write_path.on_durable = self.checkpoints.on_change = source.wake
        leases = Leases(roles)
        return ReplicationNode(
            write_path, roles, leases, replicas, gate, source, runner, log, tls, config.replication_token
        )

    def _exchange(self, recovered: Recovered) -> None:
        """Let fetched data take the place of what is here, in the directory and in memory."""
        try:
            if self.write_path.wal is not None:
                self.write_path.wal.close()
            install.finish(self.disk, self.directory)
            self.engine.adopt(recovered.store)
            self.clocks.start(recovered.store.records.newest_unix)
            self.opening.recovered = recovered
            self.write_path.wal = self.opening.open_log()
        except OSError as error:
            # Half of the files are moved: a start goes on with that, this process cannot.
            self._die(StorageFailedError(f"the fetched data could not be put in place: {error}"))
        self.snapshots.exchanged(recovered.snapshot_lsn if recovered.snapshots else 0)
        self.checkpoints.load()
        # Whoever waits for entries waits for some of a log that is gone.
        self.replication.source.wake()

    def _last_lsn(self) -> int:
        return self.write_path.wal.last_lsn if self.write_path.wal is not None else 0

    def _bytes_behind(self, lsn: int) -> int:
        return self.write_path.wal.bytes_behind(lsn) if self.write_path.wal is not None else 0

    async def _open_sidecar(self) -> Listening | None:
        config = self.config
        pages = http.Pages(
            metrics=self._metrics_page,
            health=lambda: self.status.health() if self.is_ready else {"status": "restoring"},
            unready=self._unready,
            may_read=lambda token: not self.is_ready or self.engine.may_read(token),
            refuse_peer=self.access.refuse_peer,
            token_refused=self.access.metrics_refused,
        )
        self.sidecar = http.Sidecar(pages)
        if not config.http_port:
            return None
        try:
            return await http.listen(config.bind, config.http_port, self.sidecar, self.access.tls)
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
        return self.status.unready()

    def _say_listening(self, servers: list[Listening]) -> None:
        config = self.config
        addresses = [str(listening.getsockname()) for server in servers for listening in server.sockets]
        self.log.info(
            "listening",
            f"karma {__version__} serves {config.directory} on {', '.join(addresses)}",
            port=self.port,
            pid=os.getpid(),
            role=self.replication.roles.node.role,
        )
        self.access.announce()

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self.stopping.set)
        loop.add_signal_handler(signal.SIGTERM, self.stopping.set)
        loop.add_signal_handler(signal.SIGUSR1, lambda: self._spawn(self._try_snapshot("signal")))
        use = self.replication.use_as_client
        loop.add_signal_handler(signal.SIGHUP, lambda: self.access.reload(self.engine, use))
        loop.add_signal_handler(signal.SIGUSR2, lambda: None)

    # -- Running -------------------------------------------------------------------------------

    def _keep_log(self) -> tuple[int, list[int]]:
        replicas = self.replication.replicas
        self.replication.roles.remember_replicas(replicas.known())
        return self.config.wal_keep_bytes if replicas.are_expected else 0, replicas.needed_lsns()

    async def _checksum(self) -> dict[str, Any]:
        """Carry out replication.checksum, in a child that sees the data as they are at one LSN."""
        async with self.snapshots.busy:
            lsn = self.write_path.settle()
            found = await self.snapshots.in_child(
                lambda: digest(self.engine.store, self.checkpoints.by_source.values())
            )
        return {"lsn": lsn, "digest": found}

    async def _tick(self) -> None:
        """Look after timeouts, and once a second after everything that is due by time or size."""
        ticks = 0
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.clocks.tick()
            self.sessions.sweep()
            self.replication.tick()
            ticks += 1
            if ticks % _TICKS_PER_SECOND:
                continue
            self.opening.watch()
            self.status.sample()
            self.engine.tick()
            config, log_file = self.config, self.write_path.wal
            is_large = log_file is not None and 0 < config.snapshot_wal_bytes <= log_file.size_bytes
            if (is_large or self.machine.monotonic() >= self.snapshot_due) and not self.write_path.has_child:
                self.snapshot_due = self.machine.monotonic() + (
                    config.snapshot_interval_seconds or float("inf")
                )
                self._spawn(self._try_snapshot("log size" if is_large else "interval"))

    async def _try_snapshot(self, reason: str) -> bool:
        """Take a snapshot that no client waits for."""
        try:
            await self.snapshots.create_all()
        except (RequestError, OSError) as error:
            self.log.error("snapshot_failed", f"The snapshot due by {reason} failed: {error}")
            return False
        except StorageFailedError as error:
            self._die(error)
        return True

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def _report_bug(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log an exception that no code of ours expected."""
        error = context.get("exception")
        if isinstance(error, MemoryError):
            self.engine.counters.out_of_memory += 1
            return
        self.log.error("internal_error", describe_bug(error) if error else str(context.get("message")))

    def _die(self, error: StorageFailedError) -> None:
        """End at once: no waiting reply may leave, and no snapshot may hold what nobody was shown."""
        self.log.error("storage_failed", str(error))
        self.machine.die(str(error))

    # -- Stopping ------------------------------------------------------------------------------

    async def _stop(self, servers: list[Listening]) -> None:
        """Stop accepting, drain, snapshot everything."""
        self.log.info("stopping", "No new connections; open requests are finished and everything is saved")
        self.sessions.is_draining = True
        for server in servers:
            server.close()
        for session in list(self.sessions.open.values()):
            session.close_gracefully()
        await self.replication.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.shutdown_timeout_seconds or None):
                await self.write_path.drain()
                await self.sessions.closed()
        for session in list(self.sessions.open.values()):
            session.abort()
        if self.config.unix_socket is not None:
            self.config.unix_socket.unlink(missing_ok=True)
        self.opening.watch()
        is_saved = await self._try_snapshot("shutdown")
        if self.write_path.wal is not None:
            self.write_path.wal.close()
        if self.opening.is_lost:
            exit_with(f"{self.write_path.storage_trouble} while the server ran")
        with contextlib.suppress(RequestError):
            # What cannot be noted makes the next start more careful, nothing else.
            self.replication.roles.note_stopped(self.replication.replicas.known())
        self.log.info(
            "stopped", "Saved everything" if is_saved else "The snapshot failed; the log holds everything"
        )
        if not is_saved and self.write_path.wal is None:
            exit_with("the snapshot at shutdown failed and there is no log: see the lines above")


if __name__ == "__main__":
    main()

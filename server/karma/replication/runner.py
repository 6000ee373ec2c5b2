"""A slave at work: it follows its source, and gets over whatever happens on the way.

One task, one connection. Each page is written to the log, applied, and acknowledged by the next request
once it is durable. A page that is full means that there is more: then the next request leaves before
the page is applied, so that source and follower work at the same time.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from karma.core.entries import comparable_crc
from karma.core.epochs import History, implausible
from karma.core.replay import Replay
from karma.errors import DamagedDataError, ErrorCode, RequestError, StorageFailedError, describe_bug
from karma.protocol import fields
from karma.replication import link as links
from karma.replication.bootstrap import Bootstrap, BootstrapError
from karma.replication.follower import (
    Diverged,
    Follower,
    Here,
    Met,
    MustBootstrap,
    Page,
    Refused,
    State,
    Verdict,
    quote,
)
from karma.replication.link import Link, LinkError
from karma.service.checkpoints import Checkpoints
from karma.service.log import Log
from karma.service.roles import Roles
from karma.service.write_path import WritePath
from karma.storage import install, node_file
from karma.storage.checked import take
from karma.storage.disk import Disk
from karma.storage.node_file import Address
from karma.storage.recovery import Recovered

_REFUSED_SECONDS = 5.0
"""How long until a source that must be looked at by somebody is asked again."""


@dataclass(slots=True)
class Counts:
    """What the metrics of Karma 1.0 tell of a slave. Times are unix seconds."""

    entries_applied: int = 0
    last_received_unix: int = 0
    polls: int = 0
    polls_succeeded: int = 0
    polls_failed: int = 0
    last_poll_unix: int = 0
    last_poll_success_unix: int = 0
    last_poll_error_unix: int = 0
    last_poll_error: str | None = None
    bootstraps: int = 0
    bootstraps_succeeded: int = 0
    bootstraps_failed: int = 0
    last_bootstrap_unix: int = 0
    last_bootstrap_success_unix: int = 0
    last_bootstrap_error_unix: int = 0
    last_bootstrap_error: str | None = None


class _StopError(Exception):
    """The connection is given up for a reason that a verdict has."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict)
        self.verdict = verdict


@dataclass(slots=True, repr=False)
class Runner:
    """Follows the source of `roles`. `clock_ms` is unix milliseconds, `monotonic` seconds."""

    write_path: WritePath
    roles: Roles
    checkpoints: Checkpoints
    disk: Disk
    log: Log
    clock_ms: Callable[[], int]
    monotonic: Callable[[], float]
    random: Random
    tls: ssl.SSLContext | None
    token: str | None
    poll_interval_ms: int
    batch_entries: int
    port: Callable[[], int]
    """Returns where this node itself listens."""
    restore: Callable[[Path], Awaitable[Recovered]]
    """Reads a directory without changing it. Raises DamagedDataError."""
    busy: asyncio.Lock
    """Held while the files of the directory are exchanged."""
    exchange: Callable[[Recovered], None]
    """Lets what was restored take the place of what is in memory. Nothing may come between its steps."""
    counts: Counts = field(default_factory=Counts)
    follower: Follower = field(init=False)
    _task: asyncio.Task[None] | None = None
    _last_crc: str | None = None
    _said: str | None = None

    def __post_init__(self) -> None:
        self.follower = Follower(self.batch_entries)

    # -- Starting and stopping ---------------------------------------------------------------------------

    def start(self) -> None:
        """Follow the source of this node's role, if it is a slave with one."""
        if self.roles.is_master or self.roles.node.source is None or self._task is not None:
            return
        self.follower = Follower(self.batch_entries)
        self._said = None
        self._last_crc = self._find_last_crc()
        self._task = asyncio.get_running_loop().create_task(self._run(self.roles.node.source))

    async def stop(self) -> None:
        """Follow nobody any more; what was received is in the log."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self.follower.state = "stopped"
        self.counts.last_poll_error = self.counts.last_bootstrap_error = None

    @property
    def path(self) -> list[str]:
        """The node ids from the master to this node."""
        return [*(self.follower.path if self._task is not None else ()), self.roles.node.node_id]

    @property
    def master(self) -> str | None:
        """The master's address, as far as a slave knows it."""
        source = self.roles.node.source
        return self.follower.master or (str(source) if source is not None else None)

    def describe(self) -> dict[str, Any]:
        """Return what the node says of its source."""
        counts, follower = self.counts, self.follower
        log_file = self.write_path.wal
        last_lsn = log_file.last_lsn if log_file is not None else 0
        is_following = self._task is not None
        is_filled = not is_following or self._is_filled(last_lsn)
        own_lsn = last_lsn if is_filled else 0
        return {
            "filled": is_filled,
            "replication_lag_entries": max(follower.source_lsn - own_lsn, 0) if is_following else 0,
            "replication_entries_applied": counts.entries_applied,
            "replication_last_received_unix": counts.last_received_unix,
            "replication_poll_attempt_count": counts.polls,
            "replication_poll_success_count": counts.polls_succeeded,
            "replication_poll_error_count": counts.polls_failed,
            "replication_last_poll_attempt_unix": counts.last_poll_unix,
            "replication_last_poll_success_unix": counts.last_poll_success_unix,
            "replication_last_poll_error_unix": counts.last_poll_error_unix,
            "replication_last_poll_error": counts.last_poll_error,
            "replication_bootstrap_attempt_count": counts.bootstraps,
            "replication_bootstrap_success_count": counts.bootstraps_succeeded,
            "replication_bootstrap_error_count": counts.bootstraps_failed,
            "replication_last_bootstrap_attempt_unix": counts.last_bootstrap_unix,
            "replication_last_bootstrap_success_unix": counts.last_bootstrap_success_unix,
            "replication_last_bootstrap_error_unix": counts.last_bootstrap_error_unix,
            "replication_last_bootstrap_error": counts.last_bootstrap_error,
            "replication_state": follower.state if is_following else None,
            "replication_reason": follower.reason if is_following else None,
            "lag_ms": follower.lag_ms(last_lsn, self._steady_ms()) if is_following else 0,
            "lag_bytes": follower.lag_bytes if is_following and follower.source_lsn > last_lsn else 0,
            "master": self.master if not self.roles.is_master else None,
            "path": self.path,
            "source_node_id": self.path[-2] if len(self.path) > 1 else None,
        }

    def _is_filled(self, last_lsn: int) -> bool:
        """Whether a slave has what its source had once, if that was nothing."""
        if self.roles.node.must_rebuild:
            return False
        is_heard = self.follower.state in ("following", "polling")
        return bool(last_lsn) or (is_heard and not self.follower.source_lsn)

    def _steady_ms(self) -> int:
        return int(self.monotonic() * 1000)

    def here(self) -> Here:
        """Return what a source wants to know of this node."""
        node, log_file = self.roles.node, self.write_path.wal
        assert log_file is not None
        return Here(
            node.node_id,
            node.cluster_id,
            node.history,
            log_file.last_lsn,
            log_file.durable_lsn if self.write_path.is_synced else log_file.last_lsn,
            # A master writes without telling this runner: what it knows from a time as slave is out of date.
            self._last_crc if self._task is not None else self._find_last_crc(),
            self.port() or None,
            is_empty=node.must_rebuild
            or (log_file.last_lsn == 0 and not self.write_path.engine.store.series),
        )

    def _find_last_crc(self) -> str | None:
        log_file = self.write_path.wal
        assert log_file is not None
        last_lsn = log_file.last_lsn
        if last_lsn < log_file.first_lsn:
            return None
        try:
            last = next(log_file.read(last_lsn - 1), None)
        except (OSError, ValueError):
            # In log kept for followers, which a start does not read. The epochs are compared all the same.
            return None
        return None if last is None else comparable_crc(self.roles.node.history.at(last_lsn).number, last)

    # -- Following ---------------------------------------------------------------------------------------

    async def _run(self, source: Address) -> None:
        while True:
            try:
                await self._follow(source)
            except _StopError as stop:
                await self._stopped(stop.verdict)
            except (LinkError, BootstrapError) as error:
                self._say("connecting", str(error))
                await self._pause()
            except RequestError as error:
                # Of this node's own: the disk, or an entry that it cannot apply.
                is_disk = error.code == ErrorCode.STORAGE_ERROR
                self._say("storage_error" if is_disk else "refused", error.message)
                await self._pause()
            except (OSError, DamagedDataError) as error:
                self._say("storage_error", str(error))
                await self._pause()
            except StorageFailedError as error:
                self.write_path.die(error)
                raise
            except Exception as error:  # noqa: BLE001 - a slave that stands still must say so
                self.log.error("internal_error", describe_bug(error))
                self._say("refused", f"this node failed on what it received ({type(error).__name__}), a bug")
                await asyncio.sleep(_REFUSED_SECONDS)

    async def _stopped(self, verdict: Verdict) -> None:
        assert not isinstance(verdict, Page | Met)
        if isinstance(verdict, Diverged):
            self._say(
                "diverged",
                f"{verdict.reason}. Nothing was taken in. To give up this node's branch from LSN "
                f"{verdict.lsn} on: replication.follow with rebuild:true",
                diverged_at_lsn=verdict.lsn,
            )
            await asyncio.sleep(_REFUSED_SECONDS)
        elif isinstance(verdict, Refused):
            self._say("refused", verdict.reason)
            await asyncio.sleep(_REFUSED_SECONDS)
        else:
            self._say("connecting", verdict.reason)
            await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(self.follower.delay_ms(self.random.random()) / 1000)

    def _say(self, state: State, reason: str | None, **facts: Any) -> None:
        """Set the state, and log a change of it once."""
        counts, now = self.counts, self.clock_ms() // 1000
        reason = None if reason is None else quote(reason)
        self.follower.state, self.follower.reason = state, reason
        if reason is not None:
            counts.polls_failed += 1
            counts.last_poll_error_unix, counts.last_poll_error = now, reason
        said = f"{state}: {reason}"
        if said == self._said:
            return
        self._said = said
        if reason is None:
            self.log.info("replication", f"{state} {self.roles.node.source}", state=state)
        else:
            self.log.warning(
                "replication", f"{state} {self.roles.node.source}: {reason}", state=state, **facts
            )

    async def _follow(self, source: Address) -> None:
        """Follow until something stops it. Raises what `_run` tells apart."""
        self.counts.polls += 1
        self.counts.last_poll_unix = self.clock_ms() // 1000
        link = await links.connect(source, self.token, self.tls)
        try:
            met = await self._meet(link)
            if isinstance(met, MustBootstrap):
                await self._bootstrap(link, met.reason)
                met = await self._meet(link)
            elif self.roles.node.must_rebuild and isinstance(met, Met | Diverged):
                await self._bootstrap(link, "a rebuild was ordered")
                met = await self._meet(link)
            if not isinstance(met, Met):
                raise _StopError(met)
            self.roles.adopt(met.cluster_id, met.history)
            if not met.is_counted:
                self.log.warning(
                    "not_counted",
                    f"{source} sends its entries but does not count this node as a follower: the token may "
                    "only read there, or too many followers are connected. Set --replication-token to the "
                    "source's own",
                )
            await self._take_pages(link)
        finally:
            link.close()

    async def _meet(self, link: Link) -> Verdict:
        here = self.here()
        return self.follower.met(await link.ask(self.follower.handshake(here)), here)

    async def _take_pages(self, link: Link) -> None:
        counts, replay = self.counts, Replay(self.write_path.engine.store)
        link.send(self.follower.next(self.here()))
        while True:
            counts.polls += 1
            counts.last_poll_unix = self.clock_ms() // 1000
            reply = await link.receive()
            now_ms = self.clock_ms()
            found = self.follower.page(reply, self.here(), now_ms, self._steady_ms())
            if not isinstance(found, Page):
                raise _StopError(found)
            counts.polls_succeeded += 1
            counts.last_poll_success_unix = now_ms // 1000
            counts.last_poll_error = None
            self._say(self.follower.state, None)
            if found.is_full and not self.follower.is_original:
                link.send(self.follower.next(self._ahead(found)))
            self._take(found, replay)
            if found.received.entries:
                counts.entries_applied += len(found.received.entries)
                counts.last_received_unix = now_ms // 1000
            if found.is_full and not self.follower.is_original:
                # Clients of this node get their turn between two pages.
                await asyncio.sleep(0)
                continue
            await self.write_path.sync_received()
            if self.follower.is_original and not found.is_full:
                await asyncio.sleep(self.poll_interval_ms / 1000)
            link.send(self.follower.next(self.here()))

    def _take(self, page: Page, replay: Replay) -> None:
        """Make a page this node's own. Raises RequestError."""
        expiry = self.write_path.engine.expiry
        if expiry is not None and page.expiry_unix is not None:
            expiry.follow(page.expiry_unix)
        if page.received.entries:
            try:
                self.write_path.replicate(page.received, replay.apply)
            except RequestError:
                self._last_crc = self._find_last_crc()
                raise
            self._last_crc = page.last_crc
        if page.checkpoint_position is not None:
            self.checkpoints.receive(page.checkpoints, page.checkpoint_sources)
            self.follower.checkpoint_position = page.checkpoint_position

    def _ahead(self, page: Page) -> Here:
        """Return what this node will be when it has taken a page in."""
        return replace(self.here(), last_lsn=page.received.last_lsn, last_crc=page.last_crc, is_empty=False)

    # -- Bootstrapping -----------------------------------------------------------------------------------

    async def _bootstrap(self, link: Link, reason: str) -> None:
        """Fetch the source's snapshots and let them take the place of the data here."""
        counts, directory = self.counts, self.roles.directory
        incoming = directory / install.INCOMING_NAME
        counts.bootstraps += 1
        counts.last_bootstrap_unix = self.clock_ms() // 1000
        self.follower.state, self.follower.reason = "bootstrapping", reason
        self.log.info("bootstrap", f"Fetching the source's snapshots: {reason}")
        try:
            cluster_id, history = await self._fetch(link, incoming)
            # Read before it counts: what arrived damaged must not replace what is here.
            recovered = await self._restore_incoming(incoming)
            async with self.busy:
                # A sync that a thread has begun must not meet another log at its end.
                await self.write_path.sync_received()
                aside = install.discarded_folder(self.disk, directory, self.clock_ms() // 1000).name
                node = replace(self.roles.node, cluster_id=cluster_id, history=history, must_rebuild=False)
                node_file.save(self.disk, incoming, node)
                install.commit(self.disk, directory, aside)
                self.exchange(recovered)
                self.roles.exchanged(node)
        except (LinkError, BootstrapError, OSError, RequestError, DamagedDataError) as error:
            counts.bootstraps_failed += 1
            counts.last_bootstrap_error_unix = self.clock_ms() // 1000
            counts.last_bootstrap_error = quote(error)
            raise
        self._last_crc = self._find_last_crc()
        counts.bootstraps_succeeded += 1
        counts.last_bootstrap_error = None
        counts.last_bootstrap_success_unix = self.clock_ms() // 1000
        self.log.info(
            "bootstrap",
            f"The source's snapshots are in place, at LSN {recovered.last_lsn}; what was here is in {aside}",
            lsn=recovered.last_lsn,
        )

    async def _fetch(self, link: Link, incoming: Path) -> tuple[str | None, History]:
        """Fill a folder with the source's data; returns its cluster and their epochs."""
        identity = await self._identify(link)
        here = self.here()
        problem = implausible(identity[1].current.number, here.history.current.number)
        if problem is not None and not here.is_empty:
            raise _StopError(Refused(f"the source's history is not believed: {problem}"))
        await Bootstrap(link, self.disk, incoming, self.log, self.monotonic, self.clock_ms).run(
            self.batch_entries
        )
        if await self._identify(link) != identity:
            raise BootstrapError("the source entered another epoch while its data were fetched")
        return identity

    async def _restore_incoming(self, folder: Path) -> Recovered:
        """Read what was fetched. Raises BootstrapError, with all of it removed, when it is not whole."""
        try:
            recovered = await self.restore(folder)
            problem = None if recovered.tail is None else recovered.tail.reason
        except DamagedDataError as error:
            recovered, problem = None, error.message
        if recovered is not None and problem is None:
            return recovered
        for name in self.disk.list_names(folder):
            self.disk.remove(folder / name)
        raise BootstrapError(f"what the source sent cannot be restored: {problem}")

    async def _identify(self, link: Link) -> tuple[str | None, History]:
        """Ask a source for its cluster and epochs."""
        reply = await link.ask({"op": "replication.status"})
        try:
            found = take(reply, "response", dict)
            # What a node without any data is behind, until it has some.
            self.follower.source_lsn = fields.lsn({"wal_current_lsn": 0} | found, "wal_current_lsn")
            if "node_id" not in found:
                return None, History()
            return fields.identifier(found, "cluster_id"), History.from_json(found["epochs"])
        except (KeyError, TypeError, ValueError, RequestError) as error:
            raise LinkError(f"the source's status cannot be used: {quote(error)}") from error

"""A node among others: the operations that change its role, and what it tells former masters."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from dataclasses import dataclass, field
from typing import Any

from karma.engine.effects import Order
from karma.errors import ErrorCode, RequestError, StorageFailedError
from karma.replication import link as links
from karma.replication.feed import Claims
from karma.replication.follower import Diverged, Follower, Met, MustBootstrap, Page, Verdict, quote
from karma.replication.link import LinkError
from karma.replication.runner import Runner
from karma.replication.source import Source
from karma.service.leases import Leases
from karma.service.log import Log
from karma.service.parties import Client
from karma.service.replicas import Replicas, SyncGate
from karma.service.roles import Roles, address_of
from karma.service.write_path import EffectHandler, WritePath
from karma.storage.node_file import Address, Node

_ANNOUNCE_SECONDS = 1.0
_MASTER_SECONDS = 0.5
"""How long a promotion waits for the word of the old master: writers wait as long."""
_FAREWELL_SECONDS = 5.0
_SETTLED_SECONDS = 15.0
"""How often a former master that is stopped is looked at again: a backup may bring an older one back."""


@dataclass(slots=True, repr=False)
class ReplicationNode:
    """Every part of replication of one node, put together."""

    write_path: WritePath
    roles: Roles
    leases: Leases
    replicas: Replicas
    gate: SyncGate | None
    source: Source
    runner: Runner
    log: Log
    tls: ssl.SSLContext | None
    token: str | None
    _changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _announcer: asyncio.Task[None] | None = None
    _announced: dict[str, str] = field(default_factory=dict)
    _farewell: asyncio.Task[None] | None = None
    _was_fenced: bool = False

    def effects(self) -> dict[str, EffectHandler]:
        """Return the handlers of the operations here."""
        return {
            "replication.wait": self.source.wait,
            "replication.promote": self.promote,
            "replication.follow": self.follow,
            "replication.pause": self.pause,
            "replication.resume": self.resume,
            "replication.fence": self.fence,
            "replication.unfence": self.unfence,
            "replication.lease": self.leases.order,
            "replication.maintenance": self.leases.maintain,
        }

    def entries(self, client: Client, *, claims: dict[str, Any], **request: Any) -> Any:
        """Carry out replication.entries."""
        return self.source.entries(client, claims=Claims(**claims), **request)

    # -- Life ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Follow, or tell former masters, as the role wants it."""
        self.runner.start()
        if self.roles.is_master and self.roles.node.former_sources and self._announcer is None:
            self._announcer = asyncio.get_running_loop().create_task(self._announce())

    async def stop(self) -> None:
        """Stop following and announcing, and answer those who wait."""
        self.source.close()
        await self._halt()

    async def _halt(self) -> None:
        tasks = [task for task in (self._announcer, self._farewell) if task is not None]
        self._announcer = self._farewell = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.runner.stop()

    def tick(self) -> None:
        """Look after what time changes; called a few times a second."""
        if self.gate is not None:
            self.gate.tick()
        self.source.tick()
        is_fenced = self.roles.node.fence is not None
        if is_fenced and not self._was_fenced:
            # Its followers are about to follow another node; those that stay ask again.
            self._forget_followers()
        self._was_fenced = is_fenced
        if self.replicas.has_new:
            # Not with the next snapshot: after a kill it is that snapshot which lets go of the log. Nor at
            # once, or a peer with ever new names would make this node sync its file for each request.
            self._remember_followers()

    def _forget_followers(self) -> None:
        self.replicas.forget()
        self._remember_followers()

    def _remember_followers(self) -> None:
        self.replicas.has_new = False
        with contextlib.suppress(RequestError):
            self.roles.remember_replicas(self.replicas.known())

    def _settled(self, before: Node) -> None:
        """Go on as what this node is now, after an operation that changes roles, or was refused."""
        node = self.roles.node
        # An order that changed nothing must not make a healthy master doubt its followers.
        if (node.role, node.source, node.history) != (before.role, before.source, before.history):
            if self.roles.is_master:
                self.replicas.forget_acks()
            else:
                self._forget_followers()
            if self.gate is not None:
                self.gate.role_changed()
            # Followers that wait learn of the new epoch, and from whom they have it.
            self.source.wake()
        self.start()

    def use_as_client(self, token: str | None, tls: ssl.SSLContext | None) -> None:
        """Show other nodes another token and certificate from the next connection on."""
        self.token = self.runner.token = token
        self.tls = self.runner.tls = tls

    # -- Operations ------------------------------------------------------------------------------------------

    async def promote(self, epoch: int | None, order: Order) -> dict[str, Any]:
        """Carry out replication.promote. Raises RequestError, with the node as it was."""
        async with self._changing:
            self.leases.check(order)
            self.roles.check_promotion(epoch, order)
            if order.run is not None and not order.force:
                await self._check_master_fence(order.run)
            before = self.roles.node
            try:
                if not self.roles.is_master or before.fence is not None:
                    await self._halt()
                self.leases.check(order)
                changed = self.roles.promote(self.write_path.settle(), order, epoch)
            finally:
                self._settled(before)
        return changed

    async def _check_master_fence(self, run: str) -> None:
        """Refuse a run that does not hold the fence of the master, as far as that one can be asked.

        One that does not answer at once is left to the majority of leases. Raises RequestError.
        """
        master = address_of(self.roles.master_hint()) if not self.roles.is_master else None
        if master is None:
            return
        try:
            async with asyncio.timeout(_MASTER_SECONDS):
                status = await self._status_of(master)
        except (LinkError, TimeoutError):
            return
        fence, node = status.get("fenced_by"), self.roles.node
        is_it = status.get("cluster_id") == node.cluster_id and status.get("role") == "master"
        holder = fence.get("run") if isinstance(fence, dict) else None
        if is_it and (fence is None or holder not in (None, run)):
            state = f"is fenced for run {holder}" if fence else "takes writes"
            raise RequestError(
                ErrorCode.FORBIDDEN,
                f"The master {master} {state}: run {run} must hold its fence before this node is promoted",
                {"reason": "other_run", "run": holder, "master": str(master)},
            )

    async def _status_of(self, address: Address) -> dict[str, Any]:
        """Ask a node for its replication.status. Raises LinkError."""
        link = await links.connect(address, self.token, self.tls)
        try:
            link.send({"op": "replication.status"})
            reply = await link.receive()
        finally:
            link.close()
        found = reply.get("response") if isinstance(reply, dict) else None
        return found if isinstance(found, dict) else {}

    def pause(self, ttl_ms: int, order: Order) -> dict[str, Any]:
        """Carry out replication.pause. Raises RequestError."""
        self.leases.check(order)
        return self.roles.pause(ttl_ms, order)

    def resume(self, order: Order) -> dict[str, Any]:
        """Carry out replication.resume. Raises RequestError."""
        self.leases.check(order)
        return self.roles.resume(order)

    async def fence(self, epoch: int, reason: str, order: Order) -> dict[str, Any]:
        """Carry out replication.fence; the reply leaves when no write is on its way any more."""
        self.leases.check(order)
        changed = self.roles.fence(epoch, reason, order)
        self.write_path.settle()
        return changed | {"wal_current_lsn": self._last_lsn}

    def unfence(self, epoch: int, order: Order) -> dict[str, Any]:
        """Carry out replication.unfence. Raises RequestError."""
        self.leases.check(order)
        return self.roles.unfence(epoch, self.write_path.settle(), order)

    async def follow(
        self,
        host: str,
        port: int,
        *,
        source_token: str | None,
        token: str | None,
        rebuild: bool,
        order: Order,
    ) -> dict[str, Any]:
        """Carry out replication.follow: nothing changes unless the source is fit. Raises RequestError.

        Not even another run's fence is in the way: following is how a fenced master comes back.
        """
        self.leases.check(order)
        self.roles.check_follow(order)
        if self.write_path.wal is None:
            raise _unfit("this node keeps no log (--wal=false)")
        if source_token is None and self.token is None:
            source_token = token
        source = Address(host, port, source_token)
        async with self._changing:
            # What is written after the source was asked would be a branch of its own.
            with self.roles.held(f"This node is about to follow {source}"):
                before = self.roles.node
                try:
                    lost = await self._become_slave(source, order, rebuild=rebuild)
                finally:
                    self._settled(before)
        return {
            "role": "slave",
            "source": str(source),
            "fenced_by": None,
            "paused_until": None,
            **lost,
        }

    async def _become_slave(self, source: Address, order: Order, *, rebuild: bool) -> dict[str, Any]:
        """Follow a source if it is fit; returns what is lost by that. Raises RequestError."""
        last_lsn = self.write_path.settle()
        verdict, epoch = await self._try(source, rebuild=rebuild)
        if isinstance(verdict, Met | MustBootstrap) or (rebuild and isinstance(verdict, Diverged)):
            await self._halt()
            if self._last_lsn != last_lsn:
                # A page of the source so far came meanwhile: it may be of a branch that the new one has not.
                # Halting first would stop a healthy slave for as long as the new source lets it wait.
                last_lsn = self._last_lsn
                verdict, epoch = await self._try(source, rebuild=rebuild)
        lost: dict[str, Any] = {"lost_entries": 0} if rebuild else {}
        if isinstance(verdict, Diverged):
            # The first entry that differs is lost, and every one behind it.
            lost_entries = max(last_lsn - verdict.lsn + 1, 0)
            lost = {"diverged_at_lsn": verdict.lsn, "lost_entries": lost_entries}
            if not rebuild:
                raise RequestError(
                    ErrorCode.REPLICATION_ERROR,
                    f"{source} cannot be followed, and {self._learned(epoch)}: {verdict.reason} "
                    f"(diverged_at_lsn {verdict.lsn}). rebuild:true gives up the {lost_entries} entries from "
                    "there on and keeps them in a folder",
                    {"reason": "diverged", **lost},
                )
        elif not isinstance(verdict, Met | MustBootstrap):
            assert not isinstance(verdict, Page)
            raise _unfit(f"{source}: {verdict.reason}", self._learned(epoch))
        # Asking took its time: another run may hold this node by now.
        self.leases.check(order)
        self.roles.check_follow(order)
        if lost.get("lost_entries"):
            # Whose writes are given up must not read that they succeeded.
            self.write_path.abandon()
        former = self.roles.node.source if not self.roles.is_master else None
        self.roles.follow(source, must_rebuild=rebuild)
        if former is not None and (former.host, former.port) != (source.host, source.port):
            self._farewell = asyncio.get_running_loop().create_task(self._leave(former))
        return lost

    async def _leave(self, source: Address) -> None:
        """Let the source that this node followed so far forget it; one that is gone has nothing to forget."""
        node = self.roles.node
        request = {
            "op": "replication.entries",
            "after_lsn": self._last_lsn,
            "limit": 1,
            "node_id": node.node_id,
            "cluster_id": node.cluster_id,
            "leaving": True,
        }
        with contextlib.suppress(LinkError, TimeoutError):
            async with asyncio.timeout(_FAREWELL_SECONDS):
                link = await links.connect(source, self.token, self.tls)
                try:
                    await link.ask(request)
                finally:
                    link.close()

    def _learned(self, epoch: tuple[int, str] | None) -> str:
        """Take note of the epoch of a source that is not followed; returns what came of that."""
        before = self.roles.node
        if epoch is not None:
            try:
                self.roles.learn(*epoch)
            except RequestError as error:
                return f"nothing has changed ({error.message})"
        return "nothing has changed" if self.roles.node == before else "this node is fenced for its epoch now"

    async def _try(self, source: Address, *, rebuild: bool) -> tuple[Verdict, tuple[int, str] | None]:
        """Shake hands with a source, without following it; returns its epoch, too, where it tells one.

        Raises RequestError when it cannot be reached.
        """
        probe, here = Follower(1), self.runner.here()
        try:
            link = await links.connect(source, self.token, self.tls)
            try:
                verdict = probe.met(await link.ask(probe.handshake(here)), here, is_rebuild=rebuild)
                return verdict, None if here.is_empty else probe.source_epoch
            finally:
                link.close()
        except LinkError as error:
            raise _unfit(str(error)) from error

    @property
    def _last_lsn(self) -> int:
        return self.write_path.wal.last_lsn if self.write_path.wal is not None else 0

    # -- Telling former masters ------------------------------------------------------------------------

    async def _announce(self) -> None:
        """Tell the masters this node took over from that they are none any more, until they know."""
        while True:
            is_settled = True
            for address in self.roles.node.former_sources:
                try:
                    is_settled &= await self._tell(address)
                except StorageFailedError as error:
                    # Of a fence that cannot be noted: this node must not go on as master.
                    self.write_path.die(error)
                    raise
            await asyncio.sleep(_SETTLED_SECONDS if is_settled else _ANNOUNCE_SECONDS)

    async def _tell(self, address: Address) -> bool:
        """Tell one; returns whether it is stopped. What it answers may stop this node instead."""
        epoch = self.roles.epoch
        request = {
            "op": "replication.entries",
            "after_lsn": self._last_lsn,
            "limit": 1,
            "handshake": True,
            "cluster_id": self.roles.node.cluster_id,
            "epoch": epoch.number,
            "epoch_node_id": epoch.node_id,
        }
        try:
            link = await links.connect(address, self.token, self.tls)
            try:
                link.send(request)
                reply = await link.receive()
                link.send({"op": "replication.status"})
                status = await link.receive()
            finally:
                link.close()
        except LinkError as error:
            self._say(address, f"cannot be told yet: {error}")
            return False
        found = status.get("response") if isinstance(status, dict) else None
        if not isinstance(reply, dict) or not isinstance(found, dict) or "cluster_id" not in found:
            why = f"it answers {quote(found)}" if isinstance(found, str) else "it is a Karma 1.0, or none"
            self._say(address, f"cannot be fenced: {why}")
            return False
        node = self.roles.node
        if found["cluster_id"] != node.cluster_id or found.get("node_id") == node.node_id:
            self._say(address, "belongs to another cluster now")
            return True
        theirs = found.get("epoch"), found.get("epoch_node_id")
        if type(theirs[0]) is int and isinstance(theirs[1], str | None):
            try:
                self.roles.learn(theirs[0], theirs[1])
            except RequestError as error:
                self._say(address, f"makes a claim that is not believed: {error.message}")
                return False
        if found.get("role") == "master" and found.get("fenced_by") is None:
            self._say(address, "is still a master: the replication token may not fence it")
            return False
        self._say(address, "knows")
        return True

    def _say(self, address: Address, what: str) -> None:
        if self._announced.get(str(address)) != what:
            self._announced[str(address)] = what
            number = self.roles.epoch.number
            self.log.info("epoch_announced", f"The former master {address} {what} (epoch {number})")


def _unfit(why: str, outcome: str = "nothing has changed") -> RequestError:
    return RequestError(ErrorCode.REPLICATION_ERROR, f"The source cannot be followed, and {outcome}: {why}")

"""The source side at work: pages for followers that wait for them, and what their requests tell.

A follower asks for what is behind its last entry and lets the reply wait until there is something. That
request is also its acknowledgement of everything before, and carries the epoch it lives in: a master
that others have left behind learns of it here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from karma.core.entries import Body, Recent
from karma.errors import ErrorCode, RequestError
from karma.replication import feed
from karma.replication.feed import Claims
from karma.service.checkpoints import Checkpoints
from karma.service.parties import Client
from karma.service.replicas import Replica, Replicas
from karma.service.roles import Roles
from karma.service.write_path import WritePath
from karma.storage.wal import Wal

_PAUSE_SECONDS = 0.005
"""The least time between two pages to a follower at the log's end: what comes meanwhile shares one page.

Without it a follower of a busy master would ask a thousand times a second, each time for a handful."""
_AT_END_ENTRIES = 500
"""A follower that lacks more than this is behind, and gets its pages as fast as it takes them."""
_RECENT_SECONDS = 60.0
"""How long after the last request the newest entries are still kept in memory."""


@dataclass(slots=True, repr=False)
class Source:
    """Answers replication.entries and replication.wait."""

    write_path: WritePath
    roles: Roles
    replicas: Replicas
    checkpoints: Checkpoints
    max_response_bytes: int
    waits_for_replicas: bool
    """Whether writes wait for followers (sync-replicas): then every page leaves at once."""
    path: Callable[[], list[str]]
    """Returns the node ids from the master to this node."""
    is_open: Callable[[Client], bool] = lambda _client: True
    """Whether a client may still send requests."""
    _followers: dict[str, tuple[Client, str]] = field(default_factory=dict)
    """By node id, the connection of a follower and the address where it listens."""
    _waiting: dict[asyncio.Future[None], None] = field(default_factory=dict)
    """In the order in which they came."""
    _counting: int = 0
    """How many wait for acknowledgements: without any, none wakes the followers that wait for entries."""
    _is_closed: bool = False
    _asked_at: float = 0.0

    # -- Waking up -----------------------------------------------------------------------------------

    def wake(self) -> None:
        """Let those that wait for entries or acknowledgements look again."""
        waiting, self._waiting = self._waiting, {}
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def acknowledged(self) -> None:
        """Let those look again who wait for acknowledgements."""
        if self._counting:
            self.wake()

    def close(self) -> None:
        """Answer everybody who waits: the server is about to end."""
        self._is_closed = True
        self.wake()

    def tick(self) -> None:
        """Let go of entries in memory that nobody asks for any more; called a few times a second."""
        log_file = self.write_path.wal
        if (
            log_file is not None
            and log_file.recent is not None
            and self._now() - self._asked_at > _RECENT_SECONDS
        ):
            log_file.recent = None

    async def _wait(self, until: float) -> bool:
        """Wait for news until a time; returns False when there was none."""
        left_seconds = until - self._now()
        if left_seconds <= 0 or self._is_closed:
            return False
        future: asyncio.Future[None] = self.write_path.loop.create_future()
        self._waiting[future] = None
        timer = self.write_path.loop.call_later(left_seconds, self._give_up, future)
        try:
            await future
        finally:
            timer.cancel()
            self._waiting.pop(future, None)
        return self._now() < until

    @staticmethod
    def _give_up(future: asyncio.Future[None]) -> None:
        if not future.done():
            future.set_result(None)

    def _now(self) -> float:
        return self.write_path.loop.time()

    # -- Operations ----------------------------------------------------------------------------------

    async def entries(
        self,
        client: Client,
        *,
        after_lsn: int,
        acked_lsn: int | None,
        limit: int,
        wait_ms: int,
        claims: Claims,
        is_handshake: bool,
        is_plain: bool,
        as_lines: bool,
        is_peer: bool,
        checkpoint: tuple[str, int] | None,
    ) -> dict[str, Any]:
        """Carry out replication.entries.

        `acked_lsn` is up to where the sender's log is durable, `after_lsn` if it does not say. `is_peer`:
        its token is a node's or an operator's. Others get entries, but what they claim of themselves has no
        effect: no acknowledgement, no fence, no place among the followers.
        `checkpoint` is the last recovery checkpoint that it has, as `Checkpoints.after` numbers them.
        """
        log_file = self.write_path.wal
        if log_file is None:
            raise RequestError(
                ErrorCode.REPLICATION_ERROR, "This node keeps no log (--wal=false) and cannot be followed"
            )
        self._asked_at = self._now()
        if log_file.recent is None:
            log_file.recent = Recent()
        self._check(log_file, after_lsn, claims, is_peer=is_peer)
        epoch = self.roles.epoch.pair
        # Sent before this node was promoted, say: what its sender has may be of a branch that ended here. The
        # answer tells it of the epoch, and it shakes hands anew.
        is_stale = (
            not is_handshake
            and claims.epoch is not None
            and (claims.epoch, claims.epoch_node_id or "") != epoch
        )
        replica = None
        if is_peer and not (is_stale and claims.node_id):
            replica = self._record(client, claims, after_lsn if acked_lsn is None else acked_lsn)
        until = self._now() + wait_ms / 1000
        news = self._news(checkpoint)
        while (
            not (is_handshake or is_stale or news)
            and self.roles.epoch.pair == epoch
            and self.write_path.wal is log_file
            and self._durable_lsn(log_file) <= after_lsn
        ):
            if not await self._wait(until):
                break
            news = self._news(checkpoint)
        if replica is not None and not is_handshake and not self.waits_for_replicas:
            await self._pause(replica, self._durable_lsn(log_file) - after_lsn)
        # Who waited may find another log: this node's data were exchanged for its source's.
        log_file = self.write_path.wal or log_file
        about = {} if is_plain else self._about(is_handshake=is_handshake) | news
        if is_handshake and claims.node_id is not None:
            about["is_counted"] = replica is not None
        page = self._page(
            log_file,
            after_lsn,
            limit,
            # A few names fit what every page leaves free; a history or checkpoints may not.
            taken_bytes=len(orjson.dumps(about)) if is_handshake or news else 0,
            is_plain=is_plain,
            as_lines=as_lines,
        )
        return page | about

    def _record(self, client: Client, claims: Claims, acked_lsn: int) -> Replica | None:
        """Note who asked; returns the follower, None for a peer without a name or one too many."""
        if claims.node_id is None:
            self.replicas.saw_tail()
            return None
        if claims.is_leaving:
            self.replicas.forget(claims.node_id)
            return None
        address = None
        if claims.port is not None and client.address != "unix":
            address = f"{client.address.rpartition(':')[0]}:{claims.port}"
        if address is not None:
            self._check_twin(client, claims.node_id, address)
        return self.replicas.saw(claims.node_id, address, acked_lsn)

    def _check_twin(self, client: Client, node_id: str, address: str) -> None:
        """Refuse a follower while another one is connected with its node id. Raises RequestError."""
        self._followers = {each: known for each, known in self._followers.items() if self.is_open(known[0])}
        other, other_address = self._followers.get(node_id, (client, address))
        if other is not client and other_address != address:
            self.replicas.saw_twins(node_id, other_address, address)
            raise RequestError(
                ErrorCode.REPLICATION_ERROR,
                f"A follower at {other_address} has the same node_id {node_id}: one of the two directories "
                "is a copy of the other. Stop the node of the copy and run karma new-id on its directory",
                {"reason": "duplicate"},
            )
        self._followers[node_id] = (client, address)

    async def _pause(self, replica: Replica, behind_entries: int) -> None:
        """Let a follower at the end of the log wait a little since its last page."""
        now = self._now()
        due = replica.answered_at + _PAUSE_SECONDS
        if now < due and behind_entries < _AT_END_ENTRIES and not self._is_closed:
            await asyncio.sleep(due - now)
        replica.answered_at = self._now()

    def _check(self, log_file: Wal, after_lsn: int, claims: Claims, *, is_peer: bool) -> None:
        """Refuse a sender that does not belong here, and learn of its epoch. Raises RequestError."""
        roles = self.roles
        feed.check_cluster(claims, roles.node.cluster_id)
        if claims.epoch is not None:
            roles.check_epoch(claims.epoch)
        if claims.cluster_id is not None and claims.epoch is not None and is_peer:
            roles.learn(claims.epoch, claims.epoch_node_id)
        if roles.is_master and claims.epoch is not None and claims.epoch > roles.epoch.number:
            raise RequestError(
                ErrorCode.REPLICATION_ERROR,
                f"This node is behind: its epoch is {roles.epoch.number}, the sender's {claims.epoch}. It "
                "was left behind by a promotion; follow the new master",
                {"reason": "stale", "epoch": roles.epoch.number},
            )
        if claims.after_epoch is not None:
            found = self._entry_at(log_file, after_lsn) if claims.after_crc is not None else None
            durable_lsn = self._durable_lsn(log_file)
            feed.check_history(
                claims, roles.node.history, after_lsn, durable_lsn, found, is_master=roles.is_master
            )
        feed.check_available(after_lsn, log_file.first_lsn, self._durable_lsn(log_file))

    def _entry_at(self, log_file: Wal, lsn: int) -> Body | None:
        if not log_file.first_lsn <= lsn <= self._durable_lsn(log_file):
            return None
        try:
            return next(log_file.read(lsn - 1), None)
        except (OSError, ValueError) as error:
            raise _unreadable(lsn - 1, error) from error

    def _durable_lsn(self, log_file: Wal) -> int:
        return log_file.durable_lsn if self.write_path.is_synced else log_file.last_lsn

    def _page(
        self, log_file: Wal, after_lsn: int, limit: int, *, taken_bytes: int, is_plain: bool, as_lines: bool
    ) -> dict[str, Any]:
        source_lsn = self._durable_lsn(log_file)
        # Once more: what was there before the wait may be gone.
        feed.check_available(after_lsn, log_file.first_lsn, source_lsn)
        maximum = self.max_response_bytes and max(self.max_response_bytes - taken_bytes, 1)
        recent = log_file.read_recent(after_lsn) if as_lines else None
        try:
            page = (
                feed.page_of_lines(
                    recent,
                    after_lsn=after_lsn,
                    limit=limit,
                    source_lsn=source_lsn,
                    max_response_bytes=maximum,
                )
                if recent is not None
                else feed.page(
                    log_file.read(after_lsn),
                    after_lsn=after_lsn,
                    limit=limit,
                    source_lsn=source_lsn,
                    max_response_bytes=maximum,
                    is_plain=is_plain,
                )
            )
        except (OSError, ValueError) as error:
            raise _unreadable(after_lsn, error) from error
        if is_plain:
            return page
        next_lsn = page["next_lsn"]
        return page | {
            "lag_bytes": 0 if next_lsn >= source_lsn else log_file.bytes_behind(next_lsn),
            "expiry_unix": self.write_path.engine.expiry_unix,
        }

    def _about(self, *, is_handshake: bool) -> dict[str, Any]:
        roles = self.roles
        about: dict[str, Any] = {
            "node_id": roles.node.node_id,
            "cluster_id": roles.node.cluster_id,
            "epoch": roles.epoch.number,
            "epoch_node_id": roles.epoch.node_id,
        }
        if is_handshake:
            about |= {
                "role": roles.node.role,
                "master": roles.master_hint(),
                "epochs": roles.node.history.to_json(),
                "path": self.path(),
                "fenced_by": roles.node.fence.describe() if roles.node.fence else None,
            }
        return about

    def _news(self, checkpoint: tuple[str, int] | None) -> dict[str, Any]:
        """Return recovery checkpoints that the sender lacks; nothing for one that did not ask for them."""
        found = self.checkpoints.after(*checkpoint) if checkpoint is not None else None
        if found is None:
            return {}
        count = len(self.checkpoints.by_source)
        return {"checkpoints": found[0], "checkpoint_position": found[1], "checkpoint_count": count}

    async def wait(self, lsn: int | None, acks: int, timeout_ms: int) -> dict[str, int]:
        """Carry out replication.wait: count the followers that hold the log up to an LSN."""
        log_file = self.write_path.wal
        wanted_lsn = lsn if lsn is not None else log_file.last_lsn if log_file else 0
        until = self._now() + timeout_ms / 1000
        self._counting += 1
        try:
            while (found := self.replicas.count(wanted_lsn)) < acks:
                if not await self._wait(until):
                    break
        finally:
            self._counting -= 1
        return {"acks": found, "lsn": wanted_lsn}


def _unreadable(after_lsn: int, error: Exception) -> RequestError:
    return RequestError(
        ErrorCode.REPLICATION_ERROR, f"The log cannot be read behind LSN {after_lsn}: {error}; try again"
    )

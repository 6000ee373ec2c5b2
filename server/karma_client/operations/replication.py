"""The log, roles and replicas. What Karma 1.0 lacks raises UnsupportedError there."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, Literal

from karma_client.binding import Performer, operation, stream
from karma_client.calls import Call, anything, read, write
from karma_client.errors import advanced
from karma_client.lazy import LazyModule

if TYPE_CHECKING:
    from karma_client import results
else:
    results = LazyModule("karma_client.results")

POLL_SECONDS = 0.5
"""Between two looks at the log of a server that does not hold its reply until there is something."""


class Replication:
    """Operations on one node's place in the cluster: use a client with target "any" and that node alone."""

    @operation
    def replication_status(self) -> Call[results.ReplicationStatus]:
        """Return role, LSNs, lag, and the followers of a source."""
        return read("replication.status", results.ReplicationStatus.of)

    @operation
    def entries_page(
        self, after_lsn: int, *, limit: int | None = None, wait_ms: int | None = None
    ) -> Call[results.EntriesPage]:
        """Return the log entries behind an LSN; `limit` is 1,000 if left out, at most 10,000.

        With `wait_ms` (at most 30,000) the server holds its reply until there is something; Karma 1.0 and
        servers without replication answer at once. Raises ReplicationGapError when the entries are gone.
        """
        return read(
            "replication.entries",
            results.EntriesPage.of,
            after_lsn=after_lsn,
            limit=limit,
            wait_ms=wait_ms,
        )

    @operation
    def promote(
        self,
        *,
        epoch: int | None = None,
        run: str | None = None,
        lease: int | None = None,
        force: bool = False,
    ) -> Call[dict[str, Any]]:
        """Make a slave the master, in a new epoch; refused when `epoch` is not the next one.

        Returns the fields of its status that changed. `run`, `lease` and `force` are as in `fence`.
        """
        return _order("replication.promote", run, lease, force=force, epoch=epoch)

    @operation
    def follow(
        self,
        host: str,
        port: int,
        *,
        source_token: str | None = None,
        rebuild: bool = False,
        run: str | None = None,
        lease: int | None = None,
        force: bool = False,
    ) -> Call[dict[str, Any]]:
        """Make the node a slave of another. With `rebuild` its own diverged data are moved aside.

        `source_token` is what the node shows to its source. Returns the fields of its status that changed.
        """
        about = {"host": host, "port": port, "source_token": source_token, "rebuild": rebuild or None}
        return _order("replication.follow", run, lease, force=force, **about)

    @operation
    def pause(
        self, ttl_ms: int, *, run: str | None = None, lease: int | None = None, force: bool = False
    ) -> Call[dict[str, Any]]:
        """Refuse writes until `resume`, or until the time is over, whichever is first."""
        return _order("replication.pause", run, lease, force=force, ttl_ms=ttl_ms)

    @operation
    def resume(
        self, *, run: str | None = None, lease: int | None = None, force: bool = False
    ) -> Call[dict[str, Any]]:
        """End a pause."""
        return _order("replication.resume", run, lease, force=force)

    @operation
    def fence(
        self,
        epoch: int,
        reason: str,
        *,
        run: str | None = None,
        lease: int | None = None,
        force: bool = False,
    ) -> Call[dict[str, Any]]:
        """Refuse writes, durably, because of a newer epoch, until `unfence`, `follow` or `promote`.

        A node that is fenced or paused for one `run` takes orders of another only with `force`; so does one
        whose lease another run holds. `lease` is the number of the run's lease.
        """
        return _order("replication.fence", run, lease, force=force, epoch=epoch, reason=reason)

    @operation
    def unfence(
        self, epoch: int, *, run: str | None = None, lease: int | None = None, force: bool = False
    ) -> Call[dict[str, Any]]:
        """Take writes again; `epoch` must be the one that fenced the node."""
        return _order("replication.unfence", run, lease, force=force, epoch=epoch)

    @operation
    def lease(
        self,
        do: Literal["take", "renew", "release", "park"],
        run: str,
        *,
        cluster_id: str,
        holder: str | None = None,
        ttl_ms: int | None = None,
        lease: int | None = None,
        force: bool = False,
        text: str | None = None,
        at_unix_ms: int | None = None,
        kind: Literal["scheduled", "cooldown"] | None = None,
    ) -> Call[results.LeaseState]:
        """Take, renew or release the right of a run to change roles, as far as this node's vote goes.

        `lease` is the last number that the caller knows: another one is refused. `park` holds no one off: it
        notes until `at_unix_ms` that the run is to begin then.
        """
        return write(
            "replication.lease",
            results.LeaseState.of,
            is_extension=True,
            do=do,
            cluster_id=cluster_id,
            run=run,
            holder=holder,
            ttl_ms=ttl_ms,
            lease=lease,
            force=force or None,
            text=text,
            at_unix_ms=at_unix_ms,
            kind=kind,
        )

    @operation
    def maintenance(self, reason: str, ttl_ms: int, *, durable: bool = False) -> Call[dict[str, Any]]:
        """Say that planned work is going on, for `ttl_ms` (0 ends it). `durable` lasts through a restart."""
        about = {"reason": reason, "ttl_ms": ttl_ms, "durable": durable or None}
        return write("replication.maintenance", anything, is_extension=True, **about)

    @operation
    def wait_for_replicas(
        self, acks: int, *, lsn: int | None = None, timeout_ms: int = 1000
    ) -> Call[results.Acknowledged]:
        """Wait until so many replicas hold the log up to `lsn` (now's last one if left out).

        When the time is over, the result says how many do.
        """
        return read(
            "replication.wait",
            results.Acknowledged.of,
            is_extension=True,
            acks=acks,
            lsn=lsn,
            timeout_ms=timeout_ms,
        )

    @operation
    def checksum(self) -> Call[results.Checksum]:
        """Return a digest of all data at an LSN, equal on nodes with equal data."""
        return read("replication.checksum", results.Checksum.of, is_extension=True)


def _order(
    op: str, run: str | None, lease: int | None, *, force: bool, **fields: Any
) -> Call[dict[str, Any]]:
    """Return the call that changes a role on behalf of a run."""
    return write(op, anything, is_extension=True, **fields, run=run, lease=lease, force=force or None)


class LogStreams(Performer):
    """Reads of the log that take several requests."""

    @stream
    async def entries(
        self, after_lsn: int = 0, *, follow: bool = False, page_size: int = 1000, wait_ms: int = 10_000
    ) -> AsyncGenerator[results.Entry, None]:
        """Iterate over log entries behind an LSN, to the present end of the log, or for ever with `follow`.

        Following asks the server to hold its reply for `wait_ms`; one that cannot is asked twice a second.
        After a failover it goes on with the log of the new master (target "master").
        Raises ReplicationGapError when entries are gone; begin behind a snapshot's LSN then.

        >>> [entry.op for entry in client.entries()][:2]
        ['counter.increment', 'counter.increment']
        """
        network = self._core.network
        while True:
            asked_at = network.clock()
            page = await self._perform(
                Replication.entries_page(
                    self, after_lsn, limit=page_size, wait_ms=wait_ms if follow else None
                )
            )
            for entry in page.entries:
                yield entry
            is_at_end = not page.entries or page.next_lsn >= page.source_lsn
            if is_at_end and not follow:
                return
            after_lsn = advanced(after_lsn, page.next_lsn) if page.entries else page.next_lsn
            if not page.entries and network.clock() - asked_at < wait_ms / 2000:
                await network.sleep(POLL_SECONDS)

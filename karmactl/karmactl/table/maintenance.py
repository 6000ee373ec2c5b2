"""Commands about snapshots, remembered idempotency keys and checkpoints."""

from __future__ import annotations

from karmactl.table.entries import Argument, Command, Option, listing, thing

FILE = Argument("file", "file", "name of the snapshot file, as `karmactl snapshot list` shows it")

COMMANDS: tuple[Command, ...] = (
    Command(
        "snapshot create",
        "snapshots.create",
        "Save one series, several, or everything.",
        ("snapshot.create", "snapshot.create_all"),
        (Argument("series", "series", "names of series; all if left out", required=False, many=True),),
        shape=listing("series", "done"),
        examples=(
            ("snapshot create", "everything, at one LSN"),
            ("snapshot create api_requests", "one series"),
        ),
    ),
    Command(
        "snapshot list",
        "snapshots.list_",
        "List snapshot files, newest first.",
        ("snapshot.list",),
        options=(Option("series", "series", "only those of this series", metavar="NAME"),),
        shape=listing("file", "series", "taken_unix:time"),
        examples=(("snapshot list --series api_requests", ""),),
        can_watch=True,
    ),
    Command(
        "snapshot info",
        "snapshots.info",
        "Show the newest snapshot of each series, and the log behind them.",
        ("snapshot.info",),
        shape=thing(
            "dump_count:number", "last_snapshot_lsn:number", "wal_current_lsn:number", "wal_bytes:bytes"
        ),
        examples=(("snapshot info", ""),),
        can_watch=True,
    ),
    Command(
        "snapshot verify",
        "snapshots.verify",
        "Let the server restore its directory aside and check it.",
        ("snapshot.verify",),
        shape=thing("status:state"),
        examples=(("snapshot verify", ""),),
        details="May take a while: it reads all snapshots and the log.",
    ),
    Command(
        "snapshot fetch",
        "snapshots.fetch",
        "Download snapshot files.",
        ("snapshot.info", "snapshot.fetch_chunk"),
        (
            Argument(
                "file",
                "file",
                "names of snapshot files; the newest of each series if left out",
                required=False,
                many=True,
            ),
        ),
        (Option("to", "path", "folder to put them into", ".", metavar="FOLDER"),),
        listing("file", "series", "bytes:bytes", "last_lsn:number", "status:state"),
        examples=(("snapshot fetch --to backup", "a backup of every series"),),
        details="Comes in chunks. What a break left behind, FILE.part, is continued by the same command; a "
        "file that is there and whole is left alone. Where the server knows a checksum, it is compared.",
    ),
    Command(
        "snapshot load",
        "snapshots.load",
        "Replace a series by a snapshot of it.",
        ("snapshot.fetch_chunk", "snapshot.load"),
        (FILE,),
        shape=thing("series", "file", "done"),
        examples=(("snapshot load 1777925811_api_requests.tree --confirm api_requests", ""),),
        danger="typed",
    ),
    Command(
        "idempotency status",
        "idempotency.status",
        "Show how many idempotency keys are remembered, and how often they helped.",
        ("system.stats",),
        shape=thing(),
        examples=(("idempotency status", ""),),
        can_watch=True,
    ),
    Command(
        "idempotency prune",
        "idempotency.prune",
        "Forget idempotency keys from before a time.",
        ("idempotency.prune",),
        (Argument("before", "text", "unix seconds, or as 2026-05-29 or 2026-05-29T00:00:00Z"),),
        (Option("limit", "number", "records at most", metavar="N"),),
        thing("deleted:number"),
        examples=(("idempotency prune 2026-05-29 --yes", ""),),
        details="A write whose key is forgotten counts again when it is repeated.",
        danger="question",
    ),
    Command(
        "recovery status",
        "recovery.status",
        "List the checkpoints of external pipelines.",
        ("recovery.status",),
        (Argument("source", "text", "only this pipeline's", required=False),),
        shape=listing("source", "offset", "event_id", "updated_at_unix:time"),
        examples=(("recovery status usage-export", ""),),
        can_watch=True,
    ),
    Command(
        "recovery checkpoint",
        "recovery.checkpoint",
        "Remember how far an external pipeline got.",
        ("recovery.checkpoint",),
        (Argument("source", "text", "the pipeline's name"),),
        (
            Option("offset", help="its position", metavar="TEXT"),
            Option("event-id", help="its last event", metavar="TEXT"),
        ),
        thing("source", "offset", "event_id", "updated_at_unix:time"),
        examples=(("recovery checkpoint usage-export --offset export-2026-05-05", ""),),
    ),
)

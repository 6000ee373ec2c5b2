"""Commands that bring files of counters in and out, and the log."""

from __future__ import annotations

from karmactl.table.data import FROM, TO
from karmactl.table.entries import Argument, Command, Option, Shape, columns, listing, thing

FORMAT = Option(
    "format", "choice", "format of the file, if its name does not tell", choices=("csv", "jsonl", "parquet")
)
COLUMNS = (
    "Columns are series, key, day and value (CSV with a heading; JSON lines with an object a line). "
    "Parquet needs the extra: pip install 'karma[sql]'."
)

LOG_OPTIONS = (
    Option("from", "path", "a data directory instead of nodes; may be repeated", metavar="DIR", many=True),
    Option("series", "series", "only this series; may be repeated", metavar="NAME", many=True),
    Option("op", help="only this operation, as ingest.*; may be repeated", metavar="NAME", many=True),
    Option("key", "u64", "only what touches this key; may be repeated", metavar="KEY", many=True),
    Option("from-lsn", "u64", "from this LSN on", metavar="N"),
    Option("to-lsn", "u64", "up to this LSN", metavar="N"),
    Option("since", help="from this time on: 10m (ago), 2026-05-05T12:00:00Z", metavar="TIME"),
    Option("until", help="up to this time", metavar="TIME"),
)
LOG = Shape(
    "list",
    columns("lsn:number", "epoch:number", "ts_ms", "op", "series", "key", "day", "value", "items", "nodes")
    + columns("note", "entry"),
)
MERGED = (
    "Several nodes are merged into one row per epoch and LSN, which names those that have the entry; a gap, "
    "an entry that one lacks and one that differs are noted."
)

COMMANDS: tuple[Command, ...] = (
    Command(
        "import",
        "imports.import_",
        "Bring a file of counters in: CSV, JSON lines or Parquet.",
        ("tree.list", "system.stats", "ingest.begin", "ingest.chunk", "ingest.commit", "ingest.abort"),
        (Argument("file", "path", "the file; - is stdin"),),
        (
            Option(
                "series",
                "series",
                "where it goes; of a file with a column for the series, only that one",
                metavar="NAME",
            ),
            Option(
                "mode",
                "choice",
                "add to what is there, set days exactly, or replace whole series at the end",
                "add",
                choices=("add", "set", "replace_series"),
            ),
            FORMAT,
            Option(
                "stream-id",
                help="name of the import on the server, instead of one from the content",
                metavar="ID",
            ),
            Option("again", "flag", "import a file once more that was imported already"),
            Option("restart", "flag", "give up an import of this file that was broken off, and begin anew"),
        ),
        thing(
            "file",
            "mode",
            "series:number",
            "rows:number",
            "sent:number",
            "status",
            "seconds:seconds",
            "stream_id",
        ),
        (
            ("import usage.csv --series api_requests", "columns key, day, value"),
            ("import backup.csv --mode replace_series --confirm backup.csv", "as it was when exported"),
            ("import usage.jsonl --dry-run", "check and count, send nothing"),
        ),
        f"{COLUMNS} The whole file is checked before anything is sent. After a break or Ctrl-C the same "
        "command goes on where it was, and a file that was changed meanwhile is refused. The same content "
        "counts once, however often it is imported; --again says otherwise.",
        danger="typed",
    ),
    Command(
        "export",
        "exports.export",
        "Write counters into a file: CSV, JSON lines or Parquet.",
        ("tree.list", "tree.info", "tree.keys", "counter.series", "counter.batch_sum"),
        (Argument("file", "path", "the file, which appears when it is whole; - is stdout"),),
        (
            Option("series", "series", "only this series; may be repeated", metavar="NAME", many=True),
            Option("key", "u64", "only this key; may be repeated", metavar="KEY", many=True),
            FROM,
            TO,
            FORMAT,
        ),
        thing("file", "format", "series:number", "keys:number", "rows:number", "bytes:bytes"),
        (
            ("export backup.csv", "every series"),
            (
                "export - --series api_requests --from 2026-05-01 --to 2026-05-31 | gzip > may.csv.gz",
                "one month",
            ),
        ),
        f"{COLUMNS} It reads in pages, while others write: take a snapshot for one moment's picture. A key "
        "that holds nothing is a row without a day. --to alone begins in 2000.",
    ),
    Command(
        "wal cat",
        "wal.cat",
        "Print the log, of nodes or of a directory.",
        ("replication.entries", "replication.status"),
        options=LOG_OPTIONS,
        shape=LOG,
        examples=(
            ("wal cat --since 1h --series api_requests --key 42", "who changed that"),
            ("wal cat --from /var/lib/karma --op 'tree.*'", "without a server; nothing is changed"),
        ),
        details=f"{MERGED} Exit code 8 then.",
    ),
    Command(
        "wal tail",
        "wal.tail",
        "Print the newest entries of the log, then those that come, until Ctrl-C.",
        ("replication.entries", "replication.status"),
        options=(
            Option("lines", "u64", "entries to begin with", 10, metavar="N", short="n"),
            *LOG_OPTIONS,
        ),
        shape=LOG,
        examples=(
            ("wal tail --series api_requests", "live"),
            ("wal tail -o jsonl | jq .entry", "for a program"),
            ("wal tail --node db1:8080 --node db2:8080", "both, side by side"),
        ),
        details=f"{MERGED} A tail is no replica: the server keeps no log for it. No directory is followed.",
    ),
    Command(
        "wal stat",
        "wal.stat",
        "Count the log's entries by operation and series.",
        ("replication.entries", "replication.status"),
        options=LOG_OPTIONS,
        shape=listing(
            "op",
            "series",
            "entries:number",
            "items:number",
            "first_lsn:number",
            "last_lsn:number",
            "last_unix:time",
        ),
        examples=(("wal stat --since 1h", "what the last hour was"),),
        details="What the log covers is said on stderr. Exit code 8 when there are gaps or differences.",
        can_watch=True,
    ),
)

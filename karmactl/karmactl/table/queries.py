"""SQL over snapshots, logs and exports."""

from __future__ import annotations

from karmactl.table.entries import Argument, Command, Option, Shape, listing

OPS = (
    "snapshot.list",
    "snapshot.info",
    "snapshot.fetch_chunk",
    "idempotency.snapshot_fetch_chunk",
    "replication.entries",
    "replication.status",
)
FROM = Option(
    "from",
    help="a data directory, a .tree, .parquet or karma.wal file, node:HOST:PORT or context:NAME, instead of "
    "the command's nodes; may be repeated",
    metavar="SOURCE",
    many=True,
)
LIMITS = (
    Option("skip-damaged", "flag", "name what is damaged and go on without it; exit code 7 then"),
    Option("no-cache", "flag", "neither use nor keep decoded snapshots"),
    Option("cache-limit", "number", "MiB that decoded and fetched snapshots may take (4096)", metavar="MIB"),
    Option("memory-limit", help="memory that a statement may take, as 2GB", metavar="SIZE"),
    Option("threads", "number", "threads that a statement may use", metavar="N"),
    Option("unsafe", "flag", "let SQL read and write any file and reach the network"),
)
NEED = "It needs the extra: pip install 'karma[sql]'."

COMMANDS: tuple[Command, ...] = (
    Command(
        "sql",
        "sql.sql",
        "Ask questions in SQL about snapshots, logs and exports.",
        OPS,
        (
            Argument(
                "statement", "text", "what to carry out; - is stdin; a shell if left out", required=False
            ),
        ),
        (
            FROM,
            Option(
                "at",
                help="a snapshot: latest, previous, a time, unix seconds, lsn:N or a file; may be repeated",
                metavar="SNAPSHOT",
                many=True,
            ),
            Option(
                "as-of",
                help="replay the log on top of the newest earlier snapshot, up to a time, an LSN or now",
                metavar="TIME|LSN|now",
            ),
            Option("file", "path", "read the statements from a file", metavar="FILE", short="f"),
            Option(
                "param",
                help="a value for $NAME in the statement: NAME=VALUE or NAME:=JSON; may be repeated",
                metavar="NAME=VALUE",
                many=True,
            ),
            Option("plot", "flag", "draw the result: curves along days, bars along anything else"),
            Option("explain", "flag", "show how DuckDB would carry it out"),
            Option(
                "to",
                "path",
                "write the result to a file; without a statement every table, to a .duckdb file or a folder",
                metavar="FILE",
            ),
            Option(
                "format",
                "choice",
                "format of that file, if its name does not tell",
                choices=("parquet", "csv", "json", "jsonl", "duckdb"),
            ),
            *LIMITS,
        ),
        Shape("list"),
        (
            ('sql "SELECT series, sum(value) FROM counters GROUP BY series"', "the node's newest snapshots"),
            ('sql --from /var/lib/karma --as-of now "FROM top_keys(5)"', "a directory, with its log"),
            ('sql --from data --plot "SELECT day, sum(value) FROM counters GROUP BY day"', "a curve"),
            ("sql --from data --to all.duckdb", "every table, for other tools"),
            ("sql", "the shell; \\? explains it"),
        ),
        "Tables: counters, totals, series, snapshots, wal, entries, idempotency, ingest_streams. Macros: "
        "by_day, by_week, by_month, top_keys, growth, heatmap. With several snapshots at once counters, "
        "totals and series begin with a column snapshot. Sources are only read, and nothing else can be "
        f"reached from SQL. {NEED}",
    ),
    Command(
        "snapshot diff",
        "sql.diff",
        "Show what changed between two snapshots.",
        OPS,
        (
            Argument("before", "text", "a snapshot, as --at of `karmactl sql` takes it, or a .tree file"),
            Argument("after", "text", "another one"),
        ),
        (
            FROM,
            Option(
                "by", "choice", "a row for each series, key or day", "key", choices=("series", "key", "day")
            ),
            Option("series", "series", "only this series; may be repeated", metavar="NAME", many=True),
            *LIMITS,
        ),
        listing("series", "key:number", "before:number", "after:number", "change:number"),
        (
            ("snapshot diff previous latest", "since the last snapshot but one"),
            ("snapshot diff 2026-05-01 2026-05-02 --from /var/lib/karma --by series", "of a directory"),
        ),
        NEED,
    ),
)

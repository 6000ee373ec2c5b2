"""Commands that bring files of counters in and out, and the log."""

from __future__ import annotations

from karmactl.table.data import FROM, TO
from karmactl.table.entries import Argument, Command, Option, thing

FORMAT = Option(
    "format", "choice", "format of the file, if its name does not tell", choices=("csv", "jsonl", "parquet")
)
COLUMNS = (
    "Columns are series, key, day and value (CSV with a heading; JSON lines with an object a line). "
    "Parquet needs the extra: pip install 'karma[sql]'."
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
)

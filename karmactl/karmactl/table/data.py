"""Commands that read and write counters and series."""

from __future__ import annotations

from karmactl.table.entries import Argument, Command, Option, listing, thing
from karmactl.table.observe import MATCH

SERIES = Argument("series", "series", "name of the series")
KEY = Argument("key", "u64", "subject id")
VALUE = Argument("value", "u64", "amount, 1 if left out", required=False)
FROM = Option("from", "day", "first day (UTC), as 2026-05-01, yesterday or -30d", metavar="DAY")
TO = Option("to", "day", "last day, inclusive", metavar="DAY")
DAY = Option("day", "day", "UTC day, as 2026-05-05, yesterday or -3d; today if left out", metavar="DAY")
IDEMPOTENCY_KEY = Option(
    "idempotency-key", help="makes repeating the command safe: it counts once", metavar="K"
)
ALL = Option("all", "flag", "also series that only tools use, as __karma_canary")

COMMANDS: tuple[Command, ...] = (
    Command(
        "series list",
        "series.list_",
        "List all series in the order they were created.",
        ("tree.list",),
        options=(ALL, MATCH),
        shape=listing("series"),
        examples=(("series list --match api", "those with api in their name"),),
        can_watch=True,
    ),
    Command(
        "series info",
        "series.info",
        "Show keys, buckets and total of a series.",
        ("tree.info",),
        (SERIES,),
        shape=thing("series", "key_count:number", "bucket_count:number", "total:number"),
        examples=(("series info api_requests", ""),),
        can_watch=True,
    ),
    Command(
        "series keys",
        "series.keys",
        "List the keys of a series with their totals, ascending.",
        ("tree.keys",),
        (SERIES,),
        (
            Option("limit", "number", "keys at most; all if left out", metavar="N"),
            Option("after", "u64", "only keys above this one", metavar="KEY"),
        ),
        listing("key:number", "total:number"),
        examples=(
            ("series keys api_requests --limit 20", "the first twenty"),
            ("series keys api_requests --output csv > keys.csv", "all of them, streamed"),
        ),
    ),
    Command(
        "series top",
        "series.top",
        "List the keys that used most.",
        ("tree.top",),
        (SERIES,),
        (
            Option("limit", "number", "keys at most", 20, metavar="N", short="n"),
            FROM,
            TO,
            Option("min", "u64", "only values from this up", metavar="VALUE"),
        ),
        listing("rank:number", "key:number", "value:number"),
        examples=(
            ("series top api_requests -n 5", "the five largest, of all days"),
            ("series top api_requests --from 2026-05-01 --to 2026-05-31 --watch 2", "a month's, live"),
        ),
        can_watch=True,
    ),
    Command(
        "series summary",
        "series.summary",
        "Show total, active keys and buckets, of all days or a range.",
        ("tree.summary",),
        (SERIES,),
        (FROM, TO),
        thing("series", "total:number", "active_keys:number", "bucket_count:number", "from", "to"),
        examples=(("series summary api_requests --from 2026-05-01 --to 2026-05-31", "one month"),),
        can_watch=True,
    ),
    Command(
        "series create",
        "series.create",
        "Create a series; one that exists stays as it is.",
        ("tree.create",),
        (SERIES,),
        shape=thing("series", "done"),
        examples=(("series create api_requests", ""),),
    ),
    Command(
        "series drop",
        "series.drop",
        "Drop a series with all it holds.",
        ("counter.sum", "tree.drop"),
        (SERIES,),
        shape=thing("series", "done"),
        examples=(
            ("series drop old_limit --dry-run", "what would go"),
            ("series drop old_limit --confirm old_limit", "from a script"),
        ),
        danger="typed",
    ),
    Command(
        "series reset",
        "series.reset",
        "Empty every counter of a series; its keys stay known.",
        ("counter.sum", "tree.reset"),
        (SERIES,),
        (IDEMPOTENCY_KEY,),
        thing("series", "done"),
        examples=(("series reset trial_limit --confirm trial_limit", ""),),
        danger="typed",
    ),
    Command(
        "series compact",
        "series.compact",
        "Remove keys whose total is 0, of one series or of all.",
        ("series.compact", "system.compact"),
        (Argument("series", "series", "name of the series, all if left out", required=False),),
        shape=thing("series", "done"),
        examples=(("series compact api_requests", ""),),
    ),
    Command(
        "series delete-before",
        "series.delete_before",
        "Delete every bucket before a day, then compact.",
        ("counter.sum", "series.delete_before"),
        (SERIES, Argument("day", "day", "first day that stays, as 2026-01-01")),
        shape=thing("series", "before", "done"),
        examples=(("series delete-before api_requests 2025-01-01 --confirm api_requests", ""),),
        danger="typed",
    ),
    Command(
        "get",
        "counters.get",
        "Print what a key holds, of all days, one day or a range.",
        ("counter.sum",),
        (SERIES, KEY),
        (FROM, TO, Option("day", "day", "only this UTC day", metavar="DAY")),
        thing("series", "key:number", "value:number", "from", "to"),
        examples=(
            ("get api_requests 42", "ever"),
            ("get api_requests 42 --from 2026-05-01 --to 2026-05-31", "in May"),
        ),
        can_watch=True,
    ),
    Command(
        "sum",
        "counters.sum_",
        "Print what several keys hold together, and each of them.",
        ("counter.batch_sum", "tree.summary"),
        (
            SERIES,
            Argument("key", "u64", "subject ids; the whole series if left out", required=False, many=True),
        ),
        (FROM, TO),
        listing("key", "value:number"),
        examples=(("sum api_requests 41 42 43", "three keys, then their sum"),),
        can_watch=True,
    ),
    Command(
        "points",
        "counters.points",
        "List a key's buckets day by day.",
        ("counter.series",),
        (SERIES, KEY),
        (FROM, TO),
        listing("day", "value:number"),
        examples=(("points api_requests 42 --from 2026-05-01 --to 2026-05-31", ""),),
        details="Days without a bucket are left out. Without --from it is the 366 days before --to; without "
        "--to, up to today.",
        can_watch=True,
    ),
    Command(
        "add",
        "counters.add",
        "Add to a key's day.",
        ("counter.increment",),
        (SERIES, KEY, VALUE),
        (DAY, IDEMPOTENCY_KEY),
        thing("series", "key:number", "added:number"),
        examples=(
            ("add api_requests 42", "one, today"),
            ("add api_requests 42 500 --day 2026-05-05 --idempotency-key fix-1", "repeatable"),
        ),
    ),
    Command(
        "sub",
        "counters.sub",
        "Take from a key's day, which stops at zero.",
        ("counter.decrement",),
        (SERIES, KEY, VALUE),
        (DAY, IDEMPOTENCY_KEY),
        thing("series", "key:number", "taken:number"),
        examples=(("sub api_requests 42 5", "five, today"),),
    ),
    Command(
        "set",
        "counters.set_",
        "Set a key's day to exactly a value; 0 deletes the bucket.",
        ("series.batch_set",),
        (SERIES, KEY, Argument("value", "u64", "what the day then holds")),
        (Option("day", "day", "UTC day", metavar="DAY", required=True), IDEMPOTENCY_KEY),
        thing("series", "key:number", "value:number", "day"),
        examples=(("set api_requests 42 100 --day 2026-05-05", ""),),
    ),
    Command(
        "limit consume",
        "limits.consume",
        "Add to a key unless its window would pass the limit.",
        ("limit.consume",),
        (SERIES, KEY, VALUE),
        (
            Option("limit", "u64", "most that the window may hold", required=True, metavar="N"),
            Option("window", "choice", "what counts", "day", choices=("day", "month", "total")),
            DAY,
            IDEMPOTENCY_KEY,
        ),
        thing("series", "key:number", "allowed", "used:number", "remaining:number", "limit:number"),
        examples=(("limit consume emails 7 --limit 1000 --window month", "one more, if it fits"),),
        details="A refusal is an answer, with exit code 4 for scripts to branch on; nothing is written then.",
        instead="`karmactl get` and `karmactl add`, which two callers at once can overrun",
    ),
    Command(
        "limit check",
        "limits.check",
        "Show what is used and left of a limit; changes nothing.",
        ("limit.check",),
        (SERIES, Argument("key", "u64", "subject ids", many=True)),
        (
            Option("limit", "u64", "most that the window may hold", required=True, metavar="N"),
            Option("window", "choice", "what counts", "day", choices=("day", "month", "total")),
            DAY,
        ),
        listing("series", "key:number", "used:number", "remaining:number", "allowed"),
        examples=(("limit check emails 7 8 9 --limit 1000 --window month", ""),),
        can_watch=True,
        instead="`karmactl sum SERIES KEY ...` shows what is used",
    ),
)

"""karma.1, karma.conf.5 and karma-protocol.7: from the tables of options and operations.

What the documents already say in a block or a table of theirs (files of a data directory, error codes, a
configuration) is read from there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson
from roff import Markup, Page, bold, escaped, italic, joined, sentence

from karma import __version__, offline
from karma.config import OPTIONS, Option
from karma.ops import OPS, Field, Op

ROOT = Path(__file__).resolve().parent.parent
OFFLINE = ("check", "repair", "fence", "new-id")
_ACCESS = {
    "R": "any token, every role",
    "W": "the write token, a master",
    "A": "the admin token where one is set, else the write token; every role",
}


def _between(path: str, begin: str, end: str) -> str:
    """What stands in a document between two texts."""
    _, _, rest = (ROOT / path).read_text(encoding="utf-8").partition(begin)
    found, is_there, _ = rest.partition(end)
    assert is_there, f"{path} has no {begin!r} … {end!r}"
    return found


# -- karma.1 ---------------------------------------------------------------------------------------------


def karma(edited: str) -> Page:
    """Return the page of the server."""
    page = Page(
        "karma",
        1,
        "day-bucketed counters in memory, durable and replicated",
        version=__version__,
        edited=edited,
    )
    page.heading("SYNOPSIS")
    page.synopsis(
        [
            joined(bold("karma"), Markup(f"[{italic('--OPTION=VALUE')} ...]"), by=" "),
            joined(bold("karma"), Markup("|".join(bold(word) for word in OFFLINE)), Markup("..."), by=" "),
        ]
    )
    page.heading("DESCRIPTION")
    page.paragraph(
        "A server for usage counters: how much has this subject used of this limit, today, this month, ever? "
        "It keeps one unsigned number per series, key and UTC day in memory and puts every accepted write on "
        "disk before it answers. Requests are lines of JSON: see karma-protocol(7). karmactl(1) is its "
        "command line.",
        "Started, it restores the data directory and then listens. With neither a token nor an explicit "
        "`--bind` it serves loopback peers only. There is no automatic failover: who is master is decided by "
        "people.",
        "`karma check`, `karma repair`, `karma fence` and `karma new-id` work on the directory of a server "
        "that is not running.",
    )
    page.heading("OPTIONS")
    page.paragraph(
        "An option wins over its environment variable, and that over the file of `--config`. `--name=value` "
        "and `--name value` are the same. Of an option given twice the last counts."
    )
    page.items(
        {
            "-h, --help": "Show all options.",
            "--version": "Show the version.",
            "--check-config": "Show the settings in force and where each came from, as JSON, and end.",
        }
    )
    for option in OPTIONS:
        if option.heading:
            page.subheading(option.heading)
        page.item(_flag(option), *_about(option, f"Also `{option.env}`."))
    for command in OFFLINE:
        _offline(page, command)
    page.heading("SIGNALS")
    page.items(
        {
            "SIGTERM, SIGINT": "No new clients; open requests finish within `--shutdown-timeout`, everything "
            "is saved, and the exit status is 0.",
            "SIGUSR1": "Save everything and go on.",
            "SIGHUP": "Read tokens and certificates again.",
            "SIGUSR2": "Ignored.",
        }
    )
    page.heading("ENVIRONMENT")
    page.paragraph("An empty variable counts as unset, except for a token: an empty one is refused.")
    for option in OPTIONS:
        page.item(bold(option.env), f"As `--{option.name}`.")
    page.heading("FILES")
    page.paragraph("In the data directory, `--directory`:")
    page.items(data_files())
    page.heading("EXIT STATUS")
    page.items(
        {
            "0": "A clean end. Of `karma check`: a server starts on the directory without losing anything "
            "that was durable. Of `karma repair`: the directory is fit to start on. Of `karma fence`: "
            "the node is fenced. Of `karma new-id`: the node has another id.",
            "1": "Anything else. One line on standard error, which begins with `ERROR:`, says what was "
            "wrong.",
        }
    )
    page.heading("EXAMPLES")
    page.example("A server of one's own, for this machine:", "karma --bind=127.0.0.1 --directory=.karma-data")
    page.example(
        "One for others, with Prometheus metrics, and tokens in a file that only it can read:",
        "karma --bind=0.0.0.0 --http-port=9100 --directory=/var/lib/karma --config=/etc/karma.toml",
    )
    page.example(
        "A slave of that:",
        "karma --role=slave --replication-source-host=db1 --directory=/var/lib/karma "
        "--config=/etc/karma.toml",
    )
    page.example("Is the directory whole?", "karma check --directory=/var/lib/karma")
    page.see_also("karma.conf(5)", "karma-protocol(7)", "karmactl(1)")
    return page


def _flag(option: Option) -> Markup:
    short = joined(bold(f"-{option.short}"), escaped(", ")) if option.short else Markup("")
    return joined(short, bold(f"--{option.name}"), escaped("="), _values(option))


def _values(option: Option) -> Markup:
    """What an option takes: words to choose from in bold, anything else in italics."""
    words = option.kind.metavar.split("|")
    return joined(*(italic(word) if word.isupper() else bold(word) for word in words), by="|")


def _about(option: Option, elsewhere: str) -> tuple[str, str]:
    """What an option means, and what it takes."""
    shown = str(option.default)
    match option.default:
        case bool():
            shown = shown.lower()
        case float():
            shown = f"{option.default:g}"
    default = "" if option.default is None else f"; `{shown}` if left out"
    return sentence(option.help), f"It takes {option.kind.accepts}{default}. {elsewhere}"


def _offline(page: Page, command: str) -> None:
    """A section of what `karma COMMAND --help` says."""
    said: list[str] = []
    offline.main([command, "--help"], said.append, said.append, lambda: 0.0)
    usage, *parts = "".join(said).strip().split("\n\n")
    page.heading(f"KARMA {command.upper()}")
    page.marked_paragraph(bold(usage.removeprefix("usage: ")))
    for part in parts:
        options = re.findall(r"^ {2,6}(-\S.*?) {2,}(\S.*)$", part, re.MULTILINE)
        if options:
            for flag, text in options:
                page.item(bold(flag), sentence(text))
        elif not part.startswith("Exit code:"):
            page.paragraph(" ".join(part.split()))


def data_files() -> dict[str, str]:
    """Return the files of a data directory with what they are for."""
    lines = _between("README.md", "## The data directory\n\n```\n", "```").splitlines()
    split = (re.split(r" {3,}", line) for line in lines)
    return {names: sentence(text) for names, text in split}


# -- karma.conf.5 ----------------------------------------------------------------------------------------


def conf(edited: str) -> Page:
    """Return the page of the configuration file."""
    page = Page("karma.conf", 5, "configuration file of karma", version=__version__, edited=edited)
    page.heading("SYNOPSIS")
    page.synopsis([joined(bold("karma"), joined(bold("--config"), escaped("="), italic("PATH")), by=" ")])
    page.heading("DESCRIPTION")
    page.paragraph(
        "A TOML file whose keys are the names of the options of karma(1). It may have any name and be "
        "anywhere; there is none by default. Options and environment variables win over it. An unknown key, "
        "and a value of another type, stop the start with a message that names the key. `karma --config=PATH "
        "--check-config` checks a file and shows what is in force.",
        "A file with tokens should be readable by the server's user alone: a process list shows what is "
        "given as an option, but not what is in a file.",
    )
    page.heading("KEYS")
    for option in OPTIONS:
        if option.name == "config":
            continue
        if option.heading:
            page.subheading(option.heading)
        types = " or ".join(
            dict.fromkeys(
                {bool: "boolean", int: "integer", float: "float", str: "string"}[t]
                for t in option.kind.toml_types
            )
        )
        page.item(
            joined(bold(option.name), escaped(" = "), italic(types)),
            *_about(option, f"Also `--{option.name}` and `{option.env}`."),
        )
    page.heading("ENVIRONMENT")
    page.item(bold("KARMA_CONFIG"), "Names the file, if `--config` does not.")
    page.heading("FILES")
    page.item(bold("/etc/karma.toml"), "Where the examples have it.")
    page.heading("EXIT STATUS")
    page.paragraph("A file that cannot be used ends `karma` with 1, before the port opens.")
    page.heading("EXAMPLES")
    page.example("", _between("docs/operations.md", "```toml\n", "```"))
    page.see_also("karma(1)", "karma-protocol(7)")
    return page


# -- karma-protocol.7 ------------------------------------------------------------------------------------


def protocol(edited: str) -> Page:
    """Return the page of the protocol."""
    page = Page("karma-protocol", 7, "requests and replies of karma", version=__version__, edited=edited)
    page.heading("DESCRIPTION")
    page.paragraph(
        "karma(1) takes requests over TCP or a Unix socket, and with TLS if it was given a certificate. A "
        "request is one JSON object and a newline; `v` is 2 and `op` names the operation. A reply is one "
        "JSON object and CR LF. Replies come in the order of the requests of their connection, and requests "
        "may be sent without waiting for replies.",
        "Where the server wants a token, the request carries it in `token`. Operations that take an "
        "`idempotency_key` count once, however often they are sent under it.",
    )
    page.heading("REPLIES")
    page.items(
        {
            "protocol_version": "2.",
            "success": "true or false.",
            "response": "What the operation answers; of a failure a message for people.",
            "error_code": "null, or one of the codes below.",
            "idempotent": "Of a write with an `idempotency_key`: whether it had been carried out before.",
            "error_detail": "Of some refusals: `reason` (`paused`, `fenced` or `role`), `retry_after_ms`, "
            "`master`.",
        }
    )
    page.heading("ERROR CODES")
    page.paragraph(
        "A failed request changes nothing. The code is for programs and does not change; the message may."
    )
    page.items(_error_codes())
    page.heading("OPERATIONS")
    page.paragraph(
        'A field with a question mark may be left out. Each has an example; what it lacks is `"v":2`.'
    )
    for op in OPS:
        _operation(page, op)
    page.heading("ENVIRONMENT")
    page.paragraph("Ports, limits and tokens are the server's: see karma(1).")
    page.heading("EXAMPLES")
    page.example(
        "With OpenBSD's netcat:",
        """printf '{"v":2,"op":"counter.increment","series":"emails","key":42}\\n' | nc -N 127.0.0.1 8080""",
    )
    page.example("The reply:", '{"protocol_version":2,"success":true,"response":1,"error_code":null}')
    page.example("The same with karmactl(1):", "karmactl call counter.increment series=emails key=42")
    page.see_also("karma(1)", "karmactl(1)")
    return page


def _error_codes() -> dict[str, str]:
    rows = re.findall(
        r"^\| `(\w+)` \| (.*?) \| (.*?) \|$",
        _between("docs/protocol.md", "<!-- errors -->", "<!-- /errors -->"),
        re.MULTILINE,
    )
    return {code: f"{sentence(meaning)} Send it again: {again}." for code, meaning, again in rows}


def _operation(page: Page, op: Op) -> None:
    page.subheading(op.name)
    page.paragraph(op.help)
    facts = [f"Needs {_ACCESS[op.access]}."]
    if op.idempotent:
        facts.append("Takes an `idempotency_key`.")
    if op.aliases:
        facts.append(f"Also called {', '.join(f'`{alias}`' for alias in op.aliases)}.")
    if op.extension:
        facts.append("Karma 1.0 lacks it.")
    page.paragraph(" ".join(facts))
    for field in op.fields:
        page.item(_field(field), sentence(field.help))
    example: dict[str, Any] = {"op": op.name, **(op.example or {})}
    page.example("", orjson.dumps(example).decode())


def _field(field: Field) -> Markup:
    name = joined(bold(field.name), Markup("" if field.required else "?"))
    return joined(name, italic(field.kind), by=" ")

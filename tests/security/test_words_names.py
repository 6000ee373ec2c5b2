"""Names and texts that steer a terminal: the server takes none as a new name, and nothing repeats one raw."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ctl import karmactl
from handmade import DAY, Node, add
from harness import Server
from hypothesis import given
from hypothesis import strategies as st
from peers import Peer, failure, success

from karma import app
from karma.errors import ErrorCode, RequestError
from karma.protocol import fields, replies
from karma.protocol.texts import is_name, spelled_out, spelled_out_json
from karma.service.log import Log
from karmactl.diagnostics import CtlError, Exit, Talk, harmless
from karmactl.output import Output, Paper

UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
ALL = [chr(number) for number in range(sys.maxunicode + 1)]
BAD = ("\0", "\x07", "\x1b[2J", "\x7f", "\x9b2J", "\x85", "\u00ad", "\u061c", "\u200b", "\u200d", "\u202e",
       "\u2066", "\ufeff", "\u2028", "\u2029", "\U000e0001", "a\nb", "a\rb")  # fmt: skip
GOOD = ("a", "é", "中文", "a b", "a\u00a0b", "a/b", "😀", "e\u0301", "$(x)", "[/red]")


def test_every_character_is_judged_by_its_category() -> None:
    wrong = [each for each in ALL if is_name(each) != (unicodedata.category(each) not in UNSAFE)]
    assert wrong == []
    assert all(unicodedata.category(letter) not in UNSAFE for letter in spelled_out("".join(ALL)))


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_means_the_same_with_its_characters_escaped(value: Any) -> None:
    for indent in (None, 2):
        text = spelled_out_json(json.dumps(value, ensure_ascii=False, indent=indent))
        assert json.loads(text) == value
        assert all(letter.isprintable() or letter == "\n" for letter in text)


# -- The server ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("names") / "data") as server:
        yield server


REQUESTS: dict[str, dict[str, Any]] = {
    "series": {"op": "tree.create"},
    "idempotency_key": {"op": "counter.increment", "series": "s", "key": 1},
    "stream_id": {"op": "ingest.begin", "mode": "add"},
    "source": {"op": "recovery.checkpoint", "offset": "1"},
}


@pytest.mark.parametrize("field", REQUESTS)
def test_no_new_name_holds_a_control_or_format_character(server: Server, field: str) -> None:
    with server.connect() as connection:
        for bad in BAD:
            code, message = connection.refuse(**REQUESTS[field], **{field: bad})
            assert code == ErrorCode.VALIDATION_ERROR
            assert message == f"Field {field} must not hold control or format characters"
        for good in GOOD:
            connection.ask(**REQUESTS[field], **{field: good})


@pytest.mark.parametrize("bad", BAD)
def test_messages_spell_out_what_they_quote(server: Server, bad: str) -> None:
    quoting: list[dict[str, Any]] = [
        {"op": f"x{bad}"},
        {"op": "ingest.begin", "stream_id": "x", "mode": bad},
        {"op": "ingest.commit", "stream_id": f"x{bad}"},
        {"op": "snapshot.load", "file": f"x{bad}.tree"},
        {"op": "idempotency.snapshot_fetch_chunk", "file": f"x{bad}", "offset": 0, "limit": 1},
    ]
    with server.connect() as connection:
        for request in quoting:
            assert connection.refuse(**request)[1].isprintable(), request
    reply = replies.error(RequestError(ErrorCode.NOT_FOUND, f'Tree "{bad}" not found'))
    assert json.loads(reply)["response"] == f'Tree "{spelled_out(bad)}" not found'


@pytest.mark.parametrize("odd", [*BAD, "", "x" * 300])
def test_a_name_that_is_there_is_taken_whatever_it_is(odd: str) -> None:
    assert fields.series({"series": odd}, {odd: 1}) == odd
    with pytest.raises(RequestError):
        fields.series({"series": odd}, {})


def test_what_karma_1_0_took_is_still_read_written_and_dropped(tmp_path: Path) -> None:
    node = Node(tmp_path / "data")
    odd, once = "a\x1b\n\u202e", "k\x1b"
    node.write(add(odd, 1, 5), add("plain", 1, 2, idempotency_key=once))
    node.wal.close()
    with Server(tmp_path / "data") as server:
        assert server.ask("counter.sum", series=odd, key=1) == 5
        again = {"series": "plain", "key": 1, "bucket": DAY, "value": 2}
        server.ask("counter.increment", **again, idempotency_key=once)
        assert server.ask("counter.sum", series="plain", key=1) == 2
        server.ask("counter.increment", series=odd, key=1, value=1)
        assert server.ask("counter.multi_sum", items=[{"series": odd, "key": 1}])[0]["value"] == 6
        assert odd in server.ask("tree.list")
        server.ask("snapshot.create", series=odd)
        server.ask("tree.drop", series=odd)
        with server.connect() as connection:
            assert connection.refuse("tree.create", series=odd)[0] == ErrorCode.VALIDATION_ERROR


def test_log_lines_hold_no_raw_character() -> None:
    lines: list[str] = []
    log = Log(lines.append, lambda: 0.0)
    for bad in BAD:
        log.warning("event", f"about {bad}", name=bad)
    assert all(line[:-1].isprintable() for line in lines)
    assert [json.loads(line)["name"] for line in lines] == list(BAD)


def test_an_error_of_the_command_line_is_spelled_out(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        app.main(["--port=\x1b[2J\x9b\u202e"])
    assert capsys.readouterr().err[:-1].isprintable()


# -- karmactl ------------------------------------------------------------------------------------------------

RAW = "".join(BAD)
HOSTILE = ["a\x1b]0;owned\x07", "b\x9b2J", "c\u202ed", "e\nf", "g\x1b[8mh", "i\rj"]


def quiet(text: str) -> bool:
    """Whether a text may go to a terminal: printable lines and karmactl's own colours."""
    styles = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return all(letter.isprintable() or letter == "\n" for letter in styles)


def hostile(request: dict[str, Any]) -> bytes:
    match request["op"]:
        case "tree.list":
            return success(HOSTILE)
        case "system.stats" | "replication.status":
            return success({name: name for name in [*HOSTILE, "role", "version"]})
        case "snapshot.list":
            return success([f"1_{name}.tree" for name in HOSTILE])
        case "idempotency.status":
            return success({name: {name: [name]} for name in HOSTILE})
    return failure("not_found", "".join(HOSTILE))


@pytest.mark.parametrize("form", ["table", "json", "jsonl", "csv"])
@pytest.mark.parametrize(
    "words",
    [
        ("series", "list"), ("stats",), ("snapshot", "list"), ("idempotency", "status"), ("topology",),
        ("series", "info", "x\x1b[2J"), ("get", "x", "1"), ("call", "tree.list"),
        ("call", "idempotency.status"), ("series", "list", "--fields", "x\x1b[2J"), ("nothing\x1b[2J",),
        ("health",), ("limit", "check", "x", "1"),
    ],
)  # fmt: skip
def test_nothing_on_a_terminal_steers_it(form: str, words: tuple[str, ...]) -> None:
    with Peer(lambda connection: connection.serve(hostile)) as peer:
        environ = {"KARMACTL_NODES": peer.address, "TERM": "xterm"}
        ended = karmactl(*words, "--output", form, environ=environ, columns=100)
        plain = karmactl(*words, "--output", form, environ={**environ, "NO_COLOR": "1"}, columns=100)
        piped = karmactl(*words, "--output", form, environ=environ)
    assert quiet(ended.stdout), ended.stdout
    assert quiet(ended.stderr), ended.stderr
    assert "\x1b" not in plain.stdout + plain.stderr
    assert "\x1b[8m" not in ended.stdout + ended.stderr
    if form.startswith("json"):
        assert quiet(piped.stdout)


def test_a_pipe_gets_csv_as_it_is() -> None:
    with Peer(lambda connection: connection.serve(hostile)) as peer:
        ended = karmactl("series", "list", "--output", "csv", environ={"KARMACTL_NODES": peer.address})
    assert [row[0] for row in csv.reader(io.StringIO(ended.stdout, newline=""))][1:] == HOSTILE


def test_the_gates_are_at_the_streams() -> None:
    out, err = io.StringIO(), io.StringIO()
    output = Output(out, "table", (), Paper(80, is_coloured=True))
    output.write(f"\x1b[1mbold\x1b[0m {RAW}\n")
    output.lines([RAW])
    assert quiet(out.getvalue())
    talk = Talk(err, is_coloured=True)
    talk.say(RAW)
    talk.warn(RAW)
    talk.prompt(RAW)
    talk.report(CtlError(Exit.INTERNAL, f"x\x1b[8m{RAW}", fault="server", advice=f"\x1b[31m{RAW}"))
    assert quiet(err.getvalue())
    assert "\x1b[8m" not in err.getvalue()
    assert harmless("\x1b[31mx", with_styles=False) == "\\x1b[31mx"

"""events and actions: in every format, with hints and errors."""

import json
import sys
from pathlib import Path

import ctl
import pytest
from ctl import Step
from events import TS_MS, event, incident, noted

from karma_events import Event
from karmactl.diagnostics import Exit


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return noted(tmp_path_factory.mktemp("state"), incident())


CASES: dict[str, tuple[str, ...]] = {
    "events-tail": ("events", "tail", "-n", "4"),
    "events-tail-topic": ("events", "tail", "--topic", "actions.dlq", "--topic", "actions.result"),
    "events-query": (
        "events",
        "query",
        "SELECT name, state, attrs FROM actions JOIN transitions USING (action_id) WHERE n = 1 ORDER BY 1, 2",
    ),
    "actions-list": ("actions", "list"),
    "actions-list-chosen": ("actions", "list", "--state", "FAILED", "--state", "CANCELLED", "-n", "1"),
    "actions-show": ("actions", "show", "f2"),
    "actions-show-illegal": ("actions", "show", "s1-switchover"),
    "actions-mttr": ("actions", "mttr"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_they_print_is_as_it_was(environ: dict[str, str], name: str) -> None:
    ctl.compare(name, ctl.transcript(CASES[name], environ))


def test_hints_and_refusals_are_as_they_were(environ: dict[str, str], tmp_path: Path) -> None:
    nothing = {"XDG_STATE_HOME": str(tmp_path / "a" / "b"), "XDG_CONFIG_HOME": str(tmp_path)}
    lines: list[str | Step] = [
        "events tail",
        "events query 'SELECT count(*) AS n FROM events'",
        "actions list",
        "actions list --output json",
        "actions mttr",
        "actions show f1",
        "events tail --consumer me",
    ]
    text = ctl.story(lines, nothing)
    lines = [
        "events tail --topic actions.results",
        "events tail --topic Actions",
        "events tail --since yesterday",
        "events tail --consumer a/b",
        "events tail --consumer me -n 3",
        "events tail --fields ts,event_type -n 1",
        "events tail --fields when -n 1",
        "events tail --consumer me --topic actions.dlq",
        "events tail --consumer me --topic actions.dlq",
        "actions list --fields action_id,state --since 2026-05-05",
        "actions list --name switchover --fields action_id --output csv",
        "actions show f",
        "actions show s3-switchover",
        "actions mttr --name failover --fields name,mean_recover_ms",
    ]
    ctl.compare("events-story", text + "\n" + ctl.story(lines, environ))
    assert sorted(path.name for path in (tmp_path / "a" / "b" / "karmactl" / "events").iterdir()) == [
        "consumers"
    ]


def test_a_query_reaches_nothing_but_the_events(environ: dict[str, str], tmp_path: Path) -> None:
    target = tmp_path / "stolen.csv"
    for sql in (
        f"COPY events TO '{target}'",
        "SELECT * FROM read_csv('/etc/passwd')",
        f"ATTACH '{tmp_path / 'other.db'}'",
        "SET enable_external_access = true",
        "INSTALL httpfs",
    ):
        ended = ctl.karmactl("events", "query", sql, environ=environ)
        assert (ended.code, ended.stdout) == (Exit.USAGE, "")
        assert "the query failed" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_every_type_of_sql_becomes_json(environ: dict[str, str]) -> None:
    sql = (
        "SELECT 1 AS a, 2 AS a, 1.5::DECIMAL(4, 2) AS d, 18446744073709551615::UBIGINT AS u, "
        "DATE '2026-05-05' AS day, TIMESTAMP '2026-05-05 12:00:00' AS ts, INTERVAL 90 SECONDS AS i, "
        "TIME '12:30:00' AS t, [1, NULL] AS l, {'x': {'y': 'z'}} AS s, MAP {1: 2} AS m, 'ab'::BLOB AS b, "
        "'inf'::DOUBLE AS f, NULL AS n, true AS yes, '[1, {\"k\": null}]'::JSON AS j, "
        "'29d3e48b-6d68-4741-bd07-f92dd79c7014'::UUID AS id"
    )
    ended = ctl.karmactl("events", "query", sql, "-o", "jsonl", environ=environ)
    assert json.loads(ended.stdout) == {
        "a": 1,
        "a_2": 2,
        "d": 1.5,
        "u": 2**64 - 1,
        "day": "2026-05-05",
        "ts": "2026-05-05 12:00:00.000",
        "i": 90.0,
        "t": "12:30:00",
        "l": [1, None],
        "s": {"x": {"y": "z"}},
        "m": {"1": 2},
        "b": "6162",
        "f": "inf",
        "n": None,
        "yes": True,
        "j": [1, {"k": None}],
        "id": "29d3e48b-6d68-4741-bd07-f92dd79c7014",
    }


def test_without_duckdb_the_message_names_the_extra(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    ended = ctl.karmactl("events", "query", "SELECT 1", environ=environ)
    assert (ended.code, ended.stdout) == (Exit.USAGE, "")
    assert "pip install 'karma[sql]'" in ended.stderr
    # Nothing else needs it.
    assert ctl.karmactl("actions", "mttr", environ=environ).code == Exit.OK


def test_a_damaged_topic_is_told_and_the_others_are_read(tmp_path: Path) -> None:
    environ = noted(tmp_path, [*incident(), Event("other", event("a", ts_ms=TS_MS))])
    path = tmp_path / "karmactl" / "events" / "topics" / "actions.progress" / "karma.wal"
    path.write_bytes(path.read_bytes().replace(b"ssh: refused", b"ssh: accepted", 1))
    for line in (("events", "tail"), ("events", "tail", "-o", "jsonl"), ("actions", "list")):
        ended = ctl.karmactl(*line, environ=environ)
        assert ended.code == Exit.INTERNAL
        assert "topic actions.progress is damaged" in ended.stderr
        assert "fault: this machine" in ended.stderr
        assert "mv" in ended.stderr
    assert ctl.karmactl("events", "tail", "--topic", "other", environ=environ).code == Exit.OK


def test_events_cannot_steer_the_terminal(tmp_path: Path) -> None:
    environ = noted(tmp_path, [Event("t", event("a", text="\x1b[31mred\n\rline"))])
    ended = ctl.karmactl("events", "tail", environ=environ, columns=120)
    assert "\x1b" not in ended.stdout
    assert ended.stdout.count("\n") == 1

"""SQL totals equal the server's own answers, for random histories: snapshots, log tails, resets, deletes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness import Connection, Server, counters_of
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from karma_client import connect
from karma_sql.cache import Cache
from karma_sql.remote import Remote
from karma_sql.session import Session
from karma_sql.sources import Asked, Source, local

U64_MAX = 2**64 - 1
State = dict[str, dict[str, dict[str, int]]]

names = st.sampled_from(["api", "mails", "a/b"])
keys = st.integers(0, 3)
days = st.sampled_from([20260501, 20260502, 20260530, 20260601])
values = st.one_of(st.integers(1, 9), st.just(2**61))
spans = st.tuples(days, days).map(sorted).map(lambda two: {"from": two[0], "to": two[1]})
items = st.lists(st.tuples(keys, days, values).map(list), max_size=3)


def step(op: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    return st.tuples(st.just(op), st.fixed_dictionaries(fields))


def an_import(number: int, mode: str, name: str, brought: list[list[int]], is_open: bool) -> Any:
    stream = {"stream_id": f"stream-{number}"}
    steps: list[tuple[str, dict[str, Any]]] = [("ingest.begin", {**stream, "mode": mode})]
    steps += [("ingest.chunk", {**stream, "series": name, "chunk_seq": 1, "items": brought})]
    return ("several", steps if is_open else [*steps, ("ingest.commit", stream)])


steps = st.one_of(
    step("counter.increment", series=names, key=keys, bucket=days, value=values),
    step("counter.decrement", series=names, key=keys, bucket=days, value=values),
    step("series.batch_add", series=names, items=items),
    step("series.batch_set", series=names, items=items),
    step("counter.reset", series=names, key=keys),
    step("counter.delete_range", series=names, key=keys, range=spans),
    step("tree.delete_range", series=names, range=spans),
    step("tree.reset", series=names),
    step("tree.drop", series=names),
    step("series.delete_before", series=names, before=days),
    step("series.compact", series=names),
    st.builds(
        an_import,
        st.integers(1, 3),
        st.sampled_from(["add", "set", "replace_series"]),
        names,
        items,
        st.booleans(),
    ),
    step("snapshot.create", series=names),
    st.just(("snapshot.create_all", {})),
    st.just(("mark", {})),
    st.just(("mark", {})),
)


MARK: tuple[str, dict[str, Any]] = ("mark", {})


def increment(name: str) -> tuple[str, dict[str, Any]]:
    return ("counter.increment", {"series": name, "key": 1, "bucket": 20260501, "value": 5})


def state_of(connection: Connection) -> State:
    """Every bucket, the keys without any, and the totals that the server tells."""
    found: State = counters_of(connection)
    for name in found:
        totals = connection.ask("tree.keys", series=name, limit=10_000)["keys"]
        found[name] = {
            str(one["key"]): {**found[name].get(str(one["key"]), {}), "total": one["total"]} for one in totals
        }
    return found


def sql_state(session: Session) -> State:
    """The same out of SQL."""
    found: State = {}
    (result,) = session.run("SELECT series FROM series")
    for (name,) in result.rows:
        found[name] = {}
    (result,) = session.run("SELECT series, key, total FROM totals")
    for name, key, total in result.rows:
        found[name][str(key)] = {"total": total}
    (result,) = session.run("SELECT series, key, strftime(day, '%Y%m%d'), value FROM counters")
    for name, key, day, value in result.rows:
        found[name][str(key)][day] = value
    return found


def last_lsn(connection: Connection) -> int:
    return int(connection.ask("replication.status")["wal_current_lsn"])


def asked(folder: Path, sources: list[Source], wanted: Asked) -> State:
    with Session(sources, Cache(folder / "cache", is_kept=False), wanted) as session:
        return sql_state(session)


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(history=st.lists(steps, max_size=25))
@example(
    # A snapshot of one series in the middle of the log, which the log before it must not be added to.
    history=[
        increment("api"),
        increment("mails"),
        ("snapshot.create", {"series": "api"}),
        increment("api"),
        MARK,
    ]
)
@example(
    # A series that is dropped behind its snapshot, and comes back.
    history=[
        increment("api"),
        ("snapshot.create_all", {}),
        MARK,
        ("tree.drop", {"series": "api"}),
        MARK,
        increment("api"),
    ]
)
@example(
    # An import that is open while a snapshot is taken and replaces its series afterwards.
    history=[
        increment("api"),
        an_import(1, "replace_series", "api", [[1, 20260501, 7]], is_open=True),
        ("snapshot.create_all", {}),
        increment("api"),
        ("ingest.commit", {"stream_id": "stream-1"}),
        MARK,
    ]
)
def test_sql_says_what_the_server_says(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("history")
    with Server(folder / "data", max_request_bytes=100_000, wal_fsync=False) as server:
        with server.connect() as connection:
            marks: dict[int, State] = {0: {}}
            at_snapshot: State = {}
            truncated_lsn = 0
            for op, fields in history:
                for each_op, each in fields if op == "several" else [(op, fields)]:
                    if each_op == "mark":
                        marks[last_lsn(connection)] = state_of(connection)
                        continue
                    # Some are refused, as a second import of one name or a drop of nothing is.
                    is_done = connection.call(each_op, **each)["success"]
                    if each_op == "snapshot.create_all":
                        truncated_lsn = last_lsn(connection)
                        at_snapshot = marks[truncated_lsn] = state_of(connection)
                    elif each_op == "snapshot.create" and is_done:
                        name = each["series"]
                        at_snapshot = {**at_snapshot, name: state_of(connection)[name]}
            now = state_of(connection)
            end_lsn = last_lsn(connection)
        sources = local([folder / "data"])
        assert asked(folder, sources, Asked()) == at_snapshot
        assert asked(folder, sources, Asked(is_now=True)) == now
        for lsn, state in marks.items():
            # What the log no longer holds cannot be made again, but for the moments of snapshots.
            if lsn >= truncated_lsn and end_lsn:
                assert asked(folder, sources, Asked(as_of_lsn=lsn)) == state, lsn
        with connect(f"127.0.0.1:{server.port}") as client:
            remote = [Remote(client, "node", folder / "mirror", lambda _: None)]
            assert asked(folder, list(remote), Asked()) == at_snapshot
            if end_lsn:
                assert asked(folder, list(remote), Asked(is_now=True)) == now

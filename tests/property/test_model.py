"""The whole server against a model of plain dicts: every operation, with restarts and snapshots in between.

The server runs as the simulation runs it: all of it, on a disk in memory, in a time of its own.
"""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from property.model import MODELLED, U64_MAX, Model, Refused, Stream
from simulation.loop import World
from simulation.network import Network
from simulation.node import PORT, Caller, Node, line_of

from karma.ops import OPS

CI_EXAMPLES, FULL_EXAMPLES = 40, 1_000
STEPS = 40
DAYS = (20260228, 20260301, 20261120, 20261121, 20261122)
"""In a simulation it is 2026-11-21."""
BAD_DAYS = (0, 20260230, 20261301, 2026112, 202611211, U64_MAX, -1)
ALL_DAYS = {"from": 20260101, "to": 20261231}

# -- What requests are made of -----------------------------------------------------------------------------


def mostly(usual: st.SearchStrategy[Any], odd: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 11).flatmap(lambda die: usual if die else odd)


names = mostly(
    st.sampled_from(["a", "b"]), st.sampled_from(["/ é%", "new", "x" * 200, "x" * 201, "", "\x07"])
)
keys = mostly(st.integers(0, 3), st.sampled_from([U64_MAX - 1, U64_MAX, U64_MAX + 1, -1, 1.5, "1"]))
values = mostly(st.integers(1, 5), st.sampled_from([0, 2**63, U64_MAX, U64_MAX + 1, -1, 2**32, True]))
days = mostly(st.sampled_from(DAYS), st.sampled_from(BAD_DAYS))
buckets = st.one_of(st.none(), days, st.just("2026-11-21"), st.just("20260301"))
spans = mostly(
    st.tuples(st.sampled_from(DAYS), st.sampled_from(DAYS)).map(
        lambda ends: {"from": min(ends), "to": max(ends)}
    ),
    st.fixed_dictionaries({"from": days, "to": days})
    | st.just({"from": 20250101, "to": 20260102})
    | st.just({"from": 20250101, "to": 20260103}),
)
no_span = st.none() | spans
items = st.lists(st.tuples(keys, days, values).map(list), max_size=4)
key_lists = st.lists(keys, max_size=4)
once = st.none() | st.sampled_from(["one", "two", 7, "7"])
"""The keys of idempotent writes: few, so that they meet other writes, too."""
streams = st.sampled_from(["s1", "s2", "s3"])
limits = st.integers(0, 12) | st.sampled_from([U64_MAX, U64_MAX + 1])
windows = st.sampled_from(["day", "month", "total", "year"])
pages = st.none() | st.sampled_from([0, 1, 2, 1000, 1001, 10_000, 10_001])
limited = st.fixed_dictionaries(
    {"series": names, "key": keys, "limit": limits},
    optional={"window": windows, "bucket": days, "range": spans},
)

REQUESTS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "counter.batch_delete_range": {
        "series": names,
        "keys": key_lists,
        "range": spans,
        "idempotency_key": once,
    },
    "counter.batch_reset": {"series": names, "keys": key_lists, "idempotency_key": once},
    "counter.batch_sum": {"series": names, "keys": key_lists, "range": no_span},
    "counter.decrement": {
        "series": names,
        "key": keys,
        "bucket": buckets,
        "value": values,
        "idempotency_key": once,
    },
    "counter.delete_range": {"series": names, "key": keys, "range": spans, "idempotency_key": once},
    "counter.increment": {
        "series": names,
        "key": keys,
        "bucket": buckets,
        "value": values,
        "idempotency_key": once,
    },
    "counter.multi_sum": {
        "items": st.lists(st.fixed_dictionaries({"series": names, "key": keys}), max_size=3),
        "range": no_span,
    },
    "counter.reset": {"series": names, "key": keys, "idempotency_key": once},
    "counter.series": {"series": names, "key": keys, "range": spans},
    "counter.sum": {"series": names, "key": keys, "range": no_span},
    "idempotency.prune": {
        "before": st.sampled_from([0, 2**33, "2026-11-21T09:25:00Z"]),
        "limit": st.none() | st.integers(1, 2),
    },
    "ingest.abort": {"stream_id": streams},
    "ingest.begin": {
        "stream_id": streams,
        "mode": st.sampled_from(["add", "set", "replace_series", "replace_series", "x"]),
        "granularity": st.sampled_from([None, None, "day", "hour"]),
    },
    "ingest.chunk": {"stream_id": streams, "series": names, "chunk_seq": st.integers(0, 3), "items": items},
    "ingest.commit": {"stream_id": streams},
    "limit.check": {"items": st.lists(limited, max_size=3)},
    "limit.consume": {
        "series": names,
        "key": keys,
        "bucket": buckets,
        "value": values,
        "limit": limits,
        "window": st.none() | windows,
        "range": st.none() | no_span,
        "idempotency_key": once,
    },
    "reconciliation.report": {
        "checked_points": st.sampled_from([0, 5, U64_MAX, -1]),
        "mismatch_count": st.integers(0, 6),
    },
    "recovery.checkpoint": {
        "source": st.sampled_from(["x", "y"]),
        "offset": st.none() | st.sampled_from(["here", 7]),
        "source_offset": st.none() | st.sampled_from(["there", 8]),
        "event_id": st.none() | st.sampled_from(["e", U64_MAX]),
    },
    "recovery.status": {"source": st.none() | st.sampled_from(["x", "y", "z"])},
    "series.batch_add": {"series": names, "items": items, "idempotency_key": once},
    "series.batch_set": {"series": names, "items": items, "idempotency_key": once},
    "series.compact": {"series": names},
    "series.delete_before": {"series": names, "before": days},
    "system.compact": {},
    "system.ping": {},
    "tree.create": {"series": names},
    "tree.delete_range": {"series": names, "range": spans, "idempotency_key": once},
    "tree.drop": {"series": names},
    "tree.info": {"series": names},
    "tree.keys": {"series": names, "limit": pages, "cursor": st.none() | keys},
    "tree.list": {},
    "tree.reset": {"series": names, "idempotency_key": once},
    "tree.series": {"series": names, "range": spans},
    "tree.summary": {"series": names, "range": no_span},
    "tree.top": {"series": names, "limit": pages, "range": no_span},
}
"""Every operation that `Model` knows, and what its fields may be."""

WRITES = [
    "counter.increment",
    "counter.increment",
    *sorted(name for name, fields in REQUESTS.items() if "idempotency_key" in fields),
]

RULES = {
    "snapshot.create": "take_a_snapshot_of_a_series",
    "snapshot.create_all": "take_a_snapshot",
    "snapshot.list": "take_a_snapshot",
    "snapshot.info": "take_a_snapshot",
    "snapshot.verify": "verify",
    "snapshot.load": "load_a_snapshot",
    "snapshot.fetch": "fetch_a_snapshot",
    "snapshot.fetch_chunk": "fetch_a_snapshot",
    "idempotency.snapshot_fetch_chunk": "fetch_the_records",
    "system.health": "look_around",
    "system.stats": "look_around",
    "system.metrics": "look_around",
    "system.latency": "look_around",
    "system.clients": "look_around",
    "replication.status": "look_around",
    "replication.entries": "read_the_log",
    "replication.wait": "wait_for_replicas",
    "replication.checksum": "compare_checksums",
    "replication.promote": "promote_a_master",
    "replication.pause": "pause",
    "replication.resume": "resume",
    "replication.fence": "fence",
    "replication.unfence": "unfence",
}
"""The rule of the machine for each operation that needs more than a model of data."""

NOT_HERE = {
    "replication.follow": "needs a second node: the fault histories and the simulation have it",
    "replication.lease": "keeps other runs from changing roles, no client from writing",
    "replication.maintenance": "is shown, and changes nothing",
}


NOT_SENT = {
    "reconciliation.report": {"absolute_drift", "max_abs_delta"},
    # Pages of checkpoints are tested where they are kept: a few are on no page but the first.
    "recovery.status": {"limit", "cursor"},
    "tree.list": {"limit", "cursor"},
}
"""Fields that the model leaves out."""


def test_every_operation_has_a_rule_or_a_reason() -> None:
    assert set(REQUESTS) == set(MODELLED)
    assert {op.name for op in OPS} == set(REQUESTS) | set(RULES) | set(NOT_HERE)
    assert not set(REQUESTS) & set(RULES)
    for op in OPS:
        if op.name in REQUESTS:
            fields = {field.name for field in op.fields} | ({"idempotency_key"} if op.idempotent else set())
            aliases = {alias for field in op.fields for alias in field.aliases}
            assert set(REQUESTS[op.name]) - aliases == fields - NOT_SENT.get(op.name, set())
    assert all(hasattr(Machine, name) for name in RULES.values())


# -- The machine -------------------------------------------------------------------------------------------


class Machine(RuleBasedStateMachine):
    """A server and its model, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(0)
        self.network = Network(self.world)
        self.network.slowest_seconds = 0.0
        self.node = Node(self.world, self.network, "a", max_request_bytes=65_536, read_timeout_seconds=0.0)
        self.model = Model()
        self.files: dict[str, tuple[str, Any]] = {}
        """Snapshot files: their series, and what it held."""
        self.pause_ends_unix = self.pause_seconds = 0.0
        """When the pause ends by the time of day it began at, and how long it lasts."""
        self.loads = 0
        """Snapshots loaded so far: each leaves a committed stream behind."""
        self.has_single_snapshot = False
        """Whether a series has a snapshot that is newer than that of all."""
        self.lsn = 0
        self.log: dict[int, Any] = {}
        self._start()

    def _start(self) -> None:
        self.is_troubled = False
        """Whether the disk refused a write since this start."""
        now = self.world.unix()
        # In its file a pause has its end by the time of day, and how long it was to last.
        self.model.paused_until = min(self.pause_ends_unix, now + self.pause_seconds)
        self.node.start()
        assert self.world.run(lambda: self.node.is_ready, self.world.now + 60), self.node.was_refused
        opening = self.network.outside.create_task(self.network.outside.create_connection(Caller, "a", PORT))
        assert self.world.run(opening.done)
        self.caller: Caller = opening.result()[1]

    def call(self, op: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to a request."""
        sent = {name: value for name, value in fields.items() if value is not None}
        (answer,) = self.caller.send([line_of(op, sent)])
        assert self.world.run(answer.done, self.world.now + 60), f"{op} is not answered"
        reply = answer.result()
        assert reply is not None, "the connection ended"
        assert reply["error_code"] != "internal_error", (op, fields, reply)
        return reply

    def ask(self, op: str, **fields: Any) -> Any:
        """Return the response to a request that must succeed."""
        reply = self.call(op, fields)
        assert reply["success"], (op, fields, reply)
        return reply["response"]

    def expect(self, op: str, fields: dict[str, Any]) -> None:
        """Let server and model answer a request, and compare."""
        before = self.world.unix()
        sent = {name: value for name, value in fields.items() if value is not None}
        reply = self.call(op, sent)
        if self.node.disk.is_full and reply["error_code"] == "storage_error":
            assert self.model.copy().execute(op, sent, before) is not None, (op, sent, reply)
            self.is_troubled = True
            return
        try:
            expected, code = self.model.execute(op, sent, before), None
        except Refused as refusal:
            expected, code = None, refusal.code
        assert reply["error_code"] == code, (op, sent, reply)
        if code is not None:
            return
        assert reply["success"], (op, sent, reply, expected)
        assert reply["response"] == expected, (op, sent, reply, expected)
        assert reply.get("idempotent") == self.model.was_idempotent, (op, sent, reply)

    # -- Requests ------------------------------------------------------------------------------------------

    @rule(data=st.data())
    def request(self, data: st.DataObject) -> None:
        for op in data.draw(st.lists(st.sampled_from(sorted(REQUESTS)), min_size=1, max_size=8)):
            self.expect(op, data.draw(st.fixed_dictionaries(REQUESTS[op]), label=op))

    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        for op in data.draw(st.lists(st.sampled_from(WRITES), min_size=1, max_size=8)):
            self.expect(op, data.draw(st.fixed_dictionaries(REQUESTS[op]), label=op))

    @rule(data=st.data())
    def write_to_a_full_disk(self, data: st.DataObject) -> None:
        """What is refused is as if it had never been asked for; what needs no disk is answered as ever."""
        self.node.disk.is_full = True
        self.write(data)
        self.node.disk.is_full = False

    @rule(stream=streams, mode=st.sampled_from(["add", "set", "replace_series"]), name=names, data=st.data())
    def ingest(self, stream: str, mode: str, name: str, data: st.DataObject) -> None:
        """Bring a stream on, whether it is open or not."""
        self.expect("ingest.begin", {"stream_id": stream, "mode": mode})
        for number in range(1, data.draw(st.integers(1, 3)) + 1):
            chunk = {"stream_id": stream, "series": name, "chunk_seq": number, "items": data.draw(items)}
            self.expect("ingest.chunk", chunk)

    @rule(seconds=st.sampled_from([0.5, 60.0, 86_402.0]))
    def pass_time(self, seconds: float) -> None:
        # The time of day jumps, as on a machine that was asleep; a day of ticks would take seconds.
        self.world.slept += seconds
        # A pause is not shortened by that: it lasts by a clock that only runs forward.
        self.model.paused_until += seconds
        self.world.run(lambda: False, self.world.now + 1.5)

    @rule(key=keys, value=values, data=st.data())
    def retry_tomorrow(self, key: Any, value: Any, data: st.DataObject) -> None:
        """A write that leaves its day out means the day of its first attempt."""
        again = {
            "series": "a",
            "key": key,
            "value": value,
            "idempotency_key": data.draw(st.sampled_from(["one", 7])),
        }
        self.expect("counter.increment", again)
        self.pass_time(86_402.0)
        self.expect("counter.increment", again)

    # -- Ends and starts -----------------------------------------------------------------------------------

    @rule()
    def restart(self) -> None:
        self.node.stop()
        assert self.world.run(lambda: not self.node.is_running, self.world.now + 60)
        self._start()
        self.has_single_snapshot = False

    @rule(power=st.booleans())
    def crash(self, power: bool) -> None:
        self.node.crash(power=power)
        self._start()
        listed = self.ask("tree.list")
        if self.has_single_snapshot:
            # Of series that only the log creates anew, nobody can tell which came before one with a snapshot.
            assert sorted(listed) == sorted(self.model.series)
            self.model.series = {name: self.model.series[name] for name in listed}

    # -- Snapshots -----------------------------------------------------------------------------------------

    def _note_file(self, name: str, file: str) -> None:
        self.files.setdefault(file, (name, self.model.copy().series[name]))

    @rule()
    def take_a_snapshot(self) -> None:
        assert self.ask("snapshot.create_all") == "OK"
        self.has_single_snapshot = False
        info = self.ask("snapshot.info", files=True)
        assert info["last_snapshot_lsn"] == info["wal_current_lsn"]
        latest = {each["tree"]: each["file"] for each in info["latest_by_tree"]}
        assert set(latest) == set(self.model.series)
        for name, file in latest.items():
            self._note_file(name, file)
        assert {path.rpartition("/")[2] for path in self.ask("snapshot.list")} >= set(latest.values())

    @rule(name=names)
    def take_a_snapshot_of_a_series(self, name: str) -> None:
        reply = self.call("snapshot.create", {"series": name})
        if name in self.model.series:
            assert reply["response"] == f'Tree "{name}" saved'
            self.has_single_snapshot = True
            found = self.ask("snapshot.info")["latest_by_tree"]
            self._note_file(name, next(each["file"] for each in found if each["tree"] == name))
        else:
            assert reply["error_code"] in ("not_found", "validation_error")

    @rule()
    def verify(self) -> None:
        found = self.ask("snapshot.verify")
        assert found["trees"] == len(self.model.series)
        assert found["keys"] == sum(map(len, self.model.series.values()))

    def _some_file(self, data: st.DataObject) -> str | None:
        known = [path.rpartition("/")[2] for path in self.ask("snapshot.list")]
        return data.draw(st.sampled_from(known)) if known else None

    @rule(data=st.data())
    def load_a_snapshot(self, data: st.DataObject) -> None:
        file = self._some_file(data)
        if file is None or file not in self.files:
            assert self.call("snapshot.load", {"file": "1_no.tree"})["error_code"] in (
                "not_found",
                "forbidden",
            )
            return
        name, counters = self.files[file]
        reply = self.call("snapshot.load", {"file": file})
        if not reply["success"]:
            assert reply["error_code"] == "forbidden"
            with pytest.raises(Refused):
                self.model.execute("system.compact", {}, self.world.unix())
            return
        self.loads += 1
        self.model.streams[f"snapshot.load {self.loads}"] = Stream("replace_series", "day", is_committed=True)
        # Through the log, key by key with its buckets: a key without any does not come with them.
        self.model.series[name] = {key: dict(found) for key, found in counters.items() if found}

    @rule(data=st.data(), limit=st.integers(1, 300))
    def fetch_a_snapshot(self, data: st.DataObject, limit: int) -> None:
        file = self._some_file(data)
        if file is None:
            return
        whole = base64.b64decode(self.ask("snapshot.fetch", file=file)["data_base64"])
        part = self.ask("snapshot.fetch_chunk", file=file, offset=3, limit=limit)
        assert base64.b64decode(part["data_base64"]) == whole[3 : 3 + limit]
        assert part["total_bytes"] == len(whole)

    @rule()
    def fetch_the_records(self) -> None:
        reply = self.call("idempotency.snapshot_fetch_chunk", {})
        has_records = self.ask("snapshot.info")["idempotency_snapshot"] is not None
        assert reply["success"] == has_records

    # -- Looking -------------------------------------------------------------------------------------------

    @rule()
    def look_around(self) -> None:
        # A disk that refused something is reported until it takes a write.
        is_well = self.ask("system.health")["status"] == "ok"
        assert is_well == (not self.model.is_fenced) or self.is_troubled
        # Keys that a deletion removes are counted until a sweep has come to them.
        assert self.world.run(lambda: not self.node.server.engine.store.chores, self.world.now + 60)
        stats = self.ask("system.stats")
        assert (stats["trees"], stats["keys"]) == (
            len(self.model.series),
            sum(map(len, self.model.series.values())),
        )
        is_open = [not stream.is_committed for stream in self.model.streams.values()]
        assert stats["ingest_active_streams"] == sum(is_open)
        assert stats["idempotency_committed_stream_count"] == len(is_open) - sum(is_open)
        assert stats["idempotency_record_count"] == len(self.model.records)
        assert "karma_" in self.ask("system.metrics")
        assert self.ask("system.latency")["ops"]
        assert len(self.ask("system.clients")) == 1
        status = self.ask("replication.status")
        assert (status["role"], status["fenced_by"] is not None) == ("master", self.model.is_fenced)

    @rule(data=st.data())
    def read_the_log(self, data: st.DataObject) -> None:
        """What an LSN once named, it names for ever."""
        reply = self.call("replication.entries", {"after_lsn": data.draw(st.integers(0, self.lsn + 1))})
        if not reply["success"]:
            assert reply["error_code"] in ("replication_gap", "replication_error")
            return
        page = reply["response"]
        for found in page["entries"]:
            assert self.log.setdefault(found["lsn"], found["entry"]) == found["entry"]
        self.lsn = max(self.lsn, page["source_lsn"])

    @rule()
    def wait_for_replicas(self) -> None:
        assert self.ask("replication.wait", acks=1, timeout_ms=10)["acks"] == 0
        assert self.ask("replication.wait", acks=0, timeout_ms=0)["acks"] == 0

    @rule()
    def compare_checksums(self) -> None:
        """A restart changes nothing that is stored."""
        before = self.ask("replication.checksum")
        self.crash(power=True)
        assert self.ask("replication.checksum")["digest"] == before["digest"]

    # -- Roles ---------------------------------------------------------------------------------------------

    @rule()
    def promote_a_master(self) -> None:
        """A master stays what it is, but for a fence that this lifts."""
        before = self.ask("replication.status")["epoch"]
        epoch = self.ask("replication.promote")["epoch"]
        assert epoch > before if self.model.is_fenced else epoch == before
        if self.model.is_fenced:
            self._end_pause()
        self.model.is_fenced = False

    @rule(milliseconds=st.sampled_from([0, 300, 3_600_000, 3_600_001]))
    def pause(self, milliseconds: int) -> None:
        now_ms = int(self.world.unix() * 1000)
        reply = self.call("replication.pause", {"ttl_ms": milliseconds})
        assert reply["success"] == (0 < milliseconds <= 3_600_000)
        if reply["success"]:
            assert reply["response"]["paused_until"] == now_ms + milliseconds
            self.pause_seconds = milliseconds / 1000
            self.pause_ends_unix = self.model.paused_until = now_ms / 1000 + self.pause_seconds

    def _end_pause(self) -> None:
        self.pause_ends_unix = self.pause_seconds = self.model.paused_until = 0.0

    @rule()
    def resume(self) -> None:
        self.ask("replication.resume")
        self._end_pause()

    @rule(behind=st.booleans())
    def fence(self, behind: bool) -> None:
        epoch = self.ask("replication.status")["epoch"]
        reply = self.call("replication.fence", {"epoch": epoch - behind, "reason": "a test"})
        assert reply["success"] != behind
        self.model.is_fenced |= not behind

    @rule(right=st.booleans())
    def unfence(self, right: bool) -> None:
        fence = self.ask("replication.status")["fenced_by"]
        reply = self.call("replication.unfence", {"epoch": fence["epoch"] + (not right) if fence else 1})
        assert reply["success"] == (fence is not None and right)
        if reply["success"]:
            self.model.is_fenced = False

    # -- Always --------------------------------------------------------------------------------------------

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert self.ask("tree.list") == list(self.model.series)
        for name in self.model.series:
            self.expect("tree.series", {"series": name, "range": ALL_DAYS})

    def teardown(self) -> None:
        if self.node.is_running:
            self.node.crash(power=False)
        self.network.outside.abandon()
        assert self.world.bugs == []


@pytest.mark.cycles(ci=CI_EXAMPLES, full=FULL_EXAMPLES)
@pytest.mark.timeout(3_600)
def test_the_server_answers_as_the_model_does(cycles: int) -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=cycles,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

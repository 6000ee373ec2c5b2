"""Clients of a server that is killed under them: each knows exactly what its own series must hold.

A writer predicts every reply from a model of plain dicts, since nobody else touches its series. The log
keeps the order of a connection's writes, so a kill leaves a prefix of those that were not answered: the
series must hold exactly what some prefix leads to, and the replies to retries must be those of that prefix.

Two keys are everybody's. Of these only bounds are known: what was acknowledged is there, and nothing beyond
what was sent.
"""

from __future__ import annotations

import json
import socket
from collections import deque
from copy import deepcopy
from dataclasses import dataclass, field
from random import Random
from typing import Any

from harness import Connection, Server
from harness import request as line_of
from property.test_store_property import Model as Contents
from property.test_store_property import RefusedError, change

DAYS = (20260504, 20260505, 20260506)
SPAN = {"from": DAYS[0], "to": DAYS[-1]}
KEYS = range(6)
SHARED = "shared"
SHARED_KEY = 1
QUOTA = 30
MAX_WINDOW = 12
"""Requests that a writer has in flight at most."""
_KEPT_RETRIES = 20

Answer = tuple[bool, Any, bool | None]
"""Success, the response or the error code, and `idempotent` (None where the reply has none)."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request as sent. `shared_value` is what it may add to a key that others write to as well."""

    op: str
    fields: dict[str, Any]
    shared_value: int = 0

    @property
    def is_retryable(self) -> bool:
        """Whether it may be sent again without counting twice."""
        return "idempotency_key" in self.fields or self.op.startswith("ingest.")

    @property
    def line(self) -> bytes:
        return line_of(self.op, **self.fields)


def answer_of(reply: dict[str, Any]) -> Answer:
    found = reply["response"] if reply["success"] else reply["error_code"]
    return reply["success"], found, reply.get("idempotent")


# -- What a writer's series hold -------------------------------------------------------------------------


@dataclass(slots=True)
class Stream:
    """An ingest stream; `staged` is what a replacement will become."""

    mode: str
    series: str | None = None
    chunks: list[list[list[int]]] = field(default_factory=list)
    staged: Contents = field(default_factory=dict)
    is_committed: bool = False


@dataclass(slots=True)
class Model:
    """Everything a server remembers of one writer, as plain dicts."""

    contents: Contents = field(default_factory=dict)
    checkpoint: str | None = None
    records: dict[str, tuple[Request, Any]] = field(default_factory=dict)
    streams: dict[str, Stream] = field(default_factory=dict)

    def answer(self, request: Request) -> Answer:
        """Carry a request out and return what the server must answer."""
        key = request.fields.get("idempotency_key")
        if key in self.records:
            first, response = self.records[key]
            same = first == request
            return (True, response, True) if same else (False, "idempotency_conflict", None)
        try:
            response = self._carry_out(request.op, request.fields)
        except RefusedError as problem:
            return False, str(problem), None
        if key is None:
            return True, response, None
        if request.op != "limit.consume" or response["allowed"]:
            self.records[key] = (request, response)
        return True, response, False

    def _carry_out(self, op: str, fields: dict[str, Any]) -> Any:
        if op.startswith("ingest."):
            return getattr(self, "_" + op.partition(".")[2])(**fields)
        if op == "counter.sum":
            return sum(self._find(fields["series"]).get(fields["key"], {}).values())
        if op == "limit.consume":
            return self._consume(**fields)
        if op == "recovery.checkpoint":
            self.checkpoint = fields["offset"]
            return None
        if op in ("counter.batch_reset", "series.compact", "tree.drop"):
            self._find(fields["series"])
        response = self._response(op, fields)
        change(self.contents, {"op": op, **fields})
        return response

    def _response(self, op: str, fields: dict[str, Any]) -> Any:
        match op:
            case "counter.increment" | "counter.decrement":
                return fields["value"]
            case "series.batch_add":
                return {"applied": len(fields["items"]), "total": sum(item[2] for item in fields["items"])}
            case "series.batch_set":
                return {"applied": len(fields["items"])}
            case "counter.batch_reset":
                counters = self.contents[fields["series"]]
                reset = sum(bool(counters.get(key)) for key in fields["keys"])
                return {"reset": reset, "missing": len(fields["keys"]) - reset}
            case "counter.delete_range" | "tree.delete_range":
                return True
        return "OK"

    def _find(self, series: str) -> dict[int, dict[int, int]]:
        if series not in self.contents:
            raise RefusedError("not_found")
        return self.contents[series]

    def _consume(
        self, *, series: str, key: int, bucket: int, value: int, limit: int, **_: Any
    ) -> dict[str, Any]:
        used = self.contents.get(series, {}).get(key, {}).get(bucket, 0)
        allowed = used + value <= limit
        if allowed:
            used += value
            add = {"op": "counter.increment", "series": series, "key": key, "bucket": bucket, "value": value}
            change(self.contents, add)
        return {"allowed": allowed, "used": used, "remaining": max(0, limit - used), "limit": limit}

    # -- Ingest streams --------------------------------------------------------------------------------

    def _stream(self, stream_id: str) -> Stream:
        if stream_id not in self.streams:
            raise RefusedError("not_found")
        return self.streams[stream_id]

    def _describe(self, stream_id: str, status: str) -> dict[str, Any]:
        stream = self.streams[stream_id]
        return {
            "stream_id": stream_id,
            "mode": stream.mode,
            "series": stream.series,
            "granularity": None,
            "status": status,
            "last_chunk_seq": len(stream.chunks),
        }

    def _begin(self, stream_id: str, mode: str) -> dict[str, Any]:
        stream = self.streams.setdefault(stream_id, Stream(mode))
        return self._describe(stream_id, "already_committed" if stream.is_committed else "active")

    def _chunk(self, stream_id: str, series: str, chunk_seq: int, items: list[list[int]]) -> dict[str, Any]:
        stream = self._stream(stream_id)
        head = {"stream_id": stream_id, "chunk_seq": chunk_seq}
        if chunk_seq <= len(stream.chunks):
            assert stream.chunks[chunk_seq - 1] == items
            return {**head, "skipped": True, "committed": stream.is_committed, "applied": 0, "total": 0}
        if chunk_seq > len(stream.chunks) + 1:
            raise RefusedError("validation_error")
        op = "series.batch_add" if stream.mode == "add" else "series.batch_set"
        into = stream.staged if stream.mode == "replace_series" else self.contents
        change(into, {"op": op, "series": series, "items": items})
        stream.series = series
        stream.chunks.append(items)
        total = sum(item[2] for item in items)
        return {**head, "skipped": False, "applied": len(items), "total": total}

    def _commit(self, stream_id: str) -> dict[str, Any]:
        stream = self._stream(stream_id)
        if stream.is_committed:
            return self._describe(stream_id, "already_committed")
        if stream.mode == "replace_series":
            if stream.series is None:
                raise RefusedError("validation_error")
            self.contents[stream.series] = stream.staged.pop(stream.series, {})
        stream.is_committed = True
        return {"stream_id": stream_id, "status": "committed", "last_chunk_seq": len(stream.chunks)}

    def _abort(self, stream_id: str) -> dict[str, Any]:
        if self._stream(stream_id).is_committed:
            raise RefusedError("not_found")
        stream = self.streams.pop(stream_id)
        return {"stream_id": stream_id, "status": "aborted", "last_chunk_seq": len(stream.chunks)}


@dataclass(slots=True)
class Bounds:
    """What a key that everybody writes to may hold: what was acknowledged, and with it what was sent."""

    least: int = 0
    most: int = 0

    def settled(self, value: int, *, is_there: bool) -> None:
        """Note that a value that was sent is there, or is not."""
        if is_there:
            self.least += value
        else:
            self.most -= value


class Shared:
    """The two keys of all writers: one that only grows, and a quota that none may pass."""

    def __init__(self) -> None:
        self.quota_key = SHARED_KEY + 1
        self._added = Bounds()
        self._consumed = Bounds()

    def sent(self, request: Request) -> None:
        self._bounds_of(request).most += request.shared_value

    def answered(self, request: Request, answer: Answer) -> None:
        success, response, _ = answer
        assert success, (request, answer)
        if request.op == "limit.consume":
            assert response["used"] <= QUOTA, answer
            self._consumed.settled(1, is_there=response["allowed"])
        else:
            assert response == request.shared_value, answer
            self._added.settled(request.shared_value, is_there=True)

    def resolve(self, connection: Connection, unanswered: list[Request]) -> list[bool]:
        """Compare what is there with the bounds, and retry; returns for each retry whether it had landed."""
        total, used = self._read(connection)
        landed = []
        new = 0
        for request in unanswered:
            if not request.is_retryable:
                continue
            success, response, was_there = answer_of(connection.call(request.op, **request.fields))
            assert (success, response) == (True, request.shared_value), (request, response)
            self._added.settled(request.shared_value, is_there=bool(was_there))
            landed.append(bool(was_there))
            new += 0 if was_there else request.shared_value
        assert self._added.least <= total <= self._added.most, (self._added, total)
        assert self._consumed.least <= used <= min(self._consumed.most, QUOTA), (self._consumed, used)
        assert self._read(connection) == (total + new, used)
        self._added = Bounds(total + new, total + new)
        self._consumed = Bounds()
        self.quota_key += 1
        return landed

    def _bounds_of(self, request: Request) -> Bounds:
        return self._consumed if request.op == "limit.consume" else self._added

    def _read(self, connection: Connection) -> tuple[int, int]:
        items = [
            {"series": SHARED, "key": key, "limit": QUOTA, "window": "total"}
            for key in (SHARED_KEY, self.quota_key)
        ]
        total, used = (found["used"] for found in connection.ask("limit.check", items=items))
        return total, used


# -- Clients -----------------------------------------------------------------------------------------------


class Client:
    """A connection with requests in flight. Replies are taken as they come, to the end of the connection."""

    def __init__(self) -> None:
        self.in_flight: deque[Request] = deque()
        self.acknowledged = 0
        self._socket: socket.socket | None = None
        self._rest = b""

    def connect(self, server: Server) -> None:
        self._socket = server.connect().sock
        self._rest = b""
        self.in_flight.clear()

    def fileno(self) -> int:
        assert self._socket is not None
        return self._socket.fileno()

    def fill(self) -> None:
        """Send what may be sent now."""
        raise NotImplementedError

    def send(self, requests: list[Request]) -> None:
        assert self._socket is not None
        self.in_flight += requests
        self._socket.sendall(b"".join(request.line for request in requests))

    def take(self) -> bool:
        """Take what has come; returns False at the end of the connection."""
        assert self._socket is not None
        try:
            data = self._socket.recv(1 << 20)
        except ConnectionError:
            return False
        *lines, self._rest = (self._rest + data).split(b"\r\n")
        for line in lines:
            answer = answer_of(json.loads(line))
            # Who comes to a server that is ending is turned away with one reply, and nothing is carried out.
            if answer[1] != "overloaded":
                self._answered(self.in_flight.popleft(), answer)
        return bool(data)

    def drain(self) -> None:
        """Take what was sent before the server died, and close."""
        while self.take():
            pass
        assert self._socket is not None
        self._socket.close()

    def _answered(self, request: Request, answer: Answer) -> None:
        raise NotImplementedError


class Writer(Client):
    """Writes to series of its own and, now and then, to the shared ones."""

    def __init__(self, name: str, seed: str, shared: Shared) -> None:
        super().__init__()
        self.name = name
        self.series = (f"{name}/a", f"{name}/b")
        self.model = Model()
        self._shared = shared
        self._random = Random(seed)
        self._numbers = iter(range(1, 1 << 60))
        self._recent: deque[Request] = deque(maxlen=_KEPT_RETRIES)
        """Writes with a key that may be repeated at any time."""
        self._stream: tuple[str, str, str, int] | None = None
        """The stream being sent: id, mode, series, last chunk."""

    def fill(self) -> None:
        """Send as many requests as the window has room for, or none for a while."""
        room = self._random.randint(0, MAX_WINDOW) - len(self.in_flight)
        if room > 0:
            requests = [self._next() for _ in range(room)]
            for request in requests:
                if request.shared_value:
                    self._shared.sent(request)
            self.send(requests)

    def _answered(self, request: Request, answer: Answer) -> None:
        self.acknowledged += 1
        if request.shared_value:
            self._shared.answered(request, answer)
            return
        expected = self.model.answer(request)
        if request.op == "recovery.checkpoint":
            # Its response is the checkpoint with the time of the server.
            assert answer[0], (self.name, request, answer)
        else:
            assert answer == expected, (self.name, request, answer, expected)

    # -- After a restart ---------------------------------------------------------------------------------

    def resolve(self, connection: Connection) -> list[bool]:
        """Find out what became of the unanswered requests, retry those that may be, and be certain again.

        Returns for each retry with an idempotency key whether it had landed.
        """
        found = self._read(connection)
        candidates = []
        model = deepcopy(self.model)
        own = [request for request in self.in_flight if not request.shared_value]
        landed = []
        for request in (None, *own):
            if request is not None:
                model.answer(request)
            if (model.contents, model.checkpoint) == found:
                candidates.append(deepcopy(model))
        assert candidates, f"{self.name} holds {found}; expected {self.model.contents} and some of {own}"
        for request in own:
            if not request.is_retryable:
                continue
            answer = answer_of(connection.call(request.op, **request.fields))
            candidates = [model for model in candidates if model.answer(request) == answer]
            assert candidates, f"{self.name}: the retry of {request} was answered {answer}"
            if answer[2] is not None:
                landed.append(answer[2])
        assert all(model == candidates[0] for model in candidates), candidates
        self.model = candidates[0]
        found = self._read(connection)
        assert (self.model.contents, self.model.checkpoint) == found, (self.name, found, self.model)
        self.in_flight.clear()
        self._forget()
        return landed

    def _forget(self) -> None:
        """Let go of what no later request refers to: copies of the model would take ever longer."""
        keys = {request.fields["idempotency_key"] for request in self._recent}
        records, streams = self.model.records, self.model.streams
        self.model.records = {key: record for key, record in records.items() if key in keys}
        current = self._stream[0] if self._stream else None
        self.model.streams = {name: stream for name, stream in streams.items() if name == current}

    def _read(self, connection: Connection) -> tuple[Contents, int | None]:
        contents: Contents = {}
        for series in connection.ask("tree.list"):
            if series.startswith(self.name + "/"):
                counters = connection.ask("tree.series", series=series, range=SPAN)
                contents[series] = {
                    int(key): {int(day): value for day, value in buckets.items()}
                    for key, buckets in counters.items()
                }
        found = connection.ask("recovery.status", source=self.name)["checkpoints"]
        return contents, found[0]["offset"] if found else None

    # -- What to write -----------------------------------------------------------------------------------

    def _next(self) -> Request:
        random = self._random
        series, key, day = random.choice(self.series), random.choice(KEYS), random.choice(DAYS)
        one: dict[str, Any] = {"series": series, "key": key, "bucket": day, "value": random.randint(1, 9)}
        kind = random.choices(*_KINDS)[0]
        match kind:
            case "increment" | "decrement":
                return self._perhaps_keyed(f"counter.{kind}", one)
            case "sum":
                return Request("counter.sum", {"series": series, "key": key})
            case "consume":
                return self._perhaps_keyed("limit.consume", {**one, "limit": random.randint(5, 60)})
            case "shared":
                fields = {**one, "series": SHARED, "key": SHARED_KEY}
                return self._perhaps_keyed("counter.increment", fields, one["value"])
            case "quota":
                fields = {"series": SHARED, "key": self._shared.quota_key, "limit": QUOTA, "window": "total"}
                return Request("limit.consume", {**fields, "value": 1, "bucket": day}, 1)
            case "add" | "set":
                # A long batch now and then: its line takes more than one page, and a moment to write.
                count = 2000 if random.random() < 0.03 else random.randint(0, 5)
                items = self._items(count, least=int(kind == "add"))
                return self._perhaps_keyed(f"series.batch_{kind}", {"series": series, "items": items})
            case "reset":
                return self._perhaps_keyed("counter.reset", {"series": series, "key": key})
            case "batch_reset":
                fields = {"series": series, "keys": random.sample(KEYS, 3)}
                return self._perhaps_keyed("counter.batch_reset", fields)
            case "delete":
                span = {"from": day, "to": random.choice([other for other in DAYS if other >= day])}
                return self._perhaps_keyed(
                    "counter.delete_range", {"series": series, "key": key, "range": span}
                )
            case "tree":
                op = random.choice(["tree.reset", "tree.create", "tree.drop", "series.compact"])
                return Request(op, {"series": series})
            case "checkpoint":
                return Request(
                    "recovery.checkpoint", {"source": self.name, "offset": str(next(self._numbers))}
                )
            case "retry" if self._recent:
                return random.choice(self._recent)
        return self._ingest(series)

    def _perhaps_keyed(self, op: str, fields: dict[str, Any], shared_value: int = 0) -> Request:
        if self._random.random() < 0.3:
            fields = {**fields, "idempotency_key": f"{self.name} {next(self._numbers)}"}
        request = Request(op, fields, shared_value)
        if request.is_retryable and not shared_value:
            self._recent.append(request)
        return request

    def _items(self, count: int, least: int) -> list[list[int]]:
        random = self._random
        return [[random.choice(KEYS), random.choice(DAYS), random.randint(least, 9)] for _ in range(count)]

    def _ingest(self, series: str) -> Request:
        """The next step of the stream under way, or a new one's first."""
        if self._stream is None:
            mode = self._random.choice(["add", "set", "replace_series"])
            self._stream = (f"{self.name} {next(self._numbers)}", mode, series, 0)
            return Request("ingest.begin", {"stream_id": self._stream[0], "mode": mode})
        stream_id, mode, series, last = self._stream
        if last < 2 or self._random.random() < 0.6:
            self._stream = (stream_id, mode, series, last + 1)
            items = self._items(self._random.randint(1, 4), least=int(mode != "set"))
            fields = {"stream_id": stream_id, "series": series, "chunk_seq": last + 1, "items": items}
            return Request("ingest.chunk", fields)
        self._stream = None
        op = "ingest.commit" if self._random.random() < 0.7 else "ingest.abort"
        return Request(op, {"stream_id": stream_id})


_KINDS = (
    [
        *("increment", "decrement", "sum", "consume", "shared", "quota", "add", "set", "reset"),
        *("batch_reset", "delete", "tree", "checkpoint", "retry", "ingest"),
    ],
    [24, 6, 6, 8, 8, 4, 10, 6, 3, 2, 3, 2, 1, 6, 11],
)
"""Kinds of requests and how often they come."""


class Keeper(Client):
    """Takes snapshots and looks at them, one after the other."""

    def __init__(self, seed: str, series: list[str]) -> None:
        super().__init__()
        self._random = Random(seed)
        self._series = series

    def fill(self) -> None:
        """Ask for the next thing when the last one is done."""
        if not self.in_flight and self._random.random() < 0.3:
            op = self._random.choice(["snapshot.create_all", "snapshot.create", "snapshot.verify"])
            fields = {"series": self._random.choice(self._series)} if op == "snapshot.create" else {}
            self.send([Request(op, fields)])

    def _answered(self, request: Request, answer: Answer) -> None:
        self.acknowledged += 1
        assert answer[0] or answer[1] == "not_found", (request, answer)

"""What the fuzzer feeds: each target takes any bytes and raises unless the code under it bears them.

An input is a world of its own (a store that was empty, a directory that holds this), so that it fails again
whenever it is tried. Checksums of what is damaged are put right first, or nothing behind them would be
reached. Every target has a corpus of valid inputs to begin with.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast
from zlib import crc32

import msgpack
import orjson
from harness import request as line_of

from karma.core import buckets
from karma.core.entries import group_seed, line_crc
from karma.core.idempotency import Records
from karma.core.replay import Replay
from karma.core.store import Store
from karma.engine import Engine, Settings
from karma.errors import DamagedDataError, ErrorCode
from karma.limits import U64_MAX
from karma.ops import OPS
from karma.protocol.framing import Framer
from karma.service.log import Log
from karma.service.write_path import WritePath
from karma.storage import checked, recovery, snapshot, tree_file, wal
from karma.storage.disk import Disk
from karma.storage.wal import Wal

NOON_MS = 1_777_982_400_000
"""2026-05-05 12:00 UTC."""
DAY = 20260505
MAX_REQUEST_BYTES = 1024
DIRECTORY = Path("data")
TREE = "1777925811_a.tree"
TREE_META = TREE + ".meta.json"
RECORDS_META = snapshot.RECORDS_NAME + ".meta.json"
SMALL_TREE = b"".join(tree_file.encode({1: buckets.single(DAY, 5)}))
CODES = {code for name, code in vars(ErrorCode).items() if name.isupper()} - {ErrorCode.INTERNAL_ERROR}


# -- Framing -----------------------------------------------------------------------------------------------


def framing(data: bytes) -> None:
    """The same lines, and the same refusal, however the bytes arrive; never more held than one line."""
    maximum, step = 1 + data[0] % 64 if data else 1, 1 + data[1] % 16 if len(data) > 1 else 1
    data = data[2:]
    whole = Framer(maximum)
    lines = [*whole.feed(data), *whole.end()]
    parts = Framer(maximum)
    found = []
    for start in range(0, len(data), step):
        found += parts.feed(data[start : start + step])
        assert parts.buffered_bytes <= maximum + 1
    found += parts.end()
    assert [line.removesuffix(b"\r") for line in found] == [line.removesuffix(b"\r") for line in lines]
    assert (whole.error is None) == (parts.error is None)
    assert all(len(line.removesuffix(b"\r")) <= maximum for line in lines)
    expected = data.split(b"\n")
    if whole.error is None:
        assert lines == (expected if expected[-1] else expected[:-1])
    else:
        assert lines == expected[: len(lines)]


# -- Requests ----------------------------------------------------------------------------------------------


class Client:
    """What the write path needs of a connection."""

    address = "127.0.0.1:1"

    def __init__(self) -> None:
        self.replies: list[bytes] = []
        self.backlog: list[bytes] = []
        self.is_blocked = False
        self.sent: list[bytes] = []

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    def resume(self) -> None:
        """Nothing waits for it."""

    def abort(self) -> None:
        raise AssertionError("closed at once")


class Loop:
    """An event loop that runs what is due until nothing is."""

    def __init__(self) -> None:
        self._due: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()

    def call_soon(self, callback: Callable[..., None], *arguments: Any) -> None:
        self._due.append((callback, arguments))

    def call_later(self, _seconds: float, callback: Callable[..., None], *arguments: Any) -> None:
        self.call_soon(callback, *arguments)

    def run(self) -> None:
        while self._due:
            callback, arguments = self._due.popleft()
            callback(*arguments)


class MemoryLog:
    """A log that keeps the entries."""

    is_full = False
    durable_lsn = 0

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    @property
    def last_lsn(self) -> int:
        return len(self.bodies)

    def append(self, bodies: list[bytes], _ts_ms: int) -> None:
        self.bodies += bodies


class Server:
    """Everything between the socket and the disk, with effects that answer OK."""

    def __init__(self, settings: Settings) -> None:
        self.loop = Loop()
        self.path = WritePath(
            engine=Engine(Store(), settings),
            wal=None,
            log=Log(self._complain, lambda: 0.0),
            clock_ms=lambda: NOON_MS,
            loop=cast("Any", self.loop),
            die=self._die,
            is_synced=False,
            effects={op.name: lambda **_: "OK" for op in OPS},
        )
        self.is_legacy = settings.legacy_protocol

    def converse(self, data: bytes) -> tuple[int, list[bytes], list[bytes]]:
        """Let a client say it all to an empty store; returns its number of requests, the replies, the log."""
        store = self.path.engine.store = Store()
        log = MemoryLog()
        self.path.wal = cast("Wal", log)
        framer = Framer(MAX_REQUEST_BYTES)
        client = Client()
        count = 0
        for lines in (framer.feed(data), framer.end()):
            count += len(lines)
            if lines:
                self.path.submit(client, lines)
                self.loop.run()
        if framer.error is not None:
            count += 1
            self.path.submit_error(client, framer.error)
            self.loop.run()
        assert (client.backlog, client.is_blocked, client.replies) == ([], False, [])
        assert (store.undo, store.must_settle) == ([], False)
        replies = b"".join(client.sent).split(b"\r\n")
        assert replies.pop() == b""
        return count, replies, log.bodies

    def _complain(self, line: str) -> None:
        raise AssertionError(line)

    def _die(self, error: Exception) -> None:
        raise error


SERVERS = (
    Server(Settings()),
    Server(Settings(auth_token="w", read_auth_token="r", admin_auth_token="a")),
    Server(Settings(legacy_protocol=True)),
)


def requests(data: bytes) -> None:
    """One well-formed reply a request, no internal error, and a log that leads to the same store."""
    if not data:
        return
    server = SERVERS[data[0] % len(SERVERS)]
    count, replies, bodies = server.converse(data[1:])
    assert len(replies) == count
    for reply in replies:
        check_reply(reply, is_legacy=server.is_legacy)
    store, other = server.path.engine.store, Store()
    replay = Replay(other)
    for lsn, body in enumerate(bodies, 1):
        assert replay.apply(lsn, orjson.loads(body), NOON_MS // 1000) is None, body
    assert [(name, series.counters) for name, series in other.series.items()] == [
        (name, series.counters) for name, series in store.series.items()
    ]
    assert (other.streams.active, other.streams.committed) == (store.streams.active, store.streams.committed)
    assert list(other.records.items()) == list(store.records.items())
    check_sound(store)


def check_reply(line: bytes, *, is_legacy: bool) -> None:
    reply = orjson.loads(line)
    if is_legacy and "protocol_version" not in reply:
        assert reply.keys() == {"success", "response"}
        return
    assert reply.keys() - {"idempotent", "error_detail"} == {
        "protocol_version",
        "success",
        "response",
        "error_code",
    }
    assert reply["protocol_version"] == 2
    if reply["success"] is True:
        assert reply["error_code"] is None
    else:
        assert reply["success"] is False
        assert reply["error_code"] in CODES
        assert type(reply["response"]) is str


def check_sound(store: Store) -> None:
    """Every counter is what a counter may be."""
    for name, series in store.series.items():
        assert type(name) is str
        for key, counter in series.counters.items():
            assert isinstance(key, int)
            assert 0 <= key <= U64_MAX
            pairs = list(buckets.items(counter))
            assert buckets.total(counter) == sum(value for _, value in pairs) <= U64_MAX
            assert [day for day, _ in pairs] == sorted({day for day, _ in pairs})
            assert all(value > 0 for _, value in pairs)


# -- Files -------------------------------------------------------------------------------------------------


class MemoryDisk(Disk):
    """One folder in memory."""

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.files = files or {}

    def list_names(self, directory: Path) -> list[str]:
        return sorted(self.files) if directory == DIRECTORY else []

    def read_file(self, path: Path) -> bytes:
        try:
            return self.files[path.name]
        except KeyError:
            raise FileNotFoundError(path) from None

    def read_range(self, path: Path, offset_bytes: int, length_bytes: int) -> bytes:
        return self.read_file(path)[offset_bytes : offset_bytes + length_bytes]

    @contextlib.contextmanager
    def map_file(self, path: Path) -> Iterator[bytes]:
        yield self.read_file(path)

    def size_bytes(self, path: Path) -> int:
        return len(self.read_file(path))

    def write_files(self, files: Iterable[tuple[Path, Iterable[bytes]]]) -> list[int]:
        written = {path.name: b"".join(chunks) for path, chunks in files}
        self.files |= written
        return list(map(len, written.values()))


def log(data: bytes) -> bool:
    """A log is read to its end, cut, or refused as damaged; what it leads to is sound.

    Returns whether it was read, as the function below.
    """
    if not data:
        return False
    text = data[1:]
    if data[0] % 4:
        text = wal._LINE.sub(_mended, text)
    return recover({wal.LOG_NAME: text})


def _mended(line: Any) -> bytes:
    """Return a line of the log with the checksum that its other parts ask for."""
    seed = group_seed(int(line[3]), int(line[4]))
    return bytes(line[0][:-10] + b'%08x"}' % line_crc(line[2], int(line[1]), seed))


def recover(files: dict[str, bytes]) -> bool:
    try:
        found = recovery.read(MemoryDisk(files), DIRECTORY, Records(), NOON_MS // 1000)
    except DamagedDataError:
        return False
    check_sound(found.store)
    if found.log_entries:
        assert found.log_last_lsn - found.log_first_lsn + 1 == found.log_entries
    return True


def snapshots(data: bytes) -> bool:
    """Files of a snapshot restore to something sound or are refused as damaged."""
    if not data:
        return False
    kind, data = data[0] % 5, data[1:]
    known = {"timestamp": 1777925811, "last_lsn": 1, "bytes": len(data), "crc32": f"{crc32(data):08x}"}
    if kind == 0:
        return recover({TREE: data, TREE_META: _sealed({"tree": "a", "file": TREE, **known})})
    if kind == 1:
        return recover({TREE: SMALL_TREE, TREE_META: _resealed(data)})
    if kind == 2:
        records = {"file": snapshot.RECORDS_NAME, **known, "record_count": 1, "committed_stream_count": 0}
        return recover({snapshot.RECORDS_NAME: data, RECORDS_META: _sealed(records)})
    if kind == 3:
        return recover({snapshot.STREAMS_NAME: data + snapshot._STREAMS_CRC.pack(0xCE, crc32(data))})
    try:
        snapshot.load_checkpoints(MemoryDisk({snapshot.CHECKPOINTS_NAME: _resealed(data)}), DIRECTORY)
    except DamagedDataError:
        return False
    return True


def _sealed(fields: dict[str, Any]) -> bytes:
    return orjson.dumps(checked.sealed(fields))


def _resealed(data: bytes) -> bytes:
    """Return the JSON of a file with the checksum that its other fields ask for, if it is any."""
    with contextlib.suppress(orjson.JSONDecodeError, TypeError):
        fields = orjson.loads(data)
        if isinstance(fields, dict):
            return _sealed(fields)
    return data


# -- Where to begin ----------------------------------------------------------------------------------------

TARGETS: dict[str, Callable[[bytes], bool | None]] = {
    "framing": framing,
    "requests": requests,
    "log": log,
    "snapshots": snapshots,
}

ITEMS = [[1, DAY, 5], [2, "2026-05-06", 7]]
RANGE = {"from": 20260501, "to": 20260531}
ONE = {"series": "a", "key": 1, "bucket": DAY}
CONVERSATIONS: tuple[tuple[tuple[str, dict[str, Any]], ...], ...] = (
    *(((op.name, dict(op.example or {})),) for op in OPS),
    (
        ("counter.increment", {**ONE, "value": 2**63, "idempotency_key": "k"}),
        ("counter.increment", {**ONE, "value": 2**63, "idempotency_key": "k"}),
        ("counter.increment", {**ONE, "value": 2**63}),
        ("counter.decrement", {**ONE, "value": 1, "idempotency_key": 7}),
        ("idempotency.prune", {"before": "2026-05-29T00:00:00Z", "limit": 1}),
    ),
    (
        ("series.batch_add", {"series": "a", "items": ITEMS, "idempotency_key": "b"}),
        ("series.batch_set", {"series": "a", "items": [[1, DAY, 0], [3, DAY, 9]]}),
        ("counter.batch_reset", {"series": "a", "keys": [1, 9], "idempotency_key": "r"}),
        ("counter.batch_delete_range", {"series": "a", "keys": [2], "range": RANGE}),
        ("tree.top", {"series": "a", "range": RANGE}),
        ("tree.keys", {"series": "a", "limit": 1, "cursor": 1}),
        ("series.compact", {"series": "a"}),
        ("tree.reset", {"series": "a"}),
        ("tree.drop", {"series": "a"}),
    ),
    (
        ("limit.consume", {**ONE, "limit": 3, "window": "month", "value": 2, "idempotency_key": "c"}),
        ("limit.consume", {**ONE, "limit": 3, "range": RANGE}),
        ("limit.check", {"items": [{"series": "a", "key": 1, "limit": 3, "window": "total"}]}),
    ),
    *(
        (
            ("ingest.begin", {"stream_id": "s", "mode": mode}),
            ("ingest.chunk", {"stream_id": "s", "series": "a", "chunk_seq": 1, "items": ITEMS}),
            ("ingest.chunk", {"stream_id": "s", "series": "a", "chunk_seq": 2, "items": [[1, DAY, 1]]}),
            (end, {"stream_id": "s"}),
        )
        for mode in ("add", "set", "replace_series")
        for end in ("ingest.commit", "ingest.abort")
    ),
)
LEGACY = (
    b'{"command":"increment","tree_name":"a","key":1,"value":2}\n',
    b'{"command":"find","tree_name":"a","key":1,"time_from":20260501,"time_to":20260531}\n',
    b'{"command":"dump_all"}\n{"command":"trees"}\n',
)


def corpus(target: str) -> list[bytes]:
    """Return valid inputs of a target."""
    if target in ("log", "snapshots"):
        return [found for spoken in _spoken(b"") for found in _files_of(target, spoken)]
    spoken = _spoken(b"")
    if target == "framing":
        return [b"\x3f\x05" + text for text in (*spoken, b"a\r\nb\n\r\n\nc", b"x" * 65 + b"\n")]
    with_token = [b"\x01" + text for text in _spoken(b"w")]
    return [*(b"\x00" + text for text in spoken), *with_token, *(b"\x02" + text for text in LEGACY)]


def _spoken(token: bytes) -> list[bytes]:
    more = {"token": token.decode()} if token else {}
    return [
        b"".join(line_of(op, **fields, **more) for op, fields in conversation)
        for conversation in CONVERSATIONS
    ]


def _files_of(target: str, spoken: bytes) -> Iterator[bytes]:
    """Yield what a conversation leaves on disk, as inputs of a target."""
    server = SERVERS[0]
    _, _, bodies = server.converse(spoken)
    if not bodies:
        return
    if target == "log":
        yield b"\x01" + wal.encode_lines(bodies, 1, NOON_MS, 0)
        yield b"\x01" + b"".join(
            wal.encode_lines([body], lsn, NOON_MS, lsn - 1) for lsn, body in enumerate(bodies, 1)
        )
        yield b"\x00" + b"".join(
            b'{"v":2,"lsn":%d,"entry":%b}\n' % (lsn, body) for lsn, body in enumerate(bodies, 1)
        )
        return
    disk, store = MemoryDisk(), server.path.engine.store
    snapshot.write_tree(disk, DIRECTORY, "a", {1: buckets.single(DAY, 5)}, 1, 1777925811, 0)
    yield b"\x01" + disk.files[TREE_META]
    for name, series in store.series.items():
        snapshot.write_tree(disk, DIRECTORY, name, series.counters, len(bodies), 1777925811, 0)
        table = {key: dict(buckets.items(counter)) for key, counter in series.counters.items()}
        branches: list[dict[int, Any]] = [{} for _ in range(9)]
        for key, days in table.items():
            branches[key % 9][key] = {"table": days, "total": sum(days.values())}
        yield b"\x00" + msgpack.packb({"branches_num": 9, "branches": branches})
    snapshot.write_records(disk, DIRECTORY, store.records, store.streams.committed.values(), len(bodies), 1)
    snapshot.write_streams(disk, DIRECTORY, store.streams, len(bodies))
    for name, content in disk.files.items():
        if name.endswith(".tree"):
            yield b"\x00" + content
        elif name == snapshot.RECORDS_NAME:
            yield b"\x02" + content
        elif name == snapshot.STREAMS_NAME:
            yield b"\x03" + content[:-5]
    checkpoints = [{"source": "s", "offset": "o", "event_id": 7, "updated_at_unix": 1}]
    snapshot.write_checkpoints(disk, DIRECTORY, checkpoints)
    yield b"\x04" + disk.files[snapshot.CHECKPOINTS_NAME]


def dictionary() -> list[bytes]:
    """Return words that inputs are made of."""
    names = {name for op in OPS for name in (op.name, *op.aliases, *(field.name for field in op.fields))}
    words = (
        "18446744073709551615",
        "18446744073709551616",
        "-1",
        "1e400",
        "20260505",
        "20260229",
        "null",
        "[[",
    )
    more = (
        '"v":2',
        "\\ud800",
        "idempotency_key",
        "fingerprint",
        "bucket",
        "tree",
        "synced",
        "total",
        "month",
    )
    return [word.encode() for word in (*sorted(names), *words, *more, "replace_series", "\u2028")]

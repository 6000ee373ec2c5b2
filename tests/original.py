"""Karma 1.0 as a writer: what it logs and saves, by the rules of docs/protocol.md.

It shares no code with the server. `Original.execute` takes requests as clients send them, `Original.write`
leaves the data directory that Karma 1.0 would. What a request does is `property.model`'s to say.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgpack
from property.model import Fields, Model, Refused, day, day_at

LOGGED_IN_VAIN = {
    "counter.batch_reset": "not_found",
    "counter.batch_delete_range": "not_found",
    "ingest.commit": "validation_error",
}
"""Operations that are logged before they fail with this error."""

_NAMES = {
    "counter.increment": "increment",
    "counter.decrement": "decrement",
    "series.batch_add": "batch_add",
    "series.batch_set": "batch_set",
    "counter.reset": "reset",
    "tree.reset": "reset",
    "counter.batch_reset": "batch_reset",
    "counter.delete_range": "delete",
    "tree.delete_range": "delete",
    "counter.batch_delete_range": "batch_delete_range",
    "ingest.begin": "ingest_begin",
    "ingest.chunk": "ingest_chunk",
}
"""What fingerprints and records call an operation."""


def entry_of(op: str, fields: Fields, today: int) -> dict[str, Any]:
    """Return the log entry of a request: its fields resolved, but what ingest.begin left out stays out."""
    names = (
        "series",
        "key",
        "keys",
        "range",
        "before",
        "limit",
        "stream_id",
        "mode",
        "granularity",
        "chunk_seq",
    )
    entry = {"v": 2, "op": op, **{name: fields[name] for name in names if name in fields}}
    if op in ("counter.increment", "counter.decrement"):
        entry |= {"bucket": day(fields.get("bucket", today)), "value": fields.get("value", 1)}
    if op in ("series.batch_add", "series.batch_set"):
        entry["granularity"] = "day"
    if "items" in fields:
        entry["items"] = [[key, day(bucket), value] for key, bucket, value in fields["items"]]
    if "idempotency_key" in fields:
        entry["idempotency_key"] = str(fields["idempotency_key"])
    return entry


def fingerprint(entry: dict[str, Any]) -> str:
    """Return the fingerprint of an entry."""
    name, span = _NAMES[entry["op"]], entry.get("range", {})
    lines: list[tuple[str, Any]] = [("command", name)]
    if name.startswith("ingest_"):
        lines.append(("stream_id", entry["stream_id"]))
    if name == "ingest_begin":
        lines += [("mode", entry["mode"]), ("granularity", entry.get("granularity"))]
    else:
        lines.append(("series", entry["series"]))
    if name == "ingest_chunk":
        lines.append(("chunk_seq", entry["chunk_seq"]))
    if name in ("increment", "decrement"):
        lines += [("key", entry["key"]), ("bucket", entry["bucket"]), ("value", entry["value"])]
    if name in ("reset", "delete"):
        lines.append(("key", entry.get("key")))
    if "items" in entry:
        lines.append(("items_count", str(len(entry["items"]))))
        for item in entry["items"]:
            lines += zip(("item_key", "item_bucket", "item_value"), item, strict=True)
    if "keys" in entry:
        lines.append(("keys_count", str(len(entry["keys"]))))
        lines += [("key_value", key) for key in entry["keys"]]
    if name in ("delete", "batch_delete_range"):
        lines += [("range_from", span["from"]), ("range_to", span["to"])]
    return sha256("".join(map(_line, lines)).encode()).hexdigest()


def _line(line: tuple[str, Any]) -> str:
    name, value = line
    if value is None:
        return f"{name}:n\n"
    if isinstance(value, int):
        return f"{name}:u:{value}\n"
    return f"{name}:i:{value}\n" if name.endswith("_count") else f"{name}:s:{len(value.encode())}:{value}\n"


class Original:
    """A Karma 1.0 that was never restarted. `now` is the time of all requests, in unix seconds."""

    def __init__(self, now: int) -> None:
        self.now = now
        self.model = Model()
        self.entries: list[dict[str, Any]] = []
        self.records: dict[str, dict[str, Any]] = {}
        """Idempotency records as they are saved, by key."""
        self.committed: list[dict[str, Any]] = []
        """Committed streams as they are saved."""
        self._open: dict[str, dict[str, Any]] = {}
        self._saved: dict[str, bytes] = {}
        self._first_lsn = 1

    def execute(self, op: str, fields: Fields) -> Any:
        """Carry out a write; fields that are left out are not in `fields`. Raises Refused."""
        entry = entry_of(op, fields, day_at(self.now))
        try:
            response = self.model.execute(op, fields, self.now)
        except Refused as refusal:
            stream = self.model.streams.get(fields.get("stream_id", ""))
            if LOGGED_IN_VAIN.get(op) == refusal.code and (op != "ingest.commit" or stream is not None):
                self.entries.append(entry)
            raise
        if self.model.was_idempotent or (isinstance(response, dict) and response.get("skipped")):
            return response
        if op == "ingest.begin" and (entry["stream_id"] in self._open or response["status"] != "active"):
            return response
        self.entries.append(entry)
        self._remember(entry, response)
        return response

    def _remember(self, entry: dict[str, Any], response: Any) -> None:
        if "idempotency_key" in entry:
            self.records[entry["idempotency_key"]] = {
                "key": entry["idempotency_key"],
                "operation": _NAMES[entry["op"]],
                "fingerprint": fingerprint(entry),
                "response": response,
                "created_at_unix": self.now,
            }
        match entry["op"]:
            case "ingest.begin":
                names = ("stream_id", "mode", "granularity")
                self._open[entry["stream_id"]] = {
                    **{name: entry[name] for name in names if name in entry},
                    "last_chunk_seq": 0,
                    "begin_fingerprint": fingerprint(entry),
                    "chunk_fingerprints": {},
                }
            case "ingest.chunk":
                stream, chunk_seq = self._open[entry["stream_id"]], entry["chunk_seq"]
                stream |= {"series_name": entry["series"], "last_chunk_seq": chunk_seq}
                stream["chunk_fingerprints"][str(chunk_seq)] = fingerprint(entry)
            case "ingest.commit" if response["status"] == "committed":
                self.committed.append(self._open.pop(entry["stream_id"]) | {"committed_at_unix": self.now})
            case "ingest.abort":
                del self._open[entry["stream_id"]]
            case "idempotency.prune":
                self.records = {key: each for key, each in self.records.items() if key in self.model.records}

    def snapshot_all(self) -> bool:
        """Save everything and truncate the log; not while a stream is open, which Karma 1.0 would lose."""
        if self._open:
            return False
        last_lsn = self._first_lsn + len(self.entries) - 1
        self._saved = {"karma.wal.lsn": str(last_lsn).encode()}
        for name, counters in self.model.series.items():
            branches: list[dict[int, Any]] = [{} for _ in range(9)]
            for key, buckets in counters.items():
                branches[key % 9][key] = {"table": buckets, "total": sum(buckets.values())}
            content = msgpack.packb({"branches_num": 9, "branches": branches})
            about = {"tree": name, "timestamp": self.now, "last_lsn": last_lsn}
            self._save(f"{self.now}_{name}.tree", content, about)
        saved = {"records": list(self.records.values()), "committed_streams": self.committed}
        about = {
            "timestamp": self.now,
            "last_lsn": last_lsn,
            "record_count": len(self.records),
            "committed_stream_count": len(self.committed),
        }
        self._save("karma.idempotency.json", json.dumps(saved).encode(), about)
        self._first_lsn, self.entries = last_lsn + 1, []
        return True

    def _save(self, name: str, content: bytes, about: dict[str, Any]) -> None:
        self._saved[name] = content
        self._saved[f"{name}.meta.json"] = json.dumps(about | {"file": name, "bytes": len(content)}).encode()

    def write(self, directory: Path) -> None:
        """Write the data directory as a kill would leave it."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self._saved.items():
            (directory / name).write_bytes(content)
        lines = [
            json.dumps({"v": 2, "lsn": lsn, "entry": entry}, separators=(",", ":"))
            for lsn, entry in enumerate(self.entries, self._first_lsn)
        ]
        (directory / "karma.wal").write_text("".join(line + "\n" for line in lines))

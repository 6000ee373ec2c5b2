"""Sources that are none, or lie: a TCP server whose answers a test writes itself."""

from __future__ import annotations

import base64
import contextlib
import json
import socketserver
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self
from zlib import crc32

Answer = bytes | None
"""What is sent; None keeps silent. An answer without a newline at its end is followed by the connection's."""
Script = Callable[[dict[str, Any]], Answer]


class Peer:
    """Answers each request line with what the script returns for it; a context manager."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[dict[str, Any]] = []
        peer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                # Followers are killed, and give up in the middle of what they are sent.
                with contextlib.suppress(ConnectionError):
                    for line in self.rfile:
                        request = json.loads(line)
                        peer.requests.append(request)
                        answer = peer.script(request)
                        if answer is None:
                            continue
                        self.wfile.write(answer)
                        if not answer.endswith(b"\n"):
                            return

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> Self:
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def success(response: Any) -> bytes:
    """Return a reply line of Karma."""
    reply = {"protocol_version": 2, "success": True, "response": response, "error_code": None}
    return json.dumps(reply).encode() + b"\r\n"


def failure(code: str, message: str, **detail: Any) -> bytes:
    """Return an error line of Karma."""
    reply = {"protocol_version": 2, "success": False, "response": message, "error_code": code}
    return json.dumps(reply | ({"error_detail": detail} if detail else {})).encode() + b"\r\n"


def entry(lsn: int, body: dict[str, Any], ts_ms: int = 1_770_000_000_000) -> dict[str, Any]:
    """Return an entry of a page, with its checksum."""
    data = json.dumps(body, separators=(",", ":")).encode()
    crc = crc32(data, (lsn ^ ts_ms) & 0xFFFFFFFF)
    return {"lsn": lsn, "entry": body, "ts": ts_ms, "crc": f"{crc:08x}"}


class FakeMaster:
    """A script: an honest handshake of epoch 1, and then whatever page the test wants."""

    ABOUT = {  # noqa: RUF012 - never changed
        "node_id": "fake",
        "cluster_id": "cluster",
        "epoch": 1,
        "epoch_node_id": "fake",
        "role": "master",
        "master": None,
    }

    def __init__(self, source_lsn: int, answer: Callable[[int], Answer]) -> None:
        self.source_lsn = source_lsn
        self.answer = answer
        """Takes `after_lsn`."""

    def __call__(self, request: dict[str, Any]) -> Answer:
        if request["op"] != "replication.entries":
            return failure("not_found", "there is nothing here")
        if not request.get("handshake"):
            return self.answer(request["after_lsn"])
        history = [{"epoch": 1, "node_id": "fake", "start_lsn": 1}]
        return self.page(request["after_lsn"], [], epochs=history, path=["fake"], fenced_by=None)

    def page(self, after_lsn: int, entries: Sequence[Any], **more: Any) -> bytes:
        """Return a page with these entries."""
        return success(
            {
                "after_lsn": after_lsn,
                "count": len(entries),
                "source_lsn": self.source_lsn,
                "entries": entries,
                "next_lsn": after_lsn + len(entries),
                **self.ABOUT,
                **more,
            }
        )


class Original:
    """A script: a Karma 1.0.1 as a source, out of a data directory that one wrote."""

    PAGE_ENTRIES = 200

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        logs = [*sorted(directory.glob("karma.wal.*.segment")), directory / "karma.wal"]
        lines = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
        self.entries = {line["lsn"]: line["entry"] for line in lines}
        self.source_lsn = max(self.entries)

    def __call__(self, request: dict[str, Any]) -> Answer:
        match request["op"]:
            case "replication.entries":
                return self._page(request["after_lsn"], request.get("limit", 1000))
            case "replication.status":
                return success({"role": "master", "wal_current_lsn": self.source_lsn})
            case "snapshot.info":
                trees = [
                    json.loads(path.read_text()) | {"metadata_file": path.name}
                    for path in sorted(self._directory.glob("*.tree.meta.json"))
                ]
                return success({"latest_by_tree": trees, "idempotency_snapshot": self._about_records()})
            case "snapshot.fetch_chunk":
                path = self._directory / request["file"]
                return self._chunk(path, request)
            case "idempotency.snapshot_fetch_chunk":
                return self._chunk(self._directory / "karma.idempotency.json", request)
            case op:
                return failure("unknown_command", f"Unknown command {op}")

    def _page(self, after_lsn: int, limit: int) -> bytes:
        if after_lsn + 1 < min(self.entries):
            return failure("replication_gap", f"WAL entries after {after_lsn} are gone")
        last_lsn = min(self.source_lsn, after_lsn + min(limit, self.PAGE_ENTRIES))
        found = [{"lsn": lsn, "entry": self.entries[lsn]} for lsn in range(after_lsn + 1, last_lsn + 1)]
        return success(
            {
                "after_lsn": after_lsn,
                "limit": limit,
                "byte_limit": 1_046_528,
                "entries_bytes": len(json.dumps(found)),
                "truncated_by_bytes": False,
                "count": len(found),
                "source_lsn": self.source_lsn,
                "entries": found,
                "next_lsn": after_lsn + len(found),
            }
        )

    def _about_records(self) -> Any:
        path = self._directory / "karma.idempotency.json.meta.json"
        return json.loads(path.read_text()) if path.exists() else None

    @staticmethod
    def _chunk(path: Path, request: dict[str, Any]) -> bytes:
        metadata = json.loads(path.with_name(path.name + ".meta.json").read_text())
        data, offset, limit = path.read_bytes(), request.get("offset", 0), request.get("limit", 262_144)
        part = data[offset : offset + limit]
        return success(
            {
                "metadata": metadata,
                "offset": offset,
                "limit": limit,
                "bytes": len(part),
                "total_bytes": len(data),
                "next_offset": offset + len(part),
                "done": offset + len(part) == len(data),
                "data_base64": base64.b64encode(part).decode(),
            }
        )

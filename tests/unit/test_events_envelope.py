"""The envelope: what it takes, what it refuses, and in which words."""

from typing import Any

import orjson
import pytest

from karma_events import Envelope, InvalidEventError, Source
from karma_events.envelope import MAX_EVENT_BYTES

FIELDS: dict[str, Any] = {
    "idempotency_key": "run-7/drain/1/done",
    "ts": 1777925811123,
    "event_type": "action.progress",
    "entity_id": "prod",
    "correlation_id": "run-7",
    "source": {"system": "karmactl", "ns": "playbooks"},
    "tags": {"action_id": "run-7"},
    "attrs": {"step": "drain", "lag": [0, 1.5, None, True, {"deep": -1}]},
}


def test_it_is_read_as_it_is_written() -> None:
    data = orjson.dumps(FIELDS)
    envelope = Envelope.parse(data)
    assert (envelope.ts_ms, envelope.source) == (1777925811123, Source("karmactl", "playbooks"))
    assert envelope.encode() == data
    assert Envelope.parse(envelope.encode()) == envelope


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ts": "now"}, "ts is 'now', and must be unix milliseconds"),
        ({"ts": True}, "ts is True"),
        ({"ts": -1}, "ts is -1"),
        ({"ts": 10**16}, "ts is 1"),
        ({"event_type": "Action Started"}, "event_type is 'Action Started', and must be words with dots"),
        ({"event_type": "a." + "b" * 100}, "1 to 100 printable characters"),
        ({"entity_id": ""}, "entity_id is ''"),
        ({"entity_id": 7}, "entity_id is 7"),
        ({"correlation_id": "a\x1b[31m"}, "correlation_id is"),
        ({"idempotency_key": "k" * 301}, "1 to 300 printable characters"),
        ({"source": "karmactl"}, "source is 'karmactl', and must be an object with system and ns"),
        ({"source": {"system": "karmactl"}}, "source lacks ns"),
        ({"source": {"system": "a", "ns": "b", "host": "c"}}, "source has unknown fields: 'host'"),
        ({"tags": {"a": 1}}, "tag a is 1"),
        ({"tags": {str(n): "x" for n in range(33)}}, "tags has 33 entries, and must be at most 32"),
        ({"tags": []}, "tags is [], and must be an object of texts"),
        ({"attrs": [1]}, "attrs is [1], and must be a JSON object"),
        ({"attrs": {"a": 2**64 - 1, "text": "x" * MAX_EVENT_BYTES}}, "at most 65536"),
        ({"colour": "red"}, "the event has unknown fields: 'colour'"),
    ],
)
def test_what_is_not_as_it_must_be_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidEventError) as refused:
        Envelope.parse(orjson.dumps(FIELDS | changes))
    assert words in refused.value.message
    assert "docs/events.md" in refused.value.advice


@pytest.mark.parametrize(
    "attrs",
    [
        {"a": (1, 2)},
        {"a": float("nan")},
        {"a": float("inf")},
        {"a": 2**64},
        {"a": -(2**63) - 1},
        {"a": b"bytes"},
        {"a": {1: 2}},
        {"a": object()},
        {"a": "half a pair: \ud800"},
    ],
)
def test_what_json_would_spell_otherwise_is_refused(attrs: dict[str, Any]) -> None:
    with pytest.raises(InvalidEventError):
        _made(attrs)


def test_attrs_may_be_deep_but_not_bottomless() -> None:
    def nested(depth: int) -> dict[str, Any]:
        value: dict[str, Any] = {}
        for _ in range(depth - 1):
            value = {"a": value}
        return value

    assert _made(nested(16)).attrs == nested(16)
    with pytest.raises(InvalidEventError, match="nested too deeply"):
        _made(nested(17))
    with pytest.raises(InvalidEventError):
        Envelope.parse(b'{"a":' * 100_000)


def _made(attrs: dict[str, Any]) -> Envelope:
    return Envelope(
        idempotency_key="k",
        ts_ms=1,
        event_type="a",
        entity_id="e",
        correlation_id="c",
        source=Source("s", "n"),
        attrs=attrs,
    )


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{", b'{"ts":NaN}', b"\xff"])
def test_what_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidEventError):
        Envelope.parse(data)


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_must_be_there(name: str) -> None:
    fields = {key: value for key, value in FIELDS.items() if key != name}
    with pytest.raises(InvalidEventError, match=f"the event lacks {name}"):
        Envelope.parse(orjson.dumps(fields))

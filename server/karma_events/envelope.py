"""The envelope: one form for everything that happens.

    {"idempotency_key":"run-7/drain/1/done","ts":1777925811123,"event_type":"action.progress",
     "entity_id":"prod","correlation_id":"run-7","source":{"system":"karmactl","ns":"playbooks"},
     "tags":{"action_id":"run-7"},"attrs":{"step":"drain"}}

All fields are there, in this order, and no others. `ts` is when it happened, in unix milliseconds;
`entity_id` what it happened to; events of one incident share a `correlation_id`. `tags` are texts to filter
by, `attrs` is any JSON object. An event whose `idempotency_key` its topic has already is the same event.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn, Self

import orjson

from karma_events.errors import InvalidEventError

MAX_EVENT_BYTES = 65_536
"""As JSON. Events say what happened; what was printed while it did belongs into a file."""
MAX_TS_MS = 253_402_300_799_999
"""The end of the year 9999, past which no clock of ours can spell a time."""
MAX_TYPE_CHARS = 100
MAX_ID_CHARS = 300
"""Room for `run/step/attempt/phase` with names that people chose."""
MAX_TAGS = 32
MAX_TAG_NAME_CHARS = 64
MAX_TAG_CHARS = 300
MAX_DEPTH = 16
"""Objects and arrays in each other in `attrs`: deep enough for facts, too shallow to exhaust a parser."""
_MIN_INTEGER, _MAX_INTEGER = -(2**63), 2**64 - 1

_TYPE = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*")
_FIELDS = (
    "idempotency_key",
    "ts",
    "event_type",
    "entity_id",
    "correlation_id",
    "source",
    "tags",
    "attrs",
)


class Source(NamedTuple):
    """Who says so: the program, and within it the part or installation."""

    system: str
    ns: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """One event, checked: making one that is not as the module says raises InvalidEventError."""

    idempotency_key: str
    ts_ms: int
    """When it happened, unix milliseconds; `ts` as JSON."""
    event_type: str
    entity_id: str
    correlation_id: str
    source: Source
    tags: Mapping[str, str] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if type(self.ts_ms) is not int or not 0 <= self.ts_ms <= MAX_TS_MS:
            _refuse("ts", f"is {self.ts_ms!r}", "unix milliseconds up to the year 9999")
        for name in ("idempotency_key", "entity_id", "correlation_id"):
            _check_text(name, getattr(self, name), MAX_ID_CHARS)
        _check_text("event_type", self.event_type, MAX_TYPE_CHARS)
        if not _TYPE.fullmatch(self.event_type):
            _refuse("event_type", f"is {_short(self.event_type)}", "words with dots, as action.started")
        _check_text("source.system", self.source.system, MAX_TYPE_CHARS)
        _check_text("source.ns", self.source.ns, MAX_TYPE_CHARS)
        _check_tags(self.tags)
        if not isinstance(self.attrs, dict):
            _refuse("attrs", f"is {_short(self.attrs)}", "a JSON object")
        _check_json("attrs", self.attrs, 1)
        size_bytes = len(self.encode())
        if size_bytes > MAX_EVENT_BYTES:
            _refuse("the event", f"has {size_bytes} bytes", f"at most {MAX_EVENT_BYTES}")

    def fields(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "idempotency_key": self.idempotency_key,
            "ts": self.ts_ms,
            "event_type": self.event_type,
            "entity_id": self.entity_id,
            "correlation_id": self.correlation_id,
            "source": {"system": self.source.system, "ns": self.source.ns},
            "tags": self.tags,
            "attrs": self.attrs,
        }

    def encode(self) -> bytes:
        """Return it as JSON, without spaces."""
        try:
            return orjson.dumps(self.fields())
        except orjson.JSONEncodeError:
            # What is left to go wrong once the fields are checked: half a surrogate pair in some text.
            _refuse("the event", "holds a text that is no Unicode", "valid UTF-8")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Return the event that a JSON text says, strictly. Raises InvalidEventError."""
        try:
            found = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise InvalidEventError(f"the event is not valid JSON: {error}", _ADVICE) from None
        return cls.of(found)

    @classmethod
    def of(cls, found: Any) -> Self:
        """Return the event that a JSON object says, strictly. Raises InvalidEventError."""
        if not isinstance(found, dict):
            _refuse("the event", f"is {_short(found)}", "a JSON object")
        _check_names("the event", found, _FIELDS)
        source = found["source"]
        if not isinstance(source, dict):
            _refuse("source", f"is {_short(source)}", "an object with system and ns")
        _check_names("source", source, Source._fields)
        return cls(
            idempotency_key=found["idempotency_key"],
            ts_ms=found["ts"],
            event_type=found["event_type"],
            entity_id=found["entity_id"],
            correlation_id=found["correlation_id"],
            source=Source(source["system"], source["ns"]),
            tags=found["tags"],
            attrs=found["attrs"],
        )


class Event(NamedTuple):
    """An event and the topic it belongs to."""

    topic: str
    envelope: Envelope


class Recorded(NamedTuple):
    """An event as a topic has it. Offsets of a topic begin at 1 and rise by one."""

    topic: str
    offset: int
    envelope: Envelope


# -- Checks -----------------------------------------------------------------------------------------------

_ADVICE = "the program that makes this event must be mended; docs/events.md has the form"


def _refuse(name: str, found: str, wanted: str) -> NoReturn:
    raise InvalidEventError(f"{name} {found}, and must be {wanted}", _ADVICE)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _check_names(what: str, found: Mapping[str, Any], wanted: tuple[str, ...]) -> None:
    missing = [name for name in wanted if name not in found]
    unknown = [_short(name) for name in found if name not in wanted]
    if missing:
        raise InvalidEventError(f"{what} lacks {', '.join(missing)}", _ADVICE)
    if unknown:
        raise InvalidEventError(f"{what} has unknown fields: {', '.join(unknown)}", _ADVICE)


def _check_text(name: str, value: Any, most_chars: int) -> None:
    if not isinstance(value, str) or not value or len(value) > most_chars or not value.isprintable():
        # Printable, because these are shown in tables, and sought by typing them.
        _refuse(name, f"is {_short(value)}", f"1 to {most_chars} printable characters")


def _check_tags(tags: Any) -> None:
    if not isinstance(tags, dict):
        _refuse("tags", f"is {_short(tags)}", "an object of texts")
    if len(tags) > MAX_TAGS:
        _refuse("tags", f"has {len(tags)} entries", f"at most {MAX_TAGS}")
    for name, value in tags.items():
        _check_text("the name of a tag", name, MAX_TAG_NAME_CHARS)
        _check_text(f"tag {name}", value, MAX_TAG_CHARS)


def _check_json(place: str, value: Any, depth: int) -> None:
    """Refuse what would be read back as something else: tuples, dates, NaN, large integers."""
    if value is None or isinstance(value, bool | str):
        return
    if depth > MAX_DEPTH:
        _refuse("attrs", "is nested too deeply", f"at most {MAX_DEPTH} objects and arrays deep")
    if type(value) is int and _MIN_INTEGER <= value <= _MAX_INTEGER:
        return
    if type(value) is float and math.isfinite(value):
        return
    if type(value) is list:
        for number, each in enumerate(value):
            _check_json(f"{place}[{number}]", each, depth + 1)
    elif type(value) is dict:
        for name, each in value.items():
            if not isinstance(name, str):
                _refuse(place, f"has a name {_short(name)}", "an object whose names are texts")
            _check_json(f"{place}.{name}", each, depth + 1)
    else:
        _refuse(place, f"is {_short(value)}", "JSON: null, true, text, number of 64 bits, array or object")

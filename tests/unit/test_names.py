"""The names of fields, generated from the op table: null is not "left out", and what is unknown is said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from karma.core.store import Store
from karma.engine import Engine, Settings
from karma.ops import OPS, Op

NOW_MS = 1_777_982_400_000
ONCE = ("idempotency_key", "fingerprint")


def names_of(op: Op) -> list[str]:
    """Every name of every field that a request of an operation may have, the envelope aside."""
    names = [name for field in op.fields for name in (field.name, *field.aliases)]
    return [*names, *(ONCE if op.idempotent else ())]


def engine(*, strict_fields: bool = False) -> Engine:
    found = Engine(Store(), Settings(strict_fields=strict_fields, legacy_protocol=True))
    found.begin_pass(NOW_MS)
    found.execute(request("counter.increment", series="api_requests", key=42))
    return found


def request(op: str, **fields: Any) -> bytes:
    return json.dumps({"v": 2, "op": op, **fields}).encode()


def refusal(engine: Engine, op: Op, **fields: Any) -> str:
    """Return why a request is refused, which must change nothing."""
    before = list(engine.entries)
    outcome = engine.execute(request(op.name, **fields))
    assert isinstance(outcome, bytes), (op.name, fields)
    reply = json.loads(outcome)
    assert reply["error_code"] == "validation_error", (op.name, fields, reply)
    assert engine.entries == before
    message: str = reply["response"]
    return message


def example(op: Op) -> dict[str, Any]:
    return dict(op.example or {})


def elements() -> Iterator[tuple[Op, str, dict[str, Any]]]:
    """Operations with objects in a field: the field, and an object that is fine."""
    for op in OPS:
        for field in op.fields:
            if field.element:
                yield op, field.name, dict(example(op)[field.name][0])


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_null_is_refused_in_every_field_but_a_cursor(op: Op) -> None:
    found = engine()
    for name in names_of(op):
        if name != "cursor":
            message = refusal(found, op, **{**example(op), name: None})
            assert f"Field {name} must not be null" in message


def test_a_null_cursor_is_the_first_page() -> None:
    pages = [op for op in OPS if "cursor" in names_of(op)]
    assert "tree.keys" in [op.name for op in pages]
    for op in pages:
        found = engine()
        found.execute(request(op.name, **{**example(op), "cursor": None}))
        assert found.counters.errors == 0


@pytest.mark.parametrize(
    ("op", "field", "element"), list(elements()), ids=lambda value: getattr(value, "name", None)
)
def test_objects_within_a_request_refuse_nulls_and_unknown_names(
    op: Op, field: str, element: dict[str, Any]
) -> None:
    found = engine()
    (of,) = [each.element for each in op.fields if each.name == field]
    for name in [name for each in of for name in (each.name, *each.aliases)]:
        assert f"Field {name} within {field} must not be null" in refusal(
            found, op, **{**example(op), field: [element, {**element, name: None}]}
        )
    message = refusal(found, op, **{**example(op), field: [element, {**element, "kye": 1}]})
    assert f"Field kye is unknown within {field} of {op.name}; did you mean key?" in message


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_an_unknown_field_is_counted_or_refused(op: Op) -> None:
    lenient, strict = engine(), engine(strict_fields=True)
    replies = [lenient.execute(request(op.name, **example(op)))]
    assert lenient.counters.unknown_fields == 0
    replies.append(lenient.execute(request(op.name, **example(op), surprise=None)))
    replies.append(lenient.execute(request(op.name, **example(op), surprise=1, another=1)))
    assert lenient.counters.unknown_fields == 2
    # Another reason, such as a series that is gone, is one without these fields, too.
    assert "surprise" not in str(replies)
    assert f"Field surprise is unknown to {op.name}; " in refusal(strict, op, **example(op), surprise=1)
    assert strict.counters.unknown_fields == 0


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_a_misspelt_field_is_refused_with_the_one_that_was_meant(op: Op) -> None:
    strict = engine(strict_fields=True)
    for name in names_of(op):
        misspelt = f"{name}s"
        if misspelt not in names_of(op):
            message = refusal(strict, op, **{**example(op), misspelt: 1})
            assert f"Field {misspelt} is unknown to {op.name}; did you mean {name}?" in message


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_every_field_of_the_table_is_known(op: Op) -> None:
    strict = engine(strict_fields=True)
    outcome = strict.execute(request(op.name, **{name: [[]] for name in names_of(op)}, token="t"))
    assert "unknown" not in str(outcome)


def test_a_misspelt_value_does_not_count_as_one() -> None:
    found = engine(strict_fields=True)
    message = json.loads(found.execute(request("counter.increment", series="a", key=1, valu=5)))["response"]  # type: ignore[arg-type]
    assert message == "Field valu is unknown to counter.increment; did you mean value?"
    assert "a" not in found.store.series


def test_a_name_of_any_length_is_quoted_in_part() -> None:
    (op,) = [op for op in OPS if op.name == "counter.sum"]
    message = refusal(engine(strict_fields=True), op, series="a", key=1, **{"x" * 100_000: 1})
    assert len(message) < 400


def test_the_first_protocol_may_send_null() -> None:
    found = engine(strict_fields=True)
    line = {"command": "increment", "tree_name": "api_requests", "key": 42, "value": None, "time_from": None}
    reply = json.loads(found.execute(json.dumps(line).encode()))  # type: ignore[arg-type]
    assert reply == {"success": True, "response": 1}

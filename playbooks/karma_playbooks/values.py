"""Values of a playbook: whole references, texts with references in them, conditions. No code, no expressions.

    {ref: steps.drain.lsn}              the value itself, whatever its type
    "epoch ${cluster.next_epoch}"       a text; `$$` is a dollar
    {eq: [{ref: cluster.master}, a]}    a condition: one operator of `OPERATORS` with its operands

What is known only while a playbook runs (`steps`, `run`) is filled in then. So there are two forms: a book's
values, which only `resolve` reads, once, when a plan is made; and a plan's, which only `complete` reads. In
a plan a text is literal, whatever is in it, and what is still open is marked:

    {ref: steps.drain.lsn}              a value
    {$text: [id=, {ref: run.id}]}       a text
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from karma_playbooks.errors import PlaybookError

Lookup = Callable[[str], Any]
"""Returns what a dotted name stands for. Raises KeyError with a sentence for an unknown name, and `Later`."""

_NAME = r"[a-z][a-z0-9_]*(?:\.[a-z0-9][a-z0-9_-]*)+"
_WHOLE = re.compile(_NAME)


class Later(Exception):  # noqa: N818  an answer, not an error
    """A reference that nothing can tell before the playbook runs."""


_REFERENCE = re.compile(rf"\$(?:(?P<escaped>\$)|\{{(?P<name>{_NAME})\}}|(?P<invalid>))")
"""Only ${a.b}: a bare $name in a command would be taken for a shell's variable by every reader."""
_TEXT = "$text"

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda a, b: bool(a == b),
    "ne": lambda a, b: bool(a != b),
    "lt": lambda a, b: a is not None and bool(a < b),
    "le": lambda a, b: a is not None and bool(a <= b),
    "gt": lambda a, b: a is not None and bool(a > b),
    "ge": lambda a, b: a is not None and bool(a >= b),
    "in": lambda a, b: a in b,
}
"""Comparisons of two operands. Next to them there are `all`, `any` (lists of conditions) and `not` (one)."""
CONNECTIVES = ("all", "any", "not")


def is_reference(value: Any) -> bool:
    """Return whether a value is `{ref: NAME}`."""
    return isinstance(value, Mapping) and set(value) == {"ref"} and isinstance(value["ref"], str)


def references(value: Any) -> Iterator[str]:
    """Yield every name that a value refers to. Raises PlaybookError for a text with a `$` that is none."""
    if is_reference(value):
        yield value["ref"]
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from references(each)
    elif isinstance(value, str):
        for part in _parts(value, _later):
            if is_reference(part):
                yield part["ref"]


def _later(name: str) -> Any:
    raise Later(name)


def is_name(text: str) -> bool:
    """Return whether a text has the form of a reference's name."""
    return _WHOLE.fullmatch(text) is not None


def resolve(value: Any, lookup: Lookup) -> Any:
    """Return a book's value as a plan holds it. What is `Later` stays open. Raises PlaybookError."""
    if is_reference(value):
        return _looked_up(value["ref"], lookup)
    if isinstance(value, Mapping):
        if _TEXT in value:
            raise PlaybookError(f"{_TEXT} cannot be a field")
        return {name: resolve(item, lookup) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [resolve(item, lookup) for item in value]
    if isinstance(value, str) and "$" in value:
        parts = [part for part in _parts(value, lookup) if part != ""]
        return {_TEXT: parts} if any(map(is_reference, parts)) else "".join(map(str, parts))
    return value


def _looked_up(name: str, lookup: Lookup) -> Any:
    try:
        return _value_of(name, lookup)
    except Later:
        return {"ref": name}


def _parts(text: str, lookup: Lookup) -> Iterator[Any]:
    """Yield the literal pieces of a text and the values in between."""
    end = 0
    for match in _REFERENCE.finditer(text):
        if match["invalid"] is not None:
            raise PlaybookError(f'"{text}" has a $ that begins no reference: write ${{a.b}}, or $$')
        yield text[end : match.start()]
        yield "$" if match["escaped"] else _looked_up(match["name"], lookup)
        end = match.end()
    yield text[end:]


def is_open(value: Any) -> bool:
    """Return whether a plan's value has something in it that only the run can tell."""
    if isinstance(value, Mapping):
        return is_reference(value) or set(value) == {_TEXT} or any(map(is_open, value.values()))
    return isinstance(value, list | tuple) and any(map(is_open, value))


def complete(value: Any, lookup: Lookup) -> Any:
    """Return a plan's value with everything filled in that was open. Raises PlaybookError."""
    if is_reference(value):
        return _value_of(value["ref"], lookup)
    if isinstance(value, Mapping):
        if set(value) == {_TEXT}:
            return "".join(str(complete(part, lookup)) for part in value[_TEXT])
        return {name: complete(item, lookup) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [complete(item, lookup) for item in value]
    return value


def shown(value: Any) -> Any:
    """Return a plan's value for people: an open text as a book has it, `$$` being a dollar."""
    if isinstance(value, Mapping):
        if set(value) == {_TEXT}:
            return "".join(
                f"${{{part['ref']}}}" if is_reference(part) else str(part).replace("$", "$$")
                for part in value[_TEXT]
            )
        return {name: shown(item) for name, item in value.items()}
    return [shown(item) for item in value] if isinstance(value, list | tuple) else value


def _value_of(name: str, lookup: Lookup) -> Any:
    try:
        return lookup(name)
    except KeyError as error:
        raise PlaybookError(f"{name}: {error.args[0]}") from error


def holds(condition: Any, lookup: Lookup) -> bool:
    """Return whether a book's condition holds. Raises PlaybookError, and Later when it cannot be told yet."""

    def value_of(operand: Any) -> Any:
        value = resolve(operand, lookup)
        if is_open(value):
            raise Later
        return value

    return _holds(condition, value_of)


def is_met(condition: Any) -> bool:
    """Return whether a condition holds in which everything is filled in. Raises PlaybookError."""
    return _holds(condition, lambda operand: operand)


def _holds(condition: Any, value_of: Callable[[Any], Any]) -> bool:
    if is_reference(condition) or not isinstance(condition, Mapping):
        return bool(value_of(condition))
    if len(condition) != 1:
        raise PlaybookError(f"{condition!r} is not a condition: write one operator, as {{eq: [a, b]}}")
    ((operator, operands),) = condition.items()
    match operator:
        case "all":
            return all(_holds(each, value_of) for each in operands)
        case "any":
            return any(_holds(each, value_of) for each in operands)
        case "not":
            return not _holds(operands, value_of)
    if operator not in OPERATORS:
        raise PlaybookError(f"there is no operator {operator}; there are {', '.join(OPERATORS)}")
    left, right = map(value_of, operands)
    try:
        return OPERATORS[operator](left, right)
    except TypeError as error:
        raise PlaybookError(f"{left!r} and {right!r} cannot be compared by {operator}") from error


def fits(found: Any, wanted: Any) -> bool:
    """Return whether a value is as expected: equal, or as `{ge: 5}` says of it."""
    if isinstance(wanted, Mapping) and len(wanted) == 1 and next(iter(wanted)) in OPERATORS:
        ((operator, operand),) = wanted.items()
        return OPERATORS[operator](found, operand)
    return bool(found == wanted)

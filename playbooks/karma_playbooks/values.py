"""Values of a playbook: whole references, texts with references in them, conditions. No code, no expressions.

    {ref: steps.drain.lsn}              the value itself, whatever its type
    "epoch ${cluster.next_epoch}"       a text; `$$` is a dollar
    {eq: [{ref: cluster.master}, a]}    a condition: one operator of `OPERATORS` with its operands

What is known only while a playbook runs (`steps`, `run`) stays as it is until then: `resolve` leaves it
alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from string import Template
from typing import Any

from karma_playbooks.errors import PlaybookError

Lookup = Callable[[str], Any]
"""Returns what a dotted name stands for. Raises KeyError with a sentence for an unknown name, and `Later`."""

_NAME = r"[a-z][a-z0-9_]*(?:\.[a-z0-9][a-z0-9_-]*)+"
_WHOLE = re.compile(_NAME)


class Later(Exception):  # noqa: N818  an answer, not an error
    """A reference that nothing can tell before the playbook runs."""


class _Text(Template):
    # Only ${a.b}: a bare $name in a command would be taken for a shell's variable by every reader.
    pattern = rf"""\$(?:(?P<escaped>\$)|\{{(?P<braced>{_NAME})\}}|(?P<named>(?!))|(?P<invalid>))"""  # type: ignore[assignment]


OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda a, b: bool(a == b),
    "ne": lambda a, b: bool(a != b),
    "lt": lambda a, b: a is not None and bool(a < b),
    "le": lambda a, b: a is not None and bool(a <= b),
    "gt": lambda a, b: a is not None and bool(a > b),
    "ge": lambda a, b: a is not None and bool(a >= b),
    "in": lambda a, b: a in b,
}
"""Comparisons of two operands. Beside them there are `all`, `any` (lists of conditions) and `not` (one)."""
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
        for found in _Text.pattern.finditer(value):  # type: ignore[attr-defined]
            if found["invalid"] is not None:
                raise PlaybookError(f'"{value}" has a $ that begins no reference: write ${{a.b}}, or $$')
            if found["braced"]:
                yield found["braced"]


def is_name(text: str) -> bool:
    """Return whether a text has the form of a reference's name."""
    return _WHOLE.fullmatch(text) is not None


def resolve(value: Any, lookup: Lookup) -> Any:
    """Return a value with its references replaced; those that are `Later` stay. Raises PlaybookError."""
    if is_reference(value):
        try:
            return _found(value["ref"], lookup)
        except Later:
            return value
    if isinstance(value, Mapping):
        return {name: resolve(each, lookup) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [resolve(each, lookup) for each in value]
    if isinstance(value, str) and "$" in value:
        try:
            names = {name: _found(name, lookup) for name in references(value)}
        except Later:
            return value
        return _Text(value).substitute(names)
    return value


def _found(name: str, lookup: Lookup) -> Any:
    try:
        return lookup(name)
    except KeyError as error:
        raise PlaybookError(f"{name}: {error.args[0]}") from error


def holds(condition: Any, lookup: Lookup) -> bool:
    """Return whether a condition holds. Raises PlaybookError when it cannot be told, Later when not yet."""
    if isinstance(condition, bool):
        return condition
    if is_reference(condition):
        return bool(_found(condition["ref"], lookup))
    if not isinstance(condition, Mapping) or len(condition) != 1:
        raise PlaybookError(f"{condition!r} is no condition: write one operator, as {{eq: [a, b]}}")
    ((operator, operands),) = condition.items()
    match operator:
        case "all":
            return all(holds(each, lookup) for each in operands)
        case "any":
            return any(holds(each, lookup) for each in operands)
        case "not":
            return not holds(operands, lookup)
    left, right = (_found(each["ref"], lookup) if is_reference(each) else each for each in operands)
    try:
        return OPERATORS[operator](left, resolve(right, lookup))
    except TypeError as error:
        raise PlaybookError(f"{left!r} and {right!r} cannot be compared by {operator}") from error


def fits(found: Any, wanted: Any) -> bool:
    """Return whether a value is as expected: equal, or as `{ge: 5}` says of it."""
    if isinstance(wanted, Mapping) and len(wanted) == 1 and next(iter(wanted)) in OPERATORS:
        ((operator, operand),) = wanted.items()
        return OPERATORS[operator](found, operand)
    return bool(found == wanted)

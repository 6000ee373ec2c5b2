"""The field names of a request: only those of its operation, and no null in place of a missing value."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from karma.limits import MAX_QUOTED_CHARACTERS
from karma.ops import Field, Op
from karma.protocol.fields import invalid

_ENVELOPE = ("v", "op", "token")
_IDEMPOTENCY = ("idempotency_key", "fingerprint")
_NULLABLE = "cursor"
"""The one field whose null means something: the first page."""


@dataclass(frozen=True, slots=True)
class Names:
    """The field names that requests of one operation may have, from its row of the op table."""

    op: str
    all: frozenset[str]
    elements: Mapping[str, frozenset[str]]
    """For each field that is an array of objects: the names that these may have."""

    @classmethod
    def of(cls, op: Op) -> Names:
        """Return the names of an operation."""
        idempotency = _IDEMPOTENCY if op.idempotent else ()
        return cls(
            op.name,
            _names(op.fields).union(_ENVELOPE, idempotency),
            {field.name: _names(field.element) for field in op.fields if field.element},
        )

    def check(self, request: Mapping[str, Any]) -> str | None:
        """Return the first field that the operation does not have, None without one.

        Raises RequestError for a null, and for an unknown name in an object within the request.
        """
        if None in request.values():
            self._refuse_null(request, self.all, "")
        for name, allowed in self.elements.items():
            objects = request.get(name)
            for element in objects if type(objects) is list else ():
                if type(element) is not dict:
                    continue
                if not element.keys() <= allowed:
                    raise invalid(self._unknown(_first(element, allowed), allowed, f"within {name} of "))
                if None in element.values():
                    self._refuse_null(element, allowed, f" within {name}")
        return None if request.keys() <= self.all else _first(request, self.all)

    def unknown(self, name: str) -> str:
        """Return the message for a field that the operation does not have."""
        return self._unknown(name, self.all, "")

    def _unknown(self, name: str, allowed: frozenset[str], where: str) -> str:
        quoted = name[:MAX_QUOTED_CHARACTERS]
        close = difflib.get_close_matches(quoted, allowed, n=1)
        advice = f"did you mean {close[0]}?" if close else f"it has {', '.join(sorted(allowed))}"
        return f"Field {quoted} is unknown {where or 'to '}{self.op}; {advice}"

    @staticmethod
    def _refuse_null(fields: Mapping[str, Any], allowed: frozenset[str], where: str) -> None:
        for name, value in fields.items():
            if value is None and name in allowed and name not in (_NULLABLE, *_ENVELOPE):
                raise invalid(f"Field {name}{where} must not be null; leave it out if it has no value")


def _names(fields: Iterable[Field]) -> frozenset[str]:
    return frozenset(name for field in fields for name in (field.name, *field.aliases))


def _first(names: Iterable[str], allowed: frozenset[str]) -> str:
    return next(name for name in names if name not in allowed)

"""The names of a request's fields: only those that its operation has, and none with null for "left out"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from karma.limits import MAX_QUOTED_CHARACTERS
from karma.ops import Field, Op
from karma.protocol.fields import invalid

_OF_EVERY_REQUEST = ("v", "op", "token")
_OF_WRITES_ONCE = ("idempotency_key", "fingerprint")
_NULLABLE = "cursor"
"""The one field whose null means something: the first page."""


@dataclass(frozen=True, slots=True)
class Names:
    """What the requests of one operation may be made of, from its row of the op table."""

    op: str
    all: frozenset[str]
    elements: Mapping[str, frozenset[str]]
    """By the name of a field that is an array of objects: the names that those may have."""

    @classmethod
    def of(cls, op: Op) -> Names:
        """Return the names of an operation."""
        once = _OF_WRITES_ONCE if op.idempotent else ()
        return cls(
            op.name,
            _names(op.fields).union(_OF_EVERY_REQUEST, once),
            {field.name: _names(field.element) for field in op.fields if field.element},
        )

    def check(self, request: Mapping[str, Any]) -> str | None:
        """Return the first field that the operation does not have, None when it has all.

        Raises RequestError for a null, and for a name that objects within the request do not have.
        """
        if None in request.values():
            self._refuse_null(request, self.all, "")
        for name, known in self.elements.items():
            objects = request.get(name)
            for element in objects if type(objects) is list else ():
                if type(element) is not dict:
                    continue
                if not element.keys() <= known:
                    raise invalid(self._unknown(_first(element, known), known, f"within {name} of "))
                if None in element.values():
                    self._refuse_null(element, known, f" within {name}")
        return None if request.keys() <= self.all else _first(request, self.all)

    def unknown(self, name: str) -> str:
        """Return what to say of a field that the operation does not have."""
        return self._unknown(name, self.all, "")

    def _unknown(self, name: str, known: frozenset[str], where: str) -> str:
        quoted = name[:MAX_QUOTED_CHARACTERS]
        close = difflib.get_close_matches(quoted, known, n=1)
        advice = f"did you mean {close[0]}?" if close else f"there is {', '.join(sorted(known))}"
        return f"Field {quoted} is unknown {where or 'to '}{self.op}; {advice}"

    @staticmethod
    def _refuse_null(fields: Mapping[str, Any], known: frozenset[str], where: str) -> None:
        for name, value in fields.items():
            if value is None and name in known and name not in (_NULLABLE, *_OF_EVERY_REQUEST):
                raise invalid(f"Field {name}{where} must not be null; leave it out if it has no value")


def _names(fields: Iterable[Field]) -> frozenset[str]:
    return frozenset(name for field in fields for name in (field.name, *field.aliases))


def _first(fields: Iterable[str], known: frozenset[str]) -> str:
    return next(name for name in fields if name not in known)

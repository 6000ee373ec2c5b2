"""Listings in pages: as many rows as a reply may hold, and a cursor for the next ones. No input or output.

A cursor names the last row by what it is sorted by, so it holds its place when rows before or behind it go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import orjson

from karma.limits import PAGE_DEFAULT_LIMIT, PAGE_MAX_CURSOR_BYTES, PAGE_MAX_LIMIT, PAGE_RESERVE_BYTES
from karma.protocol import fields

T = TypeVar("T")


class Page(NamedTuple):
    """Which rows of a listing to show: so many behind the cursor, or from the beginning."""

    limit: int
    cursor: str | None


def requested(request: dict[str, Any]) -> Page | None:
    """Return the page that a request asks for, None when it asks for the whole. Raises RequestError."""
    if "limit" not in request and "cursor" not in request:
        return None
    cursor = None
    if request.get("cursor") is not None:
        cursor = fields.text(request, "cursor", PAGE_MAX_CURSOR_BYTES)
    return Page(fields.limit(request, "limit", PAGE_DEFAULT_LIMIT, PAGE_MAX_LIMIT), cursor)


def fill(
    page: Page,
    rows: Iterable[T],
    show: Callable[[T], Any],
    cursor_of: Callable[[T], str],
    max_response_bytes: int,
) -> tuple[list[Any], str | None]:
    """Return a page's rows as they are shown, and the next cursor, None at the end.

    `rows` begin behind the page's cursor. A page also ends before `max_response_bytes`, where that is not 0.
    """
    left_bytes = max(max_response_bytes - PAGE_RESERVE_BYTES, max_response_bytes // 2)
    shown: list[Any] = []
    last: T | None = None
    for row in rows:
        one = show(row)
        left_bytes -= len(orjson.dumps(one)) + 1
        if last is not None and (len(shown) == page.limit or (max_response_bytes and left_bytes < 0)):
            return shown, cursor_of(last)
        shown.append(one)
        last = row
    return shown, None

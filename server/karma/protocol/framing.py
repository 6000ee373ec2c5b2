"""Bytes from a socket cut into request lines."""

from __future__ import annotations

from karma.errors import ErrorCode, RequestError


class Framer:
    """Collects bytes and gives out whole lines, without their line end.

    A line may end in LF or CR LF. `max_request_bytes` bounds a line without its end; the first
    longer one stops the framer for good, because nothing tells where the next request begins.
    """

    __slots__ = ("_max_request_bytes", "_rest", "error")

    def __init__(self, max_request_bytes: int) -> None:
        self._max_request_bytes = max_request_bytes
        self._rest: bytes | bytearray = b""
        self.error: RequestError | None = None
        """Set once a line was too long; the lines before it were still given out."""

    @property
    def buffered_bytes(self) -> int:
        """Bytes of a line that has not ended yet."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """Take what was read and return the lines that it completes."""
        if self.error is not None:
            return []
        if self._rest:
            self._rest += data
            if b"\n" not in data:
                # Looked for in what is new only: a long line that comes byte by byte would cost its square.
                return self._overrun([]) if len(self._rest) > self._max_request_bytes + 1 else []
            data = bytes(self._rest)
        lines = data.split(b"\n")
        rest = lines.pop()
        self._rest = bytearray(rest) if rest else b""
        # One comparison covers nearly every read: no line is longer than all of them together.
        if len(data) <= self._max_request_bytes:
            return lines
        if lines and max(map(len, lines)) <= self._max_request_bytes >= len(rest):
            return lines
        for number, line in enumerate(lines):
            if (
                len(line) > self._max_request_bytes
                and len(line.removesuffix(b"\r")) > self._max_request_bytes
            ):
                return self._overrun(lines[:number])
        if len(rest) > self._max_request_bytes + 1:
            return self._overrun(lines)
        return lines

    def end(self) -> list[bytes]:
        """Return the unterminated last line at the end of input, if there is one. May set `error`, too."""
        rest, self._rest = bytes(self._rest), b""
        if len(rest.removesuffix(b"\r")) > self._max_request_bytes:
            # By the one byte that might have been the CR of its end.
            return self._overrun([])
        return [rest] if rest and self.error is None else []

    def _overrun(self, lines: list[bytes]) -> list[bytes]:
        self._rest = b""
        self.error = RequestError(
            ErrorCode.REQUEST_TOO_LARGE,
            f"Request exceeds {self._max_request_bytes} bytes (max-request-bytes); the connection is closed",
        )
        return lines

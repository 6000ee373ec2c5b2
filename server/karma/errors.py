"""The errors that cross module borders, and whose fault each one is.

- `RequestError`: the client's request. It becomes an error reply; the server goes on.
- `ConfigError`: the command line, environment or configuration file. The server does not start.
- `DirectoryInUseError`: another process works on the data directory. The server does not start.
- `DamagedDataError`: bytes on disk that no crash explains. The server does not start before somebody decided.
- `StorageFailedError`: the disk broke a promise while running. The process ends.
"""

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Final


def describe_bug(error: BaseException) -> str:
    """Return where an unexpected error came from, without its values: they may hold a token."""
    import traceback  # noqa: PLC0415  brings in a tokenizer, for which a command line would pay at every start

    frames = traceback.extract_tb(error.__traceback__)[-4:]
    places = [f"{PurePath(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
    return f"{type(error).__name__} at {' > '.join(places) or 'an unknown place'}"


class ErrorCode:
    """Every `error_code` a reply may carry (protocol section 1); there are no others."""

    INVALID_JSON: Final = "invalid_json"
    UNSUPPORTED_PROTOCOL: Final = "unsupported_protocol"
    UNKNOWN_COMMAND: Final = "unknown_command"
    VALIDATION_ERROR: Final = "validation_error"
    NOT_FOUND: Final = "not_found"
    UNAUTHORIZED: Final = "unauthorized"
    FORBIDDEN: Final = "forbidden"
    REQUEST_TOO_LARGE: Final = "request_too_large"
    RESPONSE_TOO_LARGE: Final = "response_too_large"
    QUERY_TIMEOUT: Final = "query_timeout"
    IDEMPOTENCY_CONFLICT: Final = "idempotency_conflict"
    REPLICATION_GAP: Final = "replication_gap"
    REPLICATION_ERROR: Final = "replication_error"
    INTERNAL_ERROR: Final = "internal_error"
    STORAGE_ERROR: Final = "storage_error"
    """The disk refused the write; nothing was applied."""
    OVERLOADED: Final = "overloaded"
    """A limit on clients or buffers was hit; trying again later may succeed."""


class RequestError(Exception):
    """A request that gets an error reply and changes nothing.

    `code` is one of `ErrorCode`, `message` the reply's `response`, `detail` its `error_detail` (left out when
    None). No token may appear in them.
    """

    __slots__ = ("code", "detail", "message")

    def __init__(self, code: str, message: str, detail: Mapping[str, object] | None = None) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class ConfigError(Exception):
    """A setting that cannot be used: one line with its name, its value unless secret, and the remedy."""


class DamagedDataError(Exception):
    """Bytes on disk that no crash explains, so that starting on them could lose acknowledged writes.

    `file` is the damaged file, `offset_bytes` and `lsn` where in it (None when unknown), `message` what is
    wrong there, `advice` the command that looks closer or repairs.
    """

    def __init__(
        self,
        file: str | Path,
        message: str,
        *,
        advice: str,
        offset_bytes: int | None = None,
        lsn: int | None = None,
    ) -> None:
        super().__init__(message)
        self.file = Path(file)
        self.message = message
        self.advice = advice
        self.offset_bytes = offset_bytes
        self.lsn = lsn

    def __str__(self) -> str:
        place = str(self.file)
        if self.offset_bytes is not None:
            place += f", byte {self.offset_bytes}"
        if self.lsn is not None:
            place += f", LSN {self.lsn}"
        return f"damaged data in {place}: {self.message}. Nothing was changed. Next: {self.advice}"


class DirectoryInUseError(Exception):
    """Another process holds the lock of the data directory.

    `directory` is that directory, `holder` what its lock file says of the process (as `pid 4711 on db1`).
    """

    def __init__(self, directory: str | Path, holder: str) -> None:
        super().__init__(directory, holder)
        self.directory = Path(directory)
        self.holder = holder

    def __str__(self) -> str:
        return (
            f"directory {self.directory} is in use by {self.holder}: "
            "stop that process, or choose another directory with --directory"
        )


class StorageFailedError(Exception):
    """The disk failed so that no promise can be kept any more, as by a failed fsync: the process must end.

    Going on is no option: after a failed fsync the kernel may drop the dirty pages, and a second fsync may
    then succeed over lost data.
    """

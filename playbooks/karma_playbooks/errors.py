"""What stops a playbook before it acts. What can go wrong while it acts is in `actions`."""

from __future__ import annotations

from typing import Literal

Kind = Literal["usage", "not found", "refused", "unreachable", "internal"]


class PlaybookError(Exception):
    """A playbook that cannot be read, planned or run. `advice` says what to do; neither holds a secret."""

    def __init__(self, message: str, advice: str = "", kind: Kind = "usage") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice
        self.kind = kind

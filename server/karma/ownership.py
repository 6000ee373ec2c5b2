"""Who besides this process's user has power over a path, by its owner and its mode."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def who_may_enter(folder: Path) -> str | None:
    """Return who else may enter a folder, None when only its user and group may. Raises OSError."""
    about = folder.stat()
    if about.st_uid != os.geteuid():
        return f"it belongs to user {about.st_uid}, and this process runs as user {os.geteuid()}"
    mode = stat.S_IMODE(about.st_mode)
    return f"its mode is {mode:o}, so every user of this machine may enter it" if mode & 0o007 else None


def who_may_write(path: Path) -> str | None:
    """Return who besides this user, its group and root may change a path, None if no one. Raises OSError."""
    about = path.stat()
    trusted = {0, os.geteuid()}
    caller = os.environ.get("SUDO_UID", "")
    if os.geteuid() == 0 and caller.isdecimal():
        # Whoever may call sudo could have changed root's files as well.
        trusted.add(int(caller))
    if about.st_uid not in trusted:
        return f"it belongs to user {about.st_uid}"
    mode = stat.S_IMODE(about.st_mode)
    return f"every user of this machine may write to it (mode {mode:o})" if mode & stat.S_IWOTH else None

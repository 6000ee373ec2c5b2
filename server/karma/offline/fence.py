"""`karma fence`: stop a node that is not running from ever taking writes, until somebody decides otherwise.

For an old master that is down or cut off while another node is promoted: fenced in its directory, it
comes back fenced, whoever starts it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from karma.errors import ConfigError, RequestError
from karma.service.roles import check_fence
from karma.storage import install, node_file
from karma.storage.disk import Disk
from karma.storage.node_file import Fence, Node


def fence(
    disk: Disk,
    directory: Path,
    epoch: int,
    reason: str,
    now_ms: int,
    new_id: Callable[[], str],
    *,
    is_forced: bool = False,
) -> tuple[Node, Fence]:
    """Fence the node of a directory, durably, for an epoch that rules now.

    A directory without an identity, as Karma 1.0 leaves it, gets one. Raises ConfigError for an epoch below
    the node's own or far above it (any step if forced), DirectoryInUseError, DamagedDataError and OSError.
    """
    lock = disk.lock(directory)
    try:
        # What a kill interrupted would bring in a node file of its own, without the fence.
        install.finish(disk, directory)
        node = node_file.load(disk, directory) or Node(new_id())
        try:
            found = check_fence(node, epoch, reason, now_ms, is_forced=is_forced)
        except RequestError as error:
            raise ConfigError(f"--epoch: {error.message}") from error
        node_file.save(disk, directory, replace(node, fence=found))
    finally:
        lock.release()
    return node, found

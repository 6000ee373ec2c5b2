"""`karma new-id`: give the node of a copied directory an id of its own.

Two nodes with one id count as one follower, and acknowledge for each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from karma.errors import ConfigError
from karma.storage import install, node_file
from karma.storage.disk import Disk
from karma.storage.node_file import Node


def give_new_id(disk: Disk, directory: Path, new_id: Callable[[], str]) -> tuple[str, Node]:
    """Replace a directory's node id, durably; returns the old one and the node.

    The copy of a master opens an epoch before it writes, for both may use the same LSNs. Raises ConfigError
    for a directory without an id, DirectoryInUseError, DamagedDataError and OSError.
    """
    lock = disk.lock(directory)
    try:
        # What a kill interrupted would bring in a node file with the old id.
        install.finish(disk, directory)
        node = node_file.load(disk, directory)
        if node is None:
            raise ConfigError(
                f"--directory: {str(directory)!r} has no {node_file.NODE_NAME}; the first start makes an id"
            )
        epoch_due = node.epoch_due or node.role == "master"
        copy = replace(node, node_id=new_id(), epoch_due=epoch_due, replicas=(), lease=None)
        node_file.save(disk, directory, copy)
    finally:
        lock.release()
    return node.node_id, copy

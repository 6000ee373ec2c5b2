"""Which keys log in: files that can be used as they are, and those that only an agent can use.

As in OpenSSH an identity may be a private key, a private key locked with a passphrase (then the agent must
hold it), or a public key (the private one is in the agent). asyncssh takes only the first kind by itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import asyncssh

from karma_playbooks.transports.shell import UnreachableError


class Identities(NamedTuple):
    """What to offer. `locked` are files that need an agent which does not hold their key."""

    files: tuple[str, ...]
    agent_keys: tuple[bytes, ...]
    """Public keys, in SSH's binary form, whose private half the agent holds."""
    locked: tuple[str, ...]


async def identities(paths: Iterable[str], agent_path: str, *, must_exist: bool) -> Identities:
    """Return what can be done with identity files.

    `agent_path` is the agent's socket, empty for none. Raises UnreachableError for a file that is not a key
    or, where files `must_exist`, is missing: OpenSSH skips missing files that its configuration names.
    """
    files, held, locked = [], [], []
    agent: frozenset[bytes] | None = None
    for path in map(_expanded, paths):
        try:
            data = path.read_bytes()
        except OSError as error:
            if must_exist:
                raise UnreachableError(
                    f"the key {path} cannot be read: {error.strerror}; ssh_identity in the context names it",
                    "key",
                ) from error
            continue
        public = _agent_only(path, data)
        if public is None:
            files.append(str(path))
            continue
        if agent is None:
            agent = await _agent_public_keys(agent_path)
        if public in agent:
            held.append(public)
        else:
            locked.append(str(path))
    return Identities(tuple(files), tuple(held), tuple(locked))


def _expanded(path: str) -> Path:
    return Path(path).expanduser()


def _agent_only(path: Path, data: bytes) -> bytes | None:
    """Return the public key of a file whose private key only an agent can use; None if the file is usable.

    Raises UnreachableError when it holds no key at all.
    """
    try:
        asyncssh.import_private_key(data)
    except asyncssh.KeyImportError as error:
        problem = error
    else:
        return None
    # A public key, or a locked key in OpenSSH's own form, which has its public half in clear.
    with contextlib.suppress(asyncssh.KeyImportError):
        return asyncssh.import_public_key(data).public_data
    if b"PRIVATE KEY" not in data:
        raise UnreachableError(f"the key {path} is not an SSH key that karmactl can read: {problem}", "key")
    # An older form locks both halves.
    with contextlib.suppress(OSError, asyncssh.KeyImportError):
        return asyncssh.read_public_key(f"{path}.pub").public_data
    return b""


async def _agent_public_keys(agent_path: str) -> frozenset[bytes]:
    if not agent_path:
        return frozenset()
    try:
        async with asyncssh.connect_agent(agent_path) as agent:
            return frozenset(key.public_data for key in await agent.get_keys())
    except (OSError, ValueError, asyncssh.Error):
        # An agent that is gone holds nothing.
        return frozenset()

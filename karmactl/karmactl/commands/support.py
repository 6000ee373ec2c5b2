"""support-bundle: what others need to help, in one file, without secrets."""

from __future__ import annotations

import io
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from karma import __version__
from karma_client.errors import KarmaError
from karmactl import contexts, settings
from karmactl.commands import context, doctor
from karmactl.diagnostics import CtlError, Exit, usage
from karmactl.failures import translated
from karmactl.output import Row, at_time
from karmactl.run import Run

OPS = (
    "system.health",
    "system.stats",
    "system.latency",
    "system.metrics",
    "replication.status",
    "snapshot.info",
)
"""What every node is asked."""
MASK = "********"
SECRET_WORDS = ("token", "secret", "password")


def bundle(run: Run, file: str | None) -> Row:
    """Write a bundle. Exit code 7 when a node did not tell everything."""
    now = int(time.time())
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    target = Path(file or f"karmactl-support-{stamp}.tar.gz")
    if not target.parent.is_dir():
        raise usage(f"there is no folder {target.parent}", "make it, or name another file")
    nodes = run.each(lambda node: _node(run, node))
    files = {
        "manifest.json": _manifest(run, now),
        "config.json": masked(contexts.read_document(contexts.config_path(run.environ))),
        "settings.json": context.show(run, None),
        "doctor.json": doctor.findings(run),
        **{name: data for node in nodes for name, data in node.items()},
    }
    failed = [name for name, data in files.items() if isinstance(data, dict) and set(data) == {"error"}]
    _write(target, files, secrets(run), now)
    run.exit_code = Exit.PARTIAL if failed else Exit.OK
    for name in failed:
        run.talk.warn(f"{name} holds an error instead: {files[name]['error']}")
    return {"file": str(target), "bytes": target.stat().st_size, "files": len(files), "failed": len(failed)}


def _manifest(run: Run, now_unix: int) -> dict[str, Any]:
    packages = {}
    for name in ("click", "duckdb", "msgpack", "orjson", "prompt_toolkit", "tomlkit", "uvloop"):
        with suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    return {
        "made": at_time(now_unix),
        "karmactl": __version__,
        "python": sys.version,
        "platform": platform.platform(),
        "packages": packages,
        "nodes": list(run.settings.nodes),
    }


def _node(run: Run, node: str) -> dict[str, Any]:
    """What one node says, by the name of the file for it; its error where it says nothing."""
    folder = "nodes/" + "".join(char if char.isalnum() or char in ".-" else "_" for char in node)
    found: dict[str, Any] = {}
    for op in OPS:
        name = f"{folder}/{op}.{'txt' if op == 'system.metrics' else 'json'}"
        try:
            found[name] = run.at(node, op)
        except KarmaError as error:
            found[name] = {"error": translated(error, run).message}
        except CtlError as error:
            found[name] = {"error": error.message}
    return found


# -- Secrets ---------------------------------------------------------------------------------------------


def masked(data: Any) -> Any:
    """Return a document with everything masked whose name speaks of a secret and is no reference to one."""
    if isinstance(data, Mapping):
        return {
            key: MASK if _is_secret(key) and isinstance(value, str) else masked(value)
            for key, value in data.items()
        }
    return [masked(one) for one in data] if isinstance(data, list) else data


def _is_secret(key: str) -> bool:
    is_reference = key.endswith(("_file", "_env"))
    return not is_reference and any(word in key.lower() for word in SECRET_WORDS)


def secrets(run: Run) -> list[str]:
    """Return every token that this machine knows for any context: none may be in the bundle."""
    file = contexts.load(contexts.config_path(run.environ))
    choices = [run.settings, *(_of_context(run, file, name) for name in file.contexts)]
    found = {run.environ.get("KARMACTL_TOKEN", "")}
    for chosen in choices:
        with suppress(CtlError):
            found.add(settings.token(chosen, run.environ)[0] or "")
    # The longest first, so that none leaves the end of another one behind.
    return sorted(filter(None, found), key=len, reverse=True)


def _of_context(run: Run, file: contexts.ContextFile, name: str) -> settings.Settings:
    environ = {key: value for key, value in run.environ.items() if not key.startswith("KARMACTL_")}
    return settings.resolve({"context": name}, environ, file)


def scrubbed(text: str, tokens: Iterable[str]) -> str:
    """Return a text without the tokens, as they are or as JSON spells them."""
    for token in tokens:
        for spelt in {token, json.dumps(token)[1:-1], json.dumps(token, ensure_ascii=False)[1:-1]}:
            text = text.replace(spelt, MASK)
    return text


# -- The file --------------------------------------------------------------------------------------------


def _write(target: Path, files: Mapping[str, Any], tokens: list[str], now_unix: int) -> None:
    import tarfile  # noqa: PLC0415  heavy, and nothing else needs it

    folder = target.name.removesuffix(".tar.gz")
    aside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        # What it says of a fleet is nobody else's business on this machine.
        with (
            open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream,  # noqa: PTH123
            tarfile.open(fileobj=stream, mode="w:gz") as archive,
        ):
            for name, text in _texts(files):
                data = scrubbed(text, tokens).encode()
                member = tarfile.TarInfo(f"{folder}/{name}")
                member.size, member.mtime = len(data), now_unix
                archive.addfile(member, io.BytesIO(data))
        aside.replace(target)
    except OSError as error:
        raise usage(f"{target} cannot be written: {error.strerror}", "name another file") from error
    finally:
        aside.unlink(missing_ok=True)


def _texts(files: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, data in files.items():
        yield name, data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, indent=2) + "\n"

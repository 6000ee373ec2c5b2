"""The command line of `karma check`, `repair`, `fence` and `new-id`: what is asked, and what it answers."""

from __future__ import annotations

import shlex
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from karma import config
from karma.config import Kind
from karma.errors import ConfigError, DirectoryInUseError
from karma.limits import MAX_REASON_BYTES
from karma.offline.check import Checked, Finding, check
from karma.offline.fence import fence
from karma.offline.new_id import give_new_id
from karma.offline.repair import REQUESTS_NAME, Plan
from karma.protocol.texts import spelled_out, spelled_out_json
from karma.service.roles import describe_fence
from karma.storage.disk import LOCK_NAME, DirectoryLock, Disk
from karma.storage.node_file import new_node_id

Write = Callable[[str], object]


def _reason(text: str) -> str:
    if not text.isprintable() or not 1 <= len(text.encode()) <= MAX_REASON_BYTES:
        raise ValueError
    return text


OUTPUT: Final = Kind(
    "text|json", "text or json", (str,), {name: name for name in ("text", "json")}.__getitem__
)
REASON: Final = Kind("TEXT", f"one line of 1 to {MAX_REASON_BYTES} bytes", (str,), _reason)
_OPTIONS: Final = {
    "check": {"directory": config.PATH, "output": OUTPUT},
    "repair": {
        "directory": config.PATH,
        "output": OUTPUT,
        "dry-run": config.BOOLEAN,
        "yes": config.BOOLEAN,
    },
    "fence": {
        "directory": config.PATH,
        "output": OUTPUT,
        "epoch": config.COUNT,
        "reason": REASON,
        "force": config.BOOLEAN,
    },
    "new-id": {"directory": config.PATH, "output": OUTPUT},
}
_HELP: Final = {
    "check": """\
usage: karma check --directory=PATH [--output=text|json]

Verifies the data directory of a server that is not running, and changes nothing: snapshots, log,
indexes and everything beside them, then that the whole restores. A torn tail of the log is a
warning, because the server cuts it by itself. Of a running server, ask snapshot.verify.

  -d, --directory=PATH     the data directory
      --output=text|json   a line for each file and a summary [text], or one JSON object
  -h, --help               show this text

Exit code: 0 when a server starts on it without losing anything that was durable, else 1.
""",
    "repair": """\
usage: karma repair --directory=PATH [--dry-run=true] [--yes=true] [--output=text|json]

Mends the data directory of a server that is not running. Shows first what it will do and what each
step loses. Nothing is deleted: what is cut or replaced goes to the subfolder repaired-<unix time>,
and entries of the log that can no longer be applied are listed there as requests.

  -d, --directory=PATH     the data directory
      --dry-run=true       only show the plan [false]
      --yes=true           also do what loses something that was durable [false]
      --output=text|json   the plan and its outcome as text [text], or as one JSON object
  -h, --help               show this text

Exit code: 0 when the directory is fit to start on, else 1.
""",
    "fence": """\
usage: karma fence --directory=PATH --epoch=COUNT --reason=TEXT [--force=true] [--output=text|json]

Fences the node of a data directory whose server is not running: started again, it takes no writes
until it is unfenced, follows a master, or is promoted. A running server is fenced by
replication.fence.

  -d, --directory=PATH     the data directory
      --epoch=COUNT        the epoch that rules now, of the master that took over
      --reason=TEXT        why; it is in every refusal
      --force=true         also for an epoch more than 1,000 above the node's own [false]
      --output=text|json   a sentence [text], or one JSON object
  -h, --help               show this text

Exit code: 0 when the node is fenced, else 1.
""",
    "new-id": """\
usage: karma new-id --directory=PATH [--output=text|json]

Gives the node of a data directory whose server is not running another node id. A directory that was
copied from another node's has that node's id, and a source refuses the second of two followers with
one id.

  -d, --directory=PATH     the data directory
      --output=text|json   a sentence [text], or one JSON object
  -h, --help               show this text

Exit code: 0 when the node has another id, else 1.
""",
}


def main(arguments: Sequence[str], write: Write, talk: Write, clock: Callable[[], float]) -> int:
    """Run `check …`, `repair …`, `fence …` or `new-id …` and return the exit code.

    `write` gets the result, `talk` what is said beside it, `clock` returns unix seconds. Raises ConfigError,
    DirectoryInUseError, StorageFailedError and OSError.
    """
    command, *rest = arguments
    if {"-h", "--help"}.intersection(rest):
        write(_HELP[command])
        return 0
    options = _read(command, rest)
    directory = options.get("directory")
    if not isinstance(directory, Path):
        raise ConfigError("--directory: needs a value: --directory=PATH")
    if not directory.is_dir():
        raise ConfigError(f"--directory: {str(directory)!r} is not a directory")
    directory = directory.absolute()
    disk, now_unix = Disk(), int(clock())
    is_json = options.get("output") == "json"
    # What the directory holds may have come from anywhere.
    write, talk = _harmless(write), _harmless(talk)
    if command == "fence":
        return _fence(disk, directory, options, int(clock() * 1000), write, is_json=is_json)
    if command == "new-id":
        old_id, node = give_new_id(disk, directory, new_node_id)
        report = {"directory": str(directory), "node_id": node.node_id, "old_node_id": old_id}
        write(_json(report) if is_json else f"Node {old_id} in {directory} is now {node.node_id}\n")
        return 0
    if command == "check":
        return _check(disk, directory, now_unix, write, talk, is_json=is_json)
    is_dry, with_losses = bool(options.get("dry-run")), bool(options.get("yes"))
    lock = disk.lock(directory)
    try:
        checked = check(disk, directory, now_unix)
        plan = Plan(disk, checked, now_unix)
        if not is_json:
            write("".join(line + "\n" for line in _plan_lines(plan)))
        if not is_dry:
            plan.carry_out(with_losses=with_losses)
            checked = check(disk, directory, now_unix)
    finally:
        lock.release()
    outcome = _repair_report(plan, checked, is_dry=is_dry, with_losses=with_losses)
    write(_json(outcome) if is_json else "".join(line + "\n" for line in _outcome_lines(outcome)))
    return int(checked.status == "damaged")


def _harmless(write: Write) -> Write:
    return lambda text: write(spelled_out(text, keep="\n"))


def _fence(
    disk: Disk, directory: Path, options: dict[str, Any], now_ms: int, write: Write, *, is_json: bool
) -> int:
    for name in ("epoch", "reason"):
        if name not in options:
            raise ConfigError(f"--{name}: needs a value; see karma fence --help")
    node, found = fence(
        disk,
        directory,
        options["epoch"],
        options["reason"],
        now_ms,
        new_node_id,
        is_forced=bool(options.get("force")),
    )
    if is_json:
        write(_json({"directory": str(directory), "node_id": node.node_id, "fenced_by": found.describe()}))
    else:
        write(f"Node {node.node_id} in {directory} is {describe_fence(found)}\n")
    return 0


def _check(disk: Disk, directory: Path, now_unix: int, write: Write, talk: Write, *, is_json: bool) -> int:
    lock = _lock_for_reading(disk, directory, talk)
    try:
        checked = check(disk, directory, now_unix)
    finally:
        if lock is not None:
            lock.release()
    report = {**checked.report(), "next": _next(checked)}
    write(_json(report) if is_json else "".join(line + "\n" for line in _check_lines(checked, report)))
    return int(checked.status == "damaged")


def _lock_for_reading(disk: Disk, directory: Path, talk: Write) -> DirectoryLock | None:
    """Keep servers away while a directory is read: half of what one writes looks like damage.

    Where no server of ours ever was there is no lock file, and none is made. Raises DirectoryInUseError.
    """
    if LOCK_NAME not in disk.list_names(directory):
        return None
    try:
        return disk.lock(directory)
    except DirectoryInUseError:
        talk("Ask the running server itself: snapshot.verify restores its directory aside and checks it.\n")
        raise
    except OSError as error:
        talk(
            f"The directory cannot be locked ({error.strerror}). If a server works on it, what it is just "
            "writing may look like damage here.\n"
        )
        return None


# -- What is asked -------------------------------------------------------------------------------


def _read(command: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the options given, by name. Raises ConfigError."""
    kinds = _OPTIONS[command]
    values: dict[str, object] = {}
    rest = deque(arguments)
    while rest:
        argument = rest.popleft()
        if argument.startswith("-d") and not argument.startswith("--"):
            argument = "--directory" + (f"={argument[2:].removeprefix('=')}" if argument[2:] else "")
        name, equals, text = argument.removeprefix("--").partition("=")
        kind = kinds.get(name) if argument.startswith("--") else None
        if kind is None:
            raise ConfigError(f"{argument!r}: karma {command} has no such option; see karma {command} --help")
        if not equals:
            if not rest or rest[0].startswith("-"):
                raise ConfigError(f"--{name}: needs a value: --{name}={kind.metavar}")
            text = rest.popleft()
        try:
            values[name] = kind.parse(text)
        except (ValueError, KeyError):
            raise ConfigError(f"--{name}: {text!r} is not {kind.accepts}") from None
    return values


# -- What is answered ----------------------------------------------------------------------------


def _json(report: dict[str, Any]) -> str:
    return spelled_out_json(orjson.dumps(report, option=orjson.OPT_INDENT_2).decode()) + "\n"


def _next(checked: Checked) -> str:
    if checked.status == "damaged":
        return f"karma repair --directory {shlex.quote(str(checked.directory))} --dry-run=true"
    return f"nothing to do: karma --directory={shlex.quote(str(checked.directory))} starts on it"


def _check_lines(checked: Checked, report: dict[str, Any]) -> Iterator[str]:
    yield from _file_lines(checked.files)
    for warning in report["warnings"]:
        yield f"warning  {warning}"
    if checked.files:
        yield ""
    if checked.refusal is not None:
        yield f"{report['status']}: a server would not start on it"
    elif checked.recovered is None:
        yield f"{report['status']}: a server first finishes what was interrupted"
    else:
        yield (
            f"{report['status']}: {report['series']} series, {report['keys']} keys, "
            f"{report['buckets']} buckets, last LSN {report['last_lsn']}, {report['log_entries']} log entries"
        )
    yield f"next: {report['next']}"


def _file_lines(findings: list[Finding]) -> Iterator[str]:
    width = max((len(finding.file) for finding in findings), default=0)
    for finding in findings:
        place = "" if finding.offset_bytes is None else f" (byte {finding.offset_bytes})"
        yield f"{finding.status:<8} {finding.file:<{width}}  {finding.message}{place}"


def _plan_lines(plan: Plan) -> Iterator[str]:
    if not plan.steps:
        yield "There is nothing to repair."
        return
    yield f"To do, with what is cut or replaced going to {plan.folder}:"
    for number, step in enumerate(plan.steps, 1):
        yield ""
        yield f"{number:>3}. {step.file}"
        yield f"     does   {step.action}"
        yield f"     LOSES  {step.loss}" if step.loss is not None else "     loses  nothing that was durable"


def _repair_report(plan: Plan, checked: Checked, *, is_dry: bool, with_losses: bool) -> dict[str, Any]:
    done = [step for step in plan.steps if step.is_done]
    command = f"karma repair --directory {shlex.quote(str(checked.directory))}"
    if is_dry and plan.steps:
        following = command + (" --yes=true" if plan.lossy else "")
    elif plan.lossy and not with_losses:
        following = f"{command} --yes=true, to do also what loses something"
    elif checked.status == "damaged" and done:
        following = f"{command} again: what was mended shows what is behind it"
    elif checked.status == "damaged" and not plan.steps:
        following = "restore the directory from a backup: no step that is known here mends it"
    else:
        following = _next(checked)
    lists = [step for step in done if step.losses.entries]
    return {
        "status": checked.status,
        "directory": str(checked.directory),
        "dry_run": is_dry,
        "folder": str(plan.folder) if done else None,
        "steps": [step.as_json() for step in plan.steps],
        "lost_requests": str(plan.folder / REQUESTS_NAME) if lists else None,
        "check": checked.report(),
        "next": following,
    }


def _outcome_lines(outcome: dict[str, Any]) -> Iterator[str]:
    if outcome["steps"]:
        yield ""
    done = sum(step["done"] for step in outcome["steps"])
    if not outcome["dry_run"] and outcome["steps"]:
        yield f"Done: {done} of {len(outcome['steps'])} steps"
    if outcome["lost_requests"] is not None:
        yield f"Entries that could still be read are listed as requests in {outcome['lost_requests']}"
    for file in outcome["check"]["files"]:
        if file["status"] == "damaged":
            yield f"damaged  {file['file']}  {file['message']}"
    fit = "is not fit to start on" if outcome["status"] == "damaged" else "is fit to start on"
    yield f"{outcome['directory']} {fit}"
    yield f"next: {outcome['next']}"

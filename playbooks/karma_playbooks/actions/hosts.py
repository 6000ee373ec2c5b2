"""Actions on hosts: commands under the detached wrapper, and looks that leave nothing there."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from karma_playbooks import catalog
from karma_playbooks.actions import Act, NotDoneError, UnsureError, VanishedError, WrongError
from karma_playbooks.actions.karma import poll
from karma_playbooks.shell_words import UnusableWordError, word, words
from karma_playbooks.transports.host import Finished, NoStatusError, NotStartedError, UnknownError
from karma_playbooks.transports.shell import LinkLostError, Ran, UnreachableError

LOOK_SECONDS = 20.0
_STOPPED = 3
"""How `systemctl is-active`, and the script for plain processes, say that a service does not run."""
_OUTPUT_CHARACTERS = 2000
"""Of a command's output kept in the journal, from its end."""


async def command_(act: Act) -> Mapping[str, Any]:
    """Run the action's command once. Ended with another code than 0 it happened, and went wrong."""
    entry = act.world.entries[act.target]
    try:
        async with act.world.slots:
            ended = await act.world.host(act.target).run(
                act.key,
                [str(word) for word in catalog.argv(act.action, act.args, entry)],
                act.timeout_seconds,
                secret=act.world.secret(entry),
                on_output=lambda text: act.world.say(act.step, act.target, text),
            )
    except NotStartedError as error:
        raise NotDoneError(f"{act.target}: {error}") from error
    except UnknownError as error:
        raise UnsureError(f"{act.target}: {error}") from error
    return judged(act, ended)


async def look(act: Act) -> Mapping[str, Any] | None:
    """Return what became of a command that may have run, None if it never did. Raises as `command_`.

    One that still runs is waited for as long as the step has for it.
    """
    try:
        ended = await act.world.host(act.target).look(act.key, max(act.timeout_seconds, LOOK_SECONDS))
    except NoStatusError as error:
        raise VanishedError(f"{act.target}: {error}") from error
    except UnknownError as error:
        raise UnsureError(f"{act.target}: {error}") from error
    return None if ended == "never" else judged(act, ended)


def judged(act: Act, ended: Finished) -> Mapping[str, Any]:
    """Return the output of a command that succeeded. Raises WrongError for one that did not."""
    output = {"output": ended.output[-_OUTPUT_CHARACTERS:], "code": ended.code}
    if ended.code:
        entry = act.world.entries[act.target]
        lines = ended.output.strip().splitlines()
        said = f": {lines[-1]}" if lines else ""
        if entry.sudo and lines and lines[-1].lower().startswith("sudo:"):
            raise NotDoneError(f"{act.target}: sudo refused{said}")
        raise WrongError(f"{act.target}: it ended with code {ended.code}{said}", output)
    return output


async def _look_at(act: Act, argv: list[Any]) -> Ran:
    """Run a command that changes nothing and needs no state on the host."""
    entry = act.world.entries[act.target]
    secret = act.world.secret(entry)
    try:
        line = words(argv)
        pipe = f"printf '%s\\n' {word(secret)} | {line}\n" if secret is not None else ""
        script = pipe or f"{line} </dev/null\n"
        async with act.world.slots:
            return await asyncio.wait_for(act.world.host(act.target).script(script), LOOK_SECONDS)
    except UnusableWordError as error:
        raise NotDoneError(f"{act.target}: {error}") from error
    except (UnreachableError, LinkLostError) as error:
        raise UnsureError(f"{act.target}: {error}") from error
    except TimeoutError:
        raise UnsureError(f"{act.target}: no answer within {LOOK_SECONDS:g} s") from None


async def service_is_(act: Act) -> None:
    """See whether a service runs."""
    wanted = bool(act.args["running"])

    async def look_once() -> str:
        entry = act.world.entries[act.target]
        ran = await _look_at(act, catalog.argv("service.is", act.args, entry))
        act.found = {"state": ran.output.strip(), "code": ran.code}
        is_running = ran.code == 0
        state = ran.output.strip() or ran.errors.strip()
        if ran.code not in (0, _STOPPED):
            raise UnsureError(f"whether the service on {act.target} runs cannot be seen: {state}")
        return "" if is_running == wanted else f"the service on {act.target} is {state}"

    await poll(act, look_once)


async def check_(act: Act) -> Mapping[str, Any]:
    """Run a command for what it prints."""
    ran = await _look_at(act, catalog.argv(act.action, act.args, act.world.entries[act.target]))
    act.found = {"output": ran.output[-_OUTPUT_CHARACTERS:], "code": ran.code}
    if ran.code:
        raise NotDoneError(
            f"{act.target}: it ended with code {ran.code}: {(ran.errors or ran.output).strip()}"
        )
    wanted = act.args.get("contains")
    if wanted is not None and wanted not in ran.output:
        raise NotDoneError(f'{act.target}: "{wanted}" is not in what it printed')
    return act.found


async def file_is_(act: Act) -> None:
    """Compare a file."""
    ran = await _look_at(act, catalog.argv(act.action, act.args, act.world.entries[act.target]))
    act.found = {"bytes": len(ran.output.encode()), "code": ran.code}
    if ran.code or ran.output != act.args["content"]:
        raise NotDoneError(
            f"{act.target}: {act.args['path']} {'is not there' if ran.code else 'holds something else'}"
        )


async def fenced_offline_(act: Act) -> None:
    """Read a node's own file: a fence in it holds whoever starts the server."""
    ran = await _look_at(act, catalog.argv(act.action, act.args, act.world.entries[act.target]))
    epoch = ran.output.strip().rpartition(":")[2]
    act.found = {"fence": ran.output.strip()}
    if ran.code or not epoch.isdigit() or int(epoch) < act.args["epoch"]:
        raise NotDoneError(f"{act.target}: its directory has no fence for epoch {act.args['epoch']}")

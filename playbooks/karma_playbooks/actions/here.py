"""Actions of the process that runs a playbook."""

from __future__ import annotations

import asyncio
import os
from asyncio.subprocess import DEVNULL, PIPE, STDOUT

from karma_playbooks import values
from karma_playbooks.actions import Act, NotDoneError
from karma_playbooks.errors import PlaybookError

_NOTIFY_SECONDS = 10.0


async def wait_(act: Act) -> None:
    """Wait."""
    await asyncio.sleep(float(act.args["seconds"]))


async def assert_(act: Act) -> None:
    """Stop unless a condition holds."""

    def unknown(name: str) -> None:
        raise KeyError(f"{name} is not known")

    try:
        is_so = values.holds(act.args["that"], unknown)
    except PlaybookError as error:
        raise NotDoneError(error.message) from error
    if not is_so:
        raise NotDoneError(act.args["message"])


async def confirm_(act: Act) -> None:
    """Ask the operator."""
    if not await act.world.approve(act.args["message"]):
        raise NotDoneError("the operator declined")


async def note_(act: Act) -> None:
    """Only the journal takes note."""


async def notify_(act: Act) -> None:
    """Tell others. That nobody listens must not turn a failover round, so it is said and no more."""
    message = act.args["message"]
    problem = ""
    url = act.args.get("url") or os.environ.get(act.args.get("url_env") or "", "")
    if url:
        import httpx  # noqa: PLC0415  few playbooks tell a web server

        try:
            async with httpx.AsyncClient(timeout=_NOTIFY_SECONDS) as client:
                reply = await client.post(url, json={"text": message, "run": act.history.run})
                problem = "" if reply.is_success else f"the webhook answered {reply.status_code}"
        except httpx.HTTPError as error:
            # Its text may hold the address, which may be a secret.
            problem = f"the webhook cannot be reached ({type(error).__name__})"
    elif act.args.get("argv"):
        try:
            # Never on the terminal itself: a dashboard may be drawn there.
            process = await asyncio.create_subprocess_exec(
                *map(str, act.args["argv"]), message, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT
            )
            output, _ = await asyncio.wait_for(process.communicate(), _NOTIFY_SECONDS)
            act.world.say(act.step, "", output.decode(errors="replace"))
            problem = f"the command ended with code {process.returncode}" if process.returncode else ""
        except (OSError, TimeoutError) as error:
            problem = f"the command cannot be run ({type(error).__name__})"
    else:
        problem = "there is no url and no argv to tell"
    act.found = {"told": not problem, "problem": problem}
    if problem:
        act.world.say(act.step, "", f"nobody was told: {problem}\n")

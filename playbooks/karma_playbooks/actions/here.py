"""Actions of the process that runs a playbook."""

from __future__ import annotations

import asyncio
import os
from http import HTTPStatus

from karma_playbooks import values
from karma_playbooks.actions import Act, DeclinedError, NotDoneError
from karma_playbooks.errors import PlaybookError

_NOTIFY_SECONDS = 5.0
"""What a try of a webhook, or a command, may take."""
_NOTIFY_SHARE = 0.9
_NOTIFY_TRIES = 3
_NOTIFY_RETRY_SECONDS = 1.0


async def wait_(act: Act) -> None:
    """Wait."""
    await asyncio.sleep(float(act.args["seconds"]))


async def assert_(act: Act) -> None:
    """Stop unless a condition holds."""
    try:
        is_so = values.is_met(act.args["that"])
    except PlaybookError as error:
        raise NotDoneError(error.message) from error
    if not is_so:
        raise NotDoneError(act.args["message"])


async def confirm_(act: Act) -> None:
    """Ask the operator."""
    if not await act.world.approve(act.args["message"]):
        raise DeclinedError("the operator declined")


async def note_(act: Act) -> None:
    """Only the journal takes note."""


async def notify_(act: Act) -> None:
    """Tell others. That nobody listens must not turn a failover round, so it is said and no more."""
    try:
        # Before the step's own time is over, which would count as a failure.
        async with asyncio.timeout(act.timeout_seconds * _NOTIFY_SHARE):
            if act.args.get("argv"):
                problem = await _tell_by_command(act, [*map(str, act.args["argv"]), act.args["message"]])
            else:
                problem = await _tell_by_webhook(act)
    except TimeoutError:
        problem = "the step has no more time for it"
    act.found = {"told": not problem, "problem": problem}
    if problem:
        act.world.say(act.step, "", f"nobody was told: {problem}\n")


async def _tell_by_webhook(act: Act) -> str:
    """Post the message until it is taken, some times at most; returns why it was not.

    Neither the address nor a header is in that: both may be secrets, and an error's text may hold them.
    """
    import httpx  # noqa: PLC0415  few playbooks tell a web server

    url = act.args.get("url") or os.environ.get(act.args.get("url_env") or "", "")
    if not url:
        return "there is no url and no argv to tell"
    # Of a message that arrived though its answer was lost, the receiver can tell the repetition.
    headers = {"Idempotency-Key": f"{act.history.run}/{act.step}"}
    if act.args.get("header_env"):
        name, colon, value = os.environ.get(act.args["header_env"], "").partition(":")
        if not colon or not name.strip():
            return f"the environment's {act.args['header_env']} is no header, as Authorization: Bearer …"
        headers[name.strip()] = value.strip()
    message = {"text": act.args["message"], "run": act.history.run, "step": act.step}
    problem = ""
    for number in range(_NOTIFY_TRIES):
        if number:
            await asyncio.sleep(_NOTIFY_RETRY_SECONDS)
        try:
            async with httpx.AsyncClient(timeout=_NOTIFY_SECONDS) as client:
                reply = await client.post(url, json=message, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            problem = f"the webhook cannot be reached ({type(error).__name__})"
            continue
        if reply.is_success:
            return ""
        problem = f"the webhook answered {reply.status_code}"
        is_for_ever = reply.status_code < HTTPStatus.INTERNAL_SERVER_ERROR
        if is_for_ever and reply.status_code != HTTPStatus.TOO_MANY_REQUESTS:
            break
    return problem


async def _tell_by_command(act: Act, argv: list[str]) -> str:
    """Run a command; returns why it told nobody. What it prints is shown, and never mixed with data."""
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=asyncio.subprocess.STDOUT
        )
    except OSError as error:
        return f"the command cannot be run: {error.strerror}"
    try:
        output, _ = await asyncio.wait_for(process.communicate(), _NOTIFY_SECONDS)
    except TimeoutError:
        return f"the command had not ended after {_NOTIFY_SECONDS:g} s and was killed"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    act.world.say(act.step, "", output.decode(errors="replace"))
    return f"the command ended with code {process.returncode}" if process.returncode else ""

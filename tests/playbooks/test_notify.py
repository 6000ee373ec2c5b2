"""`notify` over real HTTP and as a command: told once, tried again, given up; and no secret shows."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playbooks.fleet import Fleet
from playbooks.test_cli import Desk
from playbooks.test_lock import world

from karma_playbooks.actions import Act, function, here
from karma_playbooks.history import History

SECRET = "a-bearer-that-nobody-may-see"
PATH = "/hooks/a-path-that-nobody-may-see"
BOOK = """\
playbook: tell
title: Somebody is told.
loses: nothing
steps:
  - id: hook
    action: notify
    args: {message: "${cluster.master} is master", url_env: HOOK_URL, header_env: HOOK_HEADER}
  - id: command
    action: notify
    args: {message: "told by a command", argv: [%s, -c, "import sys; print('said', sys.argv[1])"]}
"""


class Hook(ThreadingHTTPServer):
    """A web server on loopback: it answers with `codes` one after another, and with the last one for ever."""

    def __init__(self, *codes: int, hang_seconds: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.codes = list(codes)
        self.hang_seconds = hang_seconds
        self.taken: list[tuple[str, dict[str, str], Any]] = []
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}{PATH}"

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.taken.append((self.path, dict(self.headers), json.loads(body)))
        time.sleep(self.server.hang_seconds)
        code = self.server.codes.pop(0) if len(self.server.codes) > 1 else self.server.codes[0]
        self.send_response(code)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing belongs onto stderr."""


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Hook]]:
    """`serve(500, 200)` starts a web server; retries do not wait long."""
    monkeypatch.setattr(here, "_NOTIFY_RETRY_SECONDS", 0.05)
    # A proxy of this machine is not asked for its own loopback.
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    hooks: list[Hook] = []

    def start(*codes: int, **options: Any) -> Hook:
        hooks.append(Hook(*codes, **options))
        return hooks[-1]

    yield start
    for each in hooks:
        each.close()


def notify(tmp_path: Path, timeout_seconds: float = 60.0, **args: Any) -> tuple[Act, str]:
    """Carry the action out; returns it, and what the operator read."""
    said: list[str] = []
    found = world(tmp_path)
    found.say = lambda step, place, text: said.append(text)
    act = Act(
        found, History("run-1"), "notify", None, {"message": "hear", **args}, "tell", "k", timeout_seconds
    )
    asyncio.run(function("notify")(act))  # type: ignore[arg-type]
    return act, "".join(said)


# -- Webhooks ------------------------------------------------------------------------------------------------


def test_a_webhook_is_told_once(tmp_path: Path, serve: Callable[..., Hook]) -> None:
    hook = serve(204)
    act, said = notify(tmp_path, url=hook.url)
    ((path, headers, body),) = hook.taken
    assert path == PATH
    assert body == {"text": "hear", "run": "run-1", "step": "tell"}
    assert headers["Idempotency-Key"] == "run-1/tell"
    assert (act.found, said) == ({"told": True, "problem": ""}, "")


def test_a_webhook_that_fails_is_told_again(tmp_path: Path, serve: Callable[..., Hook]) -> None:
    hook = serve(500, 429, 200)
    act, said = notify(tmp_path, url=hook.url)
    assert len(hook.taken) == 3
    assert len({headers["Idempotency-Key"] for _, headers, _ in hook.taken}) == 1
    assert (act.found["told"], said) == (True, "")


@pytest.mark.parametrize(("code", "tries"), [(500, 3), (404, 1), (302, 1)])
def test_a_webhook_that_does_not_take_it_is_given_up(
    tmp_path: Path, serve: Callable[..., Hook], code: int, tries: int
) -> None:
    hook = serve(code)
    act, said = notify(tmp_path, url=hook.url)
    assert len(hook.taken) == tries
    assert act.found == {"told": False, "problem": f"the webhook answered {code}"}
    assert said == f"nobody was told: the webhook answered {code}\n"


def test_a_webhook_that_hangs_is_given_up(
    tmp_path: Path, serve: Callable[..., Hook], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(here, "_NOTIFY_SECONDS", 0.2)
    hook = serve(200, hang_seconds=1.0)
    act, _ = notify(tmp_path, url=hook.url)
    assert len(hook.taken) == 3
    assert act.found["problem"] == "the webhook cannot be reached (ReadTimeout)"


def test_a_step_without_time_fails_nothing(tmp_path: Path, serve: Callable[..., Hook]) -> None:
    hook = serve(200, hang_seconds=1.0)
    act, _ = notify(tmp_path, 0.3, url=hook.url)
    assert act.found["problem"] == "the step has no more time for it"


def test_nobody_listens(tmp_path: Path, serve: Callable[..., Hook]) -> None:
    hook = serve(200)
    hook.close()
    act, said = notify(tmp_path, url=hook.url)
    assert act.found["problem"] == "the webhook cannot be reached (ConnectError)"
    assert PATH not in said


def test_without_an_address_or_a_header_that_is_one_nobody_is_told(
    tmp_path: Path, serve: Callable[..., Hook], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no url" in notify(tmp_path, url_env="NO_SUCH_VARIABLE")[1]
    monkeypatch.setenv("HOOK_HEADER", SECRET)
    hook = serve(200)
    said = notify(tmp_path, url=hook.url, header_env="HOOK_HEADER")[1]
    assert "HOOK_HEADER is no header" in said
    assert SECRET not in said
    assert hook.taken == []


def test_an_address_that_is_none_is_not_shown(tmp_path: Path, serve: Callable[..., Hook]) -> None:
    act, said = notify(tmp_path, url=f"gopher://{SECRET}")
    assert act.found["told"] is False
    assert SECRET not in said + str(act.found)


# -- Commands ------------------------------------------------------------------------------------------------


def test_a_command_gets_the_message_as_its_last_word(tmp_path: Path) -> None:
    script = "import sys; print(sys.argv[1:]); print('and this', file=sys.stderr)"
    act, said = notify(tmp_path, argv=[sys.executable, "-c", script, "it's"])
    assert said == "[\"it's\", 'hear']\nand this\n"
    assert act.found["told"] is True


def test_a_command_that_fails_is_said(tmp_path: Path) -> None:
    assert "ended with code 7" in notify(tmp_path, argv=[sys.executable, "-c", "raise SystemExit(7)"])[1]
    assert "cannot be run" in notify(tmp_path, argv=["/no/such/command"])[1]


def test_a_command_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(here, "_NOTIFY_SECONDS", 1.0)
    mark = tmp_path / "mark"
    script = f"import time; time.sleep(2.5); open({str(mark)!r}, 'w')"
    assert "was killed" in notify(tmp_path, argv=[sys.executable, "-c", script])[1]
    time.sleep(2.5)
    assert not mark.exists()


# -- As an operator sees it ----------------------------------------------------------------------------------


def test_a_secret_address_and_header_are_nowhere(
    start_fleet: Callable[..., Fleet], tmp_path: Path, serve: Callable[..., Hook]
) -> None:
    hook = serve(500, 200)
    desk = Desk(start_fleet(None), tmp_path / "desk", is_production=False)
    desk.environ |= {"HOOK_URL": hook.url, "HOOK_HEADER": f"Authorization: Bearer {SECRET}"}
    path = tmp_path / "tell.yml"
    path.write_text(BOOK % json.dumps(sys.executable))
    process = desk.process("playbook", "run", str(path), "--reason", "x", "--yes", "--output", "json")
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert json.loads(stdout)["state"] == "done"
    assert "command | said told by a command" in stderr
    (_, headers, body) = hook.taken[-1]
    assert headers["Authorization"] == f"Bearer {SECRET}"
    assert body["text"] == "a is master"
    journal = desk("playbook", "status", "--entries", "--output", "json").stdout
    assert '"told":true' in journal.replace(" ", "")
    for secret in (SECRET, PATH):
        assert secret not in stdout + stderr + journal
        for each in (tmp_path / "desk" / "state").rglob("*"):
            assert not each.is_file() or secret.encode() not in each.read_bytes(), each

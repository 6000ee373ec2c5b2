"""Words on hosts: the argv that a command receives is the one that was given, whatever is in it."""

from __future__ import annotations

import asyncio
import getpass
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from playbooks.fleet import Sshd, approved, keygen

import karma_playbooks
from karma_client import connect_async
from karma_playbooks.inventory import Entry
from karma_playbooks.journal import Journal
from karma_playbooks.lock import Lock
from karma_playbooks.mirror import Mirror, fetch
from karma_playbooks.shell_words import UnusableWordError, file_name, word, words
from karma_playbooks.transports.host import Finished, Host, NotStartedError
from karma_playbooks.transports.local import LocalShell
from karma_playbooks.transports.shell import Shell
from karma_playbooks.transports.ssh import SshShell
from karma_playbooks.world import World

SHELLS = ("sh", "dash", "bash")
PRINT = 'for each do printf "%s\\0" "$each"; done'
SOURCES = sorted(Path(karma_playbooks.__file__).parent.rglob("*.py"))
MARKERS = sorted(
    {line.strip() for path in SOURCES for line in path.read_text().splitlines()}
    | {match for path in SOURCES for match in re.findall(r"\b[A-Z][A-Z_]{4,}\b", path.read_text())}
)
"""Every line of the engine's own source, and every word that could end a here-document."""
HOSTILE = (
    "", " ", "-n", "--", "~", "*", "a b", "'", "''", '"', "\\", "\\'", "`touch PWNED`", "$(touch PWNED)",
    "${HOME}", "$HOME", "$$", "!!", "a\nb", "\n", "a\r\nb", "\t", ";touch PWNED;", "|touch PWNED", ">PWNED",
    "<<EOF", "EOF", "KARMA_COMMAND_ENDS", "\nKARMA_COMMAND_ENDS\ntouch PWNED\n", "KARMA_JOURNAL_ENDS",
    "A=b", "if", "{", "}", "\x01\x7f\x1b[31m", "\x81\x82\x88", "é", "\u202e", "\u2028", "\U0001f600", "%s%d",
)  # fmt: skip

ANY_WORD = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30),
    st.sampled_from(MARKERS).map("\n{}\n".format),
    st.sampled_from(MARKERS),
    st.sampled_from(HOSTILE),
)


@pytest.fixture(autouse=True)
def _in_a_folder_to_spoil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("shell", SHELLS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ANY_WORD, min_size=1, max_size=30))
def test_a_shell_reads_the_words_that_were_quoted(shell: str, argv: list[str]) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"there is no {shell}")
    script = f"{words(['sh', '-c', PRINT, 'sh', *argv])}\n"
    ran = subprocess.run([program, "-s"], input=script.encode(), capture_output=True, check=True)
    assert ran.stdout.decode() == "".join(f"{each}\0" for each in argv)


@pytest.mark.parametrize("text", ["a\0b", "\udc80"])
def test_what_no_command_can_receive_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UnusableWordError):
        word(text)
    host = Host(LocalShell(), str(tmp_path))
    with pytest.raises(NotStartedError, match="cannot receive"):
        asyncio.run(host.run("run/step", ["echo", text], 5))


@given(st.text(max_size=60), st.text(max_size=60))
def test_a_file_name_is_one_component_and_its_own(text: str, other: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_~:%-][A-Za-z0-9._~:%-]*", file_name(text))
    assert (file_name(text) == file_name(other)) == (text == other)


@pytest.fixture(params=["dash", "bash"])
def local(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """This machine, with a shell of one's choice as its `sh`."""
    program = shutil.which(request.param)
    if program is None:
        pytest.skip(f"there is no {request.param}")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sh").symlink_to(program)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return LocalShell()


def received(shell: Shell, folder: Path, key: str, argv: list[str]) -> Finished:
    async def go() -> Finished:
        try:
            return await Host(shell, str(folder)).run(key, ["sh", "-c", PRINT, "sh", *argv], 20)
        finally:
            await shell.close()

    return asyncio.run(go())


def test_a_host_receives_the_argv_that_was_given(local: Shell, tmp_path: Path) -> None:
    keys = (f"run/step.{number}" for number in count())
    # The folder's own name is data, too.
    folder = tmp_path / "it's a $(touch PWNED)\n`touch PWNED`"

    @settings(max_examples=12, deadline=None)
    @given(st.lists(ANY_WORD, min_size=1, max_size=30))
    def check(argv: list[str]) -> None:
        ended = received(local, folder, next(keys), argv)
        assert ended == Finished(0, "".join(f"{each}\0" for each in argv))

    check()
    argv = [*HOSTILE, *MARKERS]
    assert received(local, folder, next(keys), argv).output.split("\0")[:-1] == argv
    assert not list(tmp_path.rglob("PWNED"))


@pytest.fixture
def over_ssh(tmp_path: Path, needs: Callable[[str], Path]) -> Iterator[Shell]:
    needs("ssh-keygen")
    beside = Path("/usr/sbin/sshd")
    keygen(tmp_path / "id")
    daemon = Sshd(beside if beside.exists() else needs("sshd"), tmp_path / "one", tmp_path / "id")
    (tmp_path / "known_hosts").write_text(daemon.known_host)
    yield SshShell(
        Entry(
            "one",
            "127.0.0.1:1",
            ssh_host="127.0.0.1",
            ssh_port=daemon.port,
            ssh_user=getpass.getuser(),
            ssh_identity=str(tmp_path / "id"),
            ssh_known_hosts=str(tmp_path / "known_hosts"),
        )
    )
    daemon.stop()


def test_a_host_over_ssh_receives_the_argv_that_was_given(over_ssh: Shell, tmp_path: Path) -> None:
    argv = [*HOSTILE, *MARKERS]
    ended = received(over_ssh, tmp_path / "runs", "run/step.1", argv)
    assert ended.code == 0
    assert ended.output.split("\0")[:-1] == argv


@pytest.mark.parametrize("key", ["run/it's $(touch PWNED).1", "r;touch PWNED;/s", "../..", "run/a/b"])
def test_a_key_is_a_folder_name_and_nothing_else(key: str, tmp_path: Path) -> None:
    ended = received(LocalShell(), tmp_path / "runs", key, ["said"])
    assert ended == Finished(0, "said\0")
    (status,) = (tmp_path / "runs").rglob("status")
    assert status.parent.parent.parent == tmp_path / "runs"
    assert not list(tmp_path.rglob("PWNED"))


def here(folder: Path) -> World:
    entry = Entry("a", "127.0.0.1:1", playbook_directory=str(folder))
    return World({"a": entry}, connect_async, lambda *_: None, approved, lambda _: None, folder / "state")


@pytest.mark.parametrize("run", ["x; touch PWNED", "$(touch PWNED)", "../../PWNED", "x\ntouch PWNED\n"])
def test_a_copy_of_a_journal_holds_what_was_written_under_any_run_id(run: str, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    for text in (*HOSTILE, *MARKERS):
        journal.append(run, "note", {"text": text})

    async def there_and_back() -> None:
        world = here(tmp_path / "runs")
        assert await Mirror(world, journal, run).bring_up_to_date() == []
        assert await fetch(world, run) == journal.entries(run)

    asyncio.run(there_and_back())
    journal.close()
    assert [path.parent.parent for path in tmp_path.rglob("journal.jsonl")] == [tmp_path / "runs"]
    assert not list(tmp_path.rglob("PWNED"))


@pytest.mark.parametrize("cluster", ["x; touch PWNED", "$(touch PWNED)", "..", "../PWNED", ""])
def test_a_lock_is_taken_under_any_name(cluster: str, tmp_path: Path) -> None:
    holder = {"run": "r", "epoch": 1, "operator": "it's `me`", "machine": "$(touch PWNED)", "since": "now"}

    async def take() -> None:
        lock = Lock(here(tmp_path / "runs"), cluster, holder)
        assert await lock.acquire() == []
        await lock.check()
        assert await lock.break_() == [lock._mine]

    asyncio.run(take())
    assert not list(tmp_path.rglob("PWNED"))

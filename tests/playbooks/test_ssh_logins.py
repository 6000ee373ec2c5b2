"""SSH in practice: login shells that print or hang, keys that only an agent can use, ssh_config."""

from __future__ import annotations

import asyncio
import getpass
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import until
from playbooks.fleet import Sshd, keygen

from karma_playbooks.inventory import Entry
from karma_playbooks.transports.host import Finished, Host
from karma_playbooks.transports.shell import LinkLostError, Ran, UnreachableError
from karma_playbooks.transports.ssh import SshShell

PASSPHRASE = "correct horse"


class Login:
    """One daemon, and an operator whose home is a folder of the test."""

    def __init__(self, folder: Path, sshd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.key = folder / "id"
        keygen(self.key)
        self.daemon = Sshd(sshd, folder / "host", self.key)
        self.home = folder / "operator"
        (self.home / ".ssh").mkdir(parents=True)
        self.known_hosts = self.home / ".ssh" / "known_hosts"
        self.known_hosts.write_text(self.daemon.known_host)
        monkeypatch.setenv("HOME", str(self.home))
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)

    def entry(self, **changes: object) -> Entry:
        about = {
            "ssh_host": "127.0.0.1",
            "ssh_port": self.daemon.port,
            "ssh_user": getpass.getuser(),
            "ssh_identity": str(self.key),
        }
        return Entry("one", "127.0.0.1:1", **{**about, **changes})  # type: ignore[arg-type]

    def config(self, text: str) -> None:
        """Write the operator's ssh_config."""
        (self.home / ".ssh" / "config").write_text(text)

    def force(self, command: str) -> None:
        """Let the key's login run a command instead of the login shell, as other shells would be run."""
        keys = self.daemon.folder / "authorized_keys"
        keys.write_text(f'command="{command}" {self.key.with_suffix(".pub").read_text()}')


@pytest.fixture
def login(tmp_path: Path, sshd: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Login]:
    login = Login(tmp_path, sshd, monkeypatch)
    yield login
    login.daemon.stop()


@pytest.fixture
def agent(login: Login, needs: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An agent that holds no key yet; SSH_AUTH_SOCK names it."""
    # A socket's path may have 108 bytes, which the folders of a test use up.
    link = Path(f"/tmp/karma-agent-{os.getpid()}")
    link.symlink_to(login.folder)
    socket = link / "agent"
    process = subprocess.Popen([needs("ssh-agent"), "-D", "-a", socket], stdout=subprocess.DEVNULL)
    until(socket.exists)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
    yield
    process.kill()
    process.wait()
    link.unlink()


def script(entry: Entry, text: str = "echo out; echo err >&2; exit 3") -> Ran:
    """Run a script on a host and close the connection."""

    async def go() -> Ran:
        shell = SshShell(entry)
        try:
            return await shell.script(text)
        finally:
            await shell.close()

    return asyncio.run(go())


def lock_key(login: Login) -> None:
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", PASSPHRASE, "-f", login.key], check=True)


def unlock_into_agent(login: Login) -> None:
    """Put the key into the agent; the passphrase comes from a program, as in a desktop session."""
    ask = login.folder / "ask"
    ask.write_text(f"#!/bin/sh\necho '{PASSPHRASE}'\n")
    ask.chmod(0o700)
    environ = {**os.environ, "SSH_ASKPASS": str(ask), "SSH_ASKPASS_REQUIRE": "force"}
    subprocess.run(["ssh-add", "-q", login.key], check=True, env=environ, stdin=subprocess.DEVNULL)


# -- Login shells --------------------------------------------------------------------------------------------

NOISY = "echo 'Welcome to db1'; printf 'no newline at the end'; echo 'be careful' >&2\n"


def test_what_a_login_shell_prints_is_not_the_scripts(login: Login) -> None:
    (login.daemon.home / ".bashrc").write_text(NOISY + "trap 'echo bye; echo bye >&2' EXIT\n")
    assert script(login.entry()) == Ran(3, "out\n", "err\n")


@pytest.mark.parametrize("shell", ["bash", "dash", "zsh", "fish"])
def test_any_login_shell_may_be_noisy(login: Login, needs: Callable[[str], Path], shell: str) -> None:
    path = needs(shell)
    login.force(f'echo noise; echo noise >&2; {path} -c \\"$SSH_ORIGINAL_COMMAND\\"; echo after')
    assert script(login.entry()) == Ran(3, "out\n", "err\n")


def test_a_command_on_a_noisy_host_runs_once_and_is_followed(login: Login) -> None:
    (login.daemon.home / ".bashrc").write_text(NOISY)
    marks = login.folder / "marks"
    heard: list[str] = []

    async def go() -> Finished:
        host = Host(SshShell(login.entry()), str(login.folder / "runs"))
        argv = ["sh", "-c", f"echo once >> {marks}; echo one; sleep 0.3; printf two; exit 5"]
        try:
            return await host.run("run-1/step.1", argv, 20, on_output=heard.append)
        finally:
            await host.shell.close()

    assert asyncio.run(go()) == Finished(5, "one\ntwo")
    assert "".join(heard) == "one\ntwo"
    assert marks.read_text() == "once\n"


def test_output_that_looks_like_the_marks_is_output(login: Login) -> None:
    text = "echo 'begin'; echo '0123 begin'; printf '%s end ' 0123; echo end 7"
    assert script(login.entry(), text).output == "begin\n0123 begin\n0123 end end 7\n"


@pytest.mark.parametrize(
    "command", ["/usr/sbin/nologin", "echo 'This account is locked'; exit 1", "exit 0", "cat"]
)
def test_a_login_that_runs_no_shell_is_named_and_nothing_ran(login: Login, command: str) -> None:
    login.force(command)
    with pytest.raises(UnreachableError, match="did not run sh"):
        script(login.entry(), f"touch {login.folder}/ran")
    assert not (login.folder / "ran").exists()


def test_no_second_login_shell_hangs_on_the_host(login: Login) -> None:
    pids = login.folder / "pids"
    (login.daemon.home / ".bashrc").write_text(f"echo $$ >> {pids}; exec sleep 1000")

    async def go() -> None:
        shell = SshShell(login.entry())
        work = asyncio.create_task(shell.script("true"))
        await asyncio.to_thread(until, lambda: pids.exists() and pids.read_text().endswith("\n"))
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        if is_alive(pids.read_text().strip()):
            for _ in range(3):
                with pytest.raises(UnreachableError, match="hangs before it runs anything"):
                    await shell.script("true")
        await shell.close()

    try:
        asyncio.run(go())
        assert len(pids.read_text().split()) == 1
    finally:
        for pid in filter(is_alive, pids.read_text().split()):
            os.kill(int(pid), signal.SIGKILL)


def is_alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# -- Keys ----------------------------------------------------------------------------------------------------


def test_a_key_with_a_passphrase_says_what_to_do(login: Login) -> None:
    lock_key(login)
    with pytest.raises(
        UnreachableError, match=rf"{login.key} has a passphrase .* run `ssh-add {login.key}` first"
    ):
        script(login.entry())


@pytest.mark.usefixtures("agent")
def test_a_key_with_a_passphrase_is_taken_from_the_agent(login: Login) -> None:
    lock_key(login)
    unlock_into_agent(login)
    assert script(login.entry()).output == "out\n"


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("form", ["PEM", "PKCS8"])
def test_a_locked_key_of_an_older_form_is_found_by_its_pub_file(login: Login, form: str) -> None:
    login.key.unlink()
    login.key.with_suffix(".pub").unlink()
    command = ["ssh-keygen", "-q", "-t", "ecdsa", "-m", form, "-N", PASSPHRASE, "-f", str(login.key)]
    subprocess.run(command, check=True)
    keys = login.daemon.folder / "authorized_keys"
    keys.write_text(login.key.with_suffix(".pub").read_text())
    with pytest.raises(UnreachableError, match="ssh-add"):
        script(login.entry())
    unlock_into_agent(login)
    assert script(login.entry()).output == "out\n"


@pytest.mark.usefixtures("agent")
def test_a_public_key_as_identity_names_one_of_the_agents(login: Login) -> None:
    public = str(login.key.with_suffix(".pub"))
    with pytest.raises(UnreachableError, match="ssh-add"):
        script(login.entry(ssh_identity=public))
    unlock_into_agent(login)
    assert script(login.entry(ssh_identity=public)).output == "out\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read: No such file"), ("not a key\n", "is not an SSH key"), ("", "is not an SSH key")],
)
def test_a_file_that_is_not_a_key_is_named(login: Login, content: str | None, message: str) -> None:
    path = login.folder / "other"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UnreachableError, match=f"{path} {message}"):
        script(login.entry(ssh_identity=str(path)))


# -- ssh_config ----------------------------------------------------------------------------------------------


def plain(login: Login, **changes: object) -> Entry:
    """An entry that leaves everything to ssh_config."""
    left_out = {"ssh_host": "db1", "ssh_port": 0, "ssh_user": "", "ssh_identity": ""}
    return login.entry(**{**left_out, **changes})


def host_section(login: Login) -> str:
    return (
        f"Host db1\n  HostName 127.0.0.1\n  Port {login.daemon.port}\n  User {getpass.getuser()}\n"
        f"  IdentityFile {login.key}\n  HostKeyAlias db1.key\n"
    )


def trust(login: Login, alias: str) -> None:
    words = login.daemon.known_host.split()
    login.known_hosts.write_text(f"{alias} {words[1]} {words[2]}\n")


def test_host_name_port_user_and_key_come_from_ssh_config(login: Login) -> None:
    login.config(host_section(login))
    trust(login, "db1.key")
    assert script(plain(login)).output == "out\n"
    assert str(SshShell(plain(login)).resolve()) == f"{getpass.getuser()}@127.0.0.1:{login.daemon.port}"


def test_what_the_context_says_wins_over_ssh_config(login: Login) -> None:
    login.config(host_section(login))
    assert str(SshShell(plain(login, ssh_port=2222, ssh_user="karma")).resolve()) == "karma@127.0.0.1:2222"


def test_include_and_match_are_read(login: Login) -> None:
    (login.home / ".ssh" / "more").mkdir()
    (login.home / ".ssh" / "more" / "db.conf").write_text(host_section(login))
    login.config('Include more/*.conf\nMatch host "127.0.0.1" exec "true"\n  ConnectTimeout 7\n')
    trust(login, "db1.key")
    assert script(plain(login)).output == "out\n"


def test_hashed_known_hosts_are_read(login: Login) -> None:
    login.config(host_section(login))
    trust(login, "db1.key")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", login.known_hosts], check=True, capture_output=True)
    assert "db1.key" not in login.known_hosts.read_text()
    assert script(plain(login)).output == "out\n"


def test_a_proxy_jump_of_ssh_config_leads_there(login: Login, sshd: Path) -> None:
    bastion = Sshd(sshd, login.folder / "bastion", login.key)
    try:
        login.config(
            f"{host_section(login)}  ProxyJump bastion\nHost bastion\n  HostName 127.0.0.1\n"
            f"  Port {bastion.port}\n  IdentityFile {login.key}\n"
        )
        trust(login, "db1.key")
        login.known_hosts.write_text(login.known_hosts.read_text() + bastion.known_host)
        assert script(plain(login)).output == "out\n"
        assert "Accepted publickey" in (bastion.folder / "sshd.log").read_text()
    finally:
        bastion.stop()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Port many\n", r"config line 1: .*correct that line"),
        ("Host db1\n  Match nonsense\n", r"config line 2: .*correct that line"),
        ('IdentityFile "half\n', r"config line 1: .*correct that line"),
        ("IdentityFile %Q\n", "correct that line"),
        ("\xff\xfe", "cannot be read: it is not UTF-8"),
    ],
)
def test_an_ssh_config_that_cannot_be_read_is_named(login: Login, text: str, message: str) -> None:
    (login.home / ".ssh" / "config").write_bytes(text.encode("latin-1"))
    with pytest.raises(UnreachableError, match=message):
        script(plain(login))


def test_ssh_config_cannot_switch_the_check_of_host_keys_off(login: Login) -> None:
    login.config(f"{host_section(login)}  UserKnownHostsFile none\n  StrictHostKeyChecking no\n")
    with pytest.raises(UnreachableError, match="switches the check of host keys off"):
        script(plain(login))
    login.config(f"{host_section(login)}  UserKnownHostsFile /dev/null\n  StrictHostKeyChecking no\n")
    with pytest.raises(UnreachableError, match="host key"):
        script(plain(login))


def test_a_missing_key_of_ssh_config_is_skipped(login: Login) -> None:
    login.config(f"{host_section(login)}  IdentityFile {login.folder}/not-there\n")
    trust(login, "db1.key")
    assert script(plain(login)).output == "out\n"


def test_an_operator_without_a_user_name_gets_an_answer(
    login: Login, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = login.entry(ssh_user="karma")

    def nameless() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(getpass, "getuser", nameless)
    with pytest.raises(UnreachableError, match="LOGNAME"):
        script(entry)


def test_an_agent_that_is_gone_holds_nothing(login: Login, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", str(login.folder / "gone"))
    lock_key(login)
    with pytest.raises(UnreachableError, match="ssh-add"):
        script(login.entry())
    shutil.copy(login.key, login.folder / "kept")
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", PASSPHRASE, "-N", "", "-f", login.key], check=True)
    assert script(login.entry()).output == "out\n"


def test_a_connection_cut_behind_the_beginning_is_unknown(login: Login) -> None:
    started = login.folder / "started"

    async def go() -> None:
        shell = SshShell(login.entry())
        work = asyncio.create_task(shell.script(f"echo $PPID > {started}; sleep 60"))
        await asyncio.to_thread(until, lambda: started.exists() and started.read_text().strip())
        os.kill(int(started.read_text()), signal.SIGKILL)
        with pytest.raises((LinkLostError, UnreachableError)):
            await work
        await shell.close()

    asyncio.run(go())

"""The single files that `make dist` built, used where no Python is: below a root with Debian's base."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
from harness import ROOT, Server, missing, until
from terminals import Tmux

from karma import __version__

DIST = ROOT / "dist"
SOURCES = [
    path
    for folder in ("server", "karmactl", "playbooks", "tui", "deploy/single")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".sh", ".tcss", ".txt", ".yml"}
]
BASE = ["base-files", "bash", "coreutils", "dash", "findutils", "gzip", "tar"]
"""Packages that every Debian has, and below the libraries that they need."""
LIBRARIES = [
    "libacl1",
    "libattr1",
    "libc6",
    "libgcc-s1",
    "libgmp10",
    "libpcre2-8-0",
    "libselinux1",
    "libtinfo6",
    "zlib1g",
]
DEVICES = {"null": (1, 3), "urandom": (1, 9)}
MOST_BYTES = 90_000_000
"""What karmactl may weigh."""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def single_file(name: str) -> Path:
    """A file of `dist/`, built from the sources as they are now."""
    path = DIST / name
    if not path.exists():
        missing(f"needs dist/{name}: make dist")
    if path.stat().st_mtime < max(source.stat().st_mtime for source in SOURCES):
        missing(f"dist/{name} is older than the sources: make dist")
    return path


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A root with Debian's basic packages, as they are on this machine, and `/karma` and `/karmactl`."""
    if os.geteuid() != 0:
        missing("needs root, to change the root of a process")
    listed = subprocess.run(["dpkg", "-L", *BASE, *LIBRARIES], capture_output=True, text=True, check=False)
    if listed.returncode:
        missing(f"needs the packages of a Debian: {listed.stderr}")
    root = tmp_path_factory.mktemp("debian")
    for name in ("bin", "lib", "lib64", "sbin"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for name in sorted(set(listed.stdout.splitlines())):
        path, copy = Path(name), root / name[1:]
        if path.is_file() and not name.startswith("/usr/share/"):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy, follow_symlinks=False)
    for name in ("dev", "root", "tmp"):
        (root / name).mkdir(exist_ok=True)
    for name, numbers in DEVICES.items():
        os.mknod(root / "dev" / name, 0o666 | stat.S_IFCHR, os.makedev(*numbers))
    for name in ("karma", "karmactl"):
        shutil.copy2(single_file(name), root / name)
    assert not list(root.rglob("*python*"))
    yield root
    # pytest would keep some gigabytes of what was unpacked.
    shutil.rmtree(root)


def inside(root: Path, **variables: str) -> list[str]:
    """The beginning of a command that runs below `root` with these variables alone."""
    variables = {"HOME": "/root", "PATH": "/usr/bin:/bin"} | variables
    values = [f"{name}={value}" for name, value in variables.items() if value]
    return ["chroot", str(root), "env", "-i", *values]


@pytest.fixture
def run(debian: Path) -> Run:
    def run(*words: str, text: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        command = [*inside(debian, **variables), *words]
        return subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=100)

    return run


@pytest.fixture
def server(debian: Path, tmp_path: Path) -> Iterator[Server]:
    """The server's one file, below the root: its directory has the same path there."""
    directory = tmp_path / "data"
    debian.joinpath(*directory.parts[1:]).mkdir(parents=True)
    with Server(directory, prefix=inside(debian), program=["/karma"]) as server:
        yield server


def unpacked(debian: Path, cache: str) -> list[Path]:
    """What is in a cache of karmactl, with what an unpacking left."""
    return sorted((debian / cache[1:] / "karmactl" / "program").iterdir())


# -- The server ------------------------------------------------------------------------------------------


def test_the_server_is_one_file(run: Run, server: Server, debian: Path) -> None:
    assert run("/karma", "--version").stdout == f"karma {__version__}\n"
    assert server.ask("counter.increment", series="a", key=1, value=5) == 5
    server.ask("snapshot.create_all")
    assert server.stop() == 0
    server.restart()
    assert server.ask("counter.sum", series="a", key=1) == 5
    server.kill()
    check = ("/karma", "check", f"--directory={server.directory}")
    # The program ends with the process that unpacked it.
    until(lambda: run(*check).returncode == 0)


# -- karmactl --------------------------------------------------------------------------------------------


def test_karmactl_is_one_file_with_everything(run: Run, server: Server) -> None:
    node = f"127.0.0.1:{server.port}"
    assert run("/karmactl", "--version").stdout == f"karmactl {__version__}\n"
    assert run("/karmactl", "add", "mails", "7", "3", "--node", node).returncode == 0
    assert run("/karmactl", "get", "mails", "7", "--node", node, "--output", "json").stdout
    assert "switchover" in run("/karmactl", "playbook", "list").stdout
    directory = str(server.directory)
    found = run(
        "/karmactl",
        "sql",
        "SELECT sum(value)::INT s FROM counters",
        "--from",
        directory,
        "--as-of=now",
        "--output=json",
    )
    assert json.loads(found.stdout) == [{"s": 3}], found.stderr
    assert run("/karmactl", "get", "mails", "7", "--node", "127.0.0.1:1").returncode == 5


def test_the_dashboard_runs_from_the_file(debian: Path, server: Server, terminal: Tmux) -> None:
    terminal.see("ready>")
    words = inside(debian, TERM="xterm-256color", LANG="C.UTF-8")
    terminal.type(f"{' '.join(words)} /karmactl tui --node 127.0.0.1:{server.port}", "Enter")
    terminal.see("healthy", "1/1 nodes")
    terminal.type("q")
    terminal.until(terminal.is_clean, "a clean terminal")


def test_it_is_small_and_unpacked_once_for_this_user_alone(run: Run, debian: Path) -> None:
    assert (debian / "karmactl").stat().st_size < MOST_BYTES
    cache = "/tmp/once"
    assert run("/karmactl", "--version", XDG_CACHE_HOME=cache).returncode == 0
    (folder,) = unpacked(debian, cache)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    made = folder.stat()
    assert run("/karmactl", "--version", XDG_CACHE_HOME=cache).returncode == 0
    assert unpacked(debian, cache) == [folder]
    assert (folder.stat().st_ino, folder.stat().st_ctime_ns) == (made.st_ino, made.st_ctime_ns)


def test_many_may_unpack_it_at_once(run: Run, debian: Path) -> None:
    cache = "/tmp/many"
    with ThreadPoolExecutor() as pool:
        ended = list(pool.map(lambda _: run("/karmactl", "--version", XDG_CACHE_HOME=cache), range(4)))
    assert {(done.returncode, done.stdout) for done in ended} == {(0, f"karmactl {__version__}\n")}
    assert len(unpacked(debian, cache)) == 1


def test_a_damaged_file_says_so_and_leaves_nothing(run: Run, debian: Path) -> None:
    whole = (debian / "karmactl").read_bytes()
    for number, content in enumerate([whole[:-1], whole[:-9] + bytes(9), whole[: len(whole) // 2]]):
        name, cache = f"/tmp/damaged{number}", f"/tmp/damaged{number}.cache"
        (debian / name[1:]).write_bytes(content)
        (debian / name[1:]).chmod(0o755)
        ended = run(name, "--version", XDG_CACHE_HOME=cache)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert f"{name} is damaged" in ended.stderr
        assert unpacked(debian, cache) == []


def test_without_a_place_to_unpack_it_says_what_to_set(run: Run, debian: Path) -> None:
    ended = run("/karmactl", "--version", HOME="")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "XDG_CACHE_HOME" in ended.stderr
    (debian / "tmp" / "file").touch()
    ended = run("/karmactl", "--version", XDG_CACHE_HOME="/tmp/file")
    assert ended.returncode == 2
    assert "cannot make /tmp/file" in ended.stderr


@pytest.mark.parametrize("level", ["program", "folder", "cache"])
def test_what_others_may_write_to_is_not_executed(run: Run, debian: Path, level: str) -> None:
    cache = f"/tmp/writable-{level}"
    assert run("/karmactl", "--version", XDG_CACHE_HOME=cache).returncode == 0
    (folder,) = unpacked(debian, cache)
    path = {"program": folder / "karmactl", "folder": folder, "cache": folder.parent}[level]
    path.chmod(path.stat().st_mode | 0o022)
    ended = run("/karmactl", "--version", XDG_CACHE_HOME=cache)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "other users may write" in ended.stderr


def test_what_belongs_to_somebody_else_is_not_executed(run: Run, debian: Path) -> None:
    cache = "/tmp/others"
    assert run("/karmactl", "--version", XDG_CACHE_HOME=cache).returncode == 0
    (folder,) = unpacked(debian, cache)
    os.chown(folder / "karmactl", 12345, 12345)
    ended = run("/karmactl", "--version", XDG_CACHE_HOME=cache)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "belongs to somebody else" in ended.stderr


# -- The release -----------------------------------------------------------------------------------------


def test_the_sums_are_those_of_the_files() -> None:
    lines = single_file("SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (re.split(" +", line) for line in lines)}
    files = {path.name: sha256(path.read_bytes()).hexdigest() for path in DIST.iterdir() if path.name in sums}
    assert sums == files
    assert {"karma", "karmactl", f"karma-{__version__}.tar.gz"} < set(sums)

"""Build what a release consists of, into `dist/`: `make dist`.

- `karma`: the server as one executable file, which unpacks itself into a temporary folder at each start.
- `karmactl`: CLI, dashboard, playbooks and SQL as one file. It is larger, so it unpacks itself only
  once, into the user's cache (see `karmactl.sh`).
- the sdist and the wheel, and `SHA256SUMS` of everything.

Neither file needs Python where it runs, only a glibc that is no older than the builder's. The same commit,
Python and C library make the same bytes, wherever the checkout is: the requirements files pin what goes in
by version and hash (see `pin.py`), times are those of the commit, and everything is built where nothing but
the wheel is installed.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OUT = ROOT / "dist"
ENTRIES = {
    # The program runs as a child of the process that unpacked it. Without this, a kill -9 of the process that
    # everybody sees would leave a server behind: PR_SET_PDEATHSIG (1) is SIGKILL (9), see prctl(2).
    "karma": """\
import ctypes, os
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == 1 and os.getpid() != 1:
    os._exit(137)
from karma.app import main
raise SystemExit(main())
""",
    "karmactl": """\
from karmactl.__main__ import main
main()
""",
}
PACKAGES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
    "packages"
]
PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
OPTIONS = {
    "karma": ["--onefile", "--strip", "--collect-submodules=karma"],
    "karmactl": [
        # Not stripped: that breaks the alignment of numpy's libraries, which then do not load.
        "--onedir",
        "--copy-metadata=karma",
        # Modules and data that are found by name, when they are needed: operations, commands, books.
        *(f"--collect-all={Path(package).name}" for package in PACKAGES),
    ],
}


def main() -> None:
    """Build everything; paths and sizes go to stdout. Exits with what the failing step said."""
    environment = {
        **os.environ,
        "SOURCE_DATE_EPOCH": str(commit_time()),
        # The order of what PyInstaller collects depends on hashes of strings.
        "PYTHONHASHSEED": "0",
    }
    shutil.rmtree(OUT, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="karma-dist-") as name:
        work = Path(name)
        venv.create(work / "venv", with_pip=True)
        python = work / "venv" / "bin" / "python"
        tell("sdist and wheel")
        install(python, "requirements-build.txt")
        run(python, "-m", "hatchling", "build", "-d", OUT, cwd=ROOT, env=environment)
        (wheel,) = OUT.glob("*.whl")
        version = wheel.name.split("-")[1]
        # One after the other: what only karmactl needs must not get into the server.
        tell("karma")
        install(python, "requirements-server.txt")
        run(python, *PIP, "--no-index", "--no-deps", wheel)
        shutil.move(built("karma", python, work, environment), OUT / "karma")
        tell("karmactl")
        install(python, "requirements.txt")
        pack(built("karmactl", python, work, environment), version, int(environment["SOURCE_DATE_EPOCH"]))
    paths = sorted(path for path in OUT.iterdir() if path.name != ".gitignore")
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths]
    (OUT / "SHA256SUMS").write_text("".join(sums))
    for path in paths:
        print(f"{path.relative_to(ROOT)}  {path.stat().st_size / 1e6:.1f} MB")


def install(python: Path, name: str) -> None:
    """Install what a requirements file names, and nothing whose hash it does not have."""
    run(python, *PIP, "--require-hashes", "--no-deps", "--requirement", HERE / name)


def commit_time() -> int:
    """SOURCE_DATE_EPOCH, else the time of the commit, else, in an unpacked sdist, that of its files."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    if (ROOT / ".git").exists():
        return int(run("git", "log", "-1", "--format=%ct", cwd=ROOT))
    return int((ROOT / "pyproject.toml").stat().st_mtime)


def built(name: str, python: Path, work: Path, environment: dict[str, str]) -> Path:
    """What PyInstaller makes of a program: a file, or a folder with everything the program needs."""
    # Not f"{name}.py", which the import of the package would find first.
    entry = work / f"start_{name}.py"
    entry.write_text(ENTRIES[name])
    options = ["--noconfirm", f"--name={name}", *OPTIONS[name]]
    run(python, "-m", "PyInstaller", *options, entry, cwd=work, env=environment)
    return work / "dist" / name


def pack(folder: Path, version: str, seconds: int) -> None:
    """Write `dist/karmactl`: the script, then the folder as a tar.gz whose bytes depend on contents alone."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        entry.mtime = seconds
        entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
        return entry

    archive = io.BytesIO()
    # gzip: what every Debian can unpack; its own header would hold the name and the time.
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=archive, mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for path in sorted(folder.rglob("*")):
            # pip notes there where it installed from, and sums of scripts that name the folder they are in.
            if path.parent.suffix == ".dist-info" and path.name in {"RECORD", "direct_url.json"}:
                continue
            tar.add(path, path.relative_to(folder), recursive=False, filter=plain)
    payload = archive.getvalue()
    script = (HERE / "karmactl.sh").read_text()
    script = script.replace("@VERSION@", version).replace("@DIGEST@", hashlib.sha256(payload).hexdigest())
    script = script.replace("@LINES@", str(script.count("\n") + 1))
    path = OUT / "karmactl"
    path.write_bytes(script.encode() + payload)
    path.chmod(0o755)


def run(*command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    """Return what a command prints; when it fails, everything it said goes to stderr and the build ends."""
    done = subprocess.run([*map(str, command)], cwd=cwd, env=env, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\n{command[0]} ended with {done.returncode}")
    return done.stdout


def tell(text: str) -> None:
    """Say what is being built: it takes two minutes."""
    sys.stderr.write(f"building {text} …\n")


if __name__ == "__main__":
    main()

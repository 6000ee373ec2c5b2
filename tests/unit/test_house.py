"""Rules of the house that neither ruff nor import-linter can see."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SERVER = Path(__file__).parents[2] / "server"
SOURCE = SERVER / "karma"
MODULES = sorted(SOURCE.rglob("*.py"))
# What other packages share of these rules: the shape of the code, not where it may touch files.
OTHERS = (
    SERVER / "karma_client",
    SERVER / "karma_events",
    SERVER.parent / "karmactl",
    SERVER.parent / "playbooks",
)
ALL_MODULES = [*MODULES, *(path for folder in OTHERS for path in sorted(folder.rglob("*.py")))]
MAX_LINES = 600

# Time, randomness and the operating system are arguments there, so that every test can replay them.
PURE = ("protocol/", "core/", "engine/", "engine.py", "replication/feed.py", "replication/follower.py")
IMPURE_IMPORTS = {"asyncio", "os", "random", "socket", "threading", "time"}

# What may touch files: one module, which the fault tests replace as a whole.
DISK = "storage/disk.py"
FILE_FUNCTIONS = {
    "fcntl.flock",
    "fcntl.lockf",
    "io.open",
    "open",
    "os.fdatasync",
    "os.fsync",
    "os.ftruncate",
    "os.open",
    "os.rename",
    "os.renames",
    "os.replace",
    "os.truncate",
    "shutil.copyfile",
    "shutil.move",
}
FILE_METHODS = {"read_bytes", "read_text", "write_bytes", "write_text"}


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE if path in MODULES else SERVER.parent).as_posix()


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(local name, dotted name) of everything that a module imports, wherever it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name.partition(".")[0], alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def file_access(source: str) -> list[str]:
    """Lines of a module that use a function for files, called or passed on (to an executor, say)."""
    tree = ast.parse(source)
    known = dict(imports(tree))
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                dotted = known.get(name, name)
            case ast.Attribute(value=ast.Name(id=name), attr=attribute):
                dotted = f"{known.get(name, name)}.{attribute}"
            case _:
                dotted = ""
        method = node.attr if isinstance(node, ast.Attribute) else ""
        if dotted in FILE_FUNCTIONS or method in FILE_METHODS:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")  # type: ignore[attr-defined]
    return found


def impure_imports(source: str) -> list[str]:
    """The modules that a pure module must not import, of those it does."""
    return [dotted for _, dotted in imports(ast.parse(source)) if dotted.partition(".")[0] in IMPURE_IMPORTS]


def undocumented(source: str) -> list[str]:
    """Public modules, classes, functions and methods without a docstring (`_x`, `__x__` are not public)."""
    tree = ast.parse(source)
    missing = [] if ast.get_docstring(tree) else ["the module"]
    pending: list[tuple[str, ast.Module | ast.ClassDef]] = [("", tree)]
    while pending:
        prefix, parent = pending.pop()
        for node in parent.body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                missing.append(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                pending.append((f"{prefix}{node.name}.", node))
    return missing


@pytest.fixture(params=MODULES, ids=name_of)
def module(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture(params=ALL_MODULES, ids=name_of)
def any_module(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_only_the_disk_module_touches_files(module: Path) -> None:
    if name_of(module) != DISK:
        assert file_access(module.read_text()) == []


def test_pure_modules_import_no_time_randomness_or_operating_system(module: Path) -> None:
    if name_of(module).startswith(PURE):
        assert impure_imports(module.read_text()) == []


def test_modules_stay_readable_in_one_sitting(any_module: Path) -> None:
    assert len(any_module.read_text().splitlines()) < MAX_LINES


def test_everything_public_has_a_docstring(any_module: Path) -> None:
    assert undocumented(any_module.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "open('x')",
        "import os\nos.fsync(3)",
        "import os as system\nsystem.rename('a', 'b')",
        "from os import replace as swap\nswap('a', 'b')",
        "import os\nloop.run_in_executor(None, os.fdatasync, 3)",
        "import fcntl\nfcntl.flock(3, 2)",
        "path.read_bytes()",
        "self.path.write_text('x')",
    ],
)
def test_file_access_is_seen(source: str) -> None:
    assert len(file_access(source)) == 1


@pytest.mark.parametrize(
    "source", ["disk.open(path)", "'a'.replace('a', 'b')", "self._open()", "disk.rename(a, b)"]
)
def test_what_only_sounds_like_file_access_is_fine(source: str) -> None:
    assert file_access(source) == []


@pytest.mark.parametrize(
    "source", ["import time", "from os import path", "def f():\n    import asyncio.tasks"]
)
def test_impure_imports_are_seen(source: str) -> None:
    assert len(impure_imports(source)) == 1


def test_missing_docstrings_are_seen() -> None:
    source = "class A:\n  def b(self): ...\n  def _c(self): ...\n  def __str__(self): ...\nasync def d(): ..."
    assert undocumented(source) == ["the module", "A", "d", "A.b"]

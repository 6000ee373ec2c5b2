"""Where karmactl goes and how: flags over environment over file, and who gets which token."""

from pathlib import Path
from typing import Any

import pytest

from karmactl import contexts, settings
from karmactl.contexts import ContextFile
from karmactl.diagnostics import CtlError, Exit

FILE = """
current = "dev"
[contexts.dev]
nodes = ["dev1:8080"]
token_env = "DEV_TOKEN"
output = "json"
timeout = "2s"
[contexts.prod]
production = true
nodes = ["db1:8080", {address = "db2", name = "second"}]
token_file = "prod.token"
tls_ca = "ca.pem"
"""


@pytest.fixture
def file(tmp_path: Path) -> ContextFile:
    path = tmp_path / "config.toml"
    path.write_text(FILE)
    return contexts.load(path)


def resolve(file: ContextFile, environ: dict[str, str] | None = None, **flags: Any) -> settings.Settings:
    return settings.resolve(flags, environ or {}, file)


def test_without_anything_it_is_this_machine(tmp_path: Path) -> None:
    chosen = resolve(ContextFile(tmp_path / "none"))
    assert (chosen.nodes, chosen.nodes_source, chosen.context) == (("127.0.0.1:8080",), "default", None)


@pytest.mark.parametrize(
    ("flags", "environ", "nodes", "source"),
    [
        ({"node": ("a:1",), "context": "prod"}, {"KARMACTL_NODES": "b:2"}, ("a:1",), "--node"),
        ({"context": "prod"}, {"KARMACTL_NODES": "b:2, c"}, ("b:2", "c:8080"), "KARMACTL_NODES"),
        ({"context": "prod"}, {"KARMACTL_CONTEXT": "dev"}, ("db1:8080", "db2:8080"), "context prod"),
        ({}, {"KARMACTL_CONTEXT": "prod"}, ("db1:8080", "db2:8080"), "context prod"),
        ({}, {}, ("dev1:8080",), "context dev"),
    ],
)
def test_the_stronger_target_wins(
    file: ContextFile, flags: dict[str, Any], environ: dict[str, str], nodes: tuple[str, ...], source: str
) -> None:
    chosen = settings.resolve(flags, environ, file)
    assert (chosen.nodes, chosen.nodes_source) == (nodes, source)


def test_an_overruled_context_is_mentioned(file: ContextFile) -> None:
    assert "KARMACTL_NODES wins" in resolve(file, {"KARMACTL_NODES": "b:2"}, context="prod").notes[0]


def test_a_node_of_the_context_may_be_called_by_name(file: ContextFile) -> None:
    assert resolve(file, node=("second",), context="prod").nodes == ("db2:8080",)


@pytest.mark.parametrize(
    ("flags", "environ", "context"),
    [
        # A token must not reach a node that its context does not have, unless both were named alike.
        ({"node": ("stranger:1",)}, {}, None),
        ({"node": ("stranger:1",)}, {"KARMACTL_CONTEXT": "prod"}, None),
        ({}, {"KARMACTL_NODES": "stranger:1"}, None),
        ({"node": ("dev1",)}, {}, "dev"),
        ({"node": ("stranger:1",), "context": "prod"}, {}, "prod"),
        ({}, {"KARMACTL_NODES": "stranger:1", "KARMACTL_CONTEXT": "prod"}, "prod"),
    ],
)
def test_a_context_counts_only_for_its_own_nodes_or_when_named_as_strongly(
    file: ContextFile, flags: dict[str, Any], environ: dict[str, str], context: str | None
) -> None:
    chosen = settings.resolve(flags, environ, file)
    assert (chosen.context and chosen.context.name) == context


def test_a_production_node_stays_one_however_it_is_named(file: ContextFile) -> None:
    for chosen in (resolve(file, node=("db2:8080",)), resolve(file, {"KARMACTL_NODES": "db1"})):
        assert chosen.production
        assert chosen.production.name == "prod"
    assert resolve(file).production is None


@pytest.mark.parametrize(
    ("flags", "environ", "value", "source"),
    [
        ({"output": "csv"}, {"KARMACTL_OUTPUT": "jsonl"}, "csv", "--output"),
        ({}, {"KARMACTL_OUTPUT": "jsonl"}, "jsonl", "KARMACTL_OUTPUT"),
        ({}, {}, "json", "context dev in "),
        ({"context": "prod"}, {}, None, "default"),
    ],
)
def test_other_settings_come_from_flag_environment_file_default(
    file: ContextFile, flags: dict[str, Any], environ: dict[str, str], value: str | None, source: str
) -> None:
    found = settings.resolve(flags, environ, file).values["output"]
    assert found.value == value
    assert found.source.startswith(source)


def test_a_timeout_is_for_a_request_or_for_all_of_the_waiting(file: ContextFile, tmp_path: Path) -> None:
    assert resolve(file).request_seconds == 2.0
    waiting = resolve(file, timeout=30.0, wait_until="healthy")
    assert (waiting.request_seconds, waiting.wait_seconds) == (settings.DEFAULT_TIMEOUT_SECONDS, 30.0)
    assert resolve(ContextFile(tmp_path / "none")).wait_seconds == settings.DEFAULT_WAIT_SECONDS


@pytest.mark.parametrize(
    ("text", "value"), [("5", 5), ("0.5", 0.5), ("500ms", 0.5), ("2m", 120), ("1h", 3600)]
)
def test_times_are_read(text: str, value: float) -> None:
    assert settings.seconds(text) == value


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "5 days", "nan", "inf"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  the text is put into words by the caller
        settings.seconds(text)


@pytest.mark.parametrize(
    ("variable", "text"),
    [("KARMACTL_OUTPUT", "xml"), ("KARMACTL_READ_ONLY", "maybe"), ("KARMACTL_TIMEOUT", "long")],
)
def test_an_unusable_environment_is_refused_by_name(file: ContextFile, variable: str, text: str) -> None:
    with pytest.raises(CtlError) as caught:
        resolve(file, {variable: text})
    assert caught.value.code == Exit.USAGE
    assert variable in caught.value.message


# -- Tokens ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "environ", "token"),
    [
        ({}, {"DEV_TOKEN": "of-context"}, "of-context"),
        ({}, {"DEV_TOKEN": "of-context", "KARMACTL_TOKEN": "of-environment"}, "of-environment"),
        ({"token_env": "MINE"}, {"MINE": "of-flag", "KARMACTL_TOKEN": "of-environment"}, "of-flag"),
        ({"token_env": "MINE"}, {"MINE": "of-flag", "KARMACTL_TOKEN_FILE": "x"}, "of-flag"),
        ({"token_file": "FILE"}, {"DEV_TOKEN": "of-context", "KARMACTL_TOKEN": "of-environment"}, "of-file"),
        ({"node": ("stranger:1",)}, {"DEV_TOKEN": "of-context"}, None),
    ],
)
def test_the_stronger_reference_gives_the_token(
    file: ContextFile, tmp_path: Path, flags: dict[str, Any], environ: dict[str, str], token: str | None
) -> None:
    (tmp_path / "token").write_text("of-file\n")
    flags = {name: str(tmp_path / "token") if value == "FILE" else value for name, value in flags.items()}
    assert settings.token(settings.resolve(flags, environ, file), environ)[0] == token


def test_two_references_of_one_strength_are_refused(file: ContextFile) -> None:
    with pytest.raises(CtlError, match="exclude each other"):
        resolve(file, token_file="a", token_env="B")


@pytest.mark.parametrize("content", ["", "  \n", None, b"\xff\xfe"])
def test_a_token_file_that_gives_none_is_refused(
    file: ContextFile, tmp_path: Path, content: str | bytes | None
) -> None:
    path = tmp_path / "token"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.write_text(content)
    with pytest.raises(CtlError, match="no token") as caught:
        settings.token(resolve(file, token_file=str(path)), {})
    assert caught.value.code == Exit.USAGE


# -- What is at fault ------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", ["a:b:c", "host:99999", "one:1,http://x", ",", " "])
def test_a_variable_that_names_no_node_is_blamed(tmp_path: Path, nodes: str) -> None:
    with pytest.raises(CtlError) as caught:
        resolve(ContextFile(tmp_path / "none"), {"KARMACTL_NODES": nodes})
    assert "KARMACTL_NODES" in caught.value.message
    assert (caught.value.code, caught.value.fault) == (Exit.USAGE, "configuration")


def test_a_flag_that_names_no_node_is_the_command_line_s_fault(file: ContextFile) -> None:
    with pytest.raises(CtlError) as caught:
        resolve(file, {"KARMACTL_NODES": "a:1"}, node=("a:b:c",))
    assert "KARMACTL_NODES" not in caught.value.message
    assert caught.value.fault == "command line"


def test_a_variable_that_names_no_context_is_blamed(file: ContextFile) -> None:
    with pytest.raises(CtlError) as caught:
        resolve(file, {"KARMACTL_CONTEXT": "prdo"})
    assert caught.value.message.startswith("KARMACTL_CONTEXT: ")
    assert (caught.value.fault, "did you mean prod" in caught.value.advice) == ("configuration", True)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("KARMACTL_READONLY", "KARMACTL_READ_ONLY"),
        ("KARMACTL_NODE", "KARMACTL_NODES"),
        ("KARMACTL_TOKENFILE", "KARMACTL_TOKEN_FILE"),
        ("KARMACTL_TIMOUT", "KARMACTL_TIMEOUT"),
    ],
)
def test_a_mistyped_variable_is_mentioned(file: ContextFile, name: str, meant: str) -> None:
    (note,) = resolve(file, {name: "1"}).notes
    assert name in note
    assert meant in note


def test_a_variable_of_somebody_else_is_not_mentioned(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[contexts.a]\nnodes = ["a:1"]\ntoken_env = "KARMACTL_TOKENS"\n')
    environ = {"KARMACTL_TOKENS": "s", "KARMACTL_DEPLOYMENT": "x", "KARMA_PORT": "1", "KARMACTL_TLS": "0"}
    assert resolve(contexts.load(path), environ).notes == ()


@pytest.mark.parametrize(
    ("mode", "is_exposed"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)]
)
def test_a_token_file_that_others_can_read_is_mentioned(
    file: ContextFile, tmp_path: Path, mode: int, is_exposed: bool
) -> None:
    path = tmp_path / "a token"
    path.write_text("sekrit\n")
    path.chmod(mode)
    note = settings.exposed_token(resolve(file, token_file=str(path)))
    assert (note is not None) == is_exposed
    if note is not None:
        assert f"others can read the token file {path}: chmod 600 '{path}'" == note
        assert "sekrit" not in note
    assert settings.exposed_token(resolve(file)) is None
    assert settings.exposed_token(resolve(file, token_file=str(tmp_path / "none"))) is None

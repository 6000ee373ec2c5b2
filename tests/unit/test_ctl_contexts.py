"""The file of contexts: what is wrong with it, and changes that keep everything else."""

from pathlib import Path
from typing import Any

import pytest

from karmactl import contexts
from karmactl.diagnostics import CtlError


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"colour": True}, 'unknown key "colour"'),
        ({"contexts": 7}, "contexts must be tables"),
        ({"contexts": {"a": 7}}, "contexts.a must be a table"),
        ({"contexts": {"a": {}}}, "needs nodes"),
        ({"contexts": {"a": {"nodes": []}}}, "needs nodes"),
        ({"contexts": {"a": {"nodes": [7]}}}, "node 1 needs an address"),
        ({"contexts": {"a": {"nodes": [{"ssh_host": "x"}]}}}, "node 1 needs an address"),
        ({"contexts": {"a": {"nodes": ["b:x"]}}}, "no address of a node"),
        ({"contexts": {"a": {"nodes": ["b"], "produktion": True}}}, "did you mean production?"),
        ({"contexts": {"a": {"nodes": ["b"], "production": "yes"}}}, "production must be true or false"),
        ({"contexts": {"a": {"nodes": ["b"], "token": "secret"}}}, "a token is never kept here"),
        ({"contexts": {"a": {"nodes": ["b"], "token_env": "A", "token_file": "b"}}}, "exclude each other"),
        ({"contexts": {"a": {"nodes": [{"address": "b", "ssh_port": "22"}]}}}, "ssh_port must be a number"),
        ({"current": "b", "contexts": {"a": {"nodes": ["b"]}}}, 'current is "b", which is no context'),
    ],
)
def test_every_mistake_is_named(document: dict[str, Any], problem: str) -> None:
    found = contexts.check(document)
    assert len(found) == 1
    assert problem in found[0]
    assert "secret" not in found[0]


def test_what_is_right_passes() -> None:
    node = {"address": "db1:8080", "name": "first", "ssh_port": 2222, "directory": "/var/lib/karma"}
    assert (
        contexts.check({"current": "a", "contexts": {"a": {"nodes": [node, "db2", "unix:/run/karma.sock"]}}})
        == []
    )


def test_a_change_keeps_comments_and_order(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        '# mine\ncurrent = "a" # here\n\n[contexts.a]\n# why\nnodes = ["x"]\n\n[contexts.b]\nnodes = ["y"]\n'
    )
    contexts.change(path, lambda document: document.update({"current": "b"}))
    text = path.read_text()
    assert text.splitlines()[:2] == ["# mine", 'current = "b" # here']
    assert "# why" in text
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_change_that_would_break_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[contexts.a]\nnodes = ["x"]\n')
    with pytest.raises(CtlError, match="not be a valid context"):
        contexts.change(path, lambda document: document.update({"current": "c"}))
    assert path.read_text() == '[contexts.a]\nnodes = ["x"]\n'


def test_the_folders_are_those_of_the_environment() -> None:
    assert contexts.config_path({"HOME": "/home/a"}) == Path("/home/a/.config/karmactl/config.toml")
    assert contexts.config_path({"HOME": "/home/a", "XDG_CONFIG_HOME": "/etc/x"}) == Path(
        "/etc/x/karmactl/config.toml"
    )
    assert contexts.config_path({"HOME": "/h", "XDG_CONFIG_HOME": "relative"}).parts[:2] == ("/", "h")
    assert contexts.state_path({"HOME": "/home/a"}) == Path("/home/a/.local/state/karmactl")
    assert contexts.cache_path({"XDG_CACHE_HOME": "/c"}) == Path("/c/karmactl")

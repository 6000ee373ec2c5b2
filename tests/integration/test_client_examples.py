"""The examples in the docstrings of operations print what they show."""

from __future__ import annotations

import doctest

import pytest

import karma_client
import karma_client.testing
from karma_client.binding import operation, stream, task
from karma_client.operations import Operations, Tasks
from karma_client.testing import running_server


def test_the_examples_of_operations() -> None:
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
    complaints: list[str] = []
    attempted = 0
    with running_server() as server, server.connect() as client:
        # In the order in which a reader meets them: what the first ones write, the later ones read.
        for owner in (*Operations.__mro__, *Tasks.__mro__):
            for name, found in vars(owner).items():
                if isinstance(found, operation | task | stream):
                    title = f"{owner.__name__}.{name}"
                    test = parser.get_doctest(found.__doc__ or "", {"client": client}, title, None, None)
                    attempted += runner.run(test, out=complaints.append).attempted
    assert complaints == []
    assert attempted > 10


@pytest.mark.parametrize("example", ["with connect", "with running_server"])
def test_the_examples_of_modules(example: str) -> None:
    """Indented examples of module docstrings run, with the server's address put in."""
    module = karma_client if example == "with connect" else karma_client.testing
    lines = (module.__doc__ or "").splitlines()
    code = "\n".join(line[4:] for line in lines if line.startswith("    "))
    assert example in code
    with running_server() as server:
        exec(code.replace("127.0.0.1:8080", server.address), {})

"""karmactl over TLS, with client certificates, over a Unix socket, and with tokens from everywhere."""

from collections.abc import Iterator
from pathlib import Path

import ctl
import pytest
import trustme
from harness import Server


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Addresses and files: a server that wants TLS, a client certificate and a token, with a Unix socket."""
    folder = tmp_path_factory.mktemp("secured")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    for name, certificate in (
        ("server", authority.issue_cert("localhost", "127.0.0.1")),
        ("client", authority.issue_cert("operator")),
        ("elsewhere", authority.issue_cert("elsewhere.example")),
    ):
        certificate.private_key_pem.write_to_path(str(folder / f"{name}.key"))
        certificate.cert_chain_pems[0].write_to_path(str(folder / f"{name}.pem"))
    (folder / "token").write_text("secret-1\n")
    (folder / "token").chmod(0o600)
    with Server(
        folder / "data",
        tls_cert=folder / "server.pem",
        tls_key=folder / "server.key",
        tls_ca=folder / "ca.pem",
        unix_socket=folder / "socket",
        auth_token="secret-1",
    ) as server:
        yield {
            "ADDRESS": f"127.0.0.1:{server.port}",
            "FOLDER": str(folder),
            "XDG_CONFIG_HOME": str(folder / "config"),
        }


def test_tls_with_a_client_certificate(secured: dict[str, str]) -> None:
    files = {"tls-ca": "ca.pem", "tls-cert": "client.pem", "tls-key": "client.key", "token-file": "token"}
    options = [word for name, file in files.items() for word in (f"--{name}", f"{secured['FOLDER']}/{file}")]
    ended = ctl.karmactl("add", "a", "1", "--node", secured["ADDRESS"], *options, environ=secured)
    assert (ended.code, ended.stdout, ended.stderr) == (0, "1\n", "")


def test_a_context_remembers_all_of_it(secured: dict[str, str], tmp_path: Path) -> None:
    folder = secured["FOLDER"]
    file = tmp_path / "karmactl" / "config.toml"
    file.parent.mkdir()
    file.write_text(
        f'current = "safe"\n[contexts.safe]\nnodes = ["{secured["ADDRESS"]}"]\n'
        f'token_file = "{folder}/token"\n'
        f'tls_ca = "{folder}/ca.pem"\ntls_cert = "{folder}/client.pem"\ntls_key = "{folder}/client.key"\n'
        'output = "json"\nread_only = true\n'
    )
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert '"status": "pong"' in ctl.karmactl("ping", environ=environ).stdout
    refused = ctl.karmactl("add", "a", "1", environ=environ)
    assert (refused.code, "context safe" in refused.stderr) == (4, True)


def pair(certificate: str, key: str) -> tuple[str, ...]:
    return "--tls-cert", f"FOLDER/{certificate}", "--tls-key", f"FOLDER/{key}"


def ping(environ: dict[str, str], node: str, *options: str) -> ctl.Ended:
    return ctl.karmactl("ping", "--node", node, "--timeout", "2", *options, environ=environ, columns=300)


@pytest.mark.parametrize(
    ("options", "code", "message", "advice"),
    [
        ((), 5, "", ""),
        (("--tls",), 5, "no TLS connection", "--tls-ca FILE names the authority"),
        (("--tls-ca", "FOLDER/ca.pem"), 5, "", ""),
        (("--tls-ca", "FOLDER/none.pem"), 2, "FOLDER/none.pem cannot be read", ""),
        (("--tls-ca", "FOLDER/client.key"), 2, "FOLDER/client.key holds no certificate", ""),
        (("--tls-cert", "FOLDER/client.pem", "--tls-key", "FOLDER/server.key"), 2, "is not that of the", ""),
        (
            ("--tls-cert", "FOLDER/client.key", "--tls-key", "FOLDER/client.key"),
            2,
            "client.key holds no cert",
            "",
        ),
        (
            ("--tls-cert", "FOLDER/client.pem", "--tls-key", "FOLDER/ca.pem"),
            2,
            "ca.pem holds no private key",
            "",
        ),
    ],
)
def test_what_tls_lacks_is_explained(
    secured: dict[str, str], options: tuple[str, ...], code: int, message: str, advice: str
) -> None:
    words = [option.replace("FOLDER", secured["FOLDER"]) for option in options]
    ended = ctl.karmactl(
        "ping", "--node", secured["ADDRESS"], "--timeout", "2", *words, environ=secured, columns=300
    )
    assert ended.code == code, ended.stderr
    assert "fault: " in ended.stderr
    assert "next: " in ended.stderr
    assert message.replace("FOLDER", secured["FOLDER"]) in ended.stderr
    assert advice in ended.stderr


def test_a_certificate_of_another_name_and_a_port_without_tls_are_told_apart(secured: dict[str, str]) -> None:
    folder = Path(secured["FOLDER"])
    ca = ("--tls-ca", str(folder / "ca.pem"))
    with Server(
        folder / "other", tls_cert=folder / "elsewhere.pem", tls_key=folder / "elsewhere.key"
    ) as other:
        ended = ping(secured, f"127.0.0.1:{other.port}", *ca)
    assert (ended.code, "a name that the server's certificate has" in ended.stderr) == (5, True), ended.stderr
    with Server(folder / "plain") as plain:
        ended = ping(secured, f"127.0.0.1:{plain.port}", *ca)
    assert (ended.code, "leave --tls out" in ended.stderr) == (5, True), ended.stderr


def test_a_unix_socket(secured: dict[str, str]) -> None:
    node = f"unix:{secured['FOLDER']}/socket"
    ended = ctl.karmactl("series", "list", "--node", node, environ={**secured, "KARMACTL_TOKEN": "secret-1"})
    assert ended.code == 0, ended.stderr

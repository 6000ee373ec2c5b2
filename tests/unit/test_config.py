"""The settings: their table, where values come from, what is refused, what is shown."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karma.config import OPTIONS, Action, Config, action_of, describe, help_text, load, unknown_variables
from karma.errors import ConfigError

# The table of the protocol document, section 6: names, variables and defaults are promises to operators.
PROMISED = """
bind KARMA_HOST 0.0.0.0
port KARMA_PORT 8080
directory KARMA_DUMP_DIR .
role KARMA_ROLE master
restore KARMA_RESTORE true
nodelay KARMA_TCP_NODELAY true
wal KARMA_WAL true
wal-fsync KARMA_WAL_FSYNC true
wal-segment-bytes KARMA_WAL_SEGMENT_BYTES 67108864
wal-batch-size KARMA_WAL_BATCH_SIZE 1024
wal-batch-wait-us KARMA_WAL_BATCH_WAIT_MICROSECONDS 0
max-request-bytes KARMA_MAX_REQUEST_BYTES 4096
max-response-bytes KARMA_MAX_RESPONSE_BYTES 1048576
read-timeout KARMA_READ_TIMEOUT_SECONDS 5
write-timeout KARMA_WRITE_TIMEOUT_SECONDS 5
query-timeout-ms KARMA_QUERY_TIMEOUT_MS 1000
shutdown-timeout KARMA_SHUTDOWN_TIMEOUT_SECONDS 5
auth-token KARMA_AUTH_TOKEN -
read-auth-token KARMA_READ_AUTH_TOKEN -
dump-retention-per-tree KARMA_DUMP_RETENTION_PER_TREE 5
idempotency-max-records KARMA_IDEMPOTENCY_MAX_RECORDS 1000000
idempotency-max-age-seconds KARMA_IDEMPOTENCY_MAX_AGE_SECONDS 604800
replication-source-host KARMA_REPLICATION_SOURCE_HOST -
replication-source-port KARMA_REPLICATION_SOURCE_PORT 8080
replication-token KARMA_REPLICATION_TOKEN -
replication-poll-interval-ms KARMA_REPLICATION_POLL_INTERVAL_MS 1000
replication-batch-size KARMA_REPLICATION_BATCH_SIZE 1000
log KARMA_LOG true
http-port KARMA_HTTP_PORT 0
unix-socket KARMA_UNIX_SOCKET -
tls-cert KARMA_TLS_CERT -
tls-key KARMA_TLS_KEY -
tls-ca KARMA_TLS_CA -
admin-auth-token KARMA_ADMIN_AUTH_TOKEN -
max-value KARMA_MAX_VALUE 0
max-clients KARMA_MAX_CLIENTS 10000
max-client-buffer-bytes KARMA_MAX_CLIENT_BUFFER_BYTES 16777216
snapshot-interval-seconds KARMA_SNAPSHOT_INTERVAL_SECONDS 0
snapshot-wal-bytes KARMA_SNAPSHOT_WAL_BYTES 0
wal-keep-bytes KARMA_WAL_KEEP_BYTES 268435456
sync-replicas KARMA_SYNC_REPLICAS 0
sync-timeout-ms KARMA_SYNC_TIMEOUT_MS 1000
ready-max-lag-entries KARMA_READY_MAX_LAG_ENTRIES 10000
legacy-protocol KARMA_LEGACY_PROTOCOL false
strict-fields KARMA_STRICT_FIELDS false
protected-mode KARMA_PROTECTED_MODE true
force-role KARMA_FORCE_ROLE false
discard-data KARMA_DISCARD_DATA false
config KARMA_CONFIG -
"""
SECRET = "hunter2-hunter2"
TOKENS = ["auth-token", "read-auth-token", "admin-auth-token", "replication-token"]


def no_file(path: Path) -> bytes:
    raise AssertionError(f"nobody asked for {path}")


def read(*argv: str, environ: Mapping[str, str] | None = None, toml: str | None = None) -> Config:
    """`load`, with the text of a configuration file when the test has one."""
    read_file: Callable[[Path], bytes] = no_file
    if toml is not None:
        argv = ("--config=karma.toml", *argv)
        read_file = {Path("karma.toml"): toml.encode()}.__getitem__
    return load(argv, environ or {}, read_file)


def refusal(*argv: str, environ: Mapping[str, str] | None = None, toml: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        read(*argv, environ=environ, toml=toml)
    return str(caught.value)


class TestTable:
    def test_every_promised_option_and_no_other(self) -> None:
        promised = {tuple(line.split()) for line in PROMISED.split("\n") if line}
        shown = {
            (
                option.name,
                option.env,
                "-" if option.default is None else f"{option.default}".removesuffix(".0"),
            )
            for option in OPTIONS
            if not isinstance(option.default, bool) and option.name != "bind"
        }
        shown |= {(o.name, o.env, str(o.default).lower()) for o in OPTIONS if isinstance(o.default, bool)}
        shown |= {(o.name, o.env, str(o.default)) for o in OPTIONS if o.name == "bind"}
        assert shown == promised

    def test_names_variables_and_short_forms_are_unique(self) -> None:
        assert len({option.name for option in OPTIONS}) == len(OPTIONS)
        assert len({option.env for option in OPTIONS}) == len(OPTIONS)
        assert "".join(sorted(option.short for option in OPTIONS)) == "bdnprw"

    def test_every_field_but_sources_is_an_option(self) -> None:
        assert {field.name for field in fields(Config)} == {option.field for option in OPTIONS} | {"sources"}

    def test_every_default_is_a_value_that_could_be_given(self) -> None:
        for option in OPTIONS:
            if option.default is not None:
                text = str(option.default)
                assert (
                    option.kind.parse(text.lower() if option.default in {True, False} else text)
                    == option.default
                )

    def test_nothing_given_is_all_defaults(self) -> None:
        assert read() == Config()
        assert set(read().sources.values()) == {"default"}


class TestFlags:
    @pytest.mark.parametrize(
        "argv", [["--port=7000"], ["--port", "7000"], ["-p", "7000"], ["-p7000"], ["-p=7000"]]
    )
    def test_spellings(self, argv: list[str]) -> None:
        assert read(*argv).port == 7000

    def test_all_short_forms(self) -> None:
        config = read(
            "-b",
            "::1",
            "-p",
            "1",
            "-d",
            "data",
            "-r",
            "false",
            "-n",
            "false",
            "-w",
            "false",
            "--discard-data=true",
        )
        assert (config.bind, config.port, config.directory) == ("::1", 1, Path("data"))
        assert (config.restore, config.nodelay, config.wal, config.discard_data) == (
            False,
            False,
            False,
            True,
        )

    def test_the_last_of_two_counts(self) -> None:
        assert read("--port=1", "-p", "2").port == 2

    def test_a_value_may_hold_an_equals_sign_and_begin_with_dashes(self) -> None:
        assert read("--auth-token=--a=b").auth_token == "--a=b"

    def test_seconds_may_be_fractions(self) -> None:
        assert read("--read-timeout=0.25").read_timeout_seconds == 0.25

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["--port=http"], "--port: 'http' is not a whole number from 0 to 65535"),
            (["--port=65536"], "--port: '65536' is not a whole number from 0 to 65535"),
            (["--port=8_0"], "--port: '8_0' is not a whole number from 0 to 65535"),
            (["--port=٣"], "--port: '٣' is not a whole number from 0 to 65535"),
            (["--port="], "--port: '' is not a whole number from 0 to 65535"),
            (["-p="], "--port: '' is not a whole number from 0 to 65535"),
            (["--wal=yes"], "--wal: 'yes' is not true or false"),
            (["--wal=True"], "--wal: 'True' is not true or false"),
            (["--role=leader"], "--role: 'leader' is not master or slave"),
            (["--read-timeout=-1"], "--read-timeout: '-1' is not a number of seconds of at least 0"),
            (["--read-timeout=nan"], "--read-timeout: 'nan' is not a number of seconds of at least 0"),
            (["--max-request-bytes=0"], "--max-request-bytes: '0' is not a whole number of at least 1"),
            (["--replication-batch-size=10001"], "'10001' is not a whole number from 1 to 10000"),
            (["--replication-source-port=0"], "'0' is not a whole number from 1 to 65535"),
            (["--bind=two words"], "--bind: 'two words' is not a host name or address"),
            (["--directory="], "--directory: '' is not a path"),
            (["--auth-token="], "--auth-token: the value is not a token of at least one character"),
            (["--log"], "--log: needs a value: --log=true|false"),
            (["--log", "--wal=true"], "--log: needs a value: --log=true|false"),
            (["-w", "-n", "true"], "--wal: needs a value: --wal=true|false"),
            (["--port"], "--port: needs a value: --port=8080"),
            (["--wal_fsync=true"], "'--wal_fsync': there is no such option; did you mean --wal-fsync?"),
            (["--prot=1"], "'--prot': there is no such option; did you mean --port?"),
            (["--zzz"], "'--zzz': there is no such option; see karma --help"),
            (
                ["--log=true", "stray"],
                "argument 2 is neither an option nor the value of one: see karma --help",
            ),
            (["-x", "1"], "argument 1 is neither an option nor the value of one: see karma --help"),
            (["-"], "argument 1 is neither an option nor the value of one: see karma --help"),
        ],
    )
    def test_refusals(self, argv: list[str], message: str) -> None:
        assert message in refusal(*argv)


class TestActions:
    @pytest.mark.parametrize(
        ("argv", "action"),
        [
            ([], Action.RUN),
            (["--port=1"], Action.RUN),
            (["-h"], Action.HELP),
            (["--port=1", "--help"], Action.HELP),
            (["--version"], Action.VERSION),
            (["--check-config", "--port", "1"], Action.CHECK_CONFIG),
            (["--check-config", "--version", "--help"], Action.HELP),
        ],
    )
    def test_of_a_command_line(self, argv: list[str], action: Action) -> None:
        assert action_of(argv) is action
        assert read(*argv).port in {1, 8080}

    def test_a_typo_beside_it_is_still_told(self) -> None:
        with pytest.raises(ConfigError, match="--port"):
            action_of(["--prot=1", "--check-config"])


class TestEnvironment:
    def test_every_variable_is_read(self) -> None:
        texts = {"true": "false", "false": "true", "master": "slave"}
        for option in OPTIONS:
            if option.name in {"config", "tls-cert", "tls-key", "tls-ca", "replication-source-host"}:
                continue
            text = texts.get(str(option.default).lower(), "7")
            config = read(environ={option.env: text, "PATH": "/bin"})
            assert getattr(config, option.field) == option.kind.parse(text) != option.default
            assert {name for name, source in config.sources.items() if source != "default"} == {option.name}

    def test_the_message_names_option_and_variable(self) -> None:
        assert refusal(environ={"KARMA_DUMP_RETENTION_PER_TREE": "few"}) == (
            "--dump-retention-per-tree (from KARMA_DUMP_RETENTION_PER_TREE): "
            "'few' is not a whole number of at least 1"
        )

    def test_an_empty_one_counts_as_unset(self) -> None:
        config = read(environ={"KARMA_PORT": "", "KARMA_HOST": "", "KARMA_CONFIG": ""})
        assert config == Config()
        assert not config.bind_explicit

    @pytest.mark.parametrize("name", TOKENS)
    def test_an_empty_token_does_not_open_the_server(self, name: str) -> None:
        variable = f"KARMA_{name.replace('-', '_').upper()}"
        assert variable in refusal(environ={variable: ""})


class TestFile:
    def test_keys_are_option_names(self) -> None:
        config = read(
            toml='port = 7000\nwal-fsync = false\nread-timeout = 2\ndirectory = "data"\nauth-token = "t"'
        )
        assert (config.port, config.wal_fsync, config.read_timeout_seconds) == (7000, False, 2.0)
        assert (config.directory, config.auth_token, config.config) == (Path("data"), "t", Path("karma.toml"))

    def test_may_be_named_by_the_environment(self) -> None:
        config = load([], {"KARMA_CONFIG": "karma.toml"}, {Path("karma.toml"): b"port = 7000"}.__getitem__)
        assert config.port == 7000

    @pytest.mark.parametrize(
        ("toml", "message"),
        [
            ("prot = 1", "--config: 'karma.toml' has the unknown key 'prot'; did you mean port?"),
            ("[server]\nport = 1", "--config: 'karma.toml' has the unknown key 'server'"),
            ('config = "other.toml"', "--config: 'karma.toml' has the unknown key 'config'"),
            ('port = "1"', "--port (from 'karma.toml'): '1' is not a whole number from 0 to 65535"),
            ("port = true", "--port (from 'karma.toml'): True is not a whole number from 0 to 65535"),
            ("port = -1", "--port (from 'karma.toml'): '-1' is not a whole number from 0 to 65535"),
            ('wal = "false"', "--wal (from 'karma.toml'): 'false' is not true or false"),
            ("wal = 0", "--wal (from 'karma.toml'): 0 is not true or false"),
            ("auth-token = 7", "--auth-token (from 'karma.toml'): the value is not a token"),
            ("read-timeout = inf", "--read-timeout (from 'karma.toml'): 'inf' is not a number of seconds"),
            ("port 1", "--config: 'karma.toml' is not a TOML file: "),
        ],
    )
    def test_refusals(self, toml: str, message: str) -> None:
        assert message in refusal(toml=toml)

    def test_that_cannot_be_read(self) -> None:
        def denied(path: Path) -> bytes:
            raise PermissionError(13, "Permission denied", path)

        with pytest.raises(ConfigError, match=r"^--config: cannot read 'karma.toml': Permission denied$"):
            load(["--config=karma.toml"], {}, denied)

    def test_that_is_not_text(self) -> None:
        with pytest.raises(ConfigError, match="is not a TOML file"):
            load(["--config=karma.toml"], {}, lambda _: b"\xff\xfe")


class TestPrecedence:
    def test_flag_over_environment_over_file_over_default(self) -> None:
        toml = "port = 1\nmax-clients = 1\nsync-replicas = 1"
        config = read("--port=3", environ={"KARMA_PORT": "2", "KARMA_MAX_CLIENTS": "2"}, toml=toml)
        assert (config.port, config.max_clients, config.sync_replicas, config.sync_timeout_ms) == (
            3,
            2,
            1,
            1000,
        )
        names = ("port", "max-clients", "sync-replicas", "sync-timeout-ms")
        assert [config.sources[name] for name in names] == ["flag", "environment", "file", "default"]

    @pytest.mark.parametrize(
        ("argv", "environ", "toml"),
        [(["--bind=0.0.0.0"], {}, None), ([], {"KARMA_HOST": "0.0.0.0"}, None), ([], {}, 'bind = "0.0.0.0"')],
    )
    def test_a_bind_that_somebody_gave_is_explicit_even_when_it_is_the_default(
        self, argv: list[str], environ: dict[str, str], toml: str | None
    ) -> None:
        assert read(*argv, environ=environ, toml=toml).bind_explicit


class TestTogether:
    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["--replication-source-host=db1"], "--replication-source-host: needs --role=slave"),
            (["--tls-cert=c.pem"], "--tls-cert: needs --tls-key"),
            (["--tls-key=k.pem"], "--tls-key: needs --tls-cert"),
            (["--tls-ca=ca.pem"], "--tls-ca: needs --tls-cert"),
            (["--http-port=8080"], "--http-port: 8080 is also --port"),
            (["--sync-replicas=1", "--wal=false"], "--sync-replicas: needs --wal=true"),
        ],
    )
    def test_contradictions(self, argv: list[str], message: str) -> None:
        assert message in refusal(*argv)

    @pytest.mark.parametrize(
        "argv",
        [
            ["--replication-source-host=db1", "--role=slave"],
            ["--role=slave"],
            ["--tls-cert=c.pem", "--tls-key=k.pem", "--tls-ca=ca.pem"],
            ["--http-port=0", "--port=0"],
        ],
    )
    def test_what_fits(self, argv: list[str]) -> None:
        read(*argv)


class TestSecrets:
    def test_are_masked_wherever_settings_are_shown(self) -> None:
        config = read(*(f"--{name}={SECRET}" for name in TOKENS))
        assert SECRET not in repr(config)
        assert SECRET not in str(describe(config))
        assert {str(describe(config)[name]["value"]) for name in TOKENS} == {"***"}

    @pytest.mark.parametrize(
        "argv",
        [
            [f"--auth-tokne={SECRET}"],
            ["--auth-tokne", SECRET],
            ["--auth-token=my", SECRET],
            [f"--auth-token={SECRET}", "--port=x"],
        ],
    )
    def test_stay_out_of_refusals(self, argv: list[str]) -> None:
        assert SECRET not in refusal(*argv)


class TestShowing:
    def test_help_fits_and_names_everything(self) -> None:
        text = help_text()
        assert max(len(line) for line in text.splitlines()) <= 100
        for option in OPTIONS:
            assert f"--{option.name}={option.kind.metavar} " in text
            assert f"[{option.env}" in text
        for piece in (
            "-h, --help",
            "--version",
            "--check-config",
            "KARMA_WAL=true]",
            "KARMA_READ_TIMEOUT_SECONDS=5]",
        ):
            assert piece in text

    def test_describe_has_every_option_with_its_source(self) -> None:
        shown = describe(read("--port=7000", environ={"KARMA_DUMP_DIR": "data"}))
        assert list(shown) == [option.name for option in OPTIONS]
        assert shown["port"] == {"value": 7000, "source": "flag"}
        assert shown["directory"] == {"value": "data", "source": "environment"}
        assert shown["auth-token"] == {"value": None, "source": "default"}


WORDS = st.one_of(
    st.text(max_size=6),
    st.sampled_from([f"--{option.name}" for option in OPTIONS] + ["-p", "-h", "--", "-", "=", "true", "1"]),
)


@given(st.lists(st.builds("".join, st.lists(WORDS, max_size=3)), max_size=4), st.text(max_size=20))
def test_whatever_is_typed_gives_settings_or_one_line(argv: list[str], toml: str) -> None:
    message = ""
    try:
        load(argv, {"KARMA_CONFIG": "k"}, lambda _: toml.encode(errors="replace"))
    except ConfigError as error:
        message = str(error)
    assert len(message.splitlines()) <= 1


# -- Variables that are not ours ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("KARMA_AUTHTOKEN", "KARMA_AUTH_TOKEN"),
        ("KARMA_AUTH_TOKE", "KARMA_AUTH_TOKEN"),
        ("KARMA_MAX_CLIENT", "KARMA_MAX_CLIENTS"),
        ("KARMA_PROT", "KARMA_PORT"),
        ("KARMA_WAL_FSNYC", "KARMA_WAL_FSYNC"),
        # As the option is called, where the variable has another name.
        ("KARMA_DIRECTORY", "KARMA_DUMP_DIR"),
        ("KARMA_BIND", "KARMA_HOST"),
        ("KARMA_READ_TIMEOUT", "KARMA_READ_TIMEOUT_SECONDS"),
    ],
)
def test_a_mistyped_variable_stops_the_start(name: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load([], {name: "sekrit"}, no_file)
    assert str(caught.value) == f"{name}: there is no such variable; did you mean {meant}?"


def test_an_unknown_variable_is_mentioned() -> None:
    environ = {"KARMA_PORT": "1", "KARMA_DEPLOYMENT_COLOUR": "sekrit", "KARMACTL_NODE": "x", "PATH": "/bin"}
    (doubt,) = unknown_variables(environ)
    assert "KARMA_DEPLOYMENT_COLOUR" in doubt
    assert "sekrit" not in doubt


@pytest.mark.parametrize(
    "name",
    [
        "KARMA_SERVICE_HOST",
        "KARMA_SERVICE_PORT",
        "KARMA_SERVICE_PORT_HTTP",
        "KARMA_PORT_8080_TCP",
        "KARMA_PORT_8080_TCP_ADDR",
        "KARMA_WAL_SERVICE_HOST",
        "KARMA_HTTP_PORT_9100_TCP_PROTO",
    ],
)
def test_what_kubernetes_adds_is_not_worth_a_word(name: str) -> None:
    assert unknown_variables({name: "tcp://10.0.0.1:8080"}) == []


def test_every_variable_of_an_option_is_known() -> None:
    assert unknown_variables({option.env: "x" for option in OPTIONS}) == []

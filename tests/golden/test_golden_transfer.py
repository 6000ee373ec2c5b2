"""import and export, told as stories, with every way in which a file can be wrong."""

import sys
from collections.abc import Iterator
from pathlib import Path

import ctl
import pytest
from ctl import Step
from harness import Server

HEADING = "series,key,day,value\n"
FILES = {
    "good.csv": f"{HEADING}api,1,2026-05-05,10\napi,2,20260505,20\napi,9,,0\nmail,1,2026-05-06,1\n",
    "changed.csv": f"{HEADING}api,1,2026-05-05,11\n",
    "plain.jsonl": '{"key":1,"bucket":20260505,"value":18446744073709551615}\n'
    '\n{"key":2,"day":"2026-05-06","value":1}\n',
    "bad.csv": "key,day,value\n-1,2026-05-05,1\n1,2026-02-30,1\n1,2026-05-05,18446744073709551616\n"
    "1,2026-05-05\n1,,5\n1.5,2026-05-05,1\n" + "x,2026-05-05,1\n" * 7,
    "bad.jsonl": '{"key":1,"day":20260505,"value":1.0}\n[1]\n{"key":\n{"key":true,"day":1,"value":1}\n'
    '{"series":"","key":1,"day":20260505,"value":1}\n',
    "cut.csv": "key,day,value\n1,2026-05-05,1\n2,2026-05-05,1",
    "quote.csv": f'{HEADING}"api,1,2026-05-05,1\n',
    "latin.csv": f"{HEADING}\N{LATIN SMALL LETTER U WITH DIAERESIS},1,2026-05-05,1\n",
    "headless.csv": "1,2026-05-05,1\n",
    "twice.csv": "key,day,date,value\n1,2026-05-05,2026-05-05,1\n",
    "empty.csv": HEADING,
    "no.parquet": "PAR1 and nothing else",
}


def variable(name: str) -> str:
    return name.upper().replace(".", "_")


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("transfer")
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="latin-1")
    with Server(folder / "data", max_request_bytes=100_000) as server:
        yield {
            "KARMACTL_NODES": f"127.0.0.1:{server.port}",
            "XDG_CONFIG_HOME": str(folder / "config"),
            "XDG_STATE_HOME": str(folder / "state"),
            **{
                name.upper().replace(".", "_"): str(folder / name)
                for name in [*FILES, "out.csv", "missing.csv"]
            },
        }


def test_import_and_export(environ: dict[str, str]) -> None:
    steps: list[str | Step] = [
        "import $GOOD_CSV --dry-run",
        "import $GOOD_CSV --dry-run --output json",
        "import $GOOD_CSV --fields rows,sent,status",
        "import $GOOD_CSV --fields rows,sent,status",
        Step("import $GOOD_CSV --again --fields rows,sent,status", columns=80),
        "import $GOOD_CSV --series mail --mode set --output csv --fields series,rows,sent,status",
        "import $GOOD_CSV --mode replace_series --fields status",
        Step("import $GOOD_CSV --mode replace_series --fields status", columns=80, typed="good.csv\n"),
        "import $PLAIN_JSONL",
        "import $PLAIN_JSONL --series big --fields rows,status",
        "import $PLAIN_JSONL --series big --again --fields rows,status",
        "export -",
        "export - --format jsonl --series big --series api",
        "export - --format jsonl --series api --key 1 --from 2026-05-01 --to 2026-05-31",
        "export $OUT_CSV",
        Step("export $OUT_CSV --output json", columns=80),
        "export $OUT_CSV --from 2026-05-02 --to 2026-05-01",
        "export - --format parquet",
        "export /nowhere/x.csv",
        "export data.txt",
        "import $CHANGED_CSV --read-only",
    ]
    ctl.compare("import-export", ctl.story(steps, environ))


def test_files_that_cannot_be_imported(environ: dict[str, str]) -> None:
    names = [name for name in FILES if name.split(".")[0] not in {"good", "changed", "plain", "no"}]
    lines = [f"import ${variable(name)} --series x" for name in [*names, "missing.csv"]]
    ctl.compare("import-bad-files", ctl.story(lines, environ))


def test_a_parquet_file_that_is_none(environ: dict[str, str]) -> None:
    ended = ctl.karmactl("import", environ["NO_PARQUET"], "--series", "x", environ=environ)
    assert ended.code == 2
    assert "cannot be read as Parquet" in ended.stderr


def test_without_duckdb_the_message_names_the_extra(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    for line in (("import", environ["NO_PARQUET"]), ("export", str(tmp_path / "x.parquet"))):
        ended = ctl.karmactl(*line, environ=environ)
        assert ended.code == 2
        assert "pip install 'karma[sql]'" in ended.stderr
    assert list(tmp_path.iterdir()) == []

"""The journal: entries chained, copies proven, three outcomes told apart."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from karma_playbooks.control import next_words
from karma_playbooks.history import Entry, History, broken_at
from karma_playbooks.journal import Journal, JournalError

INTENT = {"step": "s", "target": "a", "attempt": 1, "place": -1}


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with closing(Journal(tmp_path / "state" / "journal.db")) as journal:
        yield journal


def fill(journal: Journal, run: str = "r") -> list[Entry]:
    journal.append(run, "requested", {"plan": {}})
    journal.append(run, "accepted", {"epoch": 1})
    journal.append(run, "intent", INTENT)
    return journal.entries(run)


def test_every_commit_is_synced(journal: Journal) -> None:
    assert journal._db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_only_the_owner_may_read_it(journal: Journal) -> None:
    assert journal.path.stat().st_mode & 0o777 == 0o600


def test_an_attempt_is_open_until_its_outcome_is_sure(journal: Journal) -> None:
    fill(journal)
    assert [attempt.is_open for attempt in journal.history("r").attempts] == [True]
    journal.append("r", "outcome", {**INTENT, "outcome": "unknown"})
    assert journal.history("r").open_attempts()
    journal.append("r", "outcome", {**INTENT, "outcome": "done", "output": {"lsn": 7}})
    history = journal.history("r")
    assert not history.open_attempts()
    assert history.happened("s", "a")
    assert history.outputs == {"s": {"lsn": 7}}
    journal.append("r", "lapsed", INTENT)
    assert not journal.history("r").happened("s", "a")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE entries SET data = '{\"epoch\": 9}' WHERE number = 2",
        "UPDATE entries SET kind = 'state' WHERE number = 2",
        "DELETE FROM entries WHERE number = 2",
        "UPDATE entries SET unix_ms = 1 WHERE number = 2",
    ],
)
def test_a_changed_entry_is_seen(journal: Journal, change: str) -> None:
    fill(journal)
    journal._db.execute(change)
    with pytest.raises(JournalError, match="entry 2 of run r"):
        journal.entries("r")


def test_a_copy_is_adopted_and_goes_on(journal: Journal, tmp_path: Path) -> None:
    entries = fill(journal)
    watched: list[Entry] = []
    with closing(Journal(tmp_path / "other.db", watched.append)) as other:
        other.adopt(entries[:2])
        other.adopt(entries)
        added = other.append("r", "state", {"state": "done"})
    assert broken_at([*entries, added]) is None
    assert watched == [*entries, added]


def test_a_copy_that_is_not_whole_is_refused(journal: Journal, tmp_path: Path) -> None:
    first, second, third = fill(journal)
    with closing(Journal(tmp_path / "other.db")) as other:
        for wrong in ([first, third], [second], [first, second._replace(data={"epoch": 5})]):
            with pytest.raises(JournalError, match="not whole"):
                other.adopt(wrong)
    with closing(Journal(tmp_path / "foreign.db")) as foreign:
        foreign.append("r", "requested", {"plan": {"x": 1}})
        with pytest.raises(JournalError):
            foreign.adopt([first, second])


def test_the_outbox_gives_each_entry_until_it_is_noted(journal: Journal) -> None:
    fill(journal)
    found = journal.not_emitted("events")
    assert [entry.kind for _, entry in found] == ["requested", "accepted", "intent"]
    journal.note_emitted("events", found[1][0])
    assert [entry.kind for _, entry in journal.not_emitted("events")] == ["intent"]
    assert len(journal.not_emitted("another")) == 3


def test_what_cannot_be_written_is_told_and_not_there(journal: Journal) -> None:
    fill(journal)
    journal._db.execute(
        "CREATE TRIGGER full BEFORE INSERT ON entries BEGIN SELECT RAISE(FAIL, 'disk full'); END"
    )
    with pytest.raises(JournalError, match="disk full"):
        journal.append("r", "state", {"state": "done"})
    assert len(journal.entries("r")) == 3


def test_a_file_that_is_no_journal_is_told(tmp_path: Path) -> None:
    (tmp_path / "journal.db").write_text("no database at all, but long enough to be looked at" * 30)
    with pytest.raises(JournalError, match="cannot be used"):
        Journal(tmp_path / "journal.db")


def test_a_run_that_is_not_over_says_how_to_go_on() -> None:
    history = History("r-1", state="running", epoch=1)
    assert "resume r-1 --takeover" in next_words("r-1", history)
    history.state = "paused"
    assert "resume r-1" in next_words("r-1", history)
    assert "abort r-1" in next_words("r-1", history)


def test_a_run_that_stopped_on_its_way_back_goes_on_back(journal: Journal) -> None:
    fill(journal)
    journal.append("r", "state", {"state": "undoing", "why": "because"})
    journal.append("r", "state", {"state": "paused", "why": "nobody knows"})
    journal.append("r", "accepted", {"epoch": 2})
    history = journal.history("r")
    assert history.is_undoing
    assert "taking it back" in next_words("r", history)

"""Whether SQLite understands a ledger is said without a lease, and nothing is changed by asking."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from orchestrator.ledger import Ledger, Trial, damage_at, sqlite_url


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger of two hundred trials that nobody has open."""
    place = tmp_path / "ledger.db"
    trials = [Trial(f"t{number}", "confirm", "arm", number, {"long": "x" * 500}) for number in range(200)]
    Ledger.create(sqlite_url(place), name="x", sweep={}, trials=trials).close()
    return place


def test_a_sound_ledger_has_nothing_against_it_and_no_file_appears_beside_it(path: Path) -> None:
    assert damage_at(sqlite_url(path)) is None
    assert [file.name for file in path.parent.iterdir()] == ["ledger.db"]
    with contextlib.closing(Ledger.open(sqlite_url(path))) as ledger:
        ledger.acquire("the test", 60)
        ledger.event("x", "not in the file yet, but in its log")
        assert ledger.damage() is None
        assert damage_at(sqlite_url(path)) is None


@pytest.mark.parametrize("page", range(0, 40, 3))
def test_a_page_of_garbage_is_told(path: Path, page: int) -> None:
    with path.open("r+b") as file:
        file.seek(page * 4096)
        file.write(b"garbage " * 512)
    assert damage_at(sqlite_url(path))


def test_what_only_the_log_of_a_ledger_that_is_open_holds_is_looked_at_too(path: Path) -> None:
    with (
        contextlib.closing(Ledger.open(sqlite_url(path))) as ledger,
        contextlib.closing(sqlite3.connect(path)) as other,
    ):
        other.execute("PRAGMA writable_schema = ON")
        other.execute("UPDATE sqlite_master SET rootpage = 9 WHERE name = 'frozen'")
        other.commit()
        assert ledger.damage()


def test_where_there_is_no_file_there_is_none(tmp_path: Path) -> None:
    assert damage_at(sqlite_url(tmp_path / "gone.db")) is None
    assert damage_at(sqlite_url(tmp_path)) is None
    assert damage_at("postgresql://me@127.0.0.1:1/none") is None

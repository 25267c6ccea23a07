"""Claims about how errors end the program; every verb with every damage is in tests/faults/test_garbage.py."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from jobs.config import ConfigError, ConfigIssue
from orchestrator.cli import group
from orchestrator.ledger import LeaseHeld, LedgerError
from orchestrator.run_dir import folder as runs
from orchestrator.run_dir.bucket import BadAddress, RemoteError
from orchestrator.run_dir.folder import RunError
from orchestrator.system import exit_codes
from orchestrator.system.exit_codes import InfrastructureMissing
from orchestrator.system.scratch import ScratchMissing

ENDINGS: list[tuple[Exception, int]] = [
    (ConfigError("a.toml", "sweep", [ConfigIssue("key", "", "found")]), 2),
    (RunError("words"), 2),
    (BadAddress("words"), 2),
    (LeaseHeld("words", holder="h", since=0, expires=1, token=1), 3),
    (LedgerError("words"), 4),
    (InfrastructureMissing("words"), 4),
    (RemoteError("words"), 4),
    (ScratchMissing("words"), 4),
    (ConnectionError("words"), 4),
    (PermissionError(errno.EACCES, "Permission denied", "/a/file"), 4),
]


@pytest.mark.parametrize(("error", "code"), ENDINGS, ids=[type(error).__name__ for error, _ in ENDINGS])
def test_every_error_that_is_expected_has_a_code_and_its_own_words(error: Exception, code: int) -> None:
    ending = exit_codes.ending(error)
    assert ending is not None
    assert ending[1] == code
    assert "unexpected" not in ending[0]
    assert ending[0]


@pytest.mark.parametrize("number", sorted(exit_codes.REMEDIES))
def test_an_error_of_the_system_names_the_path_the_reason_and_a_remedy(number: int) -> None:
    text = exit_codes.of_system(OSError(number, "The reason", "/a/file"))
    assert text == f"/a/file: The reason; {exit_codes.REMEDIES[number]}"


def test_an_error_of_the_system_that_nobody_thought_of_names_the_file_that_was_to_be_replaced() -> None:
    text = exit_codes.of_system(OSError(errno.EXDEV, "Invalid cross-device link", "/a/from", None, "/b/to"))
    assert text.startswith("/b/to: Invalid cross-device link; ")


def test_a_reader_that_has_gone_away_is_left_to_click() -> None:
    assert exit_codes.ending(BrokenPipeError(errno.EPIPE, "Broken pipe")) is None


def test_what_nobody_expected_is_one_line_and_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError("the first line\nand another")

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv(exit_codes.TRACEBACK, raising=False)
    monkeypatch.setattr(runs, "find", broken)
    with pytest.raises(SystemExit) as end:
        group.main(["status", "small"])
    assert end.value.code == 4
    first, _, rest = capsys.readouterr().err.partition("; details: ")
    assert first == "error: unexpected ZeroDivisionError: the first line; this is a fault of the program"
    details = Path(rest.strip())
    assert details.parent == tmp_path
    assert "in broken" in details.read_text()
    monkeypatch.setenv(exit_codes.TRACEBACK, "1")
    with pytest.raises(ZeroDivisionError):
        group.main(["status", "small"])


def test_details_that_cannot_be_kept_are_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant check: an error while an error is told is a traceback after all."""
    monkeypatch.delenv(exit_codes.TRACEBACK, raising=False)
    monkeypatch.setattr(exit_codes, "_kept", lambda _: None)
    ending = exit_codes.ending(ZeroDivisionError())
    assert ending is not None
    assert ending[0].endswith("; details: none, as no folder can be written; ORCHESTRATOR_TRACEBACK=1 prints them")

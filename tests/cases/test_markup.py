"""What people and failures wrote is printed as data: neither as markup nor as commands to the terminal.

Mutant check: `add_row` of bare strings in the tables of the command line (brackets vanish, or MarkupError), and texts
that go to the terminal without `visible` (an escape sequence arrives whole).
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from ledgers import start

from jobs.core.plain import is_harmless
from orchestrator import report
from orchestrator.cli import main
from orchestrator.run_dir.context import Options
from orchestrator.run_dir.folder import RunFolder
from orchestrator.session.progress import Progress
from orchestrator.session.shutdown import quiet
from orchestrator.system.terminal import Journal
from orchestrator.tracking import ui

LABELS = ["InfoNCE [baseline]", "sum [1/B] mean [/B]"]
OTHERS = ["[/data/a.parquet]", "[bold red]loud[/]", "a \\[b] :warning: <b>c</b> ![d](e)", "[link=file:///x]y[/link]"]
ARMS = '[[arm]]\nlabel = {}\n[[arm]]\nlabel = {}\n"loss.name" = "flatnce"\n'
MARKS = "\x1b[31m\x07\x08\x9b2J\u202eabc\u2066\u200f\u2028\ufeff"
"""Escape, bell, backspace, the one-byte form of a sequence, and marks that turn or break a line."""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), env={"ORCHESTRATOR_TRACEBACK": "1"})


def arms(*labels: str) -> str:
    return ARMS.format(*(json.dumps(label) for label in labels))


def harmless(text: str) -> bool:
    return not any(mark in text for mark in MARKS if not mark.isascii() or not mark.isprintable())


def unwrapped(text: str) -> str:
    """Without the white space of a table's columns."""
    return "".join(text.split())


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("ORCHESTRATOR_LEDGER", raising=False)


@pytest.mark.parametrize("labels", [LABELS, OTHERS[:2], OTHERS[2:]])
def test_plan_and_status_show_a_label_as_it_is(tmp_path: Path, labels: list[str]) -> None:
    begun = start(tmp_path / "runs" / "demo", arms(*labels))
    begun.lost(begun.confirm(labels[0])[0], "DataError: [/data/a.parquet] has no [text]; [enforce fail at x.cpp:1]")
    begun.confirm(labels[1])
    begun.ledger.close()
    planned = run("plan", str(tmp_path / "runs" / "demo" / "sweep.toml"))
    shown = run("status", "demo")
    assert (planned.exit_code, shown.exit_code) == (0, 0), planned.output + shown.output
    for label in labels:
        assert any(line.startswith(label) for line in planned.output.splitlines()), planned.output
    assert f"contrasts: {labels[1]} against {labels[0]}" in planned.output
    cells = unwrapped(shown.output)
    for word in (*(label.split()[0] for label in labels), "[/data/a.parquet]", "[text]", "cpp:1]"):
        assert word in cells, shown.output


def test_marks_in_a_failure_neither_reach_the_terminal_nor_vanish(tmp_path: Path) -> None:
    """A failure may hold what a data file holds."""
    begun = start(tmp_path / "runs" / "demo")
    begun.lost(begun.confirm("plain")[0], f"DataError: row 3 is {MARKS}")
    begun.ledger.close()
    shown = run("status", "demo")
    assert shown.exit_code == 0, shown.output
    assert harmless(shown.output), repr(shown.output)
    for text in (r"\x1b[31m", r"\x07", r"\x9b2J", r"\u202e", r"\u2066", r"\u200f", r"\u2028", r"\ufeff"):
        assert text in unwrapped(shown.output)


@pytest.mark.parametrize("mark", ["\u202e", "\u200f", "\u2066", "\ufeff"])
def test_a_label_may_hold_marks_of_direction_and_they_are_shown(tmp_path: Path, mark: str) -> None:
    begun = start(tmp_path / "runs" / "demo", arms("plain", f"be{mark}ta"))
    begun.confirm(f"be{mark}ta")
    begun.ledger.close()
    for done in (run("plan", str(tmp_path / "runs" / "demo" / "sweep.toml")), run("status", "demo")):
        assert done.exit_code == 0, done.output
        assert mark not in done.output
        assert f"be\\u{ord(mark):04x}ta" in unwrapped(done.output)


@pytest.mark.parametrize("label", ["two\nlines", "\x1b[31mred", "tab\there", "a\u2028b", "  ", "x" * 201])
def test_a_label_that_no_line_can_show_is_refused_in_words(tmp_path: Path, label: str) -> None:
    sweep = tmp_path / "sweep.toml"
    begun = start(tmp_path / "made")
    begun.ledger.close()
    text = (tmp_path / "made" / "sweep.toml").read_text().replace('"flat"', json.dumps(label))
    sweep.write_text(text)
    done = run("plan", str(sweep))
    assert done.exit_code == 2, done.output
    assert "label" in done.output
    assert "200" in done.output or "needs a label" in done.output or "control character" in done.output
    assert harmless(done.output)


def test_questions_errors_and_logs_are_data_too(tmp_path: Path) -> None:
    begun = start(tmp_path / "runs" / "demo", question=f"Is [b]it[/b] {MARKS} better?\r\n  note: forged\n")
    trial = begun.confirm("plain")[0]
    begun.lost(trial, "boom")
    begun.ledger.close()
    folder = tmp_path / "runs" / "demo" / "trials" / trial.id
    folder.mkdir(parents=True)
    (folder / "log.rank0.txt").write_text(f"[/x] {MARKS}\rdone\n")
    outputs = [
        run("plan", str(tmp_path / "runs" / "demo" / "sweep.toml")),
        run("logs", "demo", trial.id),
        run("status", f"no{MARKS}run"),
        run("verify", "demo"),
        run("compare", "demo"),
    ]
    for done in outputs:
        assert harmless(done.output), repr(done.output)
    assert "Is [b]it[/b] \\x1b[31m" in outputs[0].output
    assert outputs[0].output.splitlines()[0].endswith(" better? note: forged"), "one line of white space"
    assert "[/x] \\x1b[31m" in outputs[1].output
    assert "done" in outputs[1].output


@pytest.mark.parametrize("label", ["be\u202eta", "a\u2066b", "\ufeffx", "[bold]loud[/]"])
def test_what_a_session_says_in_the_end_is_data_too_on_the_terminal_and_in_its_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], label: str
) -> None:
    """Its last table, of an answer whose label, notes and sentence hold marks, and every line that it logs. Mutant
    checks: a table printed as rich would, and a log that takes a line as it is."""
    begun = start(tmp_path / "runs" / "demo", arms("plain", label), question=f"Is it {MARKS} better?")
    for arm in ("plain", label):
        for trial in begun.confirm(arm):
            begun.done(trial, 0.9 + trial.seed / 1000)
    context = begun.context(tmp_path / "runs" / "demo", Options(offline=True))
    folder, progress = context.folder, Progress(context)
    answer = report.summarize(begun.ledger)
    answer = replace(answer, sentence=answer.sentence + MARKS, notes=[*answer.notes, f"a note {MARKS}"])
    with quiet(progress):
        progress.say(f"trial failed: {MARKS}")
    progress.answer(report.table(answer))
    progress.close([f"arm is stopped: {MARKS}"])
    begun.ledger.close()
    shown, log = capsys.readouterr().out, folder.log.read_text()
    for text in (shown, log):
        assert harmless(text), repr(text)
        assert r"\x1b[31m" in text
        assert label.encode("unicode_escape").decode() in unwrapped(text)


@given(st.text(alphabet=st.characters(categories=["C", "Z", "L", "P"]) | st.sampled_from("\x1b\r\n\x85\u2028\x0c")))
def test_no_line_of_a_log_obeys_or_breaks(text: str) -> None:
    """As many lines as the text has by its line feeds, each with its time. Mutant check: `splitlines`, which breaks at
    a form feed."""
    with tempfile.NamedTemporaryFile("r", encoding="utf-8", newline="\n") as file:
        Journal(Path(file.name)).line(text)
        lines = file.read().split("\n")
    assert lines.pop() == ""
    assert len(lines) == text.replace("\r\n", "\n").rstrip("\n").count("\n") + 1
    assert all(line[:4].isdigit() and all(is_harmless(one) or one == "\t" for one in line) for line in lines)


def test_names_that_the_ui_prints_are_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of folders, among others. Mutant check: `click.echo` of them as they are."""
    begun = start(tmp_path / "runs" / "demo")
    begun.ledger.set_run(mlflow_experiment_id="1", mlflow_run_id=f"run{MARKS}")
    begun.ledger.release()
    begun.ledger.close()
    (tmp_path / "runs" / "demo").rename(tmp_path / "runs" / f"demo{MARKS}")
    for folder in (None, RunFolder(tmp_path / "runs" / f"demo{MARKS}")):
        ui._show("http://host:5000", folder, browse=False)
        shown = capsys.readouterr().out
        assert r"run\x1b[31m" in shown, shown
        assert harmless(shown), repr(shown)
    home = tmp_path / f"none{MARKS}"
    os.environ["ORCHESTRATOR_RUNS"] = str(home)  # which the fixture puts back
    assert ui.serve(None, port=1) == 4
    assert harmless(capsys.readouterr().err)


@pytest.mark.parametrize("verb", ["compare", "verify"])
def test_verbs_that_read_do_not_stumble_over_brackets(tmp_path: Path, verb: str) -> None:
    begun = start(tmp_path / "runs" / "demo", arms(*LABELS))
    for label in LABELS:
        for trial in begun.confirm(label):
            begun.done(trial, 0.9 + trial.seed / 1000)
    begun.ledger.set_run(state="done")
    begun.ledger.release()
    begun.ledger.close()
    done = run(verb, "demo")
    assert done.exit_code == (0 if verb == "compare" else 1), done.output  # nothing was told to MLflow
    if verb == "compare":
        assert unwrapped(LABELS[1]) in unwrapped(done.output)

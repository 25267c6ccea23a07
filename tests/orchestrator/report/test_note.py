"""The description of a sweep in MLflow: the verdict first, the numbers of the report, and short enough to be kept."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hostile import read_markdown
from ledgers import BETTER, TWO, Begin, answer_of, finished

from orchestrator import report
from orchestrator.report import formatting
from orchestrator.report.summary import sentences
from orchestrator.tracking import view
from orchestrator.tracking.metadata import LONGEST_TAG, tags


def test_the_verdict_comes_first_and_the_numbers_are_the_answers(begin: Begin) -> None:
    ledger = finished(begin(TWO), BETTER).ledger
    answer, lines = answer_of(ledger), report.note(report.summarize(ledger)).splitlines()
    assert lines[0] == "*Is flat better?*"
    assert lines[2] == f"**{answer['sentence']}**"
    (one,) = answer["comparisons"]
    row = next(line for line in lines if line.startswith("| flat "))
    for told in (
        sentences.VERDICTS[one["verdict"]],
        formatting.signed(one["delta"]),
        formatting.probability(one["p_adjusted"]),
    ):
        assert f" {told} " in row
    for arm in answer["arms"]:
        assert any(line.startswith(f"| {arm['label']} ") and formatting.value(arm["mean"]) in line for line in lines)
    assert "report/report.html" in lines[-1]
    assert "| better &nbsp; |" in row, "MLflow leaves no room between the cells of a table"
    assert not any("![" in line for line in lines), "MLflow cannot show a picture there"


def test_a_note_on_many_arms_is_short_and_says_where_the_rest_is(begin: Begin) -> None:
    """Mutant check: leaving the rows alone makes it longer than MLflow keeps."""
    arms = "".join(f'[[arm]]\nlabel = "arm number {n}"\n"loss.margin" = {n / 100}\n' for n in range(60))
    said = report.note(report.summarize(begin(arms).ledger))
    assert "and 47 more, in the report" in said
    assert "and 48 more, in the report" in said
    assert len(said) < LONGEST_TAG


@pytest.mark.parametrize("question", ["why? " * 2000, "<" * 4999, "a@b.cd " * 900, "\U000e0041" * 3000])
def test_a_long_question_leaves_room_for_the_verdict(begin: Begin, question: str) -> None:
    """In the description of the run and of the experiment, and is cut between its characters. Mutant check: cutting
    what is told, which takes the verdict away."""
    run = finished(begin(TWO), BETTER)
    answer = replace(report.summarize(run.ledger), question=question)
    said = report.note(answer)
    assert len(said) < LONGEST_TAG
    assert f"**{answer.sentence}**" in said
    assert "| flat &nbsp; | plain " in said
    begun = replace(run.ledger.run, sweep={**run.ledger.run.sweep, "question": question})
    told = view.question(begun)
    assert len(told) <= 1000
    assert read_markdown(told).text.endswith("\u2026")
    assert read_markdown(said.splitlines()[0]).text.endswith("\u2026")


@pytest.mark.parametrize("length", [10, 4999, 30_000])
def test_a_long_failure_is_cut_between_its_characters(begin: Begin, length: int) -> None:
    """Mutant check: cutting the Markdown, within the mark that keeps an address from being a link."""
    run = begin()
    trial = run.confirm("plain")[0]
    run.lost(trial, "<@" * length)
    said = dict(tags(run.ledger.trial(trial.id), [], "accuracy"))["mlflow.note.content"]
    assert len(said) <= LONGEST_TAG
    seen = read_markdown(said).text.partition("): ")[2]
    assert seen == "<@" * length or (length > 1000 and set(seen) == set("<@\u2026"))


@pytest.mark.parametrize("label", ['flat, size=16 (a"b)', "s3://bucket/x.parquet", "../a", "a/", "./a", "x" * 200])
def test_the_numbers_of_the_answer_are_metrics_that_mlflow_takes(begin: Begin, label: str) -> None:
    """Mutant check: keeping slashes, or whole labels, fails this."""
    from mlflow.utils.validation import _validate_metric_name

    arms = TWO.replace('label = "flat"', f"label = {json.dumps(label)}")
    values = {"plain": BETTER["plain"], label: BETTER["flat"]}
    answer = report.summarize(finished(begin(arms), values).ledger)
    numbers = report.numbers(answer)
    assert numbers["mean/plain"] == answer.arms[0].mean
    (one,) = answer.comparisons
    assert {key.partition("/")[0]: value for key, value in numbers.items() if key.endswith(" - plain")} == {
        "delta": one.result.delta,
        "p_adjusted": one.result.p_adjusted,
    }
    assert len(numbers) == 4, "two arms, two numbers of one contrast"
    check: Any = _validate_metric_name
    for name in numbers:
        check(name)
        assert len(name) <= 250


def test_nothing_known_has_no_numbers(begin: Begin) -> None:
    assert report.numbers(report.summarize(begin(TWO).ledger)) == {}

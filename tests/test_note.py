"""The description of a sweep in MLflow: the verdict first, the numbers of the report, and short enough to be kept."""

from __future__ import annotations

from ledgers import BETTER, TWO, Begin, finished

from orchestrator import report
from orchestrator.report import text
from orchestrator.tracking.told import LONGEST_TAG


def test_the_verdict_comes_first_and_the_numbers_are_the_answers(begin: Begin) -> None:
    answer = report.answer(finished(begin(TWO), BETTER).ledger)
    lines = report.note(answer).splitlines()
    assert lines[0] == "*Is flat better?*"
    assert lines[2] == f"**{answer['sentence']}**"
    (one,) = answer["comparisons"]
    row = next(line for line in lines if line.startswith("| flat - plain"))
    for told in (text.VERDICTS[one["verdict"]], text.signed(one["delta"]), text.probability(one["p_holm"])):
        assert f" {told} " in row
    for arm in answer["arms"]:
        assert any(line.startswith(f"| {arm['label']} ") and text.value(arm["mean"]) in line for line in lines)
    assert "report/report.html" in lines[-1]
    assert not any("![" in line for line in lines), "MLflow cannot show a picture there"


def test_a_note_on_many_arms_is_short_and_says_where_the_rest_is(begin: Begin) -> None:
    """Mutant check: leaving the rows alone makes it longer than MLflow keeps."""
    arms = "".join(f'[[arm]]\nlabel = "arm number {n}"\n"loss.margin" = {n / 100}\n' for n in range(60))
    said = report.note(report.answer(begin(arms).ledger))
    assert "and 47 more, in the report" in said
    assert "and 48 more, in the report" in said
    assert len(said) < LONGEST_TAG

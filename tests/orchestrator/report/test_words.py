"""What is counted is written in the number that it has, wherever it stands."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from ledgers import BETTER, Begin, finished

from orchestrator import report
from orchestrator.report.naming import names_of
from orchestrator.report.render import page
from orchestrator.report.summary import budgets
from orchestrator.report.summary.sentences import VERDICTS, tally
from orchestrator.report.tables import grids
from orchestrator.report.tables.content import Page
from orchestrator.statistics import Verdict
from orchestrator.system.display import by_count, counted, first_line, listed, ranges

WRONG = re.compile(
    r"(?<![\d,.])1 (seeds|trials|comparisons|pairs|steps|seconds|others|confirm trials|diverge|lose|beat)\b"
)
"""Words that 1 does not go with."""


@pytest.mark.parametrize(
    ("said", "right"),
    [
        (counted(1, "trial"), "1 trial"),
        (counted(0, "trial"), "0 trials"),
        (counted(2000, "trial"), "2,000 trials"),
        (counted(2, "entry", "entries"), "2 entries"),
        (by_count(1, "has", "have"), "has"),
        (by_count(21, "has", "have"), "have"),
        (budgets.words({"seconds": 1.0}), "1 second"),
        (budgets.words({"steps": 1, "seconds": 1.5}), "1 step and 1.5 seconds"),
    ],
)
def test_a_word_follows_its_count(said: str, right: str) -> None:
    assert said == right


@given(st.text(), st.sampled_from(["\n", "\r\n", " \n\t"]))
def test_the_first_line_is_the_first_that_is_not_blank(tail: str, blank: str) -> None:
    assert first_line(f"{blank}what is wrong \n{tail}") == "what is wrong"
    assert first_line(blank) == first_line("") == ""


@given(st.lists(st.integers(0, 30), unique=True))
@example([0, 1, 2, 3, 4, 7])
@example([5, 6])
def test_ranges_are_the_numbers_in_their_order(numbers: list[int]) -> None:
    """And nothing that could be shorter: no three numbers in a row are written out. Mutant check: `<` for `>`."""
    written = ranges(numbers)
    parts = [] if written == "none" else written.split(", ")
    read = [range(int(low), int(high or low) + 1) for low, _, high in (part.partition("-") for part in parts)]
    assert [number for part in read for number in part] == numbers
    assert all(len(part) != 2 for part in read), "two are two"
    assert not any(a[-1] + 2 == b[-1] + 1 == c[0] for a, b, c in zip(read, read[1:], read[2:], strict=False))
    assert written == "none" or ranges([0, 1, 2, 3, 4, 7, 9, 10]) == "0-4, 7, 9, 10"


@pytest.mark.parametrize(("count", "said"), [(0, ""), (2, "0; 1"), (8, "0; 1; 2; 3; 4; 5; 6; 7")])
def test_of_very_many_a_line_has_the_first_few(count: int, said: str) -> None:
    assert listed(list(map(str, range(count)))) == said
    assert listed(list(map(str, range(1209)))) == "0; 1; 2; and 1,206 more"


@pytest.mark.parametrize("ends", ["ok", "diverged", "one of two"])
@pytest.mark.parametrize("seeds", [2, 3])
def test_a_small_run_is_told_in_right_words(begin: Begin, ends: str, seeds: int) -> None:
    """Seen: "8 seeds and 1 comparisons", "1 trials by code". Mutant check: any of these counts without the helper."""
    run = begin(seeds=seeds)
    for arm, metrics in BETTER.items():
        for k, trial in enumerate(run.confirm(arm)):
            lost = arm == "flat" and (ends == "diverged" or (ends == "one of two" and k == 0))
            run.done(trial, metrics[k], outcome="diverged" if lost else "ok")
            check(report.summarize(run.ledger))


@given(st.lists(st.sampled_from(["a_better", "b_better", "equivalent", "inconclusive", "diverges"]), min_size=4))
def test_the_sentence_on_many_comparisons_has_the_right_verbs(verdicts: Sequence[Verdict]) -> None:
    """Seen: "and 1 diverge"."""
    said = tally(verdicts, "m")
    assert not WRONG.search(said)
    assert not re.search(r"\b1 (are|comparisons)\b|\b(?!1\b)\d+ (is|comparison)\b", said)
    whole, *parts = (int(n) for n in re.findall(r"\d+", said))
    assert whole == len(verdicts) == sum(parts)
    assert parts == [n for verdict in VERDICTS if (n := verdicts.count(verdict))]


def check(answer: report.Summary) -> None:
    names = names_of(answer.arms)
    content = [*grids.trials(answer), *grids.cost(answer, names), *grids.execution_only(answer, names)]
    content += grids.seeds(answer, names)
    whole = [*answer.notes, answer.sentence, page.markdown(Page("Q", "T", ["V"], "S", [], content))]
    for said in whole:
        assert not WRONG.search(said), said


# What a run can reach


def test_a_run_that_tests_nothing_is_not_told_that_it_cannot_reach_a_p(begin: Begin) -> None:
    """Seen: "8 seeds and 1 comparisons cannot reach p <= 0.05: the smallest p is 1", of one objective computed in two
    ways."""
    arms = '[[arm]]\nlabel = "whole"\n[[arm]]\nlabel = "chunks"\n"execution.micro" = 32\n'
    found = report.summarize(finished(begin(arms), {"whole": BETTER["plain"], "chunks": BETTER["plain"]}).ledger)
    assert found.comparisons[0].result.same_objective
    assert found.notes == []


def test_what_is_not_tested_is_not_counted_among_what_cannot_be_reached(begin: Begin) -> None:
    """Five seeds reach 0.0625 in the one comparison that is tested, whatever else is shown."""
    arms = '[[arm]]\nlabel = "plain"\n[[arm]]\nlabel = "chunks"\n"execution.micro" = 32\n[[arm]]\nlabel = "flat"\n'
    run = begin(arms + '"loss.name" = "flatnce"\n', seeds=5)
    values = {"plain": BETTER["plain"][:5], "chunks": BETTER["plain"][:5], "flat": BETTER["flat"][:5]}
    (note,) = report.summarize(finished(run, values).ledger).notes
    assert note == "5 seeds cannot reach p <= 0.05: the smallest p is 0.0625."

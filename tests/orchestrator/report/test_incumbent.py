"""One new arm against a stored baseline: as often as was planned, and noise is kept once in twenty of such plans."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledgers import TWO, Begin, Run, finished

from orchestrator.ledger import LeaseHeld, Ledger, sqlite_url
from orchestrator.report.formatting import signed
from orchestrator.report.incumbent import ask, next_command
from orchestrator.run_dir.folder import RunError
from orchestrator.statistics import one_sided_p
from orchestrator.statistics.tests import one_sided_bound

SEEDS = list(range(10))


def run_of(begin: Begin, mean: float, *, seeds: list[int] = SEEDS, noise: str = "", mode: str = "max") -> Run:
    """A finished run of two arms, `plain` and `flat`, which is better by `mean`."""
    values = {
        arm: [0.9 + by + random.Random(f"{arm} {noise} {seed}").gauss(0, 0.004) for seed in seeds]
        for arm, by in (("plain", 0.0), ("flat", mean))
    }
    return finished(begin(seeds=seeds, mode=mode), values)


def let_go(run: Run) -> Ledger:
    """The ledger of a run that nobody drives."""
    run.ledger.release()
    return run.ledger


def test_what_beats_the_baseline_is_kept_and_what_does_not_is_not(begin: Begin) -> None:
    best = let_go(run_of(begin, 0.0))
    better, equal = let_go(run_of(begin, 0.03)), let_go(run_of(begin, 0.0, noise="other"))
    kept = ask(better, best, arm="flat", questions=20)
    assert (kept.keep, kept.n, kept.alpha, kept.question, kept.questions) == (True, 10, 0.0025, 1, 20)
    assert kept.p == 2.0**-10
    assert kept.sentence.startswith("Keep flat: it beats plain: +0.03")
    assert kept.fresh_seeds == list(range(10, 20))
    assert "confirm.seeds=[10, 11" in next_command(kept, "runs/idea")
    dropped = ask(equal, best, arm="flat")
    assert (dropped.keep, dropped.question) == (False, 2)
    assert dropped.sentence.startswith("Discard flat: it is not shown to beat plain")


def test_the_arm_that_is_not_the_baseline_again_is_the_new_one_and_another_baseline_may_be_named(
    begin: Begin,
) -> None:
    best, better = let_go(run_of(begin, 0.0)), let_go(run_of(begin, 0.03))
    assert (ask(better, best).arm, ask(better, best).incumbent) == ("flat", "plain")
    other = let_go(run_of(begin, 0.03))
    same = ask(let_go(run_of(begin, 0.0, noise="x")), other, arm="flat", baseline="flat")
    assert (same.incumbent, same.keep) == ("flat", False)


def test_another_incumbent_is_another_question(begin: Begin) -> None:
    """Of one arm, against each arm of the other run. Mutant check: a question known by run and arm alone."""
    best = let_go(run_of(begin, 0.0))
    new = let_go(run_of(begin, 0.03, noise="n"))
    against = [ask(new, best, arm="flat", baseline=arm, questions=3) for arm in (None, "flat", "plain")]
    assert [(answer.incumbent, answer.question) for answer in against] == [("plain", 1), ("flat", 2), ("plain", 1)]
    assert ask(new, best, arm="plain", baseline="flat").question == 3
    with pytest.raises(RunError, match="all 3 questions"):
        ask(new, best, arm="plain", baseline="plain")


@pytest.mark.parametrize(("mode", "word"), [("max", "at least"), ("min", "at most")])
def test_the_bound_of_an_answer_agrees_with_it(begin: Begin, mode: str, word: str) -> None:
    """Mutant check: the two-sided 95% interval of the t test, which leaves out 0 though the arm is discarded."""
    best, sign = let_go(run_of(begin, 0.0, mode=mode)), 1 if mode == "max" else -1
    keeps = []
    for number, by in enumerate((0.0, 0.002, 0.003, 0.004, 0.005, 0.006, 0.02)):
        new = let_go(run_of(begin, sign * by, noise=str(number), mode=mode))
        answer = ask(new, best, arm="flat")
        assert answer.bound is not None
        assert (sign * answer.bound > 0) == answer.keep, answer
        assert f"({word} {signed(answer.bound)}, p = " in answer.sentence
        assert "95%" not in answer.sentence
        keeps.append(answer.keep)
    assert {True, False} == set(keeps)


DIFFERENCES = st.lists(
    st.one_of(st.integers(-3, 8).map(float), st.sampled_from([0.25, -0.001, 0.0067]), st.floats(-1e3, 1e3)),
    min_size=1,
    max_size=14,
)


@given(DIFFERENCES, st.integers(1, 40))
def test_0_is_above_the_bound_if_and_only_if_the_test_does_not_reject(d: list[float], questions: int) -> None:
    """And the bound is the K-th smallest mean of a non-empty subset, where K assignments may be rejected."""
    alpha = 0.05 / questions
    bound = one_sided_bound(d, alpha)
    allowed = int(alpha * 2 ** len(d) + 1e-9)
    assert (bound is None) == (allowed == 0)
    if bound is not None:
        assert (bound > 0) == (one_sided_p(d) <= alpha)
        subsets = itertools.chain.from_iterable(itertools.combinations(d, k) for k in range(1, len(d) + 1))
        expected = sorted(float(np.mean(subset)) for subset in subsets)[allowed - 1]
        assert bound == pytest.approx(expected, abs=2e-7 * max(1.0, *map(abs, d)))


@pytest.mark.parametrize(("n", "mean"), [(24, 0.3), (24, 0.6), (24, 1.0), (48, 0.45)])
def test_the_bound_of_many_seeds_agrees_too(n: int, mean: float) -> None:
    d = np.random.default_rng(0).normal(mean, 1, size=n)
    bound = one_sided_bound(d, 0.0025)
    assert bound is not None
    assert (bound > 0) == (one_sided_p(d) <= 0.0025)


@pytest.mark.parametrize("falls", ["new", "incumbent"])
@pytest.mark.parametrize("by", [0.03, 0.0])
def test_an_answer_says_which_side_diverged_and_shows_no_bound_then(begin: Begin, falls: str, by: float) -> None:
    best, new = begin(seeds=SEEDS), begin(seeds=SEEDS)
    for name, run in (("incumbent", best), ("new", new)):
        for arm in ("plain", "flat"):
            for number, trial in enumerate(run.confirm(arm)):
                fell = name == falls and number < 6 and arm == ("flat" if name == "new" else "plain")
                run.done(trial, 0.9 + by * (arm == "flat"), outcome="diverged" if fell else "ok")
    answer = ask(let_go(new), let_go(best), arm="flat")
    assert (answer.keep, answer.bound, answer.diverged_sides) == (False, None, [falls])
    who = "flat diverged" if falls == "new" else "the incumbent, plain, diverged"
    assert answer.sentence.startswith(f"Discard flat: {who} in at least half of the seeds, so that")


def test_one_pair_that_diverged_takes_the_bound_and_is_counted(begin: Begin) -> None:
    best, new = let_go(run_of(begin, 0.0)), begin(seeds=SEEDS)
    for arm in ("plain", "flat"):
        for number, trial in enumerate(new.confirm(arm)):
            new.done(trial, 0.93, outcome="diverged" if arm == "flat" and number == 3 else "ok")
    answer = ask(let_go(new), best, arm="flat")
    assert (answer.keep, answer.bound, answer.diverged_sides, answer.n_trained) == (False, None, [], 9)
    assert "where both trained (p = " in answer.sentence
    assert "1 pair of 10 with a side that diverged" in answer.sentence


def test_what_was_kept_is_not_asked_against_on_the_seeds_that_chose_it(begin: Begin) -> None:
    """By this run or another one; its other arm may be. Mutant check: nothing recorded with the run of what is kept."""
    best, idea = let_go(run_of(begin, 0.0)), let_go(run_of(begin, 0.03))
    next_one = let_go(run_of(begin, 0.06, noise="next"))
    kept = ask(idea, best)
    assert kept.keep
    for again in range(2):
        with pytest.raises(RunError, match="was chosen by these very seeds") as refusal:
            ask(next_one, idea, arm="flat", baseline="flat")
        assert f"confirm.seeds={kept.fresh_seeds}" in str(refusal.value)
        assert "--into" in str(refusal.value)
        ask(idea, best)
        assert len(idea.events("kept")) == 1, again
    assert idea.events("question") == [], "and it is not counted"
    assert ask(next_one, idea, arm="flat", baseline="plain").keep, "the baseline was not chosen"
    confirmed = let_go(run_of(begin, 0.03, seeds=kept.fresh_seeds, noise="fresh"))
    fresh = let_go(run_of(begin, 0.06, seeds=kept.fresh_seeds, noise="next"))
    assert ask(fresh, confirmed, arm="flat", baseline="flat").n == 10


def test_what_is_discarded_may_be_asked_against(begin: Begin) -> None:
    best, idea = let_go(run_of(begin, 0.0)), let_go(run_of(begin, 0.0, noise="idea"))
    assert not ask(idea, best, arm="flat").keep
    assert idea.events("kept") == []
    assert ask(let_go(run_of(begin, 0.03)), idea, arm="flat", baseline="flat").question == 1


def test_nothing_is_kept_of_a_run_that_somebody_drives(begin: Begin, tmp_path: Path) -> None:
    """The keep could not be recorded with it; the question is then not counted."""
    best, idea = let_go(run_of(begin, 0.0)), let_go(run_of(begin, 0.03))
    driver = Ledger.open(sqlite_url(tmp_path / "run1" / "ledger.db"))
    driver.acquire("somebody else", 60)
    with pytest.raises(LeaseHeld, match="somebody else has been driving this run"):
        ask(idea, best, arm="flat")
    assert best.events("question") == []
    driver.release()
    driver.close()
    assert ask(idea, best, arm="flat").keep


def test_a_question_that_an_earlier_version_kept_is_read(begin: Begin) -> None:
    """Without what it did not write, and what it kept is recorded then."""
    best, idea = let_go(run_of(begin, 0.0)), let_go(run_of(begin, 0.03))
    then = {
        "incumbent": "plain", "arm": "flat", "run": idea.uuid, "question": 1, "questions": 20, "n": 10, "delta": 0.03,
        "ci95": [0.02, 0.04], "p": 2.0**-10, "alpha": 0.0025, "keep": True, "fresh_seeds": list(range(10, 20)),
    }  # fmt: skip
    best.acquire("me", 60)
    best.event("questions", "20")
    best.event("question", json.dumps(then))
    best.release()
    answer = ask(idea, best, arm="flat")
    assert answer.sentence.startswith("Keep flat: it beats plain: +0.0300 (p = 0.000977 against 0.0025, 10 seeds, ")
    with pytest.raises(RunError, match="was chosen by these very seeds"):
        ask(let_go(run_of(begin, 0.06, noise="next")), idea, arm="flat", baseline="flat")


def test_a_metric_of_which_less_is_better_is_asked_the_other_way_round(begin: Begin) -> None:
    best = let_go(run_of(begin, 0.0, mode="min"))
    assert not ask(let_go(run_of(begin, 0.03, mode="min")), best, arm="flat").keep
    assert ask(let_go(run_of(begin, -0.03, mode="min")), best, arm="flat").keep


def test_the_number_of_questions_is_fixed_by_the_first_and_one_more_is_refused(begin: Begin) -> None:
    """The same question again has its answer and costs nothing. Mutant check: counting it again."""
    best = let_go(run_of(begin, 0.0))
    runs = [let_go(run_of(begin, 0.0, noise=str(number))) for number in range(3)]
    first = ask(runs[0], best, arm="flat", questions=2)
    assert ask(runs[0], best, arm="flat") == first
    with pytest.raises(RunError, match="fixed their number at 2; leave out --questions 20"):
        ask(runs[1], best, arm="flat", questions=20)
    assert ask(runs[1], best, arm="plain").question == 2
    with pytest.raises(RunError, match="all 2 questions against this run were asked; confirm the incumbent anew"):
        ask(runs[2], best, arm="flat")
    assert ask(runs[0], best, arm="flat") == first


def test_what_cannot_be_asked_is_refused_with_what_can_and_is_not_counted(begin: Begin, tmp_path: Path) -> None:
    best = let_go(run_of(begin, 0.0))
    new = let_go(run_of(begin, 0.03))
    three = TWO + '[[arm]]\nlabel = "dcl"\n"loss.name" = "dcl"\n'
    several = let_go(finished(begin(three, seeds=SEEDS), dict.fromkeys(("plain", "flat", "dcl"), [0.9] * 10)))
    with pytest.raises(RunError, match="several arms; say which one is new: --arm dcl"):
        ask(several, best)
    with pytest.raises(RunError, match="is no arm of the incumbent's run"):
        ask(new, best, baseline="plainn")
    with pytest.raises(RunError, match="did you mean 'flat'"):
        ask(new, best, arm="flatt")
    with pytest.raises(RunError, match="the runs share 6 seeds, and 20 questions take 9"):
        ask(let_go(run_of(begin, 0.03, seeds=list(range(6)))), best, arm="flat")
    with pytest.raises(RunError, match="are the same run"):
        ask(best, best, arm="flat")
    open_ = begin(seeds=SEEDS)
    for trial in [*open_.confirm("plain"), *open_.confirm("flat")][:15]:
        open_.done(trial, 0.9)
    with pytest.raises(RunError, match="have no value in both; resume"):
        ask(let_go(open_), best, arm="flat")
    assert best.events("question") == []
    assert best.events("questions") == []
    other = Ledger.open(sqlite_url(tmp_path / "run0" / "ledger.db"))
    other.acquire("somebody else", 60)
    with pytest.raises(LeaseHeld, match="somebody else has been driving this run"):
        ask(new, best, arm="flat")
    other.release()
    other.close()


@pytest.mark.parametrize("scale", [1e-290, 1e-12, 1.0, 1e12, 1e290])
def test_what_is_kept_is_kept_in_any_unit(begin: Begin, scale: float) -> None:
    """Mutant check: an absolute size below which nothing is a difference, by which tiny ones were never kept."""
    old, new = (
        let_go(finished(begin(seeds=SEEDS), {arm: [scale * x for x in values] for arm in ("plain", "flat")}))
        for values in ([1 + k / 20 for k in range(10)], [1.5 + k * k / 50 for k in range(10)])
    )
    answer = ask(new, old, arm="flat", questions=20)
    assert (answer.keep, answer.p) == (True, 2.0**-10)


def test_an_arm_that_diverges_is_never_kept(begin: Begin) -> None:
    best = let_go(run_of(begin, -0.5))
    new = begin(seeds=SEEDS)
    for arm in ("plain", "flat"):
        for number, trial in enumerate(new.confirm(arm)):
            fell = arm == "flat" and number < 5
            new.done(trial, 0.99, outcome="diverged" if fell else "ok")
    assert not ask(let_go(new), best, arm="flat").keep


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0, 3.0]), max_size=9))
def test_the_one_sided_p_is_the_share_of_assignments_by_count(d: list[float]) -> None:
    sums = [
        sum(sign * x for sign, x in zip(signs, d, strict=True)) for signs in itertools.product((1, -1), repeat=len(d))
    ]
    expected = 1.0 if not any(d) else float(np.mean([one >= sum(d) - 1e-12 for one in sums]))
    assert one_sided_p(d) == pytest.approx(expected, abs=1e-12)


def test_many_differences_are_drawn() -> None:
    d: Any = np.random.default_rng(0).normal(0.2, 1, size=60)
    assert one_sided_p(d) == pytest.approx(0.06, abs=0.06)
    assert one_sided_p(np.abs(d)) == pytest.approx(1e-5, abs=1e-6)


def test_all_questions_together_keep_noise_once_in_twenty() -> None:
    """800 plans of ten questions each against one baseline, which all share. Mutant check: 0.05 for each question."""
    rng, kept = np.random.default_rng(4), 0
    for _ in range(800):
        baseline = rng.normal(size=9)
        kept += any(one_sided_p(rng.normal(size=9) - baseline) <= 0.05 / 10 for _ in range(10))
    assert 0.02 <= kept / 800 <= 0.065

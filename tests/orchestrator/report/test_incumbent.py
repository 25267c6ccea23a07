"""One new arm against a stored baseline: as often as was planned, and noise is kept once in twenty of such plans."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledgers import TWO, Begin, Run, finished

from orchestrator.ledger import LeaseHeld, Ledger, sqlite_url
from orchestrator.report.incumbent import ask, next_command
from orchestrator.run_dir.folder import RunError
from orchestrator.statistics import one_sided_p

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
    same = ask(let_go(run_of(begin, 0.0, noise="x")), better, arm="flat", baseline="flat")
    assert (same.incumbent, same.keep) == ("flat", False)


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

"""[confirm] swap: each arm also at the other's setting, beside the answer, whatever is killed on the way."""

from __future__ import annotations

import contextlib
import json
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ledgers import answer_of, cut_off
from test_session import SWEEP, done, opened, parts, play

from jobs.core.failures import Failure
from jobs.export import card
from orchestrator.driver import apply_retry
from orchestrator.ledger import Ledger, Trial
from orchestrator.report.naming import names_of
from orchestrator.report.summary.evidence import summarize
from orchestrator.report.summary.records import Summary
from orchestrator.report.summary.sentences import swap_verdict
from orchestrator.report.swaps import SwapSummary
from orchestrator.report.swaps import swapped as compared
from orchestrator.report.tables import grids
from orchestrator.report.tables.blocks import Grid, Paragraph
from orchestrator.report.terminal import MOST_ROWS, table
from orchestrator.run_dir import export
from orchestrator.run_dir.context import Extend, RetryFailed
from orchestrator.run_dir.folder import RunFolder
from orchestrator.run_dir.status import status
from orchestrator.session import ending
from orchestrator.session.schedule import as_trial, extension, stopped_arms, swapping
from orchestrator.session.writer import Dispatch
from orchestrator.sweep import Arm, Sweep, flatten
from orchestrator.sweep.plan import make
from orchestrator.system.display import Harmless
from orchestrator.system.exit_codes import Exit
from orchestrator.tracking import metadata
from orchestrator.tracking.arms import wanted
from orchestrator.verify import ledger_checks

RATES = [1e-3, 3e-3, 1e-2]
SEEDS = 6
BEST = {"infonce": 1e-3, "flatnce": 1e-2, "dcl": 3e-3}
"""What each arm is tuned to."""

Answer = Callable[[Dispatch], Any]


def changes(losses: tuple[str, ...] = ("infonce", "flatnce"), **more: Any) -> dict[str, Any]:
    """A sweep that tries each learning rate in every arm."""
    tune = {"trials": 3, "sampler": "grid", "space": {"optimizer.lr": {"choices": RATES}}}
    return {
        "compare": {"loss.name": list(losses)},
        "tune": tune,
        "confirm": {"seeds": SEEDS, "swap": True},
        "metric": {"name": "knn_accuracy", "smallest_difference": 0.01},
        **more,
    }


def value(job: dict[str, Any], effect: float = 0.05, best: dict[str, float] = BEST) -> float:
    """Best at the learning rate of each loss; flatnce is better by the effect, at whatever rate."""
    loss, rate = str(job["loss"]["name"]), float(job["optimizer"]["lr"])
    noise = random.Random(f"{loss} {rate} {job['seed']}").gauss(0, 0.004)
    return 0.7 - 0.02 * abs(math.log10(rate / best[loss])) + (effect if loss == "flatnce" else 0.0) + noise


def usual(dispatch: Dispatch) -> Any:
    return done(dispatch, value(dispatch.job))


def rate_of(trial: Trial) -> float:
    return trial.config.optimizer.lr


def swapped(ledger: Ledger, *states: str) -> Counter[tuple[str, float]]:
    """Count the swapped trials by arm and learning rate."""
    return Counter((t.arm, rate_of(t)) for t in ledger.trials("swap") if not states or t.state in states)


def numbers(ledger: Ledger) -> dict[str, tuple[Any, ...]]:
    return {t.id: (t.stage, t.arm, t.seed, t.state, t.metric) for t in ledger.trials()}


def run(folder: Path, sweep: dict[str, Any], of: Answer = usual, **options: Any) -> tuple[Summary, dict[str, Any]]:
    """Play a sweep to its end in one session."""
    with opened(folder, sweep) as (session, ledger, _, _plan):
        session.start()
        play(session, of, **options)
        assert session.broken is None
        return summarize(ledger), numbers(ledger)


def one(summary: Summary) -> SwapSummary:
    (found,) = summary.swaps
    return found


def test_each_arm_is_trained_at_the_others_setting_on_the_confirm_seeds_after_the_confirm_trials(
    tmp_path: Path,
) -> None:
    """Mutant checks: swapped trials that are due before confirm trials; seeds of their own."""
    with opened(tmp_path, changes(), concurrent=1) as (session, ledger, _, plan):
        session.start()
        ran = play(session, usual)
        assert {arm: own.params for arm, own in ledger.frozen().items()} == {
            arm: {"optimizer.lr": BEST[arm]} for arm in ("infonce", "flatnce")
        }
        assert swapped(ledger, "done") == {("infonce", 1e-2): SEEDS, ("flatnce", 1e-3): SEEDS}
        assert {trial.seed for trial in ledger.trials("swap")} == set(plan.confirm_seeds)
        stages = [ledger.trial(dispatch.trial).stage for dispatch in ran]
        assert stages == sorted(stages, key=["tune", "confirm", "swap"].index)
        assert Counter(stages) == plan.trials
        assert (ending.of(session).state, ending.of(session).lines) == ("done", ())
        assert all(trial.job["stage"] == "confirm" for trial in ledger.trials("swap"))
        confirmed = {trial.id for trial in plan.confirm_trials("infonce", {"optimizer.lr": 1e-2})}
        assert confirmed.isdisjoint(trial.id for trial in ledger.trials("swap")), "an arm may yet be confirmed there"


def test_the_differences_are_of_both_arms_at_one_setting_each(tmp_path: Path) -> None:
    """Against the numbers themselves. Mutant check: a and b the other way round at one of the settings."""
    summary, _ = run(tmp_path, changes())
    found = one(summary)
    seeds = summary.seeds
    job = {"optimizer": {"lr": 0.0}}

    def differences(rate: float) -> list[float]:
        jobs = [
            [{"loss": {"name": loss}, "optimizer": {"lr": rate}, "seed": seed} for seed in seeds]
            for loss in ("flatnce", "infonce")
        ]
        return [value(job | a) - value(job | b) for a, b in zip(*jobs, strict=True)]

    assert (found.a, found.b, found.keys, found.verdict) == ("flatnce", "infonce", ("optimizer.lr",), "either")
    for at, (arm, other) in zip(found.settings, [("flatnce", "infonce"), ("infonce", "flatnce")], strict=True):
        d = differences(BEST[arm])
        mean = sum(d) / len(d)
        assert (at.setting, at.params, at.n, at.n_trained) == (arm, {"optimizer.lr": BEST[arm]}, SEEDS, SEEDS)
        assert at.delta == pytest.approx(mean)
        assert at.ci95 is not None
        assert at.ci95[0] < mean < at.ci95[1]
        assert (at.p or 1) < 0.05
        assert len(at.trials) == SEEDS
        assert at.missing == "", other
    assert found.p == max(at.p or 1.0 for at in found.settings)


@pytest.mark.parametrize("unit", [1e-290, 1e-12, 1e100])
def test_whether_the_setting_matters_is_the_same_in_any_unit(tmp_path: Path, unit: float) -> None:
    """Mutant checks: an absolute size below which nothing is a difference, by which p was 0; the sign of a product of
    two means, which is 0 where both are tiny."""
    at, said = dict[float, SwapSummary](), dict[float, str]()
    for scale in (1.0, unit):

        def tiny(dispatch: Dispatch, scale: float = scale) -> Any:
            return done(dispatch, scale * value(dispatch.job))

        summary, _ = run(tmp_path / str(scale), changes(), tiny)
        swap = at[scale] = one(summary)
        said[scale] = swap_verdict(swap, names_of(summary.arms))
    assert said[unit] == said[1.0] == "at either setting"
    ps = [[swap.p, *(setting.p for setting in swap.settings)] for swap in (at[unit], at[1.0])]
    assert ps[0] == pytest.approx(ps[1], rel=1e-6)
    assert 0 < (at[unit].p or 0) < 0.05


def test_what_is_so_at_one_setting_alone_depends_on_the_setting(tmp_path: Path) -> None:
    """flatnce is better at its own rate; at the baseline's what it gains is what the rate costs it."""

    def of(dispatch: Dispatch) -> Any:
        return done(dispatch, value(dispatch.job, 0.05 if dispatch.job["optimizer"]["lr"] > 5e-3 else 0.02))

    found = one(run(tmp_path, changes(), of)[0])
    assert found.verdict == "depends"
    assert [(at.setting, (at.p or 1) < 0.05) for at in found.settings] == [("flatnce", True), ("infonce", False)]


BESIDE = ("swaps", "trials", "attempts", "environment", "run", "created", "code", "data")
"""What is not the same in two runs, or counts trials."""


def test_the_answer_is_that_of_the_sweep_without_swaps(tmp_path: Path) -> None:
    """Means, verdicts, the values of seeds, MLflow's runs of arms, the trial that is exported: swapped trials have the
    best values of all here. Mutant check: the stage `confirm` for swapped trials."""

    def of(dispatch: Dispatch) -> Any:
        is_own = dispatch.job["optimizer"]["lr"] == BEST[dispatch.job["loss"]["name"]]
        return done(dispatch, value(dispatch.job) + (0.0 if is_own or dispatch.job["stage"] == "tune" else 0.2))

    found = []
    for name, swap in (("with", True), ("without", False)):
        with opened(tmp_path / name, changes(confirm={"seeds": SEEDS, "swap": swap})) as (session, ledger, _, _plan):
            session.start()
            play(session, of)
            said, trials = answer_of(ledger), ledger.trials()
            assert ("swap" in said["trials"]) == bool(said["swaps"]) == swap
            answer = {key: said[key] for key in said if key not in BESIDE}
            for seed in (seed for arm in answer["arms"] for seed in arm["values"]):
                del seed["started"], seed["ended"]
            of_arms = {
                label: (made.params, {key: last[2] for key, last in made.latest.items()}, made.tags["seeds"])
                for label, made in wanted(ledger).items()
            }
            best = [export.choose(ledger.run, trials, arm, RunFolder(tmp_path))[0].id for arm in of_arms]
            others = {trial.id for trial in trials if trial.stage != "swap"}
            found.append((answer, of_arms, best, others))
    assert found[0] == found[1]


def test_arms_that_are_tuned_to_the_same_need_no_trial_more(tmp_path: Path) -> None:
    """Each confirm trial stands for the arm at the other's setting. Mutant check: a trial that is trained twice."""
    same = dict.fromkeys(BEST, 3e-3)
    with opened(tmp_path, changes()) as (session, ledger, _, plan):
        session.start()
        play(session, lambda dispatch: done(dispatch, value(dispatch.job, best=same)))
        summary = summarize(ledger)
        assert ledger.trials("swap") == []
        assert ending.of(session).state == "done"
        assert findings(ledger) == []
    found, comparison = one(summary), summary.comparisons[0].result
    assert [at.delta for at in found.settings] == [comparison.delta] * 2
    assert found.verdict == "either"
    assert plain(summary).count("(both were tuned to the same optimizer.lr)") == 1
    of_arm = {arm.label: [seed.trial for seed in arm.values] for arm in summary.arms}
    assert [at.trials for at in found.settings] == [of_arm["infonce"], of_arm["flatnce"]]
    assert plan.trials["swap"] == 2 * SEEDS


def test_of_three_arms_each_is_swapped_with_the_baseline_and_equal_jobs_are_shared(tmp_path: Path) -> None:
    """Both others are tuned to one rate, so the baseline is trained there once. Mutant check: an id by contrast."""
    best = BEST | {"dcl": 1e-2}
    with opened(tmp_path, changes(("infonce", "flatnce", "dcl"))) as (session, ledger, _, _plan):
        session.start()
        play(session, lambda dispatch: done(dispatch, value(dispatch.job, best=best)))
        summary = summarize(ledger)
        assert swapped(ledger) == {("infonce", 1e-2): SEEDS, ("flatnce", 1e-3): SEEDS, ("dcl", 1e-3): SEEDS}
    assert [(found.a, found.b, found.verdict) for found in summary.swaps] == [
        ("flatnce", "infonce", "either"),
        ("dcl", "infonce", "depends"),
    ]
    assert summary.swaps[0].settings[0].trials == summary.swaps[1].settings[0].trials


def test_a_key_that_one_arm_alone_tunes_stays_its_own(tmp_path: Path) -> None:
    """And `status` has the settings, which nobody has suggested. Mutant checks: all of the other arm's settings; the
    settings of the confirm trials."""
    space = {
        "optimizer.lr": {"low": 1e-4, "high": 1e-1, "log": True},
        "loss.temperature": {"low": 0.2, "high": 0.5, "when": {"loss.name": "flatnce"}},
    }
    sweep = changes(tune={"trials": 8, "sampler": "random", "space": space})
    with opened(tmp_path, sweep) as (session, ledger, _, plan):
        session.start()
        play(session, usual)
        frozen = {arm: dict(own.params) for arm, own in ledger.frozen().items()}
        at = {
            "infonce": {"optimizer.lr": frozen["flatnce"]["optimizer.lr"]},
            "flatnce": frozen["flatnce"] | {"optimizer.lr": frozen["infonce"]["optimizer.lr"]},
        }
        assert frozen["infonce"] != at["infonce"]
        own = plan.arm("infonce").values["loss.temperature"]
        shown = {trial["id"]: trial["params"] for trial in status(ledger)["trials"]}
        trials = ledger.trials("swap")
    assert len(trials) == 2 * SEEDS
    assert plan.swaps[0].keys == ("optimizer.lr",)
    for trial in trials:
        job = flatten(trial.job)
        assert {key: job[key] for key in at[trial.arm]} == at[trial.arm] == shown[trial.id]
        assert job["loss.temperature"] == at[trial.arm].get("loss.temperature", own)


def test_a_swapped_job_that_a_third_arm_is_confirmed_at_is_that_arms_trial_whoever_is_frozen_first(
    tmp_path: Path,
) -> None:
    """`free` is tuned to the temperature that `fixed` has: at the rate of `base` it is then `fixed` itself, which is
    tuned last, as it tries more. Mutant checks: asking only what is frozen already; only the arms that are compared."""
    space = {
        "optimizer.lr": {"choices": [1e-3, 1e-2]},
        "loss.temperature": {"choices": [0.2, 0.5], "when": {"arm": "free"}},
        "optimizer.weight_decay": {"choices": [0.01, 0.02, 0.03, 0.04], "when": {"arm": "fixed"}},
    }
    sweep = changes(
        compare={},
        arm=[
            {"label": "base", "loss.temperature": 0.1},
            {"label": "free"},
            {"label": "fixed", "loss.temperature": 0.5},
        ],
        tune={"trials": 8, "sampler": "grid", "space": space},
        job=SWEEP["job"] | {"optimizer": {"weight_decay": 0.01}},
    )
    found = []
    for name, order in (("calm", None), ("mixed", random.Random(3))):
        with opened(tmp_path / name, sweep) as (session, ledger, _, _plan):

            def of(dispatch: Dispatch) -> Any:
                arm, job = ledger.trial(dispatch.trial).arm, dispatch.job
                fits = job["optimizer"]["lr"] == (1e-2 if arm == "free" else 1e-3)
                value = 0.5 + 0.1 * fits + job["loss"]["temperature"] / 10 - job["optimizer"]["weight_decay"]
                return done(dispatch, value + 0.001 * job["seed"])

            session.start()
            play(session, of, order=order)
            assert session.broken is None
            fixed = [trial.id for trial in ledger.trials("confirm", "fixed")]
            found.append((numbers(ledger), summarize(ledger).swaps))
            assert swapped(ledger) == {("base", 1e-2): SEEDS}
            assert findings(ledger) == []
        first = found[-1][1][0]
        assert (first.a, first.settings[1].trials) == ("free", fixed)
    assert found[0] == found[1]


@pytest.mark.few(1)
@pytest.mark.parametrize("order", range(3))
def test_in_whatever_order_trials_end_the_same_are_trained(tmp_path: Path, order: int) -> None:
    sweep = changes(("infonce", "flatnce", "dcl"))
    calm = run(tmp_path / "calm", sweep)
    mixed = run(tmp_path / "mixed", sweep, order=random.Random(order))
    assert mixed[1] == calm[1]
    assert mixed[0].swaps == calm[0].swaps


@pytest.mark.parametrize("every", [17, pytest.param(1, marks=pytest.mark.soak)])
def test_wherever_the_writer_is_killed_the_swaps_are_those_of_the_undisturbed_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """After every transaction of the writer, or some of them."""
    sweep = changes()
    calm = run(tmp_path / "calm", sweep)
    left = cut_off(monkeypatch, KeyboardInterrupt)
    for allowed in range(0, 10**6, every):
        left[0] = allowed
        with opened(tmp_path / str(allowed), sweep) as (session, ledger, _, _plan):
            session.start()
            play(session, usual)
            whole = session.broken is None
            counts = set(swapped(ledger).values())
            assert counts <= {SEEDS}, "all seeds of a setting, or none"
        left[0] = 10**9
        summary, there = run(tmp_path / str(allowed), sweep)
        assert there == calm[1], f"killed after {allowed} transactions"
        assert summary.swaps == calm[0].swaps
        if whole:
            assert allowed > 30
            break


def test_a_swapped_trial_that_diverged_is_no_value_and_its_setting_has_no_interval(tmp_path: Path) -> None:
    """Mutant check: leaving the pair out."""

    def of(dispatch: Dispatch) -> Any:
        report = usual(dispatch)
        job = dispatch.job
        if (job["stage"], job["loss"]["name"], job["optimizer"]["lr"], job["seed"]) == ("confirm", "infonce", 1e-2, 3):
            report["result"] |= {"outcome": "diverged", "metrics": {}}
        return report

    with opened(tmp_path, changes()) as (session, ledger, _, _plan):
        session.start()
        play(session, of)
        summary = summarize(ledger)
        said = plain(summary)
    found = one(summary)
    first, second = found.settings
    assert (found.verdict, found.p) == ("diverged", None)
    assert (first.n, first.n_trained, first.delta, first.ci95, first.p) == (SEEDS, SEEDS - 1, None, None, None)
    assert first.diverged == {"a": 0, "b": 1, "both": 0}
    assert first.delta_trained is not None
    assert (second.n, second.missing) == (SEEDS, "")
    assert second.ci95 is not None
    assert summary.comparisons[0].result.verdict == "a_better"
    assert [arm.diverged for arm in summary.arms] == [0, 0]
    assert "diverged at flatnce's setting" in said


def plain(summary: Summary) -> str:
    """What a terminal shows, in one line."""
    import io

    from rich.console import Console

    file = io.StringIO()
    Console(file=file, width=100).print(Harmless(table(summary)))
    return " ".join(file.getvalue().split())


def test_the_terminal_says_a_line_of_each_contrast_and_that_it_decides_nothing(tmp_path: Path) -> None:
    summary, _ = run(tmp_path, changes())
    said = plain(summary)
    assert "tuned to the same" not in said
    blocks = list(grids.swaps(summary, names_of(summary.arms)))
    (grid,) = (block for block in blocks if isinstance(block, Grid))
    assert [row[:3] for row in grid.rows] == [
        ("flatnce against infonce", f"{arm} (optimizer.lr = {BEST[arm]})", "at either setting")
        for arm in ("flatnce", "infonce")
    ]
    assert any("decides nothing" in block.text for block in blocks if isinstance(block, Paragraph))
    assert "beside the verdict, each at the other's setting: flatnce against infonce: at either setting, p = " in said
    assert " at flatnce's, +0.0" in said


def fail_swapped(message: str = "no such thing") -> Answer:
    """Fails what is trained at a setting that is not the loss's own."""

    def of(dispatch: Dispatch) -> Any:
        job = dispatch.job
        if job["stage"] == "confirm" and job["optimizer"]["lr"] != BEST[job["loss"]["name"]]:
            return Failure("user_error", None, message, "")
        return usual(dispatch)

    return of


def test_swapped_trials_that_fail_alike_stop_no_arm_and_are_tried_again_when_a_person_says_so(tmp_path: Path) -> None:
    """Mutant check: counting them among the failures that stop an arm."""
    with opened(tmp_path, changes(), concurrent=1) as (session, ledger, said, _plan):
        session.start()
        play(session, fail_swapped())
        summary = summarize(ledger)
        assert Counter(trial.state for trial in ledger.trials("swap")) == {"failed": 6, "queued": 6}
        assert {trial.state for trial in ledger.trials("confirm")} == {"done"}
        lines = ending.of(session).lines
        assert stopped_arms(ledger.trials()) == {}
        assert ending.of(session).state == "done", "every confirm trial is"
    assert summary.comparisons[0].result.verdict == "a_better"
    assert summary.complete
    assert one(summary).verdict == "incomplete"
    assert [at.missing for at in one(summary).settings] == [
        "3 seeds were lost at flatnce's, and 3 are not begun, as infonce is stopped there",
        "3 seeds were lost at infonce's, and 3 are not begun, as flatnce is stopped there",
    ]
    stopped = "arm flatnce at another's setting (optimizer.lr = 0.001) is stopped, as its trials fail in the same way"
    assert any(stopped in line for line in lines)
    assert any(stopped in line for line in said)
    with opened(tmp_path, changes()) as (session, ledger, _, plan):
        extension.record(plan, ledger, Extend(seeds=2))  # the answer is there
        apply_retry(ledger, RetryFailed())
        session.start()
        play(session, usual)
        assert swapped(ledger, "done") == {("infonce", 1e-2): SEEDS, ("flatnce", 1e-3): SEEDS}
        assert {Counter(t.arm for t in ledger.trials("confirm"))[arm] for arm in ("infonce", "flatnce")} == {SEEDS + 2}
        assert one(summarize(ledger)).verdict == "either"
        assert findings(ledger) == []


@pytest.mark.parametrize("field", ["evaluate.batch", "optimizer.clip"])
def test_trials_that_an_earlier_version_wrote_stand_in_though_their_jobs_lack_a_later_field(
    tmp_path: Path, field: str
) -> None:
    """Both arms are tuned to the same. Mutant check: the whole job's text in place of its id."""
    same = dict.fromkeys(BEST, 3e-3)

    def of(dispatch: Dispatch) -> Any:
        return done(dispatch, value(dispatch.job, best=same))

    with opened(tmp_path, changes()) as (session, ledger, _, _plan):
        session.start()
        play(session, of)
        ledger.set_run(state="done")
        section, name = field.split(".")
        with contextlib.closing(ledger._database.engine.raw_connection()) as raw:
            for trial, text in raw.execute("SELECT id, job FROM trials").fetchall():
                job = json.loads(text)
                del job[section][name]
                raw.execute("UPDATE trials SET job = ? WHERE id = ?", (json.dumps(job), trial))
            raw.commit()
        assert one(summarize(ledger)).verdict == "either"
        assert findings(ledger, ledger_checks._ids, ledger_checks._swapped) == []
    with opened(tmp_path, changes()) as (session, ledger, _, _plan):
        session.start()
        assert play(session, of) == []
        assert swapped(ledger) == {}


def test_trials_at_another_setting_that_fail_alike_stop_that_setting_alone_and_the_run_is_done(tmp_path: Path) -> None:
    """infonce cannot be trained at the rate of flatnce, and can at that of dcl: nothing more of the first is begun, and
    that holds back neither the rest nor what is made of a run that is done. Mutant checks: counting over all settings
    of an arm; counting what is not begun any more as left."""
    sweep = changes(("infonce", "flatnce", "dcl"))

    def of(dispatch: Dispatch) -> Any:
        job = dispatch.job
        if (job["stage"], job["loss"]["name"], job["optimizer"]["lr"]) == ("confirm", "infonce", 1e-2):
            return Failure("user_error", None, "no such thing", "")
        return usual(dispatch)

    with opened(tmp_path, sweep, concurrent=1) as (session, ledger, said, _plan):
        session.start()
        play(session, of)
        of_arm = Counter((rate_of(trial), trial.state) for trial in ledger.trials("swap", "infonce"))
        assert of_arm == {(1e-2, "failed"): 3, (1e-2, "queued"): 3, (3e-3, "done"): SEEDS}
        ended = ending.of(session)
        stopped = "arm infonce at another's setting (optimizer.lr = 0.01) is stopped, as its trials fail in the same "
        for lines in (said, ended.lines):
            assert [line for line in lines if "stopped" in line] == [f"{stopped}way: no such thing"]
        assert (ended.state, ended.code) == ("done", Exit.SOME_FAILED)
        ledger.set_run(state=ended.state)
        assert findings(ledger) == []
        assert [at.missing for at in summarize(ledger).swaps[0].settings] == [
            "3 seeds were lost at flatnce's, and 3 are not begun, as infonce is stopped there",
            "",
        ]
        verdicts = {(found.a, found.b): found.verdict for found in summarize(ledger).swaps}
        assert verdicts == {("flatnce", "infonce"): "incomplete", ("dcl", "infonce"): "depends"}
    with opened(tmp_path, sweep) as (session, ledger, _, _plan):
        apply_retry(ledger, RetryFailed())
        session.start()
        play(session, usual)
        assert {trial.state for trial in ledger.trials("swap")} == {"done"}


def test_nothing_is_queued_for_or_at_an_arm_that_is_stopped_until_it_is_tried_again(tmp_path: Path) -> None:
    """flatnce fails once it is confirmed, before infonce is frozen. Mutant checks: a swap that is settled while a side
    of it is stopped; `verify` that asks for what is not queued."""

    def of(dispatch: Dispatch) -> Any:
        job = dispatch.job
        fails = (job["stage"], job["loss"]["name"]) == ("confirm", "flatnce")
        return Failure("user_error", None, "no such thing", "") if fails else usual(dispatch)

    with opened(tmp_path, changes(), concurrent=16) as (session, ledger, _, _plan):
        session.start()
        flying: list[Dispatch] = []
        while True:
            while (begun := session.next()) is not None:
                flying.append(begun)
            if not flying:
                break
            flying.sort(key=lambda dispatch: str(dispatch.job["loss"]["name"]))  # flatnce first, as far as it goes
            dispatch = flying.pop(0)
            answer = of(dispatch)
            if isinstance(answer, Failure):
                session.lost(dispatch, answer)
                continue
            for part in parts(answer):
                session.report(dispatch, part)
        assert session.broken is None
        assert set(stopped_arms(ledger.trials())) == {"flatnce"}
        assert set(ledger.frozen()) == {"flatnce", "infonce"}
        assert ledger.trials("swap") == []
        assert ending.of(session).state == "done"
        ledger.set_run(state="done")
        assert findings(ledger) == []
        assert [at.missing for at in one(summarize(ledger)).settings] == [
            "6 seeds were lost at flatnce's",
            "6 seeds are not begun at infonce's, as flatnce is stopped",
        ]
    with opened(tmp_path, changes()) as (session, ledger, _, _plan):
        apply_retry(ledger, RetryFailed())
        session.start()
        play(session, usual)
        assert swapped(ledger, "done") == {("infonce", 1e-2): SEEDS, ("flatnce", 1e-3): SEEDS}
        assert one(summarize(ledger)).verdict == "either"


def test_a_confirm_trial_of_a_stopped_arm_that_is_not_begun_stands_for_none(tmp_path: Path) -> None:
    """`free` at the setting of `base` is `fixed` itself, which fails once it is confirmed. Mutant check: whichever
    trial has the job."""
    space = {
        "optimizer.lr": {"choices": [1e-3, 1e-2]},
        "loss.temperature": {"choices": [0.2, 0.5], "when": {"arm": "free"}},
    }
    arms = [{"label": "base", "loss.temperature": 0.1}, {"label": "fixed", "loss.temperature": 0.5}, {"label": "free"}]
    sweep = changes(compare={}, arm=arms, tune={"trials": 8, "sampler": "grid", "space": space})
    with opened(tmp_path, sweep, concurrent=1) as (session, ledger, _, _plan):

        def of(dispatch: Dispatch) -> Any:
            arm, job = ledger.trial(dispatch.trial).arm, dispatch.job
            if (arm, job["stage"]) == ("fixed", "confirm"):
                return Failure("user_error", None, "no such thing", "")
            fits = job["optimizer"]["lr"] == (1e-2 if arm == "free" else 1e-3)
            return done(dispatch, 0.5 + 0.1 * fits + job["loss"]["temperature"] / 10 + 0.001 * job["seed"])

        session.start()
        play(session, of)
        assert session.broken is None
        states = Counter(trial.state for trial in ledger.trials("confirm", "fixed"))
        assert states == {"failed": 3, "queued": 3}
        assert swapped(ledger, "done") == {("base", 1e-2): SEEDS, ("free", 1e-3): 3}


def test_of_an_arm_that_is_stopped_before_it_is_tuned_that_is_said(tmp_path: Path) -> None:
    """Mutant check: "not tuned yet"."""

    def of(dispatch: Dispatch) -> Any:
        fails = dispatch.job["loss"]["name"] == "flatnce"
        return Failure("user_error", None, "no such thing", "") if fails else usual(dispatch)

    space = {"optimizer.lr": {"low": 1e-4, "high": 1e-1, "log": True}}
    sweep = changes(tune={"trials": 6, "sampler": "random", "parallel": 1, "space": space})
    found = one(run(tmp_path, sweep, of, most=20)[0])
    assert [at.missing for at in found.settings] == ["flatnce is stopped, and no setting of it was frozen"] * 2


def test_while_pairs_are_missing_there_is_no_p_and_what_is_there_is_said(tmp_path: Path) -> None:
    """A trial of each arm is lost, and one is to come. Mutant check: p of the pairs that are there."""

    def of(dispatch: Dispatch) -> Any:
        return fail_swapped()(dispatch) if dispatch.job["seed"] == min(seeds) else usual(dispatch)

    with opened(tmp_path, changes(), concurrent=1) as (session, ledger, _, plan):
        seeds = plan.confirm_seeds
        session.start()
        play(session, of, most=6 + 2 * SEEDS + 2 * SEEDS - 1)
    with opened(tmp_path, changes()) as (_session, ledger, _, _plan):
        summary = summarize(ledger)
    found, said = one(summary), plain(summary)
    assert (found.verdict, found.p) == ("incomplete", None)
    assert [(at.n, at.of, at.p) for at in found.settings] == [(5, 6, None), (4, 6, None)]
    assert all(at.ci95 is not None for at in found.settings)
    assert [at.missing for at in found.settings] == [
        "1 seed was lost at flatnce's",
        "1 seed was lost at infonce's, and 1 is still to come",
    ]
    assert "p = " not in said.partition("beside the verdict")[2].partition("flatnce beats")[0]
    assert "] at flatnce's (5 of 6 pairs), " in said
    assert "] at infonce's (4 of 6 pairs)" in said
    (grid,) = (block for block in grids.swaps(summary, names_of(summary.arms)) if isinstance(block, Grid))
    assert [row[5:7] for row in grid.rows] == [("–", "5 of 6"), ("–", "4 of 6")]


def test_one_seed_has_no_interval_and_that_is_the_reason(tmp_path: Path) -> None:
    summary, _ = run(tmp_path, changes(confirm={"seeds": 1, "swap": True}))
    found = one(summary)
    assert (found.verdict, [at.missing for at in found.settings]) == ("incomplete", ["one seed has no interval"] * 2)
    assert "not complete: one seed has no interval; " in plain(summary)


def conditional(*more: str) -> dict[str, Any]:
    """`a` alone tunes the batch that the temperature is tuned at, and is tuned to one where it has none."""
    space = {
        "batch.size": {"choices": [32, 64], "when": {"arm": "a"}},
        "loss.temperature": {"choices": [0.2, 0.5], "when": {"batch.size": 64}},
        **{key: {"choices": [1e-3, 1e-2]} for key in more},
    }
    arms = [{"label": "b"}, {"label": "a", "loss.name": "flatnce"}]
    job = SWEEP["job"] | {"batch": {"size": 64}, "loss": {"temperature": 0.07}}
    return changes(compare={}, arm=arms, job=job, tune={"trials": 16, "sampler": "grid", "space": space})


def conditionally(dispatch: Dispatch) -> Any:
    job = dispatch.job
    is_a = job["loss"]["name"] == "flatnce"
    fits = job["batch"]["size"] == 32 if is_a else job["loss"]["temperature"] == 0.5
    fits += job["optimizer"]["lr"] == (1e-3 if is_a else 1e-2)
    noise = random.Random(f"{is_a} {job['seed']}").random() / 100
    return done(dispatch, 0.5 + 0.1 * fits + noise)


def test_where_the_other_arm_can_take_nothing_of_a_setting_there_is_no_swap(tmp_path: Path) -> None:
    """Mutant check: the arm at its own setting beside the other."""
    with opened(tmp_path, conditional()) as (session, ledger, _, _plan):
        session.start()
        play(session, conditionally)
        assert {arm: own.params for arm, own in ledger.frozen().items()} == {
            "a": {"batch.size": 32},
            "b": {"loss.temperature": 0.5},
        }
        assert ledger.trials("swap") == []
        summary = summarize(ledger)
        ledger.set_run(state="done")
        assert findings(ledger) == []
    found = one(summary)
    assert (found.verdict, found.p, [at.n for at in found.settings]) == ("none", None, [0, 0])
    assert "no swap: a's setting has nothing that b can take; b's setting has nothing that a can take" in plain(summary)


def test_what_a_swapped_arm_keeps_of_its_own_is_shown(tmp_path: Path) -> None:
    """Both tune the temperature, and at the batch of `a` there is none. Mutant check: the other's setting alone."""
    with opened(tmp_path, conditional("optimizer.lr")) as (session, ledger, _, _plan):
        session.start()
        play(session, conditionally)
        summary = summarize(ledger)
        jobs = {trial.arm: flatten(trial.job) for trial in ledger.trials("swap")}
    assert jobs["b"]["loss.temperature"] == 0.5, "its own, as `a` was tuned to none"
    assert jobs["a"]["loss.temperature"] == 0.07, "what it has where it tunes none"
    of_a, of_b = one(summary).settings
    assert (of_a.params, of_a.kept) == ({"optimizer.lr": 1e-3}, {"loss.temperature": 0.5})
    assert (of_b.params, of_b.kept) == ({"optimizer.lr": 1e-2, "loss.temperature": 0.5}, {"loss.temperature": 0.07})
    (grid,) = (block for block in grids.swaps(summary, names_of(summary.arms)) if isinstance(block, Grid))
    assert [row[1].partition(" (")[2] for row in grid.rows] == [
        "optimizer.lr = 0.001; the other keeps loss.temperature = 0.5)",
        "optimizer.lr = 0.01, loss.temperature = 0.5; the other keeps loss.temperature = 0.07)",
    ]
    assert "'s, whose other arm keeps loss.temperature = 0.07" in plain(summary)


def test_a_report_builds_one_job_of_each_setting_whatever_its_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen: 3 s for each answer of 100 arms of 10 seeds. Mutant check: a job of each seed."""
    arms = [{"label": f"a{number}", "loss.temperature": 0.05 + number / 100} for number in range(8)]
    plan = make(Sweep.model_validate(SWEEP | changes(compare={}, arm=arms)))
    frozen = {arm.label: {"optimizer.lr": RATES[number % 3]} for number, arm in enumerate(plan.arms)}
    planned = [trial for arm in plan.arms for trial in plan.confirm_trials(arm.label, frozen[arm.label])]
    planned += swapping.called_for(plan, frozen)
    trials = [replace(as_trial(one), state="done", outcome="ok", metric=0.5 + one.seed / 100) for one in planned]
    built: list[str] = []
    real = Arm.config

    def config(self: Arm, **options: Any) -> Any:
        built.append(self.label)
        return real(self, **options)

    monkeypatch.setattr(Arm, "config", config)
    found = compared(plan, trials, frozen, {})
    assert {one.verdict for one in found} == {"depends"}
    assert all(at.n == SEEDS for one in found for at in one.settings)
    assert len(built) <= 2 * len(plan.swaps)


def test_a_terminal_has_as_many_lines_of_swaps_as_of_comparisons(tmp_path: Path) -> None:
    """And those that say something before others."""
    summary, _ = run(tmp_path, changes())
    whole = one(summary)
    many = [replace(whole, verdict="incomplete")] * MOST_ROWS + [whole] * 3
    said = plain(replace(summary, swaps=many))
    assert said.count("beside the verdict, each at the other's setting") == MOST_ROWS
    assert said.count("at either setting, p = ") == 3
    assert "and 3 more comparisons at each other's setting; --json has all" in said


def test_a_swapped_trial_that_is_lost_leaves_its_setting_without_a_say(tmp_path: Path) -> None:
    def of(dispatch: Dispatch) -> Any:
        return fail_swapped()(dispatch) if dispatch.job["seed"] == 2 else usual(dispatch)

    summary, _ = run(tmp_path, changes(), of)
    found = one(summary)
    assert (found.verdict, [at.n for at in found.settings]) == ("incomplete", [SEEDS - 1] * 2)
    assert [at.missing for at in found.settings] == ["1 seed was lost at flatnce's", "1 seed was lost at infonce's"]
    assert summary.complete


def test_an_arm_that_no_setting_of_trained_is_not_swapped_and_the_answer_says_why(tmp_path: Path) -> None:
    def of(dispatch: Dispatch) -> Any:
        report = usual(dispatch)
        if dispatch.job["loss"]["name"] == "flatnce":
            report["result"] |= {"outcome": "diverged", "metrics": {}}
        return report

    with opened(tmp_path, changes()) as (session, ledger, _, _plan):
        session.start()
        play(session, of)
        assert ledger.trials("swap") == []
        assert ending.of(session).state == "done"
        found = one(summarize(ledger))
    assert (found.verdict, found.settings[0].n) == ("incomplete", 0)
    assert found.settings[0].missing == "no setting of flatnce was frozen"


def test_a_setting_that_makes_no_job_of_the_other_arm_is_left_out_and_named(tmp_path: Path) -> None:
    """A batch that the baseline's pool does not divide: the sweep is planned by an earlier check, or not checked in
    every combination."""
    sweep = changes(
        compare={},
        arm=[{"label": "pools", "batch.negatives_group": 32}, {"label": "whole"}],
        tune={
            "trials": 2,
            "sampler": "grid",
            "space": {
                "optimizer.lr": {"choices": [1e-3, 1e-2]},
                "batch.size": {"choices": [64, 48], "when": {"optimizer.lr": [1e-3, 1e-2]}},
            },
        },
    )

    def of(dispatch: Dispatch) -> Any:
        size = dispatch.job["batch"]["size"]
        fits = size == (48 if dispatch.job["batch"]["negatives_group"] is None else 64)
        return done(dispatch, 0.5 + 0.1 * fits + dispatch.job["seed"] / 1000 + dispatch.job["optimizer"]["lr"])

    sweep["tune"] |= {"trials": 4}
    with opened(tmp_path, sweep) as (session, ledger, _, _plan):
        session.start()
        play(session, of)
        assert session.broken is None
        assert {trial.arm for trial in ledger.trials("swap")} == {"whole"}
        found = one(summarize(ledger))
        assert findings(ledger) == []
    assert found.verdict == "incomplete"
    assert found.settings[0].missing.startswith("pools makes no job at whole's setting: ")
    assert found.settings[1].missing == ""


def findings(ledger: Ledger, *checks: Callable[[Any], Any]) -> list[str]:
    """What `verify` has against the trials of a ledger."""
    run = ledger.run
    facts: Any = SimpleNamespace(
        run=run, trials={t.id: t for t in ledger.trials()}, frozen=ledger.frozen(), restore="restore", resume="resume"
    )
    usual = (ledger_checks._ids, ledger_checks._frozen, ledger_checks._swapped)
    return [str(found) for check in checks or usual for found in check(facts)]


def test_verify_knows_swapped_trials_and_misses_those_that_are_not_there(tmp_path: Path) -> None:
    """Mutant checks: an id of the confirm stage's kind; a run that is done without them."""
    with opened(tmp_path, changes()) as (session, ledger, _, plan):
        session.start()
        play(session, usual)
        ledger.set_run(state="done")
        assert findings(ledger) == []
        strange = plan.swap_trials("flatnce", {"optimizer.lr": 3e-3})[0]
        ledger.add_trials([Trial(strange.id, "swap", "flatnce", strange.seed, strange.record)])
        (found,) = findings(ledger)
        assert f"trial {strange.id}: no comparison calls for arm flatnce at its setting" in found
    with opened(tmp_path / "other", changes(), concurrent=1) as (session, ledger, _, plan):
        session.start()
        play(session, usual, most=6 + 2 * SEEDS)
        ledger.set_run(state="done")
        with contextlib.closing(ledger._database.engine.raw_connection()) as raw:
            raw.execute("DELETE FROM trials WHERE stage = 'swap'")
            raw.commit()
        found = findings(ledger)[0]
        assert "at another arm's setting, seed" in found
        assert found.endswith("continue it: resume")


def test_a_swapped_trial_is_named_as_one_wherever_trials_are_listed(tmp_path: Path) -> None:
    with opened(tmp_path, changes()) as (session, ledger, _, _plan):
        session.start()
        play(session, usual)
        stood = status(ledger)
        trial = ledger.trials("swap", "infonce")[0]
        chosen, why = export.choose(ledger.run, ledger.trials(), trial.id, RunFolder(tmp_path))
    assert Counter(one["stage"] for one in stood["trials"])["swap"] == 2 * SEEDS
    assert stood["planned"] == {"tune": 6, "confirm": 2 * SEEDS, "swap": 2 * SEEDS}
    assert stood["counts"]["done"] == 6 + 4 * SEEDS
    assert {one["params"]["optimizer.lr"] for one in stood["trials"] if one["stage"] == "swap"} == {1e-3, 1e-2}  # type: ignore[index]
    assert (chosen.stage, why) == ("swap", f"trial {trial.id} of arm infonce at another arm's setting")
    assert metadata.name(trial) == f"infonce swapped seed {trial.seed}"
    assert metadata.params(trial)["stage"] == metadata.marks(trial)["stage"] == "swap"


def test_the_card_of_an_exported_trial_has_the_trials_stage(tmp_path: Path) -> None:
    """Its job says `confirm`. Mutant check: the stage of the job."""
    settings: Any = {"task": "image", "width": 8, "pooling": "map", "head": [], "precision": "fp32", "load": {}}
    settings |= {"image_shape": [1, 8, 8], "prompt": "", "normalise": False, "prefix_tokens": 0, "skipped": 0}
    with opened(tmp_path, changes()) as (session, ledger, _, _plan):
        session.start()
        play(session, usual)
        both = [ledger.trials(stage, "infonce")[0] for stage in ("swap", "confirm")]
        asked = [export.arguments(RunFolder(tmp_path), ledger.run, trial, tmp_path / "encoder") for trial in both]
    cards = []
    for trial, options in zip(both, asked, strict=True):
        about = card.About(**dict(one.removeprefix("--").split("=", 1) for one in options[: options.index("--")]))
        cards.append(card.text(about, trial.config, trial=trial.id, step=1, points=[], settings=settings))
    assert f"| {both[0].id}, stage swap (the arm at another one's setting), seed {both[0].seed} |" in cards[0]
    assert f"| {both[1].id}, stage confirm, seed {both[1].seed} |" in cards[1]


def test_a_ledger_of_before_goes_on_without_swaps(tmp_path: Path) -> None:
    """Its sweep has no such key."""
    from orchestrator.sweep.plan import stored

    with opened(tmp_path, changes(confirm={"seeds": SEEDS})) as (session, ledger, _, _plan):
        kept: Any = ledger.run.sweep
        ledger.set_run(sweep=kept | {"confirm": {"seeds": SEEDS}})
        session.start()
        play(session, usual)
        assert stored(ledger.run.sweep, ledger.run.rules).swaps == ()
        said = answer_of(ledger)
        assert (said["swaps"], list(said["trials"])) == ([], ["tune", "confirm"])
        assert ledger.trials("swap") == []

"""A run that is judged by several metrics: each contrast by each, as one family, wherever an answer is shown."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from answers import faults
from click.testing import CliRunner
from ledgers import BETTER, Begin, Run, answer_of, finished, start
from rich.console import Console
from test_session import done, opened, play

from orchestrator import report
from orchestrator.cli import main
from orchestrator.report.incumbent import ask
from orchestrator.report.summary import multi_run
from orchestrator.report.summary.evidence import summarize
from orchestrator.report.summary.outside import ResultsError
from orchestrator.run_dir.folder import RunError
from orchestrator.session.writer import Dispatch
from orchestrator.statistics import Measure, compare_by
from orchestrator.system.versions import versioned

METRICS = [
    {"name": "knn_accuracy", "smallest_difference": 0.005},
    {"name": "alignment", "smallest_difference": 0.02},
]
BOTH = 'metric=[{name="knn_accuracy",smallest_difference=0.005},{name="alignment",smallest_difference=0.02}]'
"""The second one is better low."""

SEEDS = 8


def values(mean: float, spread: float, what: str) -> list[float]:
    return [mean + random.Random(f"{what} {seed}").gauss(0, spread) for seed in range(SEEDS)]


KNN = {"plain": values(0.90, 0.004, "p"), "flat": values(0.92, 0.004, "f")}
ALIGNMENT = {"plain": values(0.5, 0.006, "pa"), "flat": values(0.5, 0.006, "fa")}


def judged(
    run: Run,
    knn: Mapping[str, Sequence[float]] = KNN,
    alignment: Mapping[str, Sequence[float]] = ALIGNMENT,
    *,
    without: Sequence[int] = (),
    **options: Any,
) -> Run:
    """End the confirm trials with these values; `without` seeds are lost in the last arm."""
    for arm in knn:
        for k, trial in enumerate(run.confirm(arm)):
            if arm == list(knn)[-1] and trial.seed in without:
                run.lost(trial)
            else:
                run.done(trial, knn[arm][k], more={"alignment": alignment[arm][k]}, **options)
    run.ledger.set_run(state="done")
    return run


@pytest.fixture
def both(begin: Begin) -> Run:
    return judged(begin(overrides=[BOTH], seeds=SEEDS))


def test_each_contrast_is_judged_by_each_metric_as_one_family(both: Run) -> None:
    """Against `compare_by` on the numbers. Mutant checks: the first metric's values for both, its mode, or a family of
    its own for each."""
    answer = answer_of(both.ledger)
    by = {
        Measure("knn_accuracy", "max", 0.005): {arm: dict(enumerate(own)) for arm, own in KNN.items()},
        Measure("alignment", "min", 0.02): {arm: dict(enumerate(own)) for arm, own in ALIGNMENT.items()},
    }
    expected = compare_by(by, [("flat", "plain")], seeds=range(SEEDS))
    assert [one["metric"] for one in answer["comparisons"]] == ["knn_accuracy", "alignment"]
    for found, one in zip(answer["comparisons"], expected, strict=True):
        assert found["verdict"] == one.verdict
        assert found["p_adjusted"] == pytest.approx(one.p_adjusted)
        assert found["delta"] == pytest.approx(one.delta)
        assert found["p_equivalence_holm"] == pytest.approx(one.p_equivalence_holm)
    assert [one["verdict"] for one in answer["comparisons"]] == ["a_better", "equivalent"]
    assert answer["alpha"] == {"difference": 0.04, "equivalence": 0.01}, (
        "two tests, so that it could be wrong both ways"
    )
    assert [metric["mode"] for metric in answer["metrics"]] == ["max", "min"]
    flat = answer["arms"][1]
    assert list(flat["by_metric"]) == ["knn_accuracy", "alignment"]
    assert flat["by_metric"]["alignment"]["mean"] == pytest.approx(sum(ALIGNMENT["flat"]) / SEEDS)
    assert flat["mean"] == flat["by_metric"]["knn_accuracy"]["mean"]
    assert answer["sentence"].startswith("By knn_accuracy: flat beats plain by 0.0")
    assert (
        "By alignment: flat and plain are equivalent: their mean alignment differs by less than 0.0200"
        in (answer["sentence"])
    )


def test_of_one_metric_nothing_says_that_there_may_be_several(begin: Begin) -> None:
    """Programs that go by the keys of today are served: see also test_json.py."""
    text = json.dumps(answer_of(finished(begin(), BETTER).ledger))
    assert not {'"metrics": [', '"by_metric"', "By knn_accuracy"} & {
        word for word in ('"metrics": [', '"by_metric"', "By knn_accuracy") if word in text
    }
    assert all("metric" not in one for one in json.loads(text)["comparisons"])


def test_a_list_of_one_metric_is_that_metric(begin: Begin) -> None:
    one = begin(overrides=['metric=[{name="knn_accuracy",smallest_difference=0.005}]'])
    assert "also" not in one.ledger.run.sweep["metric"]
    assert "metrics" not in answer_of(finished(one, BETTER).ledger)


def test_every_page_shows_each_metric(both: Run, tmp_path: Path) -> None:
    """Mutant checks: the second metric's table with the first one's smallest difference, or without its plots."""
    summary = report.write(both.ledger, tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text()
    html = (tmp_path / "report" / "report.html").read_text()
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(report.table(summary))
    for text in (page, console.export_text(), report.note(summary)):
        assert text.index("knn_accuracy") < text.index("alignment")
        assert "better" in text
        assert "equivalent" in text
    assert "## By alignment" in page
    assert "By alignment" in html
    assert "alignment: lower is better; differences under 0.0200 do not matter" in page
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"differences.png", "differences-2.png"} <= names
    numbers = report.numbers(summary)
    assert numbers["alignment/mean/flat"] == pytest.approx(sum(ALIGNMENT["flat"]) / SEEDS)
    assert numbers["mean/flat"] == pytest.approx(sum(KNN["flat"]) / SEEDS)
    assert {"delta/flat - plain", "alignment/p_adjusted/flat - plain"} <= numbers.keys()
    columns = pq.read_table(tmp_path / "report" / "results.parquet").column_names
    assert {"metric.knn_accuracy", "metric.alignment"} <= set(columns)
    (tmp_path / "report" / "curves-7.png").write_bytes(b"of an earlier report")
    (tmp_path / "report" / "mine-2.png").write_bytes(b"of a person")
    report.write(both.ledger, tmp_path / "report")
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert "curves-7.png" not in names
    assert "mine-2.png" in names


def test_a_diverged_and_a_lost_seed_count_by_every_metric(begin: Begin) -> None:
    diverged = begin(overrides=[BOTH], seeds=SEEDS)
    for arm in ("plain", "flat"):
        for k, trial in enumerate(diverged.confirm(arm)):
            outcome = "diverged" if (arm, k) == ("flat", 0) else "ok"
            diverged.done(trial, KNN[arm][k], outcome=outcome, more={"alignment": ALIGNMENT[arm][k]})
    found = answer_of(diverged.ledger)
    assert [one["diverged"]["a"] for one in found["comparisons"]] == [1, 1]
    assert [one["delta"] for one in found["comparisons"]] == [None, None]
    assert sum("diverged" in note for note in found["notes"]) <= 2, "said once, not for each metric"
    lost = answer_of(judged(begin(overrides=[BOTH], seeds=SEEDS), without=[3]).ledger)
    assert [one["verdict"] for one in lost["comparisons"]] == ["inconclusive"] * 2
    assert not lost["complete"]


def test_runs_are_compared_by_the_metrics_that_all_have(tmp_path: Path) -> None:
    one = judged(start(tmp_path / "a", overrides=[BOTH], seeds=SEEDS))
    two = judged(start(tmp_path / "b", overrides=[BOTH], seeds=SEEDS), {"plain": KNN["flat"], "flat": KNN["flat"]})
    alone = finished(start(tmp_path / "c", seeds=SEEDS), KNN)
    found = multi_run.summarize({"a": one.ledger, "b": two.ledger}).to_json()
    assert faults("compare", versioned("compare", json.loads(json.dumps(found)))) == []
    compared: Any = found["comparisons"]
    assert [one["metric"] for one in compared] == ["knn_accuracy", "alignment"]
    assert [one["a"] for one in compared] == ["b: flat"] * 2
    without: Any = multi_run.summarize({"a": one.ledger, "c": alone.ledger}).to_json()
    assert "metrics" not in without
    assert all("metric" not in one for one in without["comparisons"])
    assert any(note == "c is not judged by alignment, which is left out here." for note in without["notes"])
    other = start(
        tmp_path / "d", overrides=['metric=[{name="knn_accuracy"},{name="alignment",mode="max",mode_is_meant=true}]']
    )
    with pytest.raises(RunError, match="the mode of alignment is min in a, max in d"):
        multi_run.summarize({"a": one.ledger, "d": other.ledger})
    multi_run_page = report.write_several({"a": one.ledger, "b": two.ledger}, tmp_path / "both")
    assert "By alignment" in (tmp_path / "both" / "report.html").read_text()
    assert "By alignment:" in multi_run_page.sentence


def test_the_incumbent_is_asked_by_the_first_metric_and_says_so(tmp_path: Path) -> None:
    runs = [judged(start(tmp_path / name, overrides=[BOTH], seeds=SEEDS)) for name in "ab"]
    for run in runs:
        run.ledger.release()
    answer = ask(runs[0].ledger, runs[1].ledger, arm="flat", questions=8)
    assert answer.metric == "knn_accuracy"
    assert "it beats plain by knn_accuracy: +0.0" in answer.sentence
    assert faults("compare", versioned("compare", answer.to_json())) == []
    assert ask(runs[0].ledger, runs[1].ledger, arm="flat") == answer


def test_the_exploratory_part_is_by_every_metric_too(begin: Begin) -> None:
    run = judged(begin(overrides=[BOTH], seeds=SEEDS))
    more = [run.plan.confirm_trials(arm, {}, [SEEDS])[0] for arm in ("plain", "flat")]
    from orchestrator.session.schedule import as_trial

    run.ledger.add_trials(map(as_trial, more))
    for trial in more:
        run.done(run.ledger.trial(trial.id), 0.9, more={"alignment": 0.5})
    found = answer_of(run.ledger)["exploratory"]
    assert [(one["metric"], one["n"]) for one in found["comparisons"]] == [("knn_accuracy", 9), ("alignment", 9)]
    assert "By alignment:" in found["sentence"]


# A whole session


def metric_of(dispatch: Dispatch, effect: float = 0.02) -> dict[str, float]:
    flat = dispatch.job["loss"]["name"] == "flatnce"
    noise = random.Random(f"{flat} {dispatch.job['seed']} {dispatch.job['optimizer']['lr']}")
    return {
        "knn_accuracy": 0.9 + effect * flat + noise.gauss(0, 0.004),
        "alignment": 0.5 - 0.05 * flat + noise.gauss(0, 0.004),
    }


def played(dispatch: Dispatch, **more: Any) -> Any:
    made = metric_of(dispatch)
    ended = done(dispatch, made["knn_accuracy"])
    ended["result"]["metrics"] |= made
    return ended


SWEEP: dict[str, Any] = {"metric": METRICS, "compare": {"loss.name": ["infonce", "flatnce"]}}


def run_of(
    folder: Path, changes: dict[str, Any], of: Any = played
) -> tuple[Any, list[tuple[str, int, str, str | None]]]:
    with opened(folder, SWEEP | changes) as (session, ledger, _, _plan):
        session.start()
        play(session, of)
        assert session.broken is None
        return summarize(ledger), [(t.arm, t.seed, t.state, t.message) for t in ledger.trials("confirm")]


TUNE = {"trials": 2, "sampler": "grid", "space": {"optimizer.lr": {"choices": [1e-3, 1e-2]}}}


def test_arms_are_swapped_by_every_metric(tmp_path: Path) -> None:
    summary, _ = run_of(tmp_path, {"tune": TUNE, "confirm": {"seeds": 6, "swap": True}})
    assert [swap.metric for swap in summary.swaps] == ["knn_accuracy", "alignment"]
    assert summary.swaps[0].settings[0].delta != summary.swaps[1].settings[0].delta
    assert summary.swaps[1].settings[0].delta == pytest.approx(-0.05, abs=0.02)


def test_repeats_of_a_tuning_are_units_by_every_metric(tmp_path: Path) -> None:
    summary, _ = run_of(tmp_path, {"tune": TUNE | {"repeats": 6}, "confirm": {"seeds": 12}})
    assert [(c.result.metric, c.result.n) for c in summary.comparisons] == [("knn_accuracy", 6), ("alignment", 6)]


def test_looks_go_on_while_one_metric_is_open(tmp_path: Path) -> None:
    """alignment is settled at the first look. Mutant check: a course by the first metric alone ends there, or by all
    seeds."""
    summary, trials = run_of(tmp_path, {"confirm": {"seeds": {"looks": [8, 11, 14]}}}, open_)
    by = {c.result.metric: c.result for c in summary.comparisons}
    assert (by["alignment"].verdict, by["alignment"].look) == ("a_better", 1)
    assert by["knn_accuracy"].look is not None
    assert by["knn_accuracy"].look > 1
    assert len(trials) == 2 * summary.looks.counts[summary.looks.taken - 1]
    assert len(trials) > 16


def open_(dispatch: Dispatch) -> Any:
    """By knn_accuracy the arms differ by as much as seeds do: open at first."""
    made, noise = metric_of(dispatch), random.Random(f"{dispatch.job['seed']} {dispatch.job['loss']['name']}")
    ended = done(dispatch, 0.9 + noise.gauss(0, 0.01) + 0.008 * (dispatch.job["loss"]["name"] == "flatnce"))
    ended["result"]["metrics"]["alignment"] = made["alignment"]
    return ended


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_confirm_trial_without_a_further_metric_fails_and_says_which(tmp_path: Path, value: float | None) -> None:
    """Of a task that is not known before, as a tune trial may lack it: what tuning looks at is the first."""

    def lacking(dispatch: Dispatch) -> Any:
        ended = done(dispatch, 0.9)
        ended["result"]["metrics"] = {"knn_accuracy": 0.9} | ({} if value is None else {"alignment": value})
        return ended

    summary, trials = run_of(tmp_path, {"tune": TUNE, "confirm": {"seeds": 6}}, lacking)
    assert all(state == "failed" for _, _, state, _ in trials if state != "queued")
    assert any("the metric 'alignment' " in (message or "") for *_, message in trials)
    assert summary.trials["tune"]["done"] == 4


# Results of another trainer


def csv(folder: Path, rows: Sequence[str], header: str = "arm,seed,accuracy,loss") -> Path:
    path = folder / "results.csv"
    path.write_text("\n".join([header, *rows, ""]))
    return path


ROWS = [f"{arm},{k},{KNN[arm][k]!r},{ALIGNMENT[arm][k]!r}" for arm in KNN for k in range(SEEDS)]


def test_columns_of_a_file_are_one_family_too(both: Run, tmp_path: Path) -> None:
    """The verdicts are those of the run with these values."""
    arguments = ["--metric", "accuracy", "--metric", "loss", "--smallest-difference", "0.005"]
    arguments += ["--smallest-difference", "0.02"]
    ended = CliRunner().invoke(main, ["compare", "--csv", str(csv(tmp_path, ROWS)), *arguments, "--json"])
    found, of_run = json.loads(ended.output), answer_of(both.ledger)
    assert faults("compare", found) == []
    assert [one["metric"] for one in found["comparisons"]] == ["accuracy", "loss"]
    for mine, theirs in zip(found["comparisons"], of_run["comparisons"], strict=True):
        assert (mine["verdict"], mine["p_adjusted"]) == (theirs["verdict"], pytest.approx(theirs["p_adjusted"]))
    assert found["notes"][:2] == ["accuracy: higher is better.", "loss: lower is better."]
    assert not any("Not read" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("arguments", "rows", "words"),
    [
        (["--metric", "loss", "--metric", "loss"], ROWS, "--metric loss is given twice"),
        (["--metric", "accuracy", "--metric", "f1"], ROWS, "lacks the column 'f1'"),
        (["--metric", "accuracy", "--metric", "loss", "--mode", "max"], ROWS, "--mode is given 1 times"),
        (
            ["--metric", "accuracy", "--metric", "loss"],
            ["flat,9,0.9,", *ROWS],
            "line 2: arm 'flat', seed 9 has accuracy",
        ),
    ],
)
def test_a_file_that_cannot_be_judged_by_several_columns_says_why(
    tmp_path: Path, arguments: list[str], rows: list[str], words: str
) -> None:
    ended = CliRunner().invoke(main, ["compare", "--csv", str(csv(tmp_path, rows)), *arguments])
    assert ended.exit_code != 0
    assert words in (ended.output if not isinstance(ended.exception, ResultsError) else str(ended.exception))


def test_a_trial_that_diverged_has_none_of_the_columns(tmp_path: Path) -> None:
    path = csv(tmp_path, [*ROWS, "flat,8,,", "plain,8,0.9,0.5"])
    found = report.judge(path, report.Asked("accuracy"), report.Asked("loss"))
    assert [one.result.diverged("a") for one in found.comparisons] == [1, 1]

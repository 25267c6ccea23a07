"""What a run says of other rows: computed of what its trials have kept, once, and never in place of the verdict."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from ledgers import TUNED, TWO, Begin, Run
from mounts import read_only
from numpy.typing import NDArray
from test_session import done, opened, play

from jobs.artifacts import rows
from jobs.core.outcomes import Outcomes, RowIds, by_row, mean_of
from jobs.metrics.builtin.spearman import rank_correlation as spearman
from orchestrator import report
from orchestrator.cli import main
from orchestrator.ledger import Trial
from orchestrator.report.render import page
from orchestrator.report.tables import content
from orchestrator.run_dir.folder import RunFolder
from orchestrator.run_dir.rows import RowFiles
from orchestrator.session.writer import Dispatch
from orchestrator.statistics import rows as of_rows
from orchestrator.statistics.rows import RowVariance

ROWS = 80

Measure = Callable[[str, int], tuple[RowIds, Outcomes] | None]
"""arm, seed -> what a trial has kept."""


@dataclass
class Kept:
    """A run whose trials have kept their rows, and where it lies."""

    run: Run
    folder: RunFolder

    def answer(self, files: RowFiles | None = None) -> dict[str, Any]:
        found = report.summarize(self.run.ledger, files or RowFiles.of(self.folder)).to_json()
        plain: dict[str, Any] = json.loads(json.dumps(found, allow_nan=False))
        return plain

    def only(self, files: RowFiles | None = None) -> dict[str, Any]:
        """Its one comparison."""
        (one,) = self.answer(files)["comparisons"]
        return dict(one)

    def compared(self) -> dict[str, Any]:
        """The answer as the command line prints it."""
        done = CliRunner().invoke(main, ["compare", str(self.folder.path), "--json"])
        assert done.exit_code == 0, done.output
        printed: dict[str, Any] = json.loads(done.stdout)
        return printed


Keep = Callable[..., Kept]
"""Of the fixture `keep`: `keep(measure)` is a finished run that has kept what `measure` gives."""


@pytest.fixture
def keep(begin: Begin, tmp_path: Path) -> Keep:
    def _keep(
        measure: Measure,
        arms: str = TWO,
        *,
        seeds: int = 8,
        metric: str = "knn_accuracy",
        value: float | None = None,
        **given: Any,
    ) -> Kept:
        run = begin(arms, seeds=seeds, **given)
        folder = RunFolder(max(tmp_path.glob("run?")))
        for arm in ("plain", "flat"):
            for trial in run.confirm(arm):
                if (own := measure(arm, trial.seed)) is None:
                    run.done(trial, 0.5)
                    continue
                content = rows.encode({metric: own})
                assert content is not None
                folder.trial(trial.id).mkdir(parents=True)
                (folder.trial(trial.id) / rows.NAME).write_bytes(content)
                run.done(trial, own[1].value if value is None else value, rows=rows.sha256(content))
        run.ledger.set_run(state="done")
        return Kept(run, folder)

    return _keep


def bits(arm: str, seed: int, *, better: float = 0.3, ease: float = 1.0) -> NDArray[np.bool_]:
    """Right or wrong on rows of which some are easy, in both arms and all seeds; flat is better, on most rows."""
    rng = np.random.default_rng([seed, arm == "flat"])
    of_row, of_arm = np.random.default_rng(1).normal(size=ROWS), np.random.default_rng(9).normal(size=ROWS)
    edge = 0.5 + ease * of_row + (better + 0.5 * of_arm if arm == "flat" else 0.0)
    return np.asarray(rng.normal(size=ROWS) * 0.2 < edge)


def right_or_wrong(arm: str, seed: int) -> tuple[RowIds, Outcomes]:
    return RowIds.positions(ROWS), mean_of(bits(arm, seed))


def test_the_interval_is_that_of_the_rows_averaged_over_seeds(keep: Keep) -> None:
    """Against the formula on the matrix of bits. Mutant check: the variance of one seed's rows, not of the mean's."""
    run = keep(right_or_wrong)
    one = run.only()
    matrix = np.array([bits("flat", seed).astype(float) - bits("plain", seed) for seed in range(8)])
    d, by_row_ = matrix.mean(1), matrix.mean(0)
    v = float(by_row_.var(ddof=1)) / ROWS
    assert one["delta"] == pytest.approx(d.mean())
    assert one["interval_rows"] == pytest.approx(of_rows.interval(d, RowVariance(v, ROWS, ROWS), 0.95))
    parts = one["variance"]
    assert parts["rows"] == pytest.approx(v)
    assert parts["seeds"] == pytest.approx(float(d.var(ddof=1)) / 8)
    assert (parts["judged_rows"], parts["groups"], parts["settings"]) == (ROWS, None, None)
    assert parts["next_1000_rows"] > parts["next_seed"] > 0, "here it is rows that are few"


def test_a_verdict_is_of_these_rows_where_others_may_say_otherwise(keep: Keep, tmp_path: Path) -> None:
    """And it stays as it is, with its p. Mutant check: an interval that changes the verdict."""
    run = keep(right_or_wrong)
    one, sure = run.only(), run.only(RowFiles([]))
    assert one["verdict"] == "a_better"
    assert one["interval_rows"][0] < 0 < one["interval_rows"][1]
    assert {key: value for key, value in one.items() if key not in ("interval_rows", "variance")} == {
        key: value for key, value in sure.items() if key not in ("interval_rows", "variance")
    }
    assert sure["interval_rows"] is None
    summary = report.write(run.run.ledger, tmp_path / "report", RowFiles.of(run.folder))
    assert "flat beats plain by" in summary.sentence
    assert " knn_accuracy on these rows (interval [" in summary.sentence
    page, text = ((tmp_path / "report" / name).read_text("utf-8") for name in ("report.html", "report.md"))
    assert "better on these rows" in page
    assert "Where the uncertainty comes from" in page
    assert f"| {ROWS} |" in text
    assert "better on these rows" in report.note(summary)
    assert "on these rows" not in report.summarize(run.run.ledger).sentence


def test_a_verdict_that_other_rows_would_give_too_is_not_qualified(keep: Keep) -> None:
    run = keep(lambda arm, seed: (RowIds.positions(ROWS), mean_of(bits(arm, seed, better=1.5, ease=0.3))))
    one = run.only()
    assert one["verdict"] == "a_better"
    assert one["interval_rows"][0] > 0
    assert "on these rows" not in run.answer()["sentence"]


def test_groups_are_the_units_where_the_data_have_some(keep: Keep) -> None:
    """Mutant check: the groups of the file left aside."""
    groups = np.repeat(np.arange(ROWS // 8), 8)
    run = keep(lambda arm, seed: (RowIds(range(ROWS), groups.tolist()), mean_of(bits(arm, seed))))
    matrix = np.array([bits("flat", seed).astype(float) - bits("plain", seed) for seed in range(8)])
    expected = of_rows.of_means(matrix.mean(0), groups)
    assert expected is not None
    assert expected.groups == 10
    parts = run.only()["variance"]
    assert (parts["rows"], parts["groups"]) == (pytest.approx(expected.variance), 10)


def ranked(arm: str, seed: int) -> tuple[RowIds, Outcomes]:
    rng = np.random.default_rng([seed, arm == "flat"])
    wanted = np.random.default_rng(5).normal(size=ROWS)
    noise = np.random.default_rng(6).normal(size=ROWS)
    measured = wanted + noise * (0.7 if arm == "flat" else 0.9) + rng.normal(size=ROWS) * 0.1
    return RowIds([f"p{row}" for row in range(ROWS)]), by_row(spearman, measured=measured, wanted=wanted)


def test_a_metric_that_is_no_mean_is_computed_without_blocks_of_rows(keep: Keep) -> None:
    """Whoever compares knows not how. Against the jackknife on the columns themselves."""
    run = keep(ranked, seeds=6)
    blocks = ranked("flat", 1)[0].blocks()
    sides: dict[str, NDArray[np.float64]] = {}
    for arm in ("plain", "flat"):
        columns = [ranked(arm, seed)[1].columns for seed in range(6)]
        sides[arm] = np.array(
            [
                [spearman(own["measured"][blocks != k], own["wanted"][blocks != k]) for k in range(20)]
                + [spearman(own["measured"], own["wanted"])]
                for own in columns
            ]
        )
    apart = (sides["flat"] - sides["plain"]).mean(0)
    expected = of_rows.of_blocks(float(apart[-1]), apart[:-1], np.bincount(blocks).tolist())
    assert expected is not None
    one = run.only()
    assert one["variance"]["rows"] == pytest.approx(expected.variance)
    d = sides["flat"][:, -1] - sides["plain"][:, -1]
    assert one["interval_rows"] == pytest.approx(of_rows.interval(d, expected, 0.95))


# Where nothing is said


def other_rows(arm: str, seed: int) -> tuple[RowIds, Outcomes]:
    first = 1 if (arm, seed) == ("flat", 3) else 0
    return RowIds(range(first, ROWS + first)), mean_of(bits(arm, seed))


def some_without(arm: str, seed: int) -> tuple[RowIds, Outcomes] | None:
    return None if (arm, seed) == ("plain", 2) else right_or_wrong(arm, seed)


def undefined(arm: str, seed: int) -> tuple[RowIds, Outcomes]:
    def combine(x: NDArray[np.float64]) -> float:
        return float(x.mean()) if len(x) == ROWS else float("nan")

    return RowIds.positions(ROWS), by_row(combine, x=bits(arm, seed).astype(float))


@pytest.mark.parametrize("measure", [other_rows, some_without, undefined])
def test_pairs_of_other_rows_or_of_none_say_nothing(keep: Keep, measure: Measure) -> None:
    """One trial of sixteen is enough. Mutant check: leaving that pair out."""
    one = keep(measure).only()
    assert one["interval_rows"] is None
    assert (one["variance"]["rows"], one["variance"]["next_1000_rows"]) == (None, None)
    assert one["variance"]["next_seed"] is not None
    assert one["variance"]["seeds"] is not None


def test_rows_of_another_metric_say_nothing(keep: Keep) -> None:
    assert keep(right_or_wrong, metric="probe_accuracy").only()["interval_rows"] is None


def test_rows_whose_mean_is_not_the_metric_say_nothing(keep: Keep) -> None:
    """As of a training loop that kept those of an earlier step."""
    assert keep(right_or_wrong, value=0.123).only()["interval_rows"] is None


def test_a_side_that_diverged_has_no_interval(begin: Begin) -> None:
    run = begin(seeds=8)
    for arm in ("plain", "flat"):
        for trial in run.confirm(arm):
            run.done(trial, 0.5, outcome="diverged" if (arm, trial.seed) == ("flat", 1) else "ok")
    (one,) = report.summarize(run.ledger).comparisons
    assert one.parts == of_rows.VarianceParts()


@pytest.mark.parametrize("damage", ["gone", "cut", "other"])
def test_what_is_damaged_is_not_believed(keep: Keep, damage: str) -> None:
    """The ledger knows the digest. Mutant check: a file that is read whatever it holds."""
    run = keep(right_or_wrong)
    trial = run.run.ledger.trials("confirm")[3]
    path = run.folder.trial(trial.id) / rows.NAME
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        other = rows.encode({"knn_accuracy": (RowIds.positions(ROWS), mean_of(np.ones(ROWS)))})
        path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else other or b"")
    files = RowFiles.of(run.folder)
    assert run.only(files)["interval_rows"] is None
    assert "variance" not in (files.to_keep() or ""), "it may be put back"
    path.write_bytes(whole)
    assert run.only(files)["interval_rows"] is not None


# Once


def test_it_is_computed_once(keep: Keep) -> None:
    """Mutant check: a key without the digests, or none."""
    run = keep(right_or_wrong)
    before = run.compared()
    assert before["comparisons"][0]["interval_rows"] is not None
    shutil.rmtree(run.folder.trials)
    assert run.compared() == before
    (run.folder.report / "rows.json").unlink()
    assert run.compared()["comparisons"][0]["interval_rows"] is None


@pytest.mark.parametrize(
    "spoil",
    [
        ("", ""),
        ('"digest"', ""),
        ('"variance": 0.00', '"variance": 0.01'),
        ('"version": 1', '"version": 2'),
        ("{", "[" * 100_000),
    ],
    ids=["empty", "no JSON", "a digit", "version", "deep"],
)
def test_what_was_kept_and_is_damaged_is_computed_again(keep: Keep, spoil: tuple[str, str]) -> None:
    """Mutant check: a file without a digest of itself passes `a digit`."""
    run = keep(right_or_wrong)
    before = run.compared()
    path = run.folder.report / "rows.json"
    sound = path.read_text()
    assert spoil[0] in sound
    path.write_text(sound.replace(*spoil) if spoil[0] else "")
    assert run.compared() == before
    assert path.read_text() == sound


def test_a_run_that_is_read_only_answers(keep: Keep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows are read once, though no report is written."""
    run = keep(right_or_wrong)
    run.run.ledger.close()
    read: list[str] = []
    real = rows.decode

    def counted(content: bytes, metric: str) -> rows.MetricRows | None:
        read.append(metric)
        return real(content, metric)

    monkeypatch.setattr(rows, "decode", counted)
    with read_only(run.folder.path):
        found = run.compared()
    assert found["comparisons"][0]["interval_rows"] is not None
    assert len(read) == 16
    assert not run.folder.report.exists()


def test_several_runs_have_it_too(keep: Keep, tmp_path: Path) -> None:
    """Across runs as well, as their trials were judged on the same rows; and kept beside the report of both. Mutant
    check: a key without the digests gives the second run what the first one has."""

    def better(arm: str, seed: int) -> tuple[RowIds, Outcomes]:
        return RowIds.positions(ROWS), mean_of(bits(arm, seed, better=0.6))

    one, other = keep(right_or_wrong), keep(better, TWO + '"budget.samples" = 2000\n', name="longer")
    named = {"a": one.run.ledger, "b": other.run.ledger}
    files = RowFiles.of(one.folder, other.folder, within=tmp_path / "both")
    found: Any = report.write_several(named, tmp_path / "both", files).to_json()
    assert found["comparisons"]
    assert all(comparison["interval_rows"] for comparison in found["comparisons"])
    alone = [run.only()["interval_rows"] for run in (one, other)]
    assert [run["comparisons"][0]["interval_rows"] for run in found["runs"]] == alone
    assert alone[0] != alone[1]
    again = RowFiles.of(within=tmp_path / "both")
    assert report.summarize_several(named, again).to_json()["comparisons"] == found["comparisons"]


# Tuned settings


def test_seeds_that_were_tuned_apart_show_what_is_due_to_that(begin: Begin) -> None:
    """Jobs that differ in more than their seed. Mutant check: the seed as a setting, so that nobody shares one."""
    run, rng = begin(tune=TUNED, seeds=6), np.random.default_rng(0)
    for arm in ("plain", "flat"):
        for number in range(6):
            lr = 1e-3 if number < 3 else 2e-3
            planned = run.plan.confirm_trials(arm, {"optimizer.lr": lr})[number]
            trial = Trial(planned.id, "confirm", arm, planned.seed, planned.job.model_dump(mode="json"))
            run.ledger.add_trials([trial])
            run.done(trial, 0.8 + (arm == "flat") * (0.1 if number < 3 else 0.02) + rng.normal() / 1000)
    parts = report.summarize(run.ledger).comparisons[0].parts
    assert parts.seeds is not None
    assert parts.settings is not None
    assert parts.settings == pytest.approx(0.04**2, rel=0.1), "half of the difference, squared, over two settings"
    assert parts.settings / parts.seeds > 0.5


def test_where_the_repeat_is_the_unit_rows_are_averaged_over_all_of_its_seeds(tmp_path: Path) -> None:
    """Mutant check: the rows of the first seed of each repeat alone."""
    folder, apart = RunFolder(tmp_path / "kept"), dict[tuple[str, int], NDArray[np.bool_]]()

    def measured(dispatch: Dispatch) -> dict[str, Any]:
        arm, seed = dispatch.job["loss"]["name"], dispatch.job["seed"]
        if dispatch.job["stage"] == "tune":
            return done(dispatch, 0.5 + seed / 100)
        own = apart[arm, seed] = bits("flat" if arm == "flatnce" else "plain", seed)
        content = rows.encode({"knn_accuracy": (RowIds.positions(ROWS), mean_of(own))})
        assert content is not None
        folder.trial(dispatch.trial).mkdir(parents=True)
        (folder.trial(dispatch.trial) / rows.NAME).write_bytes(content)
        report_ = done(dispatch, float(own.mean()))
        report_["result"] |= {"rows": rows.sha256(content)}
        return report_

    tune = {"trials": 2, "repeats": 6, "sampler": "random", "space": {"optimizer.lr": {"low": 1e-4, "high": 1e-1}}}
    with opened(tmp_path, {"tune": tune, "confirm": {"seeds": 12}}) as (session, ledger, _, _plan):
        session.start()
        play(session, measured)
        said = report.summarize(ledger, RowFiles([folder]))
    parts, result = said.comparisons[0].parts, said.comparisons[0].result
    assert (said.unit, result.n) == ("repeat", 6)
    sign = 1 if result.a == "flatnce" else -1
    seeds = [seed for arm, seed in apart if arm == "flatnce"]
    matrix = np.array([sign * (apart["flatnce", seed].astype(float) - apart["infonce", seed]) for seed in seeds])
    known = of_rows.of_means(matrix.mean(0))
    assert known is not None
    assert parts.rows == pytest.approx(known.variance)
    assert parts.interval == pytest.approx(of_rows.interval([pair.difference for pair in result.pairs], known, 0.95))
    assert parts.settings is not None, "two seeds share each setting"


# Metrics of which nothing is kept by row


@pytest.fixture
def measured(begin: Begin, tmp_path: Path) -> Callable[..., Kept]:
    """A finished run of 2 seeds: `measured(numbers, kept)` has measured the numbers, and kept some of them by row."""

    def _measured(numbers: dict[str, float], kept: dict[str, tuple[RowIds, Outcomes]], **given: Any) -> Kept:
        run = begin(seeds=2, **given)
        folder = RunFolder(max(tmp_path.glob("run?")))
        for arm in ("plain", "flat"):
            for trial in run.confirm(arm):
                found = rows.encode(kept | {name: kept["knn_accuracy"] for name in ("alignment",) if kept})
                if found is not None:
                    folder.trial(trial.id).mkdir(parents=True)
                    (folder.trial(trial.id) / rows.NAME).write_bytes(found)
                if found is None:
                    run.done(trial, 0.5, more=numbers)
                else:
                    run.done(trial, 0.5, more=numbers, rows=rows.sha256(found))
        run.ledger.set_run(state="done")
        return Kept(run, folder)

    return _measured


def written(run: Kept) -> tuple[str, list[str]]:
    """What the page says of rows that are not there, in both formats; and what the answer does."""
    summary = report.summarize(run.run.ledger, RowFiles.of(run.folder))
    words = content.page(summary, run.run.ledger.run.sweep, ())
    lines = [line.replace("\\", "") for line in page.markdown(words, []).splitlines()]
    said = [line for line in lines if line.startswith("There is no interval on other rows")]
    assert all(line in page.html(words, []) for line in said)
    (line,) = said or [""]
    return line, run.compared()["without_rows"]


def test_the_page_names_the_metrics_that_keep_nothing_by_row(measured: Callable[..., Kept]) -> None:
    """By name, each once where it is so of all its sets and numbers of columns; the answer lists each. Mutant check: a
    base name that stands for a set which has kept its rows."""
    mean = RowIds.positions(ROWS), mean_of(bits("plain", 0))
    none = {"v_measure": 0.1, "v_measure_at_8": 0.1, "search/uniformity": -1.0, "train/infonce": 0.5}
    run = measured(none | {"knn_accuracy": 0.5, "sts/uniformity": -1.0}, {"knn_accuracy": mean, "sts/uniformity": mean})
    line, listed = written(run)
    assert line == (
        "There is no interval on other rows for search/uniformity and v_measure: a number of all rows together, of "
        "which nothing is kept by row."
    )
    assert listed == ["search/uniformity", "v_measure", "v_measure_at_8"]


@pytest.mark.parametrize("kept", [True, False])
def test_all_or_none_of_the_metrics_keep_rows(measured: Callable[..., Kept], kept: bool) -> None:
    """Mutant check: a list of all names where none keeps rows."""
    mean = {"knn_accuracy": (RowIds.positions(ROWS), mean_of(bits("plain", 0)))}
    line, listed = written(measured({"knn_accuracy": 0.5}, mean if kept else {}))
    assert listed == ([] if kept else ["alignment", "knn_accuracy"])
    assert line.startswith("" if kept else "There is no interval on other rows, as trials have kept nothing by row")
    assert bool(line) != kept


def test_what_trials_have_kept_is_asked_once(measured: Callable[..., Kept]) -> None:
    """Mutant check: names that are not remembered."""
    mean = {"knn_accuracy": (RowIds.positions(ROWS), mean_of(bits("plain", 0)))}
    run = measured({"knn_accuracy": 0.5, "v_measure": 0.1}, mean)
    line = written(run)
    assert line[1] == ["v_measure"]
    shutil.rmtree(run.folder.trials)
    assert written(run) == line

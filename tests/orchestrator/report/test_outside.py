"""Results of another trainer, from a CSV: the same verdict as of a run, and errors that say where."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from click.testing import CliRunner, Result
from ledgers import BETTER, Begin, finished

from orchestrator import report
from orchestrator.cli import main
from orchestrator.report import Asked, judge
from orchestrator.report.naming import names_of
from orchestrator.report.summary.outside import ResultsError
from orchestrator.report.summary.outside.direction import usual
from orchestrator.report.summary.sentences import verdict_of
from orchestrator.report.tables.answers import short_answers
from orchestrator.statistics.rows import interval, of_means
from orchestrator.sweep.model.metric import usual_mode
from orchestrator.sweep.validate import METRICS, TRAINING_METRICS


def written(folder: Path, lines: Sequence[str], header: str = "arm,seed,accuracy", *, encoding: str = "utf-8") -> Path:
    path = folder / "results.csv"
    path.write_bytes("\n".join([header, *lines, ""]).encode(encoding))
    return path


def lines_of(values: Mapping[str, Sequence[float]], first: int = 1) -> list[str]:
    return [f"{arm},{seed},{value!r}" for arm, own in values.items() for seed, value in enumerate(own, start=first)]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["compare", *arguments])


def test_the_verdict_is_that_of_a_run_with_these_values(begin: Begin, tmp_path: Path) -> None:
    """Whatever the order of the lines. Mutant check: another baseline, or pairs by place in place of seed."""
    of_run: dict[str, Any] = report.summarize(finished(begin(), BETTER).ledger).to_json()
    lines = lines_of(BETTER)
    first, *others = lines
    random.Random(0).shuffle(others)
    path = written(tmp_path, [first, *others])
    found: dict[str, Any] = judge(path, Asked("accuracy", smallest_difference=0.005)).to_json()
    apart = {"differences", "shared", "apart"}
    for mine, theirs in zip(found["comparisons"], of_run["comparisons"], strict=True):
        assert {key: value for key, value in mine.items() if key not in apart} == {
            key: pytest.approx(value) if isinstance(value, float) else value
            for key, value in theirs.items()
            if key not in apart
        }
    assert (found["planned"], found["alpha"], found["smallest_p"]) == (False, of_run["alpha"], of_run["smallest_p"])
    assert [(arm["label"], arm["n"], arm["mean"]) for arm in found["arms"]] == [
        (arm["label"], arm["n"], pytest.approx(arm["mean"])) for arm in of_run["arms"]
    ]
    assert found["sentence"].startswith("flat beats plain by 0.0175 accuracy (interval [+0.0")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("column", ["accuracy", "value"])
def test_the_ways_in_which_people_write_tables(tmp_path: Path, delimiter: str, column: str) -> None:
    """With what spreadsheets put in front, and a column that nobody asked for."""
    lines = [f"{line},x".replace(",", delimiter) for line in lines_of(BETTER)]
    header = f"arm,seed,{column},note".replace(",", delimiter)
    path = written(tmp_path, lines, header, encoding="utf-8-sig")
    assert judge(path, Asked("accuracy")).comparisons[0].result.verdict == "a_better"


def test_the_baseline_may_be_named_and_less_may_be_better(tmp_path: Path) -> None:
    path = written(tmp_path, lines_of(BETTER))
    (one,) = judge(path, Asked("accuracy", mode="min", baseline="flat")).comparisons
    assert (one.result.a, one.result.b, one.result.verdict) == ("plain", "flat", "a_better")
    with pytest.raises(ResultsError, match="has the arms 'plain', 'flat'; name one of them"):
        judge(path, Asked("accuracy", baseline="flt"))


@pytest.mark.parametrize(("mode", "winner", "loser"), [("max", "flat", "plain"), ("min", "plain", "flat")])
@pytest.mark.parametrize("baseline", ["flat", "plain"])
def test_the_interval_of_a_sentence_has_its_sign(
    tmp_path: Path, mode: Literal["max", "min"], winner: str, loser: str, baseline: str
) -> None:
    """What the winner is better by, whichever arm is the baseline and whichever way is better."""
    answer = judge(written(tmp_path, lines_of(BETTER)), Asked("accuracy", mode, baseline, 0.005))
    assert answer.sentence == (
        f"{winner} beats {loser} by 0.0175 accuracy (interval [+0.0150, +0.0200], p = 0.0312, 6 seeds)."
    )
    (one,) = answer.comparisons
    ends = one.result.interval or (0.0, 0.0)
    assert (ends[0] > 0) == (baseline == "plain"), "as data it is a - b"


def test_a_difference_that_may_not_matter_is_said_to_be_one(tmp_path: Path) -> None:
    answer = judge(written(tmp_path, lines_of(BETTER)), Asked("accuracy", smallest_difference=0.016))
    assert "flat beats plain by 0.0175 accuracy, perhaps by less than matters (interval" in answer.sentence


SCALES = [1e90, 1e-12, 1e-90, 1e-300]
EIGHT = (1.8, -0.9, 2.1, 0.4, 2.6, -1.1, 1.2, 1.6)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        (tuple(x - y for x, y in zip(BETTER["flat"], BETTER["plain"], strict=True)), "equivalent"),
        (EIGHT, "inconclusive"),
        (tuple(3 + x for x in EIGHT), "a_better"),
        ((0.5, 0.5, 0.5, 0.5, 0.5, 0.5), "equivalent"),
    ],
    ids=["equivalent", "inconclusive", "better", "equal"],
)
def test_numbers_of_any_size_are_judged(
    tmp_path: Path, differences: Sequence[float], verdict: str, scale: float
) -> None:
    """As they are in another unit, whatever the verdict. Mutant check: an absolute size below which nothing is a
    difference, by which numbers of 1e-12 were "equivalent, p = 0"."""

    def judged(unit: float) -> tuple[str, list[Any]]:
        values = {"plain": [0.0] * len(differences), "flat": [unit * x for x in differences]}
        (one,) = judge(written(tmp_path, lines_of(values)), Asked("accuracy", smallest_difference=unit)).comparisons
        result = one.result
        ps = [result.p, result.p_adjusted, result.p_equivalence, result.p_equivalence_holm]
        return result.verdict, [*ps, *(end / unit for end in result.interval or ())]

    (said, numbers), (as_usual, expected) = judged(scale), judged(1.0)
    assert said == as_usual == verdict
    assert numbers == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_numbers_without_a_square_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="line 3: -1e160 is beyond"):
        judge(written(tmp_path, ["plain,1,1", "flat,1,-1e160"]), Asked("accuracy"))


@pytest.mark.parametrize("value", ["", "nan", "inf", "-inf", "NaN"])
def test_what_is_no_finite_number_has_diverged(tmp_path: Path, value: str) -> None:
    lines = lines_of(BETTER)
    lines[-1] = f"flat,6,{value}"
    (one,) = judge(written(tmp_path, lines), Asked("accuracy")).comparisons
    assert one.result.diverged("a") == 1
    assert (one.result.n, one.result.n_trained, one.result.interval) == (6, 5, None)
    lines[-3:] = [f"flat,{seed},{value}" for seed in (4, 5, 6)]
    assert judge(written(tmp_path, lines), Asked("accuracy")).comparisons[0].result.verdict == "diverges"


def test_seeds_of_one_arm_alone_are_left_out_and_named(tmp_path: Path) -> None:
    path = written(tmp_path, [*lines_of(BETTER), "plain,7,0.1", "flat,9,0.9", "flat,8,0.9"])
    answer = judge(path, Asked("accuracy"))
    assert answer.comparisons[0].result.seeds == (1, 2, 3, 4, 5, 6)
    assert answer.comparisons[0].result.verdict == "a_better"
    assert "flat against plain: 3 seeds of one arm alone (7, 8, 9) left out." in answer.notes


def test_rows_are_averaged_and_must_be_the_same(tmp_path: Path) -> None:
    lines = [f"{line.rpartition(',')[0]},{x},{y}" for line in lines_of(BETTER) for x, y in (("1", "r1"), ("0", "r2"))]
    header = "arm,seed,accuracy,row"
    answer = judge(written(tmp_path, lines, header), Asked("accuracy"))
    assert {value.value for arm in answer.arms for value in arm.values} == {0.5}
    with pytest.raises(ResultsError, match="have other rows, such as 'r2'"):
        judge(written(tmp_path, lines[:-1], header), Asked("accuracy"))
    lines[1] = "plain,1,,r2"
    assert judge(written(tmp_path, lines, header), Asked("accuracy")).arms[0].diverged == 1


def test_a_trial_that_diverged_takes_one_line_whatever_its_rows(tmp_path: Path) -> None:
    """Without a row, or with one of its own; the rows of the others stay those that other rows are told by."""
    rows = [f"r{number}" for number in range(4)]
    header, chance = "arm,seed,row,accuracy", random.Random(0)
    lines = [f"{arm},{seed},{row},{chance.random()}" for arm in "abc" for seed in range(6) for row in rows]
    whole = judge(written(tmp_path, lines, header), Asked("accuracy"))
    for lost in ("b,7,,", "b,7,,nan", "b,7,r9,inf", "b,7,r1,"):
        answer = judge(written(tmp_path, [lost, *lines, "a,7,,"], header), Asked("accuracy", baseline="a"))
        assert [arm.diverged for arm in answer.arms] == [1, 1, 0]
        assert answer.comparisons[0].result.diverged("both") == 1
        assert answer.comparisons[1].parts == whole.comparisons[1].parts
    with pytest.raises(ResultsError, match="have other rows, such as ''"):
        judge(written(tmp_path, [*lines, "b,7,,0.5"], header), Asked("accuracy"))


def test_arms_without_a_common_seed_are_no_whole_answer(tmp_path: Path) -> None:
    """In words for a file. Mutant check: `complete` as it was, always true."""
    path = written(tmp_path, ["a,1,0.5", "a,2,0.6", "b,3,0.7", "b,4,0.8"])
    answer = judge(path, Asked("accuracy"))
    assert (answer.complete, answer.comparisons[0].result.complete) == (False, False)
    assert answer.sentence == "No verdict: no other arm has a seed in common with a."
    one = judge(written(tmp_path, [*lines_of(BETTER), "c,99,0.5"]), Asked("accuracy"))
    assert (one.complete, [c.result.complete for c in one.comparisons]) == (False, [True, False])
    assert judge(written(tmp_path, lines_of(BETTER)), Asked("accuracy")).complete


def test_what_of_a_file_was_not_read_is_said(tmp_path: Path) -> None:
    """A group without rows says nothing, and neither do columns that nobody asked for."""
    lines = [f"{line},g{number % 2},x" for number, line in enumerate(lines_of(BETTER))]
    notes = judge(written(tmp_path, lines, "arm,seed,accuracy,group,groups"), Asked("accuracy")).notes
    assert "The column 'group' was not read: it says which rows belong together, and there is no column 'row'." in notes
    assert "Not read: the column 'groups'." in notes
    lines = [f"{line},,g" for line in lines_of(BETTER)]
    notes = judge(written(tmp_path, lines, "arm,seed,accuracy,row,group"), Asked("accuracy")).notes
    assert any("'group' was not read" in note for note in notes), "a column of rows that is empty is none"
    assert not any("not read" in note.lower() for note in judge(written(tmp_path, GOOD), Asked("accuracy")).notes)


@pytest.mark.parametrize(
    "header", ["Arm,Seed,Accuracy,ROW,Group", "ARM,SEED,ACCURACY,Row,GROUP", "Arm,seed,Value,row,group"]
)
def test_capitals_in_the_first_line_change_nothing(tmp_path: Path, header: str) -> None:
    """Mutant check: a `Group` that is a column nobody asked for."""
    lines = [
        ",".join([*line.split(",")[:2], *reversed(line.split(",")[2:4]), line.split(",")[4]])
        for line in of_rows(groups=True)
    ]
    found, usual = (
        judge(written(tmp_path, lines, h), Asked("accuracy")) for h in (header, "arm,seed,accuracy,row,group")
    )
    assert found == usual
    assert found.comparisons[0].parts.groups == 20


def test_a_name_in_the_first_line_may_have_what_divides_other_lines(tmp_path: Path) -> None:
    lines = [line.replace(",", ";") for line in GOOD]
    header = 'arm;seed;"accuracy, top 1, of 3"'
    answer = judge(written(tmp_path, lines, header), Asked("accuracy, top 1, of 3"))
    assert answer.comparisons[0].result.verdict == "a_better"


def test_a_seed_is_a_whole_number_however_it_is_written(tmp_path: Path) -> None:
    """1, 1.0 and 01 are one seed, and seeds beyond what a float holds are none the less different ones."""
    lines = ["a,1,0.5", "a,02,0.5", "a,3.0,0.5", "b,1.0,0.7", "b,2.,0.8", "b,+3,0.7"]
    large = [f"{arm},{2**53 + number},{value}" for arm, value in (("a", 0.5), ("b", 0.6)) for number in range(2)]
    (one,) = judge(written(tmp_path, [*lines, *large]), Asked("accuracy")).comparisons
    assert one.result.seeds == (1, 2, 3, 2**53, 2**53 + 1)
    with pytest.raises(ResultsError, match="line 8: arm 'a', seed 1 stands in line 2 too"):
        judge(written(tmp_path, [*lines, "a,1.0,0.5"]), Asked("accuracy"))
    for seed in ("1_0", "1e3", "1.23E+09", "0x1", "nan", "9" * 5000, ""):
        with pytest.raises(ResultsError, match="is no whole number"):
            judge(written(tmp_path, [*lines, f"a,{seed},0.5"]), Asked("accuracy"))


def test_a_number_is_as_people_write_it(tmp_path: Path) -> None:
    """What Python alone reads, and what is too large to be one, is no trial that diverged."""
    for value, words in (("1_0", "is no number"), ("1e400", "is beyond"), ("-1e400", "is beyond")):
        with pytest.raises(ResultsError, match=words):
            judge(written(tmp_path, [*GOOD, f"flat,9,{value}"]), Asked("accuracy"))


def test_labels_that_differ_in_writing_alone_are_named(tmp_path: Path) -> None:
    """They are two arms all the same: nobody but the reader knows."""
    for one, other in (("1", "1.0"), ("big", "Big"), ("big batch", "big  batch"), ("1e-3", "0.001")):
        lines = [f"{arm},{seed},{seed / 10}" for arm in (one, other) for seed in range(6)]
        notes = judge(written(tmp_path, lines), Asked("accuracy")).notes
        assert f"{one!r} and {other!r} are two arms here, though they differ in writing alone." in notes
    assert not any("in writing alone" in note for note in judge(written(tmp_path, GOOD), Asked("accuracy")).notes)


def test_line_ends_of_any_machine_are_read(tmp_path: Path) -> None:
    for end in (b"\r\n", b"\r"):
        path = written(tmp_path, GOOD)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", end))
        assert judge(path, Asked("accuracy")).comparisons[0].result.verdict == "a_better", end


# Which way is better


def test_the_mode_follows_the_metric(tmp_path: Path) -> None:
    """The other way round is said to be that. Mutant check: a default of `max`."""
    values = {"plain": [float(seed) for seed in range(9)], "flat": [seed + 1.0 for seed in range(9)]}
    path = written(tmp_path, lines_of(values), "arm,seed,loss")
    for mode, beaten in ((None, "plain beats flat"), ("min", "plain beats flat"), ("max", "flat beats plain")):
        arguments = [] if mode is None else ["--mode", mode]
        found = json.loads(run("--csv", str(path), "--metric", "loss", "--json", *arguments).stdout)
        assert found["mode"] == (mode or "min")
        assert found["sentence"].startswith(f"{beaten} by 1.0000 loss")
        shown = " ".join(run("--csv", str(path), "--metric", "loss", *arguments).output.split())
        against = "note: loss: higher is better, as --mode max says, though it is usually lower that is better."
        assert (against if mode == "max" else "note: loss: lower is better.") in shown


@pytest.mark.parametrize("mode", [None, "max", "min"])
def test_of_a_metric_that_nobody_knows_the_direction_is_said_to_be_a_guess(tmp_path: Path, mode: Any) -> None:
    answer = judge(written(tmp_path, lines_of(BETTER), "arm,seed,sharpness"), Asked("sharpness", mode))
    way = "lower" if mode == "min" else "higher"
    told = f"as --mode {mode} says" if mode else "as far as anyone has said; if not, give --mode min"
    assert (answer.mode, answer.notes[0]) == (mode or "max", f"sharpness: {way} is better, {told}.")


@pytest.mark.parametrize(
    "name",
    ["loss", "val_loss", "eval/loss", "valLoss", "Loss", "LOSS", "log_loss", "logloss", "train.loss",
     "test loss", "error", "error_rate", "top1_error", "mse", "RMSE", "mae", "mean_squared_error", "perplexity",
     "val_ppl", "wer", "cer", "FID", "fid_score", "brier_score", "latency", "latency_ms", "p99_latency", "time",
     "time_s", "wall_time", "train_seconds", "seconds_per_step", "peak_memory_mb", "nll",
     "negative_log_likelihood", "neg_log_likelihood", "cross_entropy", "ece", "EER", "mape", "1 - accuracy",
     "1-auc", "uniformity", "alignment", "train/loss", "train/infonce"],
)  # fmt: skip
def test_less_is_better_of_what_is_lost_or_spent(name: str) -> None:
    assert usual(name) == "min"


@pytest.mark.parametrize(
    "name",
    ["accuracy", "acc", "val_acc", "Accuracy", "acc@1", "top1_accuracy", "knn_accuracy", "f1", "F1", "macro_f1",
     "f1_score", "auc", "roc_auc", "AUROC", "map", "mAP", "mAP@50", "ndcg", "nDCG@10", "ndcg10", "mrr",
     "recall", "recall@5", "precision", "average_precision", "score", "spearman", "pearson", "r2", "R2", "bleu",
     "rouge", "samples_per_second", "neg_mean_squared_error", "log_likelihood", "reward", "iou", "success_rate"],
)  # fmt: skip
def test_more_is_better_of_what_is_right_or_won(name: str) -> None:
    assert usual(name) == "max"


@pytest.mark.parametrize(
    "name",
    ["sharpness", "value", "x", "", "time_to_accuracy", "accuracy_loss", "accuracy_drop", "negative_accuracy",
     "glossy", "sometimes", "accurate", "temperature", "inverse_error", "layer3"],
)  # fmt: skip
def test_a_name_that_says_nothing_or_two_things_is_not_guessed_from(name: str) -> None:
    """Words count, and not parts of them."""
    assert usual(name) is None


@pytest.mark.parametrize("metric", sorted({*TRAINING_METRICS, *itertools.chain(*METRICS.values())}))
def test_what_the_program_measures_is_better_as_in_a_sweep(metric: str) -> None:
    assert usual(metric) == usual_mode(metric)


GOOD = lines_of(BETTER)


@pytest.mark.parametrize(
    ("header", "lines", "words"),
    [
        ("arm,accuracy", GOOD, "lacks the column 'seed'"),
        ("arm,seed,acc", GOOD, "lacks the column 'accuracy' or 'value': it has 'arm', 'seed', 'acc'"),
        ("arm,seed,accuracy,seed", GOOD, "has a column twice"),
        ("arm,seed, accuracy", GOOD, "blanks around a name"),
        ("arm,seed,accuracy", [], "has no results"),
        ("arm,seed,accuracy", GOOD[:6], "has one arm, 'plain'"),
        (
            "arm,seed,accuracy",
            [*GOOD, "flat,1,0.5"],
            "line 14: arm 'flat', seed 1 stands in line 8 too; if each line is a row",
        ),
        ("arm,seed,accuracy", [*GOOD, "flat,1.5,0.5"], "line 14: seed '1.5' is no whole number"),
        ("arm,seed,accuracy", [*GOOD, "flat,7,good"], "line 14: 'good' is no number"),
        ("arm,seed,accuracy", [*GOOD, "flat,7"], "line 14: it has not as many cells"),
        ("arm,seed,accuracy", [*GOOD, "flat,7,0.5,1"], "line 14: it has not as many cells"),
        ("arm,seed,accuracy", [*GOOD, ",7,0.5"], "line 14: the arm is empty"),
        ("arm,seed,accuracy", [*GOOD, 'flat,7,"0.5'], "is no CSV in UTF-8"),
        ("Arm,ARM,seed,accuracy", GOOD, "has the column 'arm' twice: 'Arm', 'ARM'"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(
    tmp_path: Path, header: str, lines: list[str], words: str
) -> None:
    path = written(tmp_path, lines, header)
    with pytest.raises(ResultsError) as refusal:
        judge(path, Asked("accuracy"))
    assert words in str(refusal.value)
    done = run("--csv", str(path), "--metric", "accuracy")
    assert (done.exit_code, words in done.output.replace("\n", " ")) == (2, True), done.output


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"\x00" * 50, b"arm,seed,accuracy\nplain,1,\xff\n"])
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "results.csv").write_bytes(content)
    with pytest.raises(ResultsError):
        judge(tmp_path / "results.csv", Asked("accuracy"))


def test_it_is_printed_for_people_and_for_programs(tmp_path: Path) -> None:
    path = str(written(tmp_path, lines_of(BETTER)))
    shown = run("--csv", path, "--metric", "accuracy", "--smallest-difference", "0.005")
    assert shown.exit_code == 0, shown.output
    assert "flat beats plain by 0.0175 accuracy" in shown.output
    assert "Nothing is known of a plan" in shown.output
    told = run("--csv", path, "--metric", "accuracy", "--json")
    assert json.loads(told.output)["comparisons"][0]["verdict"] == "a_better"
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.csv"], "nothing is written"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name a RUN, or give --csv FILE"),
        (["--csv", "results.csv"], "--csv needs --metric"),
        (["runs/x", "--csv", "results.csv", "--metric", "a"], "--csv takes no RUN"),
        (["runs/x", "--metric", "a"], "--metric: of --csv alone"),
        (["--csv", "results.csv", "--metric", "a", "--smallest-difference", "-1"], "give a number, 0 or more"),
        (["--csv", "results.csv", "--metric", "a", "--smallest-difference", "nan"], "give a number, 0 or more"),
        (["--csv", "missing.csv", "--metric", "a"], "missing.csv"),
        (["--csv", "results.csv", "--metric", "seed"], "--metric seed: that column says which trial it is"),
        (["--csv", "results.csv", "--metric", "Row"], "--metric Row: that column says which trial it is"),
    ],
)
def test_a_wrong_command_says_what_to_write(arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert done.exit_code in (2, 4)
    assert words in done.output.replace("\n", " ")


# Rows


def of_rows(better: float = 0.3, groups: bool = False) -> list[str]:
    """Right or wrong on 60 rows, some of them easier, and easier to one of the arms, in eight seeds."""
    ease, own = random.Random(1), random.Random(2)
    rows = [(ease.gauss(0, 1), own.gauss(0, 0.6)) for _ in range(60)]
    noise, lines = random.Random(3), []
    for arm in ("base", "new"):
        for seed in range(8):
            for row, (both, one) in enumerate(rows):
                right = both + (one + better) * (arm == "new") + noise.gauss(0, 0.4) > 0
                lines.append(f"{arm},{seed},r{row},{int(right)}" + f",g{row // 3}" * groups)
    return lines


def test_rows_say_what_other_rows_might(tmp_path: Path) -> None:
    """Against the formula; whatever the order of the lines. Mutant check: rows in the order of each trial's lines."""
    lines = of_rows(groups=True)
    first, *others = lines
    random.Random(0).shuffle(others)
    path = written(tmp_path, [first, *others], "arm,seed,row,accuracy,group")
    (one,) = judge(path, Asked("accuracy")).comparisons
    values = {tuple(line.split(",")[:3]): float(line.split(",")[3]) for line in lines}
    matrix = np.array(
        [[values["new", str(s), f"r{r}"] - values["base", str(s), f"r{r}"] for r in range(60)] for s in range(8)]
    )
    known = of_means(matrix.mean(0), np.arange(60) // 3)
    assert known is not None
    assert one.parts.rows == pytest.approx(known.variance)
    assert one.parts.interval == pytest.approx(interval(matrix.mean(1), known, 0.95))
    assert one.parts.judged_rows == 60


def test_a_verdict_on_rows_of_a_file_is_qualified(tmp_path: Path) -> None:
    path = written(tmp_path, of_rows(better=0.5, groups=True), "arm,seed,row,accuracy,group")
    done = run("--csv", str(path), "--metric", "accuracy", "--json")
    found = json.loads(done.stdout)
    (one,) = found["comparisons"]
    assert one["verdict"] == "a_better"
    assert one["interval_rows"][0] < 0 < one["interval_rows"][1]
    assert one["variance"]["groups"] == 20
    assert "on these rows" in found["sentence"]


def test_values_of_whole_trials_say_nothing_of_rows(tmp_path: Path) -> None:
    (one,) = judge(written(tmp_path, lines_of(BETTER)), Asked("accuracy")).comparisons
    assert (one.parts.rows, one.parts.interval) == (None, None)
    assert one.parts.seeds is not None


def test_a_row_has_one_group(tmp_path: Path) -> None:
    lines = ["a,1,x,0,g", "a,1,y,1,", "b,1,x,0,h", "b,1,y,1,"]
    path = written(tmp_path, lines, "arm,seed,row,accuracy,group")
    with pytest.raises(ResultsError, match=r"line 4: row 'x' is of group 'h', and of 'g' in line 2; give it one"):
        judge(path, Asked("accuracy"))


def by_rows(folder: Path, differences: Sequence[float], of_row: Callable[[int], float]) -> Path:
    """A file of 40 rows, on which `new` is above `base` by a seed's difference and what the row adds."""
    lines = [
        f"{arm},{seed},r{row},{0.5 + seed / 100 + ((d + of_row(row)) if arm == 'new' else 0.0)}"
        for arm in ("base", "new")
        for seed, d in enumerate(differences)
        for row in range(40)
    ]
    return written(folder, lines, "arm,seed,row,accuracy")


FAR_OUT = [0.01, 0.012, 0.011, 0.013, 0.009, 0.2]
NEAR = [0.01, 0.012, 0.011, 0.013, 0.009, 0.011]
BY_SEEDS = (
    "On other rows of the same kind one claim may not hold. Not the rows but the spread of the seeds is why: the t "
    "interval by seeds alone has 0 in it."
)


@pytest.mark.parametrize(
    ("differences", "of_row", "sure"),
    [
        (NEAR, lambda _: 0.0, "The intervals for other rows of the same kind leave out 0 as well."),
        (NEAR, lambda row: 0.2 * (-1) ** row, "On other rows of the same kind one claim may not hold."),
        (
            FAR_OUT,
            lambda _: 0.0,
            BY_SEEDS,
        ),
        (
            [-x for x in FAR_OUT],
            lambda row: 0.001 * (-1) ** row,
            BY_SEEDS,
        ),
    ],
)
def test_what_is_said_of_other_rows_is_what_their_interval_says(
    tmp_path: Path, differences: list[float], of_row: Callable[[int], float], sure: str
) -> None:
    """Seen: "leave out 0 as well" beside (-0.038, +0.123), where the rows are not why. Mutant check: that rows are
    why, in place of the interval itself."""
    answer = judge(by_rows(tmp_path, differences, of_row), Asked("accuracy"))
    (one,) = answer.comparisons
    assert one.result.verdict in ("a_better", "b_better")
    assert one.parts.interval is not None
    holds_0 = one.parts.interval[0] <= 0 <= one.parts.interval[1]
    assert holds_0 == (sure[:2] == "On")
    said = next(iter(short_answers(answer, names_of(answer.arms), []))).text
    assert said.endswith(sure)
    assert ("on these rows" in answer.sentence) == holds_0
    assert verdict_of(one, 0.0).endswith("on these rows") == holds_0

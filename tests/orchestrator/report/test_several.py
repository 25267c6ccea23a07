"""`compare` over several runs: each keeps its own verdict, and what is compared across them is what can be compared."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from ledgers import BETTER, TWO, Run, answer_of, finished, start
from rich.console import Console

from orchestrator import report
from orchestrator.cli import main
from orchestrator.ledger import Ledger, sqlite_url
from orchestrator.report.summary import multi_run
from orchestrator.report.summary.compatibility import planned_jobs
from orchestrator.run_dir.folder import RunError
from orchestrator.statistics import holm, sign_flip_p
from orchestrator.statistics.joint import joint_test

SPREAD = [0.000, 0.004, -0.003, 0.002, -0.001, 0.003]
DCL = TWO.replace("flat", "dcl").replace('"dclnce"', '"dcl"')


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs are looked for by name."""
    monkeypatch.setenv("ORCHESTRATOR_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("ORCHESTRATOR_LEDGER", raising=False)
    return tmp_path / "runs"


Ran = Callable[..., Run]


@pytest.fixture
def ran(home: Path) -> Iterator[Ran]:
    """`ran(name, values, arms)` is a run with these metrics; None: nothing has run yet."""
    with contextlib.ExitStack() as stack:

        def _ran(
            name: str,
            values: Mapping[str, Sequence[float]] | None,
            arms: str = TWO,
            *,
            home: Path = home,
            **how: Any,
        ) -> Run:
            run = start(home / name, arms, **how)
            stack.callback(run.ledger.close)
            return finished(run, values) if values else run

        yield _ran


def answered(*runs: Run, names: str = "abc") -> dict[str, Any]:
    summary = multi_run.summarize({name: run.ledger for name, run in zip(names, runs, strict=False)})
    plain: dict[str, Any] = json.loads(json.dumps(summary.to_json(), allow_nan=False))
    return plain


def level(mean: float, *, n: int = 6, factor: float = 1.0) -> list[float]:
    return [mean + factor * x for x in itertools.islice(itertools.cycle(SPREAD), n)]


OTHER = {"plain": [x + 0.001 for x in BETTER["plain"]], "dcl": [x + 0.02 for x in BETTER["plain"]]}
"""Metrics of a second run."""


def test_each_run_keeps_its_verdict_and_all_arms_share_one_table(ran: Ran) -> None:
    """Mutant checks: judging the first run's contrast again, or Holm over each run by itself, fails this."""
    slower = DCL.replace('"plain"\n', '"plain"\n"optimizer.lr" = 2e-3\n')
    one = ran("a", BETTER)
    two = ran("b", OTHER, slower, question="Is dcl better?")
    found = answered(one, two)
    assert found["runs"] == [{"name": "a", **answer_of(one.ledger)}, {"name": "b", **answer_of(two.ledger)}]
    assert found["question"] == "Is flat better? Is dcl better?"
    assert [arm["label"] for arm in found["arms"]] == ["a: plain", "a: flat", "b: plain", "b: dcl"]
    assert [(arm["run"], arm["arm"]) for arm in found["arms"]][-1] == ("b", "dcl")
    assert [(one["a"], one["b"]) for one in found["comparisons"]] == [("b: plain", "a: plain"), ("b: dcl", "a: plain")]
    d = [np.subtract(OTHER[arm], BETTER["plain"]) for arm in ("plain", "dcl")]
    assert [one["delta"] for one in found["comparisons"]] == pytest.approx([x.mean() for x in d])
    assert [one["p_holm"] for one in found["comparisons"]] == holm([sign_flip_p(x) for x in d])
    assert [one["p_adjusted"] for one in found["comparisons"]] == [one.p for one in joint_test(np.transpose(d), 0.04)]
    assert [one["verdict"] for one in found["comparisons"]] == ["equivalent", "a_better"], "Holm would double 2^-5"
    assert found["sentence"].startswith("Across runs, exploratory: b: plain and a: plain are equivalent")
    assert found["notes"] == [multi_run.EXPLORATORY], "six seeds reach 2^-5, below 0.04"


def test_an_arm_that_is_the_baseline_again_is_no_contrast_and_is_held_to_agree(ran: Ran) -> None:
    """So it costs the new question nothing. Mutant check: counting it as a contrast."""
    again = {"plain": BETTER["plain"], "dcl": OTHER["dcl"]}
    one = ran("a", BETTER)
    two = ran("b", again, DCL)
    found = answered(one, two)
    (only,) = found["comparisons"]
    assert (only["a"], only["p_holm"], only["verdict"]) == ("b: dcl", 1 / 32, "a_better")
    agree = {"identical": True, "n": 6, "largest_difference": 0.0, "agree": True, "diverged_alone": []}
    assert found["execution_only"] == [{"a": "b: plain", "b": "a: plain", **agree}]
    three = ran("c", OTHER | {"plain": level(0.95)}, DCL)
    one = ran("d", BETTER)
    found = answered(one, three)
    assert any(note.startswith("b: plain and a: plain are the same job and should agree") for note in found["notes"])


def test_runs_that_only_repeat_the_baseline_leave_nothing_to_compare(ran: Ran, tmp_path: Path) -> None:
    arms = '[[arm]]\nlabel = "plain"\n[[arm]]\nlabel = "micro"\n"execution.micro" = 32\n'
    values = {"plain": BETTER["plain"], "micro": BETTER["plain"]}
    one = ran("a", values, arms)
    two = ran("b", values, arms)
    found = report.write_several({"a": one.ledger, "b": two.ledger}, tmp_path / "out")
    assert (found.comparisons, found.complete) == ([], True)
    assert found.sentence.startswith("Across runs there is nothing to compare")
    assert len(found.execution_only) == 6


# Seeds


def test_a_contrast_pairs_the_seeds_that_both_runs_planned_and_says_what_it_drops(ran: Ran) -> None:
    """Mutant check: asking for all seeds of the first run makes every contrast inconclusive."""
    dcl = {"plain": level(0.9, n=9), "dcl": level(0.95, n=9, factor=1.01)}
    one = ran("a", {arm: level(0.9, n=8) for arm in BETTER}, seeds=8)
    two = ran("b", dcl, DCL, seeds=[2, 3, 4, 5, 6, 7, 20, 21, 22])
    found = answered(one, two)
    (only,) = found["comparisons"]
    assert [each["seed"] for each in only["differences"]] == [2, 3, 4, 5, 6, 7]
    assert (only["complete"], only["verdict"]) == (True, "a_better")
    how = "compared on those that both have (2-7), without 0, 1, 20-22."
    assert found["notes"][1] == f"a and b planned different confirm seeds: {how}"


@pytest.mark.parametrize("ended", [True, False])
def test_a_common_seed_that_is_lost_is_left_out_and_one_to_come_is_waited_for(ran: Ran, ended: bool) -> None:
    """Across runs there is no plan that a lost seed could break. Mutant check: taking the seeds at hand either way."""
    dcl = level(0.95, n=8)
    one = ran("a", {arm: level(0.9, n=8) for arm in BETTER}, seeds=8)
    two = ran("b", None, DCL, seeds=8)
    for k, (plain, other) in enumerate(zip(two.confirm("plain"), two.confirm("dcl"), strict=True)):
        two.done(plain, 0.9 + SPREAD[k % 6])
        if k != 3:
            two.done(other, dcl[k])
        elif ended:
            two.lost(other)
    found = answered(one, two)
    (only,) = found["comparisons"]
    verdict = "a_better" if ended else "inconclusive"
    assert (only["n"], only["complete"], only["verdict"], found["complete"]) == (7, ended, verdict, ended)
    how = "lost seed 3: compared on the others" if ended else "lacks seed 3, which is still to come: inconclusive"
    assert f"b: dcl against a: plain {how}." in found["notes"]
    assert ("Not complete: " in found["sentence"]) != ended


MORE = DCL + '[[arm]]\nlabel = "warm"\n"loss.temperature" = 0.2\n'


@pytest.mark.parametrize("ended", [0, 4, 7])
def test_nothing_is_claimed_across_runs_while_a_seed_that_both_planned_is_to_come(ran: Ran, ended: int) -> None:
    """Seen: in 67 of 600 sweeps an arm was better while the other run was under way, and inconclusive at its end.
    Mutant check: no `pending` here."""
    one = ran("a", {arm: level(0.9, n=8) for arm in BETTER}, seeds=8)
    two = ran("b", None, MORE, seeds=8)
    for k in range(8):
        two.done(two.confirm("plain")[k], level(0.9, n=8)[k])
        two.done(two.confirm("dcl")[k], level(0.95, n=8)[k])
    warm = two.confirm("warm")
    for k, trial in enumerate(warm):
        if k == ended:
            found = answered(one, two)
            assert [c["verdict"] for c in found["comparisons"]] == ["inconclusive"] * 2
            assert [c["complete"] for c in found["comparisons"]] == [True, False]
            assert multi_run.WAITING in found["notes"]
            assert found["runs"][1]["comparisons"][0]["verdict"] == "inconclusive", "nor in the run itself"
        two.done(trial, level(0.9, n=8, factor=-3)[k])
    found = answered(one, two)
    assert [c["verdict"] for c in found["comparisons"]] == ["a_better", "inconclusive"]
    assert multi_run.WAITING not in found["notes"]


@pytest.mark.parametrize("what", ["stopped", "looks"])
def test_a_common_seed_that_is_not_trained_any_more_is_not_waited_for(ran: Ran, what: str) -> None:
    """An arm that is stopped, or that ended at a look, leaves planned seeds for good. Mutant check: every planned seed
    without a result is still to come."""
    looks: Any = {"overrides": ("confirm.seeds={looks=[7,10,14]}",)} if what == "looks" else {"seeds": 14}
    one = ran("a", {arm: level(0.9, n=14) for arm in BETTER}, seeds=14)
    two = ran("b", None, MORE, **looks)
    for arm, mean in (("plain", 0.9), ("dcl", 0.99), ("warm", 0.7)):
        for k, trial in enumerate(two.confirm(arm)):
            if what == "stopped" and arm == "warm":
                two.lost(trial, "no such thing") if k < 3 else None
            elif what == "stopped" or k < 7:
                two.done(trial, level(mean, n=14)[k])
    found = answered(one, two)
    n, lost = (14, 0) if what == "stopped" else (7, 7)
    assert [(c["n"], c["verdict"]) for c in found["comparisons"]] == [(n, "a_better"), (lost, OF_WARM[what])]
    assert multi_run.WAITING not in found["notes"]
    said = "seed 3-13 has no result in both: there is nothing to compare" if what == "stopped" else "seed 7-13 has no"
    assert any(f"b: warm against a: plain: {said}" in note for note in found["notes"])


OF_WARM = {"stopped": "inconclusive", "looks": "b_better"}

REPEATED = '[tune]\ntrials = 2\nrepeats = 6\nspace = { "optimizer.lr" = { low = 1e-4, high = 1e-2 } }'


@pytest.mark.parametrize("other", [REPEATED, REPEATED.replace("6", "12"), ""])
def test_a_repeat_of_a_tuning_is_one_pair_across_runs_too(ran: Ran, other: str) -> None:
    """Seen: 24 pairs of six repeats, and p = 1.2e-7. What shares a setting in one run is no pair of its own, whatever
    the other has. Mutant check: pairing seeds."""
    seeds = list(range(12, 36))
    values = {"plain": level(0.9, n=24), "flat": level(0.91, n=24)}
    one = ran("a", values, tune=REPEATED, seeds=seeds)
    values = {"plain": level(0.92, n=24, factor=1.5), "dcl": level(0.93, n=24, factor=-1)}
    two = ran("b", values, DCL, tune=other, seeds=seeds)
    found = answered(one, two)
    assert (found["unit"], found["smallest_p"]) == ("repeat", 2**-5)
    assert {compared["n"] for compared in found["comparisons"]} == {6}
    d = np.subtract(values["dcl"], level(0.9, n=24))
    shown = [each["value"] for each in found["comparisons"][-1]["differences"]]
    assert shown == pytest.approx([d[k::6].mean() for k in range(6)])
    assert any(note.startswith("a and b have repeats" if other else "a has repeats of") for note in found["notes"])


def test_a_repeat_that_two_runs_share_in_part_is_left_out(ran: Ran) -> None:
    """And one of a seed that is lost. Mutant check: the mean of what is left of it."""
    one = ran("a", {"plain": level(0.9, n=14), "flat": level(0.91, n=14)}, tune=REPEATED.replace("6", "7"), seeds=14)
    two = ran("b", None, DCL, seeds=list(range(7, 20)))
    for k, (plain, other) in enumerate(zip(two.confirm("plain"), two.confirm("dcl"), strict=True)):
        two.done(plain, level(0.9, n=13)[k])
        two.lost(other) if k == 2 else two.done(other, level(0.95, n=13)[k])
    found = answered(one, two)
    assert [trial.seed for trial in one.ledger.trials("confirm")][:14] == list(range(7, 21))
    assert [each["seed"] for each in found["comparisons"][-1]["differences"]] == [7, 8, 10, 11, 12]
    assert (
        "a and b planned different confirm seeds: compared on those that both have (7-12, 14-19), without 13, 20."
        in (found["notes"])
    )
    assert "b: dcl against a: plain lost seed 9: compared on the others." in found["notes"]


@pytest.mark.parametrize("seeds", [[5, 6, 7], [9, 10]])
def test_fewer_than_two_common_seeds_are_inconclusive_and_noted(ran: Ran, tmp_path: Path, seeds: list[int]) -> None:
    dcl = {"plain": level(0.9, n=len(seeds)), "dcl": level(0.95, n=len(seeds))}
    one = ran("a", BETTER)
    two = ran("b", dcl, DCL, seeds=seeds)
    found = report.write_several({"a": one.ledger, "b": two.ledger}, tmp_path / "out")
    assert {one.result.verdict for one in found.comparisons} == {"inconclusive"}
    assert found.notes[1].endswith("It takes two or more, so b is inconclusive here.")
    assert (tmp_path / "out" / "report.html").exists()


# What can be compared


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"mode": "min"}, "metric.mode is max in a, min in b"),
        ({"overrides": ("metric.name=alignment",)}, "metric.name is knn_accuracy in a, alignment in b"),
        ({"overrides": ("job.data.confirm=digits[:99]",)}, "job.data.confirm is digits in a, digits[:99] in b"),
        ({"overrides": ("job.evaluate.neighbours=5",)}, "job.evaluate.neighbours is 20 in a, 5 in b"),
        ({"overrides": ("job.evaluate.head=true",)}, "job.evaluate.head is false in a, true in b"),
    ],
)
def test_arms_that_are_not_judged_alike_are_refused_with_what_differs(
    ran: Ran, how: dict[str, Any], words: str
) -> None:
    one = ran("a", None)
    two = ran("b", None, **how)
    with pytest.raises(RunError) as refused:
        answered(one, two)
    assert words in str(refused.value)
    assert str(refused.value).endswith("or one run alone for its own verdict")


def test_a_training_loss_is_refused_across_losses_and_temperatures(ran: Ran) -> None:
    """As within a sweep: its scale is another. Mutant check: judging by the metric's name alone fails this."""
    arms = '[[arm]]\nlabel = "plain"\n[[arm]]\nlabel = "wide"\n"model.width" = 128\n'
    loss = ("metric.name=train/loss",)
    one = ran("a", None, arms, overrides=loss)
    same = ran("b", None, arms, overrides=loss)
    assert answered(one, same)["metric"] == "train/loss"
    other = (*loss, "job.loss.temperature=0.2")
    two = ran("c", None, arms, overrides=other)
    with pytest.raises(RunError, match=r"job.loss.temperature is 0.1 in a, 0.2 in b"):
        answered(one, two)


def test_a_run_cannot_be_compared_with_itself(ran: Ran) -> None:
    one = ran("a", None)
    with pytest.raises(RunError, match="a and b are the same run"):
        answered(one, one)


def test_the_largest_difference_that_matters_counts_and_is_noted(ran: Ran) -> None:
    near = {"plain": BETTER["plain"], "dcl": [x + 0.008 for x in BETTER["plain"]]}
    one = ran("a", BETTER)
    two = ran("b", near, DCL, smallest=0.02)
    found = answered(one, two)
    assert (found["smallest_difference"], found["comparisons"][0]["verdict"]) == (0.02, "equivalent")
    assert "(0.005 in a, 0.02 in b); here it is the largest." in found["notes"][1]


def test_what_the_runs_do_not_have_in_common_is_noted(ran: Ran) -> None:
    """Three runs, so that those that agree are named together."""
    newer = {"commit": "aaaaaaa", "packages": {"torch": "2.14"}, "cpus": 64}
    one = ran("a", None, environment={"cpus": 2})
    two = ran("b", None, environment={"cpus": 2})
    three = ran("c", None, environment=newer, overrides=("job.execution.ranks=2",))
    notes = answered(one, two, three)["notes"]
    differ = [note for note in notes if note.startswith("The runs differ in ")]
    assert [note.removeprefix("The runs differ in ") for note in differ] == [
        "commit, so what changed between them may be the difference: commit is 3f2c9ab in a and b, aaaaaaa in c.",
        "versions, so rounding, and with it results, may differ: torch is 2.13 in a and b, 2.14 in c.",
        "hardware, so times and memory do not compare: cpus is 2 in a and b, 64 in c.",
        "execution, so times and memory do not compare: ranks is 1 in a and b, 2 in c.",
    ]


def test_changes_to_the_same_commit_are_noted_and_where_a_command_was_given_is_not(ran: Ran) -> None:
    """Mutant check: as hardware, which everything was that had no title."""
    clean = {"commit": "3f2c9ab", "dirty": False, "version": "0.1.0", "command": "a", "directory": "/a"}
    changed = clean | {"dirty": True, "diff": "submitted.diff, sha256 1f", "command": "b", "directory": "/b"}
    one = ran("a", None, environment=clean | {"submitted": False})
    two = ran("b", None, environment=changed | {"submitted": True})
    differ = [note for note in answered(one, two)["notes"] if note.startswith("The runs differ in ")]
    head, _, facts = " ".join(differ).partition(": ")
    assert head == "The runs differ in commit, so what changed between them may be the difference"
    assert facts == "dirty is false in a, true in b; diff is none in a, submitted.diff, sha256 1f in b."


def test_pairs_are_checked_by_hash_across_runs_too(ran: Ran) -> None:
    one = ran("a", BETTER)
    two = ran("b", None, DCL)
    for trial in two.confirm("dcl"):
        two.done(trial, 0.9, hashes={"order": "x", "data": "y"})
    found = answered(one, two)
    shared = {one["a"]: one["shared"] for one in found["comparisons"]}
    assert shared["b: dcl"] == {"data": False, "order": False, "init": True, "encoder": True}
    assert "b: dcl and a: plain did not see the same data: a difference may be the data's." in found["notes"]
    assert any(note.startswith("b: dcl against a: plain is not a paired comparison") for note in found["notes"])


# Names


@pytest.mark.parametrize(
    ("places", "shown"),
    [
        (["runs/a", "s3://bucket/p/b?scheme=http"], ["a", "b"]),
        (["runs/a/", "elsewhere/a"], ["a-000000", "a-111111"]),
        (["s3://bucket/a", "a", "b"], ["a-000000", "a-111111", "b"]),
    ],
)
def test_runs_have_short_names_and_all_are_different(
    ran: Ran, monkeypatch: pytest.MonkeyPatch, places: list[str], shown: list[str]
) -> None:
    ledgers = [ran(str(k), None).ledger for k in range(len(places))]
    for digit, ledger in zip("0123", ledgers, strict=False):
        monkeypatch.setattr(ledger, "uuid", digit * 32)
    assert list(multi_run.names(places, ledgers)) == shown
    same: list[Ledger] = [ledgers[0], ledgers[0]]
    assert len(multi_run.names(["runs/a", "runs/a"], same)) == 2, "refused later, and named in the refusal"


def test_the_name_of_a_folder_is_short_and_tells_many_runs_apart() -> None:
    assert multi_run.folder_name(["a", "b"]) == "a+b"
    many = [f"a-rather-long-name-{k}" for k in range(20)]
    one, other = multi_run.folder_name(many), multi_run.folder_name([*many[:-1], "x"])
    assert one != other
    assert len(one) < 128


# Files


def test_the_data_file_has_the_rows_of_all_runs_in_one_schema(ran: Ran, tmp_path: Path) -> None:
    """A key that is constant in each run and differs between them is a column; what one run lacks is null; whole and
    broken numbers become double. Mutant check: joining the runs' own tables leaves out batch.size, and fails this."""
    clip = DCL + '"optimizer.clip" = 1.0\n'
    one = ran("a", BETTER)
    two = ran("b", OTHER, clip, overrides=("job.batch.size=128",))
    report.write_several({"a": one.ledger, "b": two.ledger}, tmp_path / "out")
    uuids = [one.ledger.uuid, two.ledger.uuid]
    table = pq.read_table(tmp_path / "out" / "results.parquet")
    rows = table.to_pylist()
    assert [(row["name"], row["run"]) for row in rows[::12]] == [("a", uuids[0]), ("b", uuids[1])]
    assert len(rows) == 24
    assert [row["job.batch.size"] for row in rows] == [256] * 12 + [128] * 12
    assert [row["job.optimizer.clip"] for row in rows] == [None] * 18 + [1.0] * 6
    assert table.schema.field("job.optimizer.clip").type == pa.float64()
    assert json.loads(table.schema.metadata[b"runs"]) == dict(zip("ab", uuids, strict=True))


def test_the_page_tells_each_plan_s_verdict_first_and_that_the_rest_is_exploratory(ran: Ran, tmp_path: Path) -> None:
    one = ran("a", BETTER)
    two = ran("b", OTHER, DCL, question="Is dcl better?")
    found = report.write_several({"a": one.ledger, "b": two.ledger}, tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text("utf-8")
    said = [*(f"{name}: {run.sentence}" for name, run in found.runs.items()), found.sentence, multi_run.EXPLORATORY]
    parts = [*said, "Each run by its own plan", "All arms", "Across runs</h2>", "What ran", "Run it again", "The data"]
    assert [html.index(part) for part in parts] == sorted(html.index(part) for part in parts)
    assert html.count("orchestrator launch demo.toml") == 3
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        *("report.html", "report.md", "results.parquet", "differences.png", "curves.png", "cost.png")
    }
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report.table_of_several(found))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("a: flat beats plain")


# The command


def invoked(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["compare", *arguments])


def test_compare_takes_several_runs_and_writes_beside_them(ran: Ran, home: Path, tmp_path: Path) -> None:
    ran("a", BETTER)
    ran("b", OTHER, DCL)
    done = invoked("a", str(home / "b"), "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert {"question", "metric", "arms", "comparisons", "runs", "notes"} <= found.keys()
    assert (home / "compared" / "a+b" / "report.html").exists()
    assert not (home / "a" / "report").exists(), "the report of each run is its own command's"
    done = invoked("a", "b", "--into", str(tmp_path / "there"))
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1] == f"report: {tmp_path / 'there' / 'report.html'}"
    done = invoked("a", "--json")
    assert done.exit_code == 0, done.output
    assert "runs" not in json.loads(done.stdout)
    assert (home / "a" / "report" / "report.html").exists()


def test_compare_ends_with_2_where_runs_or_folders_cannot_be_what_was_asked(ran: Ran, home: Path) -> None:
    ran("a", None)
    ran("b", None, mode="min")
    for arguments, words in (
        (("a", "b"), "metric.mode is max in a, min in b"),
        (("a", "a"), "are the same run"),
        (("a", "c"), "there is no run 'c'"),
        (("a", "--into", "x"), "--into is for several runs"),
        (("a", "b", "--into", "s3://bucket/x"), "takes a folder"),
        ((), "name a RUN, or give --csv FILE"),
    ):
        done = invoked(*arguments)
        assert (done.exit_code, words in done.output) == (2, True), done.output
    assert not (home / "compared").exists()


def test_runs_in_buckets_are_compared_on_this_machine(
    ran: Ran, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder stands for the bucket: what differs between stores is in test_remote."""
    monkeypatch.setenv("ORCHESTRATOR_LEDGER", sqlite_url(tmp_path / "shared.db"))
    monkeypatch.setenv("ORCHESTRATOR_SCRATCH", str(tmp_path / "scratch"))
    bucket = tmp_path / "bucket"
    for name, values, arms in (("a", BETTER, TWO), ("b", OTHER, DCL)):
        ran(name, values, arms, home=bucket, database=sqlite_url(tmp_path / "shared.db"))
    done = invoked((bucket / "a").as_uri(), (bucket / "b").as_uri(), "--json")
    assert done.exit_code == 0, done.output
    assert [run["name"] for run in json.loads(done.stdout)["runs"]] == ["a", "b"]
    assert (home / "compared" / "a+b" / "report.html").exists()
    assert not (bucket / "a" / "report").exists()


def test_a_value_by_a_key_s_former_name_is_the_same_value() -> None:
    """Of a run begun before it had the name of today. Mutant check: runs of two versions would differ in both keys."""
    job = {"task": "image", "budget": {"steps": 1}, "data": {"train": "digits", "confirm": "digits"}}
    sweeps: list[Any] = [
        {"job": job | {"batch": {"size": 64}}, "plan": {"arms": [{"settings": {f"batch.{key}": 8}}, {"settings": {}}]}}
        for key in ("pool", "negatives_group")
    ]
    before, today = map(planned_jobs, sweeps)
    assert before == today
    assert [job["batch.negatives_group"] for job in today] == [8, None]

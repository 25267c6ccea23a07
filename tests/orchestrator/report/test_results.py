"""results.parquet: every value is the ledger's, and every column is documented where a reader sees it."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ledgers import BETTER, Begin, Written

from orchestrator import report, sweep
from orchestrator.report import parquet
from orchestrator.report.parquet import COLUMNS
from orchestrator.run_dir.folder import RunFolder
from orchestrator.run_dir.status import status
from orchestrator.statistics import compare


def test_every_value_is_one_of_the_ledgers_rows(written: Written) -> None:
    """Mutant check: any two columns of costs exchanged, or one of them in other units, fails this."""
    (run,) = written.rows("runs")
    trials = sorted(written.rows("trials"), key=lambda row: row["position"])
    rows = pq.read_table(written.folder / "results.parquet").to_pylist()
    assert len(rows) == len(trials)
    for row, trial in zip(rows, trials, strict=True):
        result = trial["result"] or {}
        hashes = result.get("hashes", {})
        job = sweep.flatten(trial["job"])
        same = ("stage", "arm", "seed", "state", "outcome", "attempts", "failure", "message", "metric", "step")
        costs = ("samples", "seconds", "samples_per_second", "peak_memory_mb", "negatives_per_anchor")
        assert {key: row.pop(key) for key in same} == {key: trial[key] for key in same}
        assert {key: row.pop(key) for key in costs} == {key: result.get(key) for key in costs}
        assert (row.pop("name"), row.pop("run"), row.pop("trial")) == ("demo", run["uuid"], trial["id"])
        assert (row.pop("suggestion"), row.pop("mlflow_run_id")) == (trial["number"], trial["mlflow_run_id"])
        assert row.pop("untrained") == result.get("untrained", {}).get("knn_accuracy")
        assert json.loads(row.pop("job")) == trial["job"]
        assert json.loads(row.pop("reading") or "null") == result.get("reading")
        for key in ("data", "order", "init", "encoder"):
            assert row.pop(f"{key}_hash") == hashes.get(key)
        for key in ("created", "started", "ended"):
            assert row.pop(key).timestamp() == pytest.approx(trial[key], abs=1e-5)
        assert row == {
            **{f"metric.{key}": trial["metrics"].get(key) for key in ("alignment", "knn_accuracy")},
            **{f"job.{key}": job[key] for key in ("loss.name", "optimizer.lr")},
        }, "and no other column"


def test_the_verdict_follows_from_the_file_alone(written: Written) -> None:
    rows = [row for row in pq.read_table(written.folder / "results.parquet").to_pylist() if row["stage"] == "confirm"]
    recomputed = compare(
        {arm: {row["seed"]: row["metric"] for row in rows if row["arm"] == arm} for arm in BETTER},
        [("flat", "plain")],
        seeds=written.answer["seeds"],
        smallest_difference=0.005,
    )[0]
    (one,) = written.answer["comparisons"]
    assert (recomputed.delta, recomputed.p_holm, recomputed.verdict) == (one["delta"], one["p_holm"], one["verdict"])


def test_columns_have_documented_types_also_before_anything_ran(begin: Begin, tmp_path: Path) -> None:
    report.write(begin().ledger, tmp_path / "report")
    schema = pq.read_schema(tmp_path / "report" / "results.parquet")
    for name, (kind, what) in COLUMNS.items():
        assert schema.field(name).type == kind
        assert schema.field(name).metadata[b"description"] == what.encode()


def test_the_report_lists_every_column_of_the_file_with_type_and_meaning(written: Written) -> None:
    """Mutant check: listing COLUMNS alone leaves out the metrics and the keys of jobs, and fails this."""
    schema = pq.read_schema(written.folder / "results.parquet")
    listed = written.read("report.md").rpartition("| column | type | meaning |")[2].strip().splitlines()[1:]
    assert listed == [f"| {name} | {kind} | {what} |" for name, kind, what in parquet.columns(schema)]
    assert [line.split(" | ")[0].strip("| ") for line in listed] == schema.names
    assert f"<summary>Its {len(schema)} columns</summary>" in written.read("report.html")


def test_what_diverged_in_a_run_of_before_has_no_metric_anywhere(tmp_path: Path) -> None:
    """There the ledger has that of its untrained encoder. Seen: in results.parquet and in `status --json`."""
    shutil.copytree(Path(__file__).parents[2] / "begun" / "diverged", tmp_path / "diverged")
    with contextlib.closing(RunFolder(tmp_path / "diverged").open()) as ledger:
        fallen = {trial.id: trial.metric for trial in ledger.trials() if trial.outcome == "diverged"}
        rows = {row["trial"]: row for row in parquet.table({"diverged": ledger}).to_pylist()}
        states = {trial["id"]: trial for trial in status(ledger)["trials"]}
    assert fallen
    assert None not in fallen.values()
    for trial, row in rows.items():
        values = [row["metric"], states[trial]["metric"], row["metric.knn_accuracy"]]
        assert [value is None for value in values] == [trial in fallen] * 3
        assert row["untrained"] is not None
        named = [value for key, value in row.items() if key.startswith("metric.")]
        assert (set(named) == {None}) == (trial in fallen)

"""A sweep by nDCG@10 from the command line: a job alone, a run to its verdict, what is kept of queries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from judges import QRELS, beir
from real import call

SWEEP = """
name = "search"
question = "Does a sharper temperature find more?"
metric = { name = "ndcg_at_10", smallest_difference = 0.05 }
[job]
task = "sentence"
budget = { steps = 6 }
data = { train = "train.csv", tune = "birds:dev", confirm = "birds", max_tokens = 16 }
evaluate = { judge = "retrieval", judge_options = { recall_at = [1, 3] }, times = 2 }
model = { name = "bert", width = 16, layers = 1, heads = 2, vocabulary = 120, projection = "none" }
batch = { size = 8 }
execution = { ranks = 2 }
[compare]
"loss.temperature" = [0.1, 0.5]
[tune]
trials = 2
defaults = [{ "optimizer.lr" = 1e-3 }]
[tune.space]
"optimizer.lr" = { low = 1e-4, high = 1e-2, log = true }
[confirm]
seeds = 2
"""

JOB = """
task = "sentence"
budget = { steps = 3 }
data = { train = "train.csv", confirm = "birds:test", max_tokens = 16 }
evaluate = { judge = "retrieval" }
model = { name = "bert", width = 16, layers = 1, heads = 2, vocabulary = 120, projection = "none" }
batch = { size = 8 }
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A corpus, and questions to train on."""
    beir(tmp_path / "birds")
    words = ["sparrow", "swift", "bread", "river", "oven", "boat"]
    rows = [
        f"what is a {one} to a {two},a {two} has a {one} number {at}" for at, one in enumerate(words) for two in words
    ]
    (tmp_path / "train.csv").write_text("\n".join(["anchor,positive", *rows]))
    (tmp_path / "sweep.toml").write_text(SWEEP)
    (tmp_path / "job.toml").write_text(JOB)
    return tmp_path


@pytest.mark.soak
def test_a_job_alone_is_judged_by_search(home: Path) -> None:
    command = [sys.executable, "-m", "jobs.train", "job.toml", "--into", "trial"]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((home / "trial" / "result.json").read_text())
    assert 0 <= result["metrics"]["ndcg_at_10"] <= 1
    kept = pq.read_table(home / "trial" / "rows.parquet")
    assert sorted(kept["row"].to_pylist()) == sorted(QRELS["test"])
    assert kept["metric.ndcg_at_10"].null_count == 0


@pytest.mark.soak
def test_a_sweep_by_ndcg_comes_to_its_verdict(home: Path) -> None:
    """On two ranks, tuned on one split and confirmed on another; the answer has an interval over queries."""
    assert "[8/8]" in call("launch", "sweep.toml", "--offline", cwd=home)
    answer = json.loads(call("compare", "runs/search", "--json", cwd=home))
    assert answer["metric"] == "ndcg_at_10"
    assert answer["mode"] == "max"
    (comparison,) = answer["comparisons"]
    assert comparison["verdict"]
    assert "interval_rows" in comparison
    assert all(0 <= value <= 1 for arm in answer["arms"] for value in [arm["mean"]])

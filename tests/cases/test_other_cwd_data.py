"""`resume` from another folder found no data, failed three trials, and gave `UnserializableException` as the reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from real import SWEEP, call, driver, status, wait_for

from jobs.core.plain import visible

pytestmark = pytest.mark.slow


@pytest.mark.soak
def test_relative_data_are_those_of_the_folder_where_the_run_began(tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "größer \u202e", tmp_path / "elsewhere"
    (home / "dätä").mkdir(parents=True)
    elsewhere.mkdir()
    rng = np.random.default_rng(0)
    images = [row.tobytes() for row in rng.integers(0, 256, (300, 64), dtype=np.uint8)]
    columns = {"image": pa.array(images, pa.binary(64)), "label": pa.array([k % 3 for k in range(300)])}
    pq.write_table(pa.table(columns), home / "dätä" / "zü ge.parquet")
    toml = SWEEP[: SWEEP.index("[tune]")] + SWEEP[SWEEP.index("[confirm]") :]
    toml = toml.replace("digits", "dätä/zü ge.parquet").replace("ranks = 2", "ranks = 1").replace("[:300]", "[:150]")
    toml = toml.replace("[300:400]", "[150:200]").replace("[400:500]", "[200:]").replace("steps = 8", "steps = 200")
    (home / "sweep.toml").write_text(toml)
    run = str(home / "runs" / "small")
    with driver("launch", "sweep.toml", "--offline", cwd=home) as process:
        wait_for(lambda: (Path(run) / "sweep.json").exists() and status(elsewhere, run)["counts"]["done"] >= 1)
        process.terminate()
        process.communicate(timeout=60)
    before = status(elsewhere, run)["counts"]
    assert before["done"] < 6

    (home / "dätä").rename(home / "moved")
    said = call("resume", run, "--offline", cwd=elsewhere, code=2)
    assert "dätä/zü ge.parquet" in said
    assert visible(str(home)) in said
    assert "Unserializable" not in said
    assert status(elsewhere, run)["counts"]["failed"] == 0
    (home / "moved").rename(home / "dätä")

    call("resume", run, "--offline", cwd=elsewhere)
    stood = json.loads(call("status", run, "--json", cwd=elsewhere))
    assert (stood["state"], stood["counts"]["done"]) == ("done", 6)

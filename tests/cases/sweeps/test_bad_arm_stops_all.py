"""One arm that could not be allocated stopped the healthy ones, after three of its failures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from real import SWEEP, call

pytestmark = pytest.mark.slow


@pytest.mark.soak
def test_the_other_arms_finish(tmp_path: Path) -> None:
    toml = SWEEP[: SWEEP.index("[tune]")] + SWEEP[SWEEP.index("[confirm]") :]
    toml = toml.replace('"loss.name" = ["infonce", "flatnce"]', '"model.width" = [8, 200000, 12]')
    toml = toml.replace("seeds = 3", "seeds = 5").replace("ranks = 2", "ranks = 1").replace("width = 8\n", "")
    (tmp_path / "sweep.toml").write_text(toml)
    said = call("launch", "sweep.toml", "--offline", cwd=tmp_path, code=1)
    stood = json.loads(call("status", "small", "--json", cwd=tmp_path))
    of_arm = {
        arm: [trial["state"] for trial in stood["trials"] if trial["arm"] == arm]
        for arm in ("width=8", "width=200000", "width=12")
    }
    assert of_arm["width=8"] == of_arm["width=12"] == ["done"] * 5
    assert sorted(of_arm["width=200000"]) == ["failed"] * 3 + ["queued"] * 2
    assert {trial["failure"] for trial in stood["trials"] if trial["state"] == "failed"} == {"out_of_memory"}
    log = (tmp_path / "runs" / "small" / "driver.log").read_text(errors="replace")
    assert "arm width=200000 is stopped, as its trials fail in the same way" in log, said
    answer = json.loads(call("compare", "small", "--json", cwd=tmp_path))
    verdicts = {one["a"]: (one["verdict"], one["n"]) for one in answer["comparisons"]}
    assert verdicts["width=200000"] == ("inconclusive", 0)
    assert verdicts["width=12"][1] == 5

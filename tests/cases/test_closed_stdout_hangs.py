"""`launch | head -5` hung for ever, holding machines and lease: rich ended the writer thread by SystemExit."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from real import QUICK, SWEEP, call, command

pytestmark = pytest.mark.slow

SMALL = SWEEP.replace("ranks = 2", "ranks = 1").replace("seeds = 3", "seeds = 2")


@pytest.mark.soak
def test_a_reader_that_leaves_after_five_lines_costs_the_sweep_nothing(tmp_path: Path) -> None:
    """Through a shell, whose exit code is then the driver's own."""
    (tmp_path / "sweep.toml").write_text(SMALL)
    launch = " ".join(command("launch", "sweep.toml", "--offline"))
    script = f"set -o pipefail; ({launch}; echo driver ended with $? >&2) | head -5"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
        env=QUICK | os.environ,
    )  # fmt: skip
    assert "driver ended with 0" in done.stderr
    assert len(done.stdout.splitlines()) == 5
    stood = json.loads(call("status", "small", "--json", cwd=tmp_path))
    assert (stood["state"], stood["counts"]["done"], stood["driver"]) == ("done", 8, None)
    log = (tmp_path / "runs" / "small" / "driver.log").read_text()
    assert "[8/8]" in log, "what nobody reads is in the log"

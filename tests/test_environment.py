import json
from pathlib import Path

import pytest

from orchestrator.environment import environment


def test_what_is_recorded_can_be_run_again_and_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    monkeypatch.setenv("ORCHESTRATOR_LEDGER", "postgresql://me:hunter2@db/ledger")
    found = environment(Path("sweeps/quickstart.toml"), Path("runs/quickstart"))
    assert found["command"] == "orchestrator launch sweeps/quickstart.toml --into runs/quickstart"
    assert found["packages"]["torch"]
    assert found["cpus"] >= 1
    assert "hunter2" not in json.dumps(found)

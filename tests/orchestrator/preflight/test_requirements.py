"""What a session needs is asked once, before it, and read by all that need it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from real import SWEEP, Server, call

from orchestrator.ledger import sqlite_url

SMALLEST = SWEEP.partition("[tune]")[0] + "[confirm]\nseeds = 2\n"


@pytest.fixture
def mlflow(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "mlflow").mkdir()
    server = Server(tmp_path / "mlflow")
    server.start()
    yield server
    server.kill()


def health_requests(server: Server) -> int:
    """As the server itself has logged them."""
    return server.log.read_text().count("GET /health")


@pytest.mark.soak
def test_a_launch_asks_mlflow_once_whether_it_is_there(mlflow: Server, tmp_path: Path) -> None:
    """Seen: twice, and three times for a run in a bucket, as this one."""
    (tmp_path / "sweep.toml").write_text(SMALLEST)
    before = health_requests(mlflow)
    assert before, "the server logs who asks, or this test would be vacuous"
    env = {"MLFLOW_TRACKING_URI": mlflow.uri, "ORCHESTRATOR_LEDGER": sqlite_url(tmp_path / "ledger.db")}
    env["ORCHESTRATOR_SCRATCH"] = str(tmp_path / "scratch")
    call("launch", "sweep.toml", "--into", f"file://{tmp_path}/bucket/small", cwd=tmp_path, env=env)
    assert health_requests(mlflow) - before == 1

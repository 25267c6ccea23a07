"""The manual's page of Python, and an interrupt, in a real kernel."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real import LONG, QUICK, wait_for

from orchestrator import open_run
from orchestrator.run_dir.folder import RunError

nbclient = pytest.importorskip("nbclient", reason="nbclient and ipykernel are not installed: make .venv/optional")
pytest.importorskip("ipykernel", reason="nbclient and ipykernel are not installed: make .venv/optional")

PAGE = Path(__file__).parents[3] / "docs" / "python.md"
CELLS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)

CHECK = """
import os, signal, sys, threading
heavy = {"torch", "ray", "optuna", "mlflow"} & sys.modules.keys()
print("heavy", sorted(heavy))
print("handler", signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the kernel runs."""
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    for name in ("ORCHESTRATOR_LEDGER", "ORCHESTRATOR_RUNS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    return tmp_path


@contextlib.contextmanager
def kernel(folder: Path) -> Iterator[Any]:
    """A client of a kernel of this Python, and ended with it."""
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(folder))
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=60)
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()


def answered(client: Any, asked: str) -> dict[str, Any]:
    """The kernel's answer to a request."""
    while True:
        reply = client.get_shell_msg(timeout=120)
        if reply["parent_header"].get("msg_id") == asked:
            content: dict[str, Any] = reply["content"]
            return content


@pytest.mark.slow
def test_the_page_runs_in_a_notebook_which_shows_lines_a_table_and_the_run(folder: Path) -> None:
    import nbformat

    assert len(CELLS) == 3
    v4: Any = nbformat.v4
    notebook = v4.new_notebook(cells=[v4.new_code_cell(cell) for cell in [*CELLS, CHECK]])
    client = nbclient.NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    launched, answered, opened, checked = (cell["outputs"] for cell in notebook.cells)
    printed = "".join(output["text"] for output in launched)
    assert {output["name"] for output in launched} == {"stdout"}
    assert "Does FlatNCE beat InfoNCE on digits?\n2 arms" in printed
    assert "[4/4] confirm" in printed
    assert "\x1b" not in printed, "a kernel says that it has colours"
    assert "flatnce against infonce is" in answered[0]["text"]
    assert {"infonce", "flatnce"} <= set(answered[1]["data"]["text/plain"].split())
    assert "<th>question</th><td>Does FlatNCE beat InfoNCE on digits?</td>" in opened[0]["data"]["text/html"]
    assert "heavy []" in checked[0]["text"]
    assert "handler True" in checked[0]["text"]


@pytest.mark.soak
@pytest.mark.slow
def test_an_interrupt_of_the_kernel_stops_in_good_order_and_a_restart_leaves_a_driver_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(folder)
    (folder / "sweep.toml").write_text(LONG)
    request.addfinalizer(lambda: (folder / "runs").exists() and open_run(folder / "runs" / "small").stop())

    def trained() -> bool:
        with contextlib.suppress(RunError):
            return bool(open_run("small").status()["counts"]["running"])
        return False

    with kernel(folder) as (manager, client):
        asked = client.execute("from orchestrator import launch, open_run\nlaunch('sweep.toml', offline=True)")
        wait_for(trained, what="a trial")
        manager.interrupt_kernel()
        assert answered(client, asked)["ename"] == "KeyboardInterrupt"
        stood = open_run("small").status()
        assert (stood["driver"], stood["counts"]["failed"], stood["state"]) == (None, 0, "stopped")
        client.execute("run = open_run('small').resume(offline=True, wait=False)")
        wait_for(trained, what="a trial")
    assert open_run("small").is_running, "the kernel is gone"

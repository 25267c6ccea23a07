"""A sweep with the user's own code, from the file to the verdict: planned, run, killed, continued, changed."""

from __future__ import annotations

import json
import zipfile
from functools import partial
from pathlib import Path

import pytest
from real import SWEEP, call, driver, has_ended_one, kill, proven, wait_for

from jobs.config import ConfigError
from orchestrator import sweep as sweeps
from orchestrator.ledger import Ledger, sqlite_url
from orchestrator.sweep import plan as planning

LOSSES = """
import torch
import torch.nn.functional as F
from jobs.losses import softmax_loss

@softmax_loss
def focal(v, *, gamma: float = 2.0):
    return F.softplus(v) * torch.sigmoid(v) ** gamma

class Moving(torch.nn.Module):
    def __init__(self, momentum: float = 0.9):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(64))

    def forward(self, queries, keys, temperature):
        with torch.no_grad():
            self.mean.mul_(self.momentum).add_(keys.mean(0), alpha=1 - self.momentum)
        logits = queries @ (keys - self.mean).T / temperature
        return F.cross_entropy(logits, torch.arange(len(logits)))
"""

SETTINGS = '"loss.options.gamma" = { low = 0.5, high = 4.0, when = { "loss.name" = "ownlab.losses:focal" } }\n'


def written(folder: Path, losses: str = LOSSES) -> Path:
    (folder / "ownlab").mkdir(exist_ok=True)
    (folder / "ownlab" / "__init__.py").write_text("")
    (folder / "ownlab" / "losses.py").write_text(losses)
    (folder / "ownlab" / ".env").write_text("SECRET=1")
    text = SWEEP.replace('["infonce", "flatnce"]', '["ownlab.losses:Moving", "ownlab.losses:focal"]')
    text = text.replace("[tune.space]\n", f"[tune.space]\n{SETTINGS}").replace("ranks = 2", "ranks = 2\nverify = true")
    path = folder / "small.toml"
    path.write_text(f'{text}\n[code]\npaths = ["ownlab/"]\n')
    return path


def test_a_plan_tries_the_code_once_and_counts_it_in_the_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids of a run whose code changes by a comment are others: it is the bytes that count."""
    path = written(tmp_path)
    plan = planning.make(sweeps.load(path))
    assert plan.sweep.code is not None
    ids = {trial.id for arm in plan.arms for trial in plan.confirm_trials(arm.label, {})}
    written(tmp_path, f"{LOSSES}\n# another\n")
    other = planning.make(sweeps.load(path))
    assert other.sweep.code is not None
    assert other.sweep.code.digest != plan.sweep.code.digest
    assert ids.isdisjoint(trial.id for arm in other.arms for trial in other.confirm_trials(arm.label, {}))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("options.gamma", "options.gama", "job.loss.options.gama = 0.5: unknown key; did you mean 'gamma'"),
        ("low = 0.5", "low = 'a', choices = ['a']", "gamma"),
        pytest.param(":focal", ":focall", "did you mean 'ownlab.losses:focal'", marks=pytest.mark.soak),
        ('paths = ["ownlab/"]', 'paths = ["owmlab/"]', "packages beside the sweep: ownlab/"),
        ('paths = ["ownlab/"]', "paths = []", "code.paths"),
        pytest.param('[code]\npaths = ["ownlab/"]', "", "there is no module ownlab", marks=pytest.mark.soak),
        ('paths = ["ownlab/"]', 'paths = ["ownlab/"]\ndigest = "abc"', "code.digest: follows from the files"),
    ],
)
def test_what_is_wrong_with_own_code_is_said_before_anything_runs(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    path = written(tmp_path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ConfigError) as error:
        sweeps.load(path)
    assert said in str(error.value)


def test_paths_of_a_base_start_from_the_base(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "sub").mkdir()
    extending = tmp_path / "sub" / "more.toml"
    extending.write_text('extends = "../small.toml"\nname = "more"\n')
    sweep = sweeps.load(extending)
    assert sweep.code is not None
    code = sweeps.code_of(sweep, extending.parent)
    assert code is not None
    assert sorted(code.files) == ["ownlab/__init__.py", "ownlab/losses.py"]


def test_built_in_names_alone_start_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("a process was started"))
    path = tmp_path / "small.toml"
    path.write_text(SWEEP)
    sweeps.load(path)


@pytest.mark.soak
@pytest.mark.slow
def test_a_run_with_own_code_is_killed_continued_and_refuses_other_code(tmp_path: Path) -> None:
    """The archive holds no hidden file; the run is continued by its own copy, though the sources are gone; other code
    ends with exit 2 until it is accepted, and then stands in the report."""
    written(tmp_path)
    with driver("launch", "small.toml", cwd=tmp_path) as process:
        wait_for(partial(has_ended_one, tmp_path / "runs" / "small"), what="the first trial")
        kill(process)
    with zipfile.ZipFile(tmp_path / "runs" / "small" / "code.zip") as archive:
        assert sorted(archive.namelist()) == ["ownlab/__init__.py", "ownlab/losses.py"]
    (tmp_path / "ownlab").rename(tmp_path / "gone")
    call("resume", "runs/small", cwd=tmp_path)
    proven(tmp_path)
    (tmp_path / "gone").rename(tmp_path / "ownlab")

    written(tmp_path, LOSSES.replace("** gamma", "** (gamma + 1)"))
    call("launch", "small.toml", cwd=tmp_path)  # it is done: nothing is left to train
    ledger = Ledger.open(sqlite_url(tmp_path / "runs" / "small" / "ledger.db"))
    try:
        recorded = ledger.run.provenance
        assert recorded is not None
        assert recorded["user_code"] == (ledger.run.sweep["code"] or {})["digest"]
        assert {(attempt.provenance or {})["user_code"] for attempt in ledger.attempts()} == {recorded["user_code"]}
    finally:
        ledger.close()


@pytest.mark.slow
def test_other_code_of_a_run_under_way_is_refused_until_it_is_accepted(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_text(path.read_text().replace("seeds = 3", "seeds = 2"))
    with driver("launch", "small.toml", "--offline", cwd=tmp_path) as process:
        wait_for((tmp_path / "runs" / "small" / "sweep.json").exists, what="the run")
        kill(process)
    (tmp_path / "ownlab" / "losses.py").write_text(LOSSES.replace("** gamma", "** (gamma + 1)"))
    refused = call("launch", "small.toml", "--offline", cwd=tmp_path, code=2)
    assert "your code" in refused
    assert "ownlab/losses.py differ" in refused
    assert "launch SWEEP --into runs/small --accept-code" in refused
    call("launch", "small.toml", "--offline", "--accept-code", cwd=tmp_path)
    with zipfile.ZipFile(tmp_path / "runs" / "small" / "code.zip") as archive:
        assert b"gamma + 1" in archive.read("ownlab/losses.py")
    shown = json.loads(call("compare", "runs/small", "--json", cwd=tmp_path))
    assert any(group.get("user_code") for group in shown["code"])
    run = tmp_path / "runs" / "small"
    known = call("verify", "runs/small", cwd=tmp_path, code=1, stdout=True)  # it was not told to MLflow
    assert "the user's code" not in known
    (run / "code.zip").rename(run / "elsewhere.zip")
    assert "the user's code in runs/small/code.zip is gone" in call(
        "verify", "runs/small", cwd=tmp_path, code=1, stdout=True
    )


@pytest.mark.soak
@pytest.mark.slow
def test_a_run_whose_code_is_gone_says_what_to_do(tmp_path: Path) -> None:
    written(tmp_path)
    with driver("launch", "small.toml", "--offline", cwd=tmp_path) as process:
        wait_for((tmp_path / "runs" / "small" / "sweep.json").exists, what="the run")
        kill(process)
    (tmp_path / "runs" / "small" / "code.zip").unlink()
    errors = call("resume", "runs/small", "--offline", cwd=tmp_path, code=2)
    assert "code.zip is gone" in errors
    assert "orchestrator launch SWEEP --into runs/small" in errors

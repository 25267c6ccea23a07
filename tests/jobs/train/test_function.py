"""A training loop of the user's own: its points, its files, its end, on one rank and on several."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ownloop
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist

from jobs.artifacts import rows
from jobs.artifacts.trial_dir import Result
from jobs.config import JobConfig
from jobs.train.components import examined
from jobs.train.function import FunctionTraining


def job(name: str = "main", **sections: Any) -> JobConfig:
    return JobConfig.model_validate(
        {
            "task": f"ownloop:{name}",
            "options": {"lr": 0.5},
            "budget": {"steps": 12},
            "data": {"train": "digits[:300]", "confirm": "digits[300:400]"},
        }
        | sections
    )


def begun(config: JobConfig, folder: Path, **given: Any) -> FunctionTraining:
    return FunctionTraining(config, folder, log=lambda _: None, **given)


def ended(training: FunctionTraining) -> Result:
    while training.result is None:
        training.advance(1)
    return training.result


def test_its_last_reports_are_the_trials_metrics(tmp_path: Path) -> None:
    training = begun(job(), tmp_path)
    result = ended(training)
    curve = [point.value for point in training.points if point.key == "accuracy"]
    assert len(curve) == 12
    assert result["metrics"] == {"accuracy": curve[-1], "begun_after": 0}
    assert (result["outcome"], result["step"]) == ("ok", 12)
    kept = rows.decode((tmp_path / rows.NAME).read_bytes(), "accuracy")
    assert kept is not None
    assert kept.rows == 100
    assert kept.value == pytest.approx(curve[-1])
    assert result["rows"] == rows.sha256((tmp_path / rows.NAME).read_bytes())
    again = begun(job(), tmp_path)  # it has ended: nothing runs
    assert again.result is not None
    assert again.points == training.points


@pytest.mark.soak
def test_a_stop_keeps_its_files_and_the_next_attempt_goes_on_to_the_same(tmp_path: Path) -> None:
    """The points of what is done twice are those of the first time. Mutant check: a folder of its own for each attempt
    fails."""
    slow = job(budget={"steps": 60}, options={"lr": 0.5, "pause_s": 0.05})
    whole = ended(begun(slow, tmp_path / "whole"))
    stopped = begun(slow, tmp_path / "parts")
    while not any(point.step >= 3 for point in stopped.points):
        stopped.advance(1)
    stopped.save()
    assert stopped.result is None, "it ended before it was stopped, so this test would be vacuous"
    reached = stopped.step
    continued = begun(slow, tmp_path / "parts")
    result = ended(continued)
    steps = [point.step for point in continued.points if point.key == "accuracy"]
    assert steps == list(range(1, 61))
    assert result["metrics"]["accuracy"] == whole["metrics"]["accuracy"]
    assert result["metrics"]["begun_after"] == reached


def test_should_stop_is_a_value_and_a_call(tmp_path: Path) -> None:
    training = begun(job("waits"), tmp_path)
    training.advance(1)
    training.save()
    assert training.result is None
    assert training.context.should_stop
    assert training.context.should_stop()
    before = len(training.points)
    training.advance(1)
    assert len(training.points) == before


def on_ranks(folder: Path, rank: int) -> Any:
    training = begun(job(execution={"ranks": dist.get_world_size()}), folder, group=dist.group.WORLD)
    result = ended(training)
    return result["metrics"], len(training.points)


@pytest.mark.few(1)
@pytest.mark.parametrize("world", [2, 3])
def test_every_rank_runs_it_and_the_group_is_its_own(spawn_ranks: Any, tmp_path: Path, world: int) -> None:
    """The function sums gradients over ranks while the ranks agree on its end."""
    results = spawn_ranks(world, partial(on_ranks, tmp_path))
    assert len({json.dumps(metrics) for metrics, _ in results}) == 1
    assert results[0][1] == 25  # two each step, and the one of step 0


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [("fails", LookupError, "as it does"), ("leaves", RuntimeError, "ended by SystemExit: 3")],
)
def test_what_it_raises_is_raised(tmp_path: Path, name: str, error: type[Exception], words: str) -> None:
    training = begun(job(name), tmp_path)
    with pytest.raises(error, match=words):
        ended(training)


def test_what_it_raises_while_it_is_asked_whether_it_lives_is_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen: an error that came between two looks was committed as a result. Its last reports are on disk by then."""
    training = begun(job("fails_late"), tmp_path)
    keep = training._keep

    def until_it_ends() -> None:
        training._thread.join()
        keep()

    monkeypatch.setattr(training, "_keep", until_it_ends)
    with pytest.raises(LookupError, match="late"):
        ended(training)
    assert not (tmp_path / "result.json").exists()


def test_rows_are_kept_in_one_file_whatever_their_metric_is_called(tmp_path: Path) -> None:
    """With groups, and ids as they come. The newest of a metric stand. Mutant check: the first of them."""
    training = begun(job("waits"), tmp_path / "trial")
    context: Any = training.context
    context.rows("a/../b", np.arange(3), torch.tensor([1.0, 0.0, 0.0]))
    context.rows("a/../b", np.arange(3), [True, True, False])
    training.context.rows("speed", ["x", 2, None], [0.5, 1.5, 2.5], groups=[None, 7, np.int64(7)])
    training.save()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trial"]
    table = pq.read_table(tmp_path / "trial" / rows.NAME).to_pydict()
    assert table == {
        "row": ["0", "1", "2", "x", "None"],
        "group": [None, None, 7, None, 7],
        "metric.a/../b": [True, True, False, None, None],
        "metric.speed": [None, None, 1.5, 0.5, 2.5],
    }


def test_rows_that_say_nothing_are_a_remark_and_end_no_training(tmp_path: Path) -> None:
    """A version before took them. Mutant check: raising for them."""
    training = begun(job("waits"), tmp_path)
    training.context.rows("m", [], [])
    training.context.rows("m", [1, 1], [0.5, 0.6])
    assert len(training.remarks) == 2
    assert "the id 1 is there twice" in training.remarks[1]
    training.save()
    assert not (tmp_path / rows.NAME).exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("", [1], [0.5]), "the name is that of a metric; give a word"),
        (("m", [1, 2], [0.5]), "2 ids and 1 values; give one value for each row"),
        (("m", [1, 2], [0.5, 0.6], ["g"]), "2 ids and 1 groups; give each row one, or None"),
    ],
)
def test_rows_that_are_none_are_refused(tmp_path: Path, given: tuple[Any, ...], words: str) -> None:
    training = begun(job("waits"), tmp_path)
    with pytest.raises(ValueError, match=re.escape(words)):
        training.context.rows(*given)
    training.save()
    assert not (tmp_path / rows.NAME).exists()


def test_rows_outlast_a_kill_after_the_functions_last_step(tmp_path: Path) -> None:
    """The next attempt may have nothing left to do. Mutant check: a file that is not read back."""
    first = begun(job("keeps_once"), tmp_path)
    while not (first.context.checkpoint_dir / "done").exists():
        first.advance(1)
    first.save()
    assert first.result is None
    before = (tmp_path / rows.NAME).read_bytes()
    result = ended(begun(job("keeps_once"), tmp_path))
    assert (tmp_path / rows.NAME).read_bytes() == before
    assert result["rows"] == rows.sha256(before)


def test_rows_that_are_damaged_are_set_aside(tmp_path: Path) -> None:
    tmp_path.joinpath(rows.NAME).write_bytes(b"PAR1")
    training = begun(job(), tmp_path)
    assert any("rows.parquet is damaged" in remark for remark in training.remarks)
    assert ended(training)["rows"]
    assert (tmp_path / f"{rows.NAME}.bad-1").read_bytes() == b"PAR1"


@pytest.mark.parametrize("text", ["", "[", "{}", "[1, null]"])
def test_a_damaged_list_of_its_files_is_told_and_no_end(tmp_path: Path, text: str) -> None:
    (tmp_path / "own.json").write_text(text)
    assert ended(begun(job(), tmp_path))["outcome"] == "ok"


def test_what_is_not_finite_has_diverged(tmp_path: Path) -> None:
    result = ended(begun(job("diverges"), tmp_path))
    assert result["outcome"] == "diverged"
    assert result["metrics"] == {}
    assert begun(job("diverges"), tmp_path).result is not None


@pytest.mark.parametrize("step", [-1, 1.5, True])
def test_a_step_that_is_none_is_refused(tmp_path: Path, step: Any) -> None:
    training = begun(job("waits"), tmp_path)
    with pytest.raises(TypeError, match=r"step = .*give a whole number"):
        training.context.report({"accuracy": 0.5}, step)
    training.save()


NO_NUMBERS: list[Any] = [
    "text",
    "0.5",
    b"1",
    bytearray(b"1"),
    memoryview(b"1"),
    np.array("0.5"),
    None,
    [0.5],
    {},
    10**400,
]


@pytest.mark.parametrize("value", [*NO_NUMBERS, torch.zeros(2), np.zeros(3), "x" * 10_000])
def test_a_value_that_is_no_number_is_refused(tmp_path: Path, value: Any) -> None:
    """And nothing is recorded. Mutant check: float alone takes "0.5", and ends a list by TypeError."""
    training = begun(job("waits"), tmp_path)
    with pytest.raises(ValueError, match=r"^accuracy is .*; it must be one number$") as refusal:
        training.context.report({"loss": 1.0, "accuracy": value}, 5000)
    assert len(str(refusal.value)) < 200
    training.save()
    assert all(point.step < 5000 for point in training.points)


def test_its_signature_is_looked_at_first() -> None:
    whole = job().model_dump(mode="json") | {"task": "ownloop:takes_one"}
    found = examined("task", "ownloop:takes_one", {}, whole)["faults"]
    assert any("def main(config, context)" in fault[2] or "neither in [code]" in fault[2] for fault in found)


@pytest.mark.parametrize("value", [None, "0.5", [1]])
def test_a_row_s_value_that_is_no_number_is_refused(tmp_path: Path, value: Any) -> None:
    training = begun(job("waits"), tmp_path)
    with pytest.raises(ValueError, match=r"^rows\('accuracy'\): r2 is .*; it must be one number$"):
        training.context.rows("accuracy", ["r1", "r2"], [0.5, value])
    training.save()
    assert not (tmp_path / rows.NAME).exists()


@pytest.mark.parametrize("value", [np.array([0.25]), np.array(0.25), torch.tensor([[0.25]]), np.float32(0.25), True])
def test_one_number_is_a_number_in_whatever_it_comes(tmp_path: Path, value: Any) -> None:
    training = begun(job("waits"), tmp_path)
    training.context.report({"loss": value}, 5000)
    training.save()
    assert [point.value for point in training.points if point.step == 5000] == [1.0 if value is True else 0.25]


def test_what_was_reported_is_on_disk_before_the_function_can_write_a_checkpoint_of_it(tmp_path: Path) -> None:
    """Seen: a kill after the last step's checkpoint and before the next look at what was reported. The loop had nothing
    left to do, so the trial's metric was that of an earlier step. Mutant check: writing it when it is looked at."""
    training = begun(job("waits"), tmp_path)
    training.context.report({"accuracy": 0.75}, 5000)
    points = [json.loads(line) for line in (tmp_path / "points.jsonl").read_text().splitlines()]
    assert [point["value"] for point in points if point["step"] == 5000] == [0.75]
    training.save()


def test_tensors_and_numpy_are_numbers(tmp_path: Path) -> None:
    training = begun(job("waits"), tmp_path)
    training.context.report({"loss": torch.tensor(0.25)}, 5000)  # type: ignore[dict-item]
    training.save()
    assert training.points[-1].value == 0.25 or any(point.value == 0.25 for point in training.points)


@pytest.mark.parametrize("folders", [["one"], pytest.param(["one", "two", "two"], marks=pytest.mark.soak)])
def test_it_runs_without_ray_under_torchrun_and_ends_in_order(tmp_path: Path, folders: list[str]) -> None:
    """In the soak twice, and a third time finds the result. Seen: a group that outlived the default one aborted one
    process in five at its end."""
    support = str(Path(ownloop.__file__).parent)
    (tmp_path / "job.toml").write_text(
        'task = "ownloop:main"\nbudget = { steps = 6 }\noptions = { lr = 0.5 }\n'
        'data = { train = "digits[:200]", confirm = "digits[200:300]" }\n'
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "127.0.0.1:0", "--no-python", sys.executable, "-m", "jobs.train", "job.toml"]
    env = os.environ | {"PYTHONPATH": support, "OMP_NUM_THREADS": "1"}
    for folder in folders:
        done = subprocess.run(
            [*command, "--into", folder], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    results = [json.loads((tmp_path / name / "result.json").read_text())["metrics"] for name in folders]
    assert all(result == results[0] for result in results)

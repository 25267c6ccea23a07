"""A task of the user's own under our scheduler: tuned, confirmed, killed and resumed, judged by its own metric."""

from __future__ import annotations

from pathlib import Path

import pytest
import tasklab
from real import call, killed_and_whole, numbers

from jobs.config import ConfigError
from orchestrator import sweep as sweeps
from orchestrator.sweep import plan as planning

SWEEP = """
name = "task"
question = "Which temperature?"
metric = { name = "nearest", mode = "max", smallest_difference = 0.01 }
[code]
paths = ["tasklab.py"]
[job]
task = "tasklab:Tabular"
options = { noise = 0.2 }
data = { train = "digits[:600]", tune = "digits[600:800]", confirm = "digits[800:1000]" }
budget = { steps = 40 }
batch = { size = 32 }
model = { name = "tasklab:MLP" }
execution = { ranks = 2, micro = 5, verify = true }
[compare]
"loss.temperature" = [0.05, 0.2]
[tune]
trials = 2
[tune.space]
"options.noise" = { low = 0.1, high = 0.5 }
[confirm]
seeds = 2
"""


def written(folder: Path, text: str = SWEEP) -> Path:
    (folder / "tasklab.py").write_text(Path(tasklab.__file__).read_text())
    (folder / "task.toml").write_text(text)
    return folder / "task.toml"


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (', mode = "max"', "", "metric.mode: is missing"),
        ("tasklab:Tabular", "tasklab:Tabula", "did you mean 'tasklab:Tabular'"),
        ("tasklab:Tabular", "tasklab:Blind", "has no method evaluate(encode, rows)"),
        ("{ noise = 0.2 }", "{ nose = 0.2 }", "its options: noise"),
        ("tasklab:MLP", "vitt", "is no encoder for rows"),
    ],
)
def test_what_a_task_needs_is_said_before_anything_runs(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in SWEEP
    with pytest.raises(ConfigError) as error:
        sweeps.load(written(tmp_path, SWEEP.replace(old, new)))
    assert words in str(error.value)


def test_its_plan_is_one_of_pairs_and_may_prune(tmp_path: Path) -> None:
    """It is trained by our step, unlike a loop."""
    made = planning.make(sweeps.load(written(tmp_path, SWEEP.replace("trials = 2", 'trials = 2\nprune = "halving"'))))
    assert made.trials == {"tune": 4, "confirm": 4}
    assert not any("training loop of your own" in warning for warning in made.warnings)


@pytest.mark.soak
@pytest.mark.slow
def test_a_task_is_tuned_confirmed_killed_and_resumed_to_the_same_numbers(tmp_path: Path) -> None:
    killed, whole = map(numbers, killed_and_whole(tmp_path, written))
    assert killed == whole
    assert all(0.2 < number <= 1 for arm in whole for number in arm)


@pytest.mark.soak
@pytest.mark.slow
def test_what_is_wrong_with_its_rows_ends_the_launch_before_anything_is_made(tmp_path: Path) -> None:
    written(tmp_path, SWEEP.replace("Tabular", "Unkeyed"))
    text = call("launch", "task.toml", "--offline", cwd=tmp_path, code=2)
    assert "draw random numbers from seed, step, pairs and view alone" in text
    assert not (tmp_path / "runs" / "task").exists()

"""A training loop of the user's own under our scheduler: tuned, confirmed, killed and resumed, and one of a library."""

from __future__ import annotations

import json
import random
from pathlib import Path

import ownloop
import pytest
import sentencelab
from real import call, driver, kill, killed_and_whole, numbers, wait_for

from jobs.config import ConfigError
from orchestrator import sweep as sweeps

SWEEP = """
name = "loop"
question = "Does the budget matter?"
metric = { name = "accuracy", mode = "max", smallest_difference = 0.01 }
[code]
paths = ["ownloop.py"]
[job]
task = "ownloop:main"
data = { train = "digits[:600]", tune = "digits[600:800]", confirm = "digits[800:1000]" }
budget = { steps = 40 }
options = { lr = 0.1 }
execution = { ranks = 2 }
[compare]
"budget.steps" = [20, 40]
[tune]
trials = 2
[tune.space]
"options.lr" = { low = 0.01, high = 2.0, log = true }
[confirm]
seeds = 2
"""


def written(folder: Path, text: str = SWEEP) -> Path:
    (folder / "ownloop.py").write_text(Path(ownloop.__file__).read_text())
    (folder / "loop.toml").write_text(text)
    return folder / "loop.toml"


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (', mode = "max"', "", "metric.mode: is missing"),
        ("trials = 2", 'trials = 2\nprune = "halving"', "prune = 'none'"),
        ("ownloop:main", "ownloop:takes_one", "write def main(config, context)"),
        ("ownloop:main", "ownloop:mainn", "did you mean 'ownloop:main'"),
    ],
)
def test_what_a_loop_needs_is_said_before_anything_runs(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in SWEEP
    with pytest.raises(ConfigError) as error:
        sweeps.load(written(tmp_path, SWEEP.replace(old, new)))
    assert said in str(error.value)


@pytest.mark.soak
@pytest.mark.slow
def test_a_loop_is_tuned_confirmed_killed_and_resumed_to_the_same_numbers(tmp_path: Path) -> None:
    """Its driver is killed in the middle. Mutant check: a checkpoint_dir that is new for each attempt fails."""
    answers = killed_and_whole(tmp_path, written)
    killed, whole = map(numbers, answers)
    assert killed == whole
    assert all(0.3 < number <= 1 for arm in whole for number in arm)
    assert any("a training loop of your own" in note for note in answers[0]["notes"])


@pytest.mark.slow
def test_a_loop_that_raises_fails_its_trials_and_says_where(tmp_path: Path) -> None:
    text = SWEEP.replace("ownloop:main", "ownloop:fails").partition("[tune]")[0] + "[confirm]\nseeds = 2\n"
    written(tmp_path, text)
    errors = call("launch", "loop.toml", "--offline", cwd=tmp_path, code=1)
    assert "as it does" in errors + (tmp_path / "runs" / "loop" / "driver.log").read_text()
    status = json.loads(call("status", "runs/loop", "--json", cwd=tmp_path))
    assert {trial["failure"] for trial in status["trials"] if trial["state"] == "failed"} == {"user_error"}


LIBRARY = """
name = "trainer"
question = "Which learning rate for the trainer of a library?"
metric = { name = "spearman", mode = "max", smallest_difference = 0.01 }
[code]
paths = ["sentencelab.py"]
[job]
task = "sentencelab:main"
data = { train = "train.tsv", tune = "judged.tsv[:20]", confirm = "judged.tsv[20:]" }
budget = { steps = 16 }
options = { lr = 0.001 }
[compare]
"budget.steps" = [8, 16]
[tune]
trials = 2
[tune.space]
"options.lr" = { low = 1e-4, high = 1e-2, log = true }
[confirm]
seeds = 2
"""

WORDS = ("red", "green", "blue", "big", "small", "old", "new", "cat", "dog", "tree", "car", "house")


@pytest.mark.soak
@pytest.mark.slow
def test_a_trainer_of_sentence_transformers_is_a_task(tmp_path: Path) -> None:
    """Tuned, confirmed, its driver killed, resumed from the trainer's own checkpoints, proven."""
    pytest.importorskip("datasets", reason="pip install -e '.[trainer]'")
    pytest.importorskip("accelerate", reason="pip install -e '.[trainer]'")
    draw = random.Random(0)
    drawn = [draw.sample(WORDS, 3) for _ in range(64)]
    pairs = [f"the {a} {b} by a {c}\t{b} that is {a} near {c}" for a, b, c in drawn]
    judged = [f"the {a} {b}\tthe {a} {(b, c)[n % 2]}\t{5 - 4 * (n % 2)}" for n, (a, b, c) in enumerate(drawn[:40])]
    (tmp_path / "train.tsv").write_text("\n".join(["anchor\tpositive", *pairs]) + "\n")
    (tmp_path / "judged.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *judged]) + "\n")
    (tmp_path / "sentencelab.py").write_text(Path(sentencelab.__file__).read_text())
    (tmp_path / "trainer.toml").write_text(LIBRARY)
    env = {"HF_HUB_OFFLINE": "1"}
    with driver("launch", "trainer.toml", cwd=tmp_path, env=env) as process:
        run = tmp_path / "runs" / "trainer"
        wait_for(lambda: any(run.glob("trials/*/own/checkpoint-*")), what="a checkpoint of the trainer")
        kill(process)
    call("resume", "runs/trainer", cwd=tmp_path, env=env)
    assert "verify: ok, 8 trials" in call("verify", "runs/trainer", cwd=tmp_path)
    answer = json.loads(call("compare", "runs/trainer", "--json", cwd=tmp_path))
    assert all(-1 <= row["value"] <= 1 for arm in answer["arms"] for row in arm["values"])

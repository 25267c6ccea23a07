"""`python -m jobs.train`, as a person runs it: by itself, under torchrun, and stopped in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]

JOB = """
task = "image"
budget = { steps = STEPS }
[data]
train = "digits[:300]"
confirm = "digits[300:400]"
[model]
name = "resnet"
width = 8
layers = 1
precision = "fp64"
[batch]
size = 16
[evaluate]
times = 2
probe = false
references = 300
[execution]
checkpoint_every = 1000
"""


def write(folder: Path, steps: int) -> Path:
    path = folder / "job.toml"
    path.write_text(JOB.replace("STEPS", str(steps)))
    return path


def run(*command: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=200
    )


def metrics(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())["metrics"]
    return {key: value for key, value in found.items() if key not in ("samples_per_second", "peak_memory_mb")}


@pytest.mark.soak
def test_torchrun_on_two_ranks_gives_the_result_of_one_process(tmp_path: Path) -> None:
    job = write(tmp_path, steps=4)
    one = run("-m", "jobs.train", str(job), "--into", str(tmp_path / "one"))
    assert one.returncode == 0, one.stderr
    assert json.loads(one.stdout[one.stdout.index("{") :])["outcome"] == "ok"
    two = run(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "jobs.train", str(job), "--into", str(tmp_path / "two"),
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    assert metrics(tmp_path / "two") == pytest.approx(metrics(tmp_path / "one"), rel=1e-9)


LOADED = """
import runpy, sys
sys.argv[1:] = ["job.toml", "--into", "one"]
runpy.run_module("jobs.train", run_name="__main__")
print("LOADED", *sorted({name.partition(".")[0] for name in sys.modules} | {"torch._dynamo"} & {*sys.modules}))
"""


def test_an_image_job_with_a_resnet_loads_neither_transformers_nor_torchs_compiler(tmp_path: Path) -> None:
    """Without a probe no scikit-learn either. Seen: what the other encoders ask for was looked up whenever one was
    built, which imports them: three seconds of processor time in every rank."""
    write(tmp_path, steps=1)
    done = run("-c", f"import os; os.chdir({str(tmp_path)!r})\n{LOADED}")
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.rpartition("LOADED")[2].split()
    assert "torch" in loaded
    assert {"transformers", "accelerate", "sklearn", "scipy", "pandas", "torch._dynamo", "sympy"} & {*loaded} == set()


@pytest.mark.soak
def test_sigterm_commits_a_checkpoint_and_the_same_command_continues(tmp_path: Path) -> None:
    job, folder = write(tmp_path, steps=200), tmp_path / "trial"
    command = [sys.executable, "-m", "jobs.train", str(job), "--into", str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (folder / "points.jsonl").exists() or "train/loss" not in (folder / "points.jsonl").read_text():
            assert time.monotonic() < deadline, "no step was trained"
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.communicate()
    (saved,) = (folder / "checkpoints").glob("step_*")
    assert 0 < int(saved.name.removeprefix("step_")) < 200
    other = tmp_path / "other.toml"
    other.write_text(job.read_text().replace("steps = 200", "steps = 201"))
    refused = run("-m", "jobs.train", str(other), "--into", str(folder))
    assert (refused.returncode, "holds another job" in refused.stderr) == (2, True), refused.stderr
    again = run(*command[1:])
    assert again.returncode == 0, again.stderr
    assert "continues after step" in again.stdout
    assert metrics(folder)["knn_accuracy"] > 0


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("size = 16", "sise = 16"), "batch.sise = 16: unknown key; did you mean 'batch.size'?"),
        (('"digits[:300]"', '"nowhere.parquet"'), "nowhere.parquet"),
        (("size = 16", "size = 301"), "fewer than batch.size"),
    ],
)
def test_a_bad_job_ends_with_2_and_says_why(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    job = write(tmp_path, steps=4)
    job.write_text(job.read_text().replace(*change))
    done = run("-m", "jobs.train", str(job), "--into", str(tmp_path / "trial"))
    assert (done.returncode, words in done.stderr) == (2, True), done.stderr


@pytest.mark.soak
def test_a_finished_job_that_is_kept_elsewhere_is_told_again_from_there(tmp_path: Path) -> None:
    """Mutant check: dropping --remote on its way trains again."""
    job = write(tmp_path, steps=2)
    command = ["-m", "jobs.train", str(job), "--remote", (tmp_path / "far").as_uri(), "--into"]
    first = run(*command, str(tmp_path / "one"))
    assert first.returncode == 0, first.stderr
    again = run(*command, str(tmp_path / "two"))
    assert again.returncode == 0, again.stderr
    assert "ok at step 2" in first.stdout
    assert "ok at step 2" not in again.stdout
    assert metrics(tmp_path / "far") == metrics(tmp_path / "one")
    nowhere = run(*command[:-2], "nonsense://far", "--into", str(tmp_path / "three"))
    assert (nowhere.returncode, "nonsense" in nowhere.stderr) == (2, True), nowhere.stderr

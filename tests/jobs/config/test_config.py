import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from jobs.config import ConfigError, JobConfig, canonical, issues, load_job

MINIMAL: dict[str, Any] = {
    "task": "image",
    "budget": {"samples": 1000},
    "data": {"train": "digits[:1000]", "confirm": "digits[1000:]"},
}


def job(**sections: Any) -> JobConfig:
    return JobConfig.model_validate(MINIMAL | sections)


def complaints(**sections: Any) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        job(**sections)
    return [str(issue) for issue in issues(caught.value, JobConfig)]


def test_every_fault_is_named_at_once_with_key_value_expectation_and_nearest_match() -> None:
    found = complaints(
        loss={"temprature": 0.1, "name": "infonc"}, batch={"size": "256"}, evaluate={"times": 0}, colour="red"
    )
    assert "loss.temprature = 0.1: unknown key; did you mean 'loss.temperature'?" in found
    assert any(line.startswith("loss.name = 'infonc': must be 'infonce'") and "did you mean" in line for line in found)
    assert "batch.size = '256': should be a valid integer" in found
    assert "evaluate.times = 0: should be greater than 0" in found
    assert any(line.startswith("colour = 'red': unknown key") for line in found)
    assert len(found) == 5


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"budget": {"samples": 1000, "steps": 3}}, "exactly one of samples, steps and seconds"),
        ({"budget": {}}, "exactly one of samples, steps and seconds"),
        ({"budget": {"samples": 100}}, "less than one batch"),
        ({"loss": {"name": "dcl", "temperature": "learned"}}, "runs to its clamp"),
        ({"loss": {"name": "flatnce", "temperature": "learned"}}, "runs to its clamp"),
        ({"loss": {"name": "siglip", "same_side": True}}, "not defined for name = 'siglip'"),
        ({"loss": {"temperature": 0.0}}, "must be above 0"),
        ({"loss": {"temperature": 1e-40}}, "must lie between 1e-06 and 1e+06"),
        ({"loss": {"temperature": 1e38}}, "must lie between 1e-06 and 1e+06"),
        ({"loss": {"bias": -10.0}}, "siglip's only"),
        ({"loss": {"margin": "diameter"}}, "set name = 'triangle', or for a loss of anchors a number"),
        ({"loss": {"name": "mylab.losses:own", "margin": "diameter"}}, "and name = 'mylab.losses:own' is computed of"),
        ({"loss": {"name": "triangle", "margin": "diameter", "options": {"margin": 0.2}}}, "are two margins"),
        ({"loss": {"margin": "wide"}}, "loss.margin = 'wide': should be a valid number"),
        ({"loss": {"margin": -0.1}}, "loss.margin = -0.1: should be greater than or equal to 0"),
        ({"loss": {"temperature_range": [0.5, 0.1]}}, "ascending"),
        ({"batch": {"size": 64, "pool": 48}}, "must divide size"),
        ({"execution": {"ranks": 300}}, "leaves ranks without a pair"),
        ({"model": {"norm": "batch"}, "execution": {"micro": 8}}, "model.norm = 'group'"),
        ({"model": {"norm": "batch"}, "execution": {"ranks": 2}}, "model.norm = 'group'"),
        ({"model": {"width": 50}}, "must divide model.width"),
        ({"stage": "tune"}, "data.tune is missing"),
    ],
)
def test_a_contradiction_says_what_would_work(sections: dict[str, Any], words: str) -> None:
    assert any(words in line for line in complaints(**sections))


def test_batch_norm_is_fine_on_one_rank_and_one_chunk() -> None:
    assert job(model={"norm": "batch"}, execution={"micro": 256}).model.norm == "batch"


@pytest.mark.parametrize("options", [{}, {"margin": "diameter"}, {"share": 0.3, "every": 7}])
def test_a_margin_of_distances_is_the_job_that_its_options_say(options: dict[str, Any]) -> None:
    """So a run begun either way continues by the other one, and arms that differ in nothing else are one trial. Mutant
    check: a margin that stays in the job."""
    named = job(loss={"name": "triangle", "margin": "diameter", "options": options})
    plain = job(loss={"name": "triangle", "options": options})
    assert named == plain
    assert named.id == plain.id
    assert JobConfig.model_validate(named.model_dump(mode="json")) == plain


def test_a_job_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        job().seed = 3  # type: ignore[misc]


def test_the_id_is_the_same_on_every_machine_and_python_version() -> None:
    """Pinned: a change of the first value breaks the resumption of every run there is. It is that of the defaults of
    then, which a job of today has to name."""
    assert job(model={"pooling": "mean"}, data=MINIMAL["data"] | {"max_tokens": 32}).id == "5a624305e06d"
    assert job().id == "d682fe82ceb7"


def test_the_id_does_not_depend_on_the_order_of_keys_or_on_the_hash_seed() -> None:
    code = f"""
import json, sys
from jobs.config import JobConfig
job = json.loads({json.dumps(json.dumps(MINIMAL))})
job["loss"] = {{k: v for k, v in sys.modules["builtins"].eval(sys.argv[1])}}
print(JobConfig.model_validate(dict(reversed(job.items()))).id)
"""
    orders = ["[('margin', 0.1), ('name', 'dcl')]", "[('name', 'dcl'), ('margin', 0.1)]"]
    ids = {
        subprocess.run(
            [sys.executable, "-c", code, order],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for order, seed in zip(orders, "12", strict=True)
    }
    assert ids == {job(loss={"name": "dcl", "margin": 0.1}).id}


@given(
    seed=st.integers(0, 2**31 - 1),
    stage=st.sampled_from(["tune", "confirm"]),
    lr=st.floats(1e-8, 10, allow_subnormal=False),
)
def test_the_id_survives_json_and_differs_when_anything_does(seed: int, stage: str, lr: float) -> None:
    data = MINIMAL["data"] | {"tune": "digits"}
    one = job(seed=seed, stage=stage, data=data, optimizer={"lr": lr})
    again = JobConfig.model_validate(json.loads(canonical(one.model_dump(mode="json"))))
    assert again == one
    assert again.id == one.id
    assert one.id != job(seed=seed ^ 1, stage=stage, data=data, optimizer={"lr": lr}).id


@given(samples=st.integers(1, 10**6), size=st.integers(2, 999), times=st.integers(1, 20))
def test_evaluations_are_evenly_spaced_and_the_last_is_the_end(samples: int, size: int, times: int) -> None:
    if samples < size:
        return
    made = job(budget={"samples": samples}, batch={"size": size}, evaluate={"times": times})
    steps = made.evaluation_steps
    assert steps[-1] == made.steps
    assert steps == sorted(set(steps))
    assert len(steps) == min(times, made.steps)


@given(steps=st.integers(1, 5000), times=st.integers(1, 5000))
def test_the_recorded_evaluations_are_those_that_training_records(steps: int, times: int) -> None:
    made = job(budget={"steps": steps}, evaluate={"times": times})
    assert made.evaluation_steps == sorted({-(-steps * k // times) for k in range(1, times + 1)})
    numbered = enumerate(made.evaluation_steps, 1)
    assert made.recorded_steps == [step for number, step in numbered if made.is_recorded(number - 1, number)]


def test_a_hundred_million_evaluations_are_listed_in_no_time() -> None:
    """Seen: 9 s for each call, and a run asks at every rung."""
    began = time.process_time()
    for steps, times in ((10**6, 10**8), (10**12, 10**8), (10**8, 10**12)):
        made = job(budget={"steps": steps}, evaluate={"times": times})
        assert (len(made.recorded_steps), made.recorded_steps[-1]) == (999, steps)
    assert time.process_time() - began < 1


def test_negatives_per_anchor_count_the_pool_and_both_sides() -> None:
    assert job(batch={"size": 64}).negatives_per_anchor == 63
    assert job(batch={"size": 64, "pool": 16}).negatives_per_anchor == 15
    assert job(batch={"size": 64}, loss={"same_side": True}).negatives_per_anchor == 126
    assert job(batch={"size": 64}, budget={"samples": 0}).negatives_per_anchor == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is missing"),
        (b"\xff\xfe", "UTF-8"),
        (b"task = ", "UTF-8"),
        (b"task = 'image'\nbudgets = 3", "unknown key"),
    ],
)
def test_a_file_that_is_no_job_is_refused_with_its_name(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        load_job(path)
    assert str(path) in str(caught.value)


def test_a_job_is_read_from_toml_and_from_json(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(job().model_dump_json())
    (tmp_path / "job.toml").write_text(
        'task = "image"\nbudget = { samples = 1_000 }\n[data]\ntrain = "digits[:1000]"\nconfirm = "digits[1000:]"\n'
    )
    assert load_job(tmp_path / "job.json") == load_job(tmp_path / "job.toml") == job()

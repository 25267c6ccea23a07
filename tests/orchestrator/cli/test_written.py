"""Sweeps made in Python are those of their file, in what they say and in what is said against them."""

from __future__ import annotations

import copy
import pickle
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.config import ConfigError
from orchestrator import Sweep
from orchestrator import sweep as sweeps
from orchestrator.cli.python.written import NAME, override, written
from orchestrator.sweep import Metric, Space, Tune, flatten

SWEEPS = sorted((Path(__file__).parents[3] / "sweeps").glob("*.toml"))

TABLES: dict[str, Any] = {
    "name": "small",
    "question": "Does FlatNCE beat InfoNCE?",
    "metric": {"name": "knn_accuracy"},
    "job": {
        "task": "image",
        "budget": {"steps": 8},
        "data": {"train": "digits[:300]", "tune": "digits[300:400]", "confirm": "digits[400:500]"},
    },
    "compare": {"loss.name": ["infonce", "flatnce"]},
}


def sweep(**changes: Any) -> Sweep:
    return Sweep(**copy.deepcopy(TABLES) | changes)


def refused(**changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        sweep(**changes)
    return str(caught.value)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_shipped_sweep_is_the_same_by_its_file_by_its_tables_and_by_its_text(path: Path) -> None:
    loaded = Sweep.load(path)
    assert sweeps.resolved(loaded) == sweeps.resolved(sweeps.load(path))
    assert sweeps.resolved(Sweep(**tomllib.loads(path.read_text("utf-8")))) == sweeps.resolved(loaded)
    assert sweeps.resolved(Sweep.loads(loaded.to_toml())) == sweeps.resolved(loaded)
    assert list(Sweep.loads(loaded.to_toml()).compare) == list(loaded.compare), "the first factor decides"


def test_what_is_wrong_is_said_in_the_words_of_the_command_line(tmp_path: Path) -> None:
    """Every fault at once. Mutant check: pydantic's own text fails this."""
    wrong = {"metric": {"name": "knn_acuracy"}, "tune": {"trials": 0, "space": {}}, "colour": 1}
    (tmp_path / "sweep.toml").write_text(written(TABLES | wrong))
    with pytest.raises(ConfigError) as caught:
        sweeps.load(tmp_path / "sweep.toml")
    assert refused(**wrong) == str(caught.value).replace(str(tmp_path / "sweep.toml"), NAME)
    assert "tune.trials = 0: should be greater than 0" in str(caught.value)
    assert "is not measured" in refused(metric={"name": "knn_acuracy"})
    assert "two arms or more" in refused(compare={"loss.name": ["infonce"]})


def test_a_sweep_is_built_of_what_python_has() -> None:
    """Paths, tuples, ranges, numpy's numbers, None and our own sections."""
    made = sweep(
        metric=Metric(name="knn_accuracy", smallest_difference=0.01),
        job={**TABLES["job"], "data": {"train": Path("digits"), "tune": "digits", "confirm": "digits"}},
        compare={"batch": {"size": (np.int64(16), 32), "negatives_group": [None, 16]}},
        exclude=({"batch.size": 16, "batch.negatives_group": None}, {"batch.size": 32, "batch.negatives_group": None}),
        tune=Tune(space={"optimizer.lr": Space(low=1e-4, high=1e-2, log=True)}, seeds=1),
        confirm={"seeds": range(3, 6)},
        resources={"concurrent": None},
    )
    assert made.compare == {"batch.size": [16, 32], "batch.negatives_group": [None, 16]}
    assert made.exclude[0] == {"batch.size": 16, "batch.negatives_group": None}
    assert flatten(made.job)["data.train"] == "digits"
    assert made.tune is not None
    assert (made.tune.space["optimizer.lr"].log, made.confirm.seeds) == (True, [3, 4, 5])
    assert (
        sweep(tune={"space": {"optimizer.lr": {"low": np.float64(1e-4), "high": 1e-2, "step": None}}}).tune is not None
    )
    assert pickle.loads(pickle.dumps(made)) == made
    assert sweeps.resolved(Sweep.loads(made.to_toml())) == sweeps.resolved(made)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"compare": {"model.name": [None, "vit"]}}, "compare.model.name = None: has no form in a sweep file"),
        ({"compare": {"loss.name": {"infonce", "dcl"}}}, "compare.loss.name = {'"),
        ({"question": "a\ud800"}, "holds half of a surrogate pair"),
        ({"confirm": {1: 2}}, "confirm.1 = 1: a key is a text"),
        ({"job": {**TABLES["job"], "loss": {"temperature": 1j}}}, "job.loss.temperature = 1j: is no value of a sweep"),
        ({"tune": {"space": {"optimizer.lr": {"low": 1e-4, "high": float("inf")}}}}, "tune.space.optimizer.lr"),
        (
            {"tune": {"space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "when": {"model.name": None}}}}},
            "tune.space.optimizer.lr.when.model.name = None: has no form",
        ),
    ],
)
def test_what_a_file_cannot_hold_is_refused_with_its_key(changes: dict[str, Any], text: str) -> None:
    error = refused(**changes)
    assert error.startswith(f"{NAME} is not a valid sweep:\n  ")
    assert text in error


def test_none_takes_the_place_of_what_the_extended_sweep_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant check: leaving None out fails this."""
    monkeypatch.chdir(tmp_path)
    base = sweep(job=TABLES["job"] | {"optimizer": {"clip": 1.0}}, resources={"concurrent": 2})
    Path("base.toml").write_text(base.to_toml())
    made = Sweep(
        extends="base.toml", question="And now?", job={"optimizer": {"clip": None}}, resources={"concurrent": None}
    )
    assert made.job["optimizer"] == {"clip": None}
    assert made.resources.concurrent is None
    assert (made.name, made.question) == ("small", "And now?")


texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(texts, values, max_size=4))
def test_what_is_written_is_read_again(tables: dict[str, Any]) -> None:
    """Mutant check: JSON's escapes fail this: TOML has no surrogate pairs, and no DEL as it is."""
    assert tomllib.loads(written(tables)) == tables


@given(values)
def test_an_override_has_the_value_that_was_given(value: Any) -> None:
    key, _, text = override("job.x", value).partition("=")
    assert (key, tomllib.loads(f"value = {text}")["value"]) == ("job.x", value)
    assert override("job.optimizer.clip", None) == 'job.optimizer.clip="none"'

"""What the ledger keeps as JSON is read as what it is, whichever version wrote it, and stays as it was written."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from jobs.config import JobConfig
from orchestrator.ledger import Ledger, Trial
from orchestrator.ledger.stored import JsonObject, Rows, TrialResult
from orchestrator.run_dir.folder import RunFolder

BEGUN = Path(__file__).parents[2] / "begun"

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
KEYS = ("step", "samples", "seconds", "peak_memory_mb", "metrics", "untrained", "hashes", "data", "reading", "unknown")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """Of a finished run of the first version."""
    shutil.copytree(BEGUN / "diverged", tmp_path / "diverged")
    with contextlib.closing(RunFolder(tmp_path / "diverged").open()) as opened:
        yield opened


def trial_of(**given: Any) -> Trial:
    return Trial("t", "confirm", "plain", 0, **given)


def test_the_results_of_an_earlier_version_are_read_and_stay_as_they_are(ledger: Ledger) -> None:
    """Mutant check: a number of which another type is made."""
    trials = ledger.trials(state="done")
    assert len(trials) == 12
    for trial in trials:
        stored: Any = trial.result
        result = trial.came_to
        for key in ("step", "samples", "seconds", "samples_per_second", "peak_memory_mb", "negatives_per_anchor"):
            assert json.dumps(getattr(result, key)) == json.dumps(stored.get(key)), key
        for key in ("metrics", "untrained", "hashes"):
            assert json.dumps(dict(getattr(result, key))) == json.dumps(stored.get(key)), key
        assert {rows.digest for rows in result.data} == {rows["digest"] for rows in stored["data"]}


def test_what_a_version_did_not_record_is_none_and_what_nobody_knows_is_left_alone() -> None:
    assert trial_of(job={}).came_to == TrialResult()
    stored: JsonObject = {"step": 3, "seconds": None, "colour": "red", "hashes": {"data": "d", "order": 7}}
    trial = trial_of(job={}, result=stored)
    assert trial.came_to == TrialResult(step=3, hashes={"data": "d"})
    assert trial.result == stored
    rows: JsonObject = {"context": "training", "source": "digits", "digest": "d", "rows": 9}
    assert TrialResult.of({"data": [rows, {"source": "digits"}, 3]}).data == (Rows("training", "digits", "d", 9),)


@given(st.dictionaries(st.sampled_from(KEYS), ANYTHING))
def test_whatever_a_result_holds_reading_it_raises_nothing(stored: dict[str, Any]) -> None:
    """Also of booleans, infinities and NaN. Mutant check: `int` of whatever is there."""
    result = TrialResult.of(stored)
    assert isinstance(result.step, int | None)
    assert not isinstance(result.step, bool)
    assert all(isinstance(value, int | float) for value in (*result.metrics.values(), *result.untrained.values()))
    assert all(isinstance(value, str) for value in result.hashes.values())


def test_a_job_is_parsed_once_and_one_that_is_none_only_when_it_is_asked_for() -> None:
    """A later version may have planned it: its trial can still be listed, compared and verified."""
    given = {"task": "image", "stage": "confirm", "budget": {"steps": 3}}
    job = JobConfig.model_validate({**given, "data": {"train": "digits", "confirm": "digits"}})
    trial = trial_of(job=job.model_dump(mode="json"))
    assert trial.config == job
    assert trial.config is trial.config
    later = trial_of(job={**trial.job, "colour": "red"})
    assert later.arm == "plain"
    with pytest.raises(ValidationError, match="colour"):
        assert later.config

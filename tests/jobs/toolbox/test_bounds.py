"""What options of built-in components may be: a value that makes no sense is refused before anything is created."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from jobs import data
from jobs.config import JobConfig, components
from jobs.config.catalogue import catalogue
from jobs.train.components import examined
from orchestrator import sweep
from orchestrator.run_dir import provenance
from orchestrator.sweep import plan as planning

BELOW_ZERO = {("hardness_weighted", "beta"), ("false_negatives", "margin"), ("gist", "margin")}
"""Options that mean something there: easy negatives weigh more, and what is nearly as near is left out too."""

SECTIONS = {"loss": "loss", "optimizer": "optimizer", "transform": "optimizer", "sampler": "data"}

NEEDED: dict[str, dict[str, Any]] = {"matryoshka": {"dims": [4]}}

NUMBERS = [
    pytest.param(one["kind"], one["name"], option, id=f"{one['name']}-{option}")
    for one in catalogue()
    if one["kind"] in SECTIONS and one["kind"] != "sampler"
    for option, about in one["options"].get("properties", {}).items()
    if about.get("type", "array") in ("number", "integer", "array") and "enum" not in about
]


def job_with(kind: str, name: str, options: dict[str, Any]) -> dict[str, Any]:
    of = components.KINDS[kind]
    section = {of.key.rpartition(".")[2]: name, of.options.rpartition(".")[2]: options}
    section |= {"guide": "a/guide"} if name in ("gist", "distillation") else {}
    job: dict[str, Any] = {
        "task": "sentence",
        "budget": {"steps": 4},
        "data": {"train": "x", "confirm": "x", "scores": "s"},
        "model": {"name": "bert", "width": 16, "layers": 1, "heads": 2, "projection_width": 8},
        "batch": {"size": 8},
    }
    return job | {SECTIONS[kind]: job.get(SECTIONS[kind], {}) | section}


def faults_of(kind: str, name: str, options: dict[str, Any]) -> list[tuple[str, str, str]]:
    """As `plan` finds them."""
    job = job_with(kind, name, options)
    JobConfig.model_validate(job)
    found: list[tuple[str, str, str]] = examined(kind, name, options, job)["faults"]
    return found


@pytest.mark.parametrize(("kind", "name", "option"), NUMBERS)
def test_no_number_is_below_what_it_counts(kind: str, name: str, option: str) -> None:
    """Seen: soft_clip by a norm of -1, which turns gradients around; a decay of momentum of 5; a negative weight of a
    term, which is then made as large as can be."""
    default = components.options_model(kind, components.load(kind, name)).model_fields[option].default
    several = isinstance(default, tuple) or option == "dims"
    below = -9 if option in ("accumulate", "batches", "classes", "dims", "every", "size") else -1.5
    below = 9 if option == "beta2_decay" else below
    given: Any = [below] * max(len(default) if isinstance(default, tuple) else 1, 1) if several else below
    faults = faults_of(kind, name, NEEDED.get(name, {}) | {option: given})
    assert bool(faults) == ((name, option) not in BELOW_ZERO)


@pytest.mark.parametrize(
    ("kind", "name", "options", "said"),
    [
        ("transform", "soft_clip", {"norm": 0.0}, "should be greater than 0"),
        ("optimizer", "lion", {"betas": [0.9, 1.0]}, "should be less than 1"),
        ("optimizer", "lamb", {"eps": 0.0}, "should be greater than 0"),
        ("optimizer", "eg_step_full", {"past": 1.0}, "should be less than 1"),
        ("optimizer", "tiger", {"shrink": 1.01}, "should be less than or equal to 1"),
        ("transform", "child_tuning_d", {"batches": 10**9}, "should be less than or equal to 10000"),
        ("loss", "pair_classifier", {"classes": 1}, "should be greater than or equal to 2"),
        ("loss", "vicreg", {"covariance": -1.0}, "should be greater than or equal to 0"),
        ("loss", "cosine_labels", {"highest": 0.0}, "should be greater than 0"),
    ],
)
def test_a_bound_is_said_of_the_option(kind: str, name: str, options: dict[str, Any], said: str) -> None:
    ((key, _, expected),) = faults_of(kind, name, options)
    assert key.startswith(f"{components.KINDS[kind].options}.{next(iter(options))}")
    assert expected.startswith(said)


def test_a_whole_number_is_a_momentum_too() -> None:
    """Seen: `momentum = 0`, without a point, was refused in words for those who write losses."""
    assert faults_of("loss", "queue", {"momentum": 0}) == []


@pytest.mark.parametrize("betas", [[1.5, 0.9], [0.9, -0.1], [1.0, 0.999]])
def test_averages_of_every_optimizer_forget(betas: list[float]) -> None:
    """Torch refuses such for AdamW; ours of LAMB took them."""
    with pytest.raises(ValidationError, match=r"betas"):
        JobConfig.model_validate(job_with("optimizer", "lamb", {}) | {"optimizer": {"name": "lamb", "betas": betas}})


SWEEP = """name = "labels"
question = "Which loss learns from these labels?"
metric = { name = "spearman", smallest_difference = 0.01 }
[job]
task = "sentence"
budget = { steps = 4 }
data = { train = "train.tsv", confirm = "judged.tsv", scores = "score" }
model = { width = 16, layers = 1, heads = 2, vocabulary = 120 }
batch = { size = 8 }
"""


def labelled(folder: Path, scores: list[str]) -> dict[str, Any]:
    """A job on pairs with these scores."""
    for name, own in (("train", scores), ("judged", ["0", "1", "2"] * 4)):
        lines = [f"the red thing {n}\ta blue thing {n}\t{score}" for n, score in enumerate(own)]
        (folder / f"{name}.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *lines]))
    rows = {"train": str(folder / "train.tsv"), "confirm": str(folder / "judged.tsv"), "scores": "score"}
    return job_with("loss", "cosent", {}) | {"data": rows}


@pytest.mark.parametrize(
    ("loss", "scores", "said"),
    [
        ({"name": "pair_classifier"}, "012", r"2 classes, numbered from 0, and there are scores from 0 to 2"),
        ({"name": "pair_classifier", "options": {"classes": 3}}, "012", None),
        ({"name": "cosine_labels"}, "05", r"labels from 0 to loss.options.highest = 1, and there are scores from 0"),
        ({"name": "cosine_labels", "options": {"highest": 5}}, "05", None),
        ({"name": "cosent"}, "11", r"all scores are 1, so that no pair ranks above another"),
        ({"name": "angle"}, "44", r"all scores are 4"),
        ({"name": "angle"}, "45", None),
        ({"name": "infonce"}, "11", None),
    ],
)
def test_scores_that_a_loss_cannot_learn_from_are_refused_before_anything_runs(
    tmp_path: Path, loss: dict[str, Any], scores: str, said: str | None
) -> None:
    """Seen: a plan without a word, and each trial ended at its first step, or learned nothing to its last."""
    job = JobConfig.model_validate(labelled(tmp_path, [*scores] * 8) | {"loss": loss})
    if said is None:
        assert data.check(job) == []
        return
    with pytest.raises(data.DataError, match=said) as refused:
        data.check(job)
    assert "train.tsv, column 'score': " in str(refused.value)


def test_a_launch_looks_at_the_data_of_every_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two arms that differ in their loss alone, the first's labels are wrong. Mutant check: without the loss in
    what decides a look, it is taken for the second."""
    labelled(tmp_path, ["0", "1", "2"] * 8)
    (tmp_path / "sweep.toml").write_text(f'{SWEEP}[compare]\n"loss.name" = ["pair_classifier", "cosent"]\n')
    monkeypatch.chdir(tmp_path)
    plan = planning.make(sweep.load(tmp_path / "sweep.toml"))
    with pytest.raises(provenance.DataFault, match="pair_classifier has 2 classes, numbered from 0, and there are"):
        provenance.examine(plan)


def test_more_steps_of_a_cycle_than_a_job_has_are_refused() -> None:
    """Seen: Tiger made no update in a whole training, which ended as it should."""
    ((_, _, said),) = faults_of("optimizer", "tiger", {"accumulate": 5})
    assert said == "leaves every weight as it was after 4 steps"
    assert faults_of("optimizer", "tiger", {"accumulate": 4}) == []

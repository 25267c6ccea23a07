"""What options of built-in components may be: a value that makes no sense is refused before anything is created."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from jobs.config import JobConfig, components
from jobs.config.catalogue import catalogue
from jobs.train.components import examined

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

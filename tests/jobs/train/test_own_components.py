"""Every kind of component by import path, in real trainings: tried first, exact, resumed bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.config import JobConfig
from jobs.train import Training
from jobs.train.components import examined

IMAGE: dict[str, Any] = {
    "task": "image",
    "budget": {"steps": 4},
    "data": {"train": "digits[:80]", "confirm": "digits[100:150]"},
    "model": {"name": "resnet", "width": 8, "layers": 1, "precision": "fp64"},
    "batch": {"size": 12},
    "evaluate": {"times": 1, "probe": False, "references": 60},
    "execution": {"checkpoint_every": 2},
}

PARTS: dict[str, dict[str, Any]] = {
    "optimizer": {"optimizer": {"name": "mylab:SignDescent", "options": {"beta": 0.8}, "lr": 0.01}},
    "installed optimizer": {"optimizer": {"name": "torch.optim:RAdam", "options": {"eps": 1e-6}}},
    "schedule": {"optimizer": {"schedule": "mylab:staircase", "schedule_options": {"stairs": 2}}},
    "transform": {"optimizer": {"transform": "mylab:Dropped", "transform_options": {"p": 0.5}}},
    "soft clip": {"optimizer": {"transform": "soft_clip", "transform_options": {"norm": 0.1}}},
    "augmentation": {"augment": {"name": "mylab:noisy", "options": {"strength": 0.2}}},
    "sampler": {"data": {**IMAGE["data"], "sampler": "mylab:in_order"}},
    "encoder": {"model": {"name": "mylab:Flat", "options": {"dropout": 0.3}, "precision": "fp64"}},
    "metric": {
        "evaluate": {
            **IMAGE["evaluate"],
            "metrics": ["mylab:nearest_share"],
            "metric_options": {"nearest_share": {"k": 3}},
        }
    },
    "loss": {"loss": {"name": "mylab:Centred", "options": {"width": 64}}},
}


def job(part: str, **execution: Any) -> JobConfig:
    whole = IMAGE | PARTS[part]
    return JobConfig.model_validate(whole | {"execution": whole["execution"] | execution})


def trained(config: JobConfig, folder: Path, *, steps: int = 99) -> Training:
    training = Training(config, folder, log=lambda _: None)
    while training.result is None and training.step < steps:
        training.advance(min(2, steps - training.step))
    training.settle()
    return training


@pytest.mark.parametrize("part", PARTS)
def test_a_training_with_a_component_of_ones_own_is_resumed_bit_for_bit(tmp_path: Path, part: str) -> None:
    """A transform's and a loss's state are in the checkpoint. Mutant check: leaving either out fails."""
    whole = trained(job(part), tmp_path / "whole")
    begun = trained(job(part), tmp_path / "parts", steps=2)
    begun.save()
    begun.settle()
    continued = trained(job(part), tmp_path / "parts")
    assert whole.result is not None
    assert continued.result is not None
    states = [training.model.state_dict() for training in (whole, continued)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert whole.result["metrics"] == continued.result["metrics"]
    plain = trained(JobConfig.model_validate(IMAGE), tmp_path / "plain")
    if part not in ("metric", "encoder", "loss"):
        assert any(not torch.equal(states[0][k], v) for k, v in plain.model.state_dict().items()), "no difference"
    if part == "metric":
        assert 0 < whole.result["metrics"]["nearest_share"] < 1


@pytest.mark.parametrize("part", PARTS)
def test_micro_batches_change_nothing_of_it(tmp_path: Path, part: str) -> None:
    whole, parts = (trained(job(part, **how), tmp_path / str(how)) for how in ({}, {"micro": 5, "verify": True}))
    for name, expected in whole.model.state_dict().items():
        seen = parts.model.state_dict()[name]
        torch.testing.assert_close(seen, expected, rtol=1e-6, atol=1e-9)


def test_sentences_have_an_encoder_and_metrics_of_ones_own(tmp_path: Path) -> None:
    lines = [f"the {word} number {n}\tthe {word} {n}\t{n % 5}" for n, word in enumerate(["red", "green", "blue"] * 8)]
    (tmp_path / "pairs.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *lines]))
    (tmp_path / "train.txt").write_text("\n".join(f"{line.split()[1]} thing {n}" for n, line in enumerate(lines)))
    config = JobConfig.model_validate(
        {
            "task": "sentence",
            "budget": {"steps": 3},
            "data": {"train": str(tmp_path / "train.txt"), "confirm": str(tmp_path / "pairs.tsv")},
            "model": {"name": "mylab:Bag", "options": {"width": 6}, "vocabulary": 120},
            "batch": {"size": 8},
            "evaluate": {"times": 1, "metrics": ["mylab:score_gap"]},
            "execution": {"micro": 3, "verify": True},
        }
    )
    result = trained(config, tmp_path / "trial").result
    assert result is not None
    assert {"spearman", "score_gap"} <= result["metrics"].keys()


def said(kind: str, name: str, **sections: Any) -> str:
    options = sections.pop("options", {})
    return " ".join(": ".join(fault) for fault in examined(kind, name, options, IMAGE | sections)["faults"])


@pytest.mark.parametrize(
    ("kind", "name", "sections", "words"),
    [
        ("optimizer", "mylab:no_optimizer", {"optimizer": {"name": "mylab:no_optimizer"}}, "gives a str"),
        (
            "optimizer", "mylab:SignDescent", {"options": {"betta": 0.1}}, "unknown key; did you mean 'beta'",
        ),
        ("augmentation", "mylab:brightest", {"augment": {"name": "mylab:brightest"}}, "beside other images"),
        ("augmentation", "mylab:unkeyed", {"augment": {"name": "mylab:unkeyed"}}, "other views the second time"),
        ("sampler", "mylab:beyond", {"data": IMAGE["data"] | {"sampler": "mylab:beyond"}}, "rows of the data"),
        ("metric", "mylab:matrix", {"evaluate": {"metrics": ["mylab:matrix"]}}, "gave [12, 16]"),
        ("encoder", "mylab:matrix", {"model": {"name": "mylab:matrix"}}, "unknown key|missing|TypeError"),
    ],
)  # fmt: skip
def test_what_is_no_component_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, kind: str, name: str, sections: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr("jobs.train.components._distribution", lambda _: (None, ""))
    heard = said(kind, name, **sections)
    assert any(word in heard for word in words.split("|")), heard

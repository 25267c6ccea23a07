"""A job with a budget of no samples is judged once, as it is: no optimizer, no loss, no checkpoint."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from ranks import SpawnRanks

from jobs.artifacts.audit import audit
from jobs.artifacts.rows import NAME
from jobs.config import JobConfig
from jobs.export import export
from jobs.export.embed import load
from jobs.train import Training


def job_of(budget: dict[str, int], **more: Any) -> JobConfig:
    own: dict[str, Any] = {
        "task": "image",
        "budget": budget,
        "data": {"train": "digits[:60]", "confirm": "digits[60:100]"},
        "model": {"name": "resnet", "width": 4, "layers": 1},
        "batch": {"size": 12},
        "evaluate": {"probe": False, "times": 1, "after": "pca", "after_options": {"k": 4}},
    }
    return JobConfig.model_validate(own | more)


def judged(folder: Path, config: JobConfig | None = None, group: Any = None) -> Training:
    said: list[str] = []
    training = Training(config or job_of({"samples": 0}), folder, log=said.append, group=group)
    assert training.result is not None
    assert training.advance(5) == []
    return training


def test_it_is_what_a_training_says_before_its_first_step(tmp_path: Path) -> None:
    """And row by row the same is kept as at the end of a training. Mutant check: without outcomes there are no rows."""
    training = judged(tmp_path / "once")
    assert training.result is not None
    before = Training(job_of({"steps": 1}), tmp_path / "trained", log=lambda _: None)
    assert training.result["metrics"] == before.untrained == training.result["untrained"]
    assert (training.result["step"], training.result["samples"], training.result["outcome"]) == (0, 0, "ok")
    assert not hasattr(training, "optimizer")
    assert not hasattr(training, "loss")
    record = audit(tmp_path / "once")
    assert (record["checkpoints"], record["faults"]) == ([], [])
    assert record["rows"] == training.result["rows"]


def test_whatever_a_batch_or_a_loss_would_ask_for_is_not_asked_for(tmp_path: Path) -> None:
    """A batch that is larger than the data, of a loss that needs scores."""
    config = job_of({"samples": 0}, batch={"size": 500}, loss={"name": "cosent"})
    plain = judged(tmp_path / "plain")
    assert plain.result is not None
    other = judged(tmp_path / "other", config)
    assert other.result is not None
    assert other.result["metrics"] == plain.result["metrics"]
    assert config.idle_sections >= {"batch", "loss", "execution"}


def test_what_has_ended_is_read_and_what_was_killed_is_judged_again(tmp_path: Path) -> None:
    first = judged(tmp_path / "trial")
    points = (tmp_path / "trial/points.jsonl").read_text()
    again = judged(tmp_path / "trial")
    assert again.result == first.result
    assert (tmp_path / "trial/points.jsonl").read_text() == points
    (tmp_path / "trial" / NAME).write_bytes(b"torn")
    assert first.result is not None
    for _ in range(2):
        result = judged(tmp_path / "trial").result
        assert result is not None
        assert (result["metrics"], result["rows"]) == (first.result["metrics"], first.result["rows"])
        (tmp_path / "trial/result.json").unlink()


def on_rank(folder: Path, rank: int) -> Any:
    config = job_of({"samples": 0}, execution={"ranks": dist.get_world_size()})
    return json.dumps(judged(folder, config, dist.group.WORLD).result["metrics"])  # type: ignore[index]


def test_two_ranks_say_the_same_bits(spawn_ranks: SpawnRanks, tmp_path: Path) -> None:
    alone = judged(tmp_path / "alone").result
    assert alone is not None
    seen = spawn_ranks(2, partial(on_rank, tmp_path / "ranks"), timeout_s=200)
    assert seen == [json.dumps(alone["metrics"])] * 2


def test_its_encoder_is_exported_without_a_checkpoint(tmp_path: Path) -> None:
    """And not once it holds other weights than were judged."""
    judged(tmp_path / "trial")
    done = export(tmp_path / "trial", tmp_path / "encoder")
    assert (done["step"], done["width"]) == (0, 4)
    assert load(tmp_path / "encoder", device="cpu") is not None
    assert "not trained here" in (tmp_path / "encoder/README.md").read_text()
    result = json.loads((tmp_path / "trial/result.json").read_text())
    result["hashes"]["init"] = "other"
    (tmp_path / "trial/result.json").write_text(json.dumps(result))
    with pytest.raises(ValueError, match=r"other weights|damaged"):
        export(tmp_path / "trial", tmp_path / "other")


def test_less_than_a_batch_is_still_no_budget() -> None:
    with pytest.raises(ValueError, match="less than one batch"):
        job_of({"samples": 5})

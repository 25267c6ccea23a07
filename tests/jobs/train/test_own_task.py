"""A task of the user's own, of rows, views and metrics: as exact, resumable and checked as the built-in ones."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tasklab
import torch
import torch.distributed as dist
import torch.nn.functional as F

from jobs import data
from jobs.config import JobConfig
from jobs.data import DataError
from jobs.data.tasks import taken
from jobs.data.tasks.judging import count
from jobs.models import ModelError, build
from jobs.train import Training
from jobs.train.components import examined

SOURCES = {"train": "digits[:300]", "tune": "digits[300:400]", "confirm": "digits[400:500]"}


def job(name: str = "Tabular", **sections: Any) -> JobConfig:
    encoder = {"name": "tasklab:MLP", "options": {"width": 12}, "projection_width": 8, "precision": "fp64"}
    return JobConfig.model_validate(
        {
            "task": f"tasklab:{name}",
            "budget": {"steps": 8},
            "data": SOURCES,
            "batch": {"size": 24},
            "model": encoder | sections.pop("model", {}),
            "execution": {"verify": True} | sections.pop("execution", {}),
        }
        | sections
    )


@pytest.fixture
def as_users_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module counts as one of [code]."""
    monkeypatch.setenv("ORCHESTRATOR_CODE", str(Path(tasklab.__file__).parent))


def trained(config: JobConfig, folder: Path, **given: Any) -> Training:
    training = Training(config, folder, log=lambda _: None, **given)
    while training.result is None:
        training.advance(100)
    return training


def on_ranks(config: JobConfig, folder: Path, rank: int) -> tuple[Any, Any]:
    training = trained(config, folder, group=dist.group.WORLD)
    assert training.result is not None
    return training.result["metrics"], {name: x.clone() for name, x in training.model.state_dict().items()}


@pytest.mark.soak
@pytest.mark.parametrize(("name", "world"), [("Tabular", 3), ("Hard", 2), ("Columns", 2)])
def test_it_trains_to_the_same_on_any_ranks_and_micro_batches(
    name: str, world: int, spawn_ranks: Any, tmp_path: Path
) -> None:
    """With dropout and noise. Mutant check: views numbered from 0 in each micro-batch fail."""
    model = {"name": "vit", "width": 16, "heads": 2, "options": {}, "dropout": 0.1} if name == "Columns" else {}
    whole = trained(job(name, model=model), tmp_path / "whole")
    config = job(name, model=model, execution={"ranks": world, "micro": 5})
    results = spawn_ranks(world, partial(on_ranks, config, tmp_path / "ranks"))
    assert whole.result is not None
    for metrics, weights in results:
        assert metrics.keys() == whole.result["metrics"].keys()
        for key, value in whole.model.state_dict().items():
            torch.testing.assert_close(weights[key], value, rtol=1e-8, atol=1e-10)
    assert {"Columns": "closeness"}.get(name, "nearest") in whole.result["metrics"]


def test_its_metrics_are_those_of_the_encoder_and_its_options_count(tmp_path: Path) -> None:
    """Mutant check: judging in training mode, with dropout, fails."""
    training = trained(job(options={"noise": 0.3}), tmp_path)
    assert training.result is not None
    asked, known = (tasklab.Tabular().rows(SOURCES[use]) for use in ("confirm", "train"))
    training.model.eval()
    with torch.no_grad():
        a, b = (F.normalize(training.model.encode({"inputs": torch.from_numpy(x[0])})) for x in (asked, known))
    expected = (known[1][(a @ b.T).argmax(1).numpy()] == asked[1]).mean()
    assert training.result["metrics"]["nearest"] == pytest.approx(expected)
    assert training.result["untrained"].keys() == {"nearest", "spread"}
    noise = [data.task_of(job(options={"noise": x})).examples() for x in (0.0, 0.3)]
    rows = np.arange(3)
    still, moved = (examples.views(rows, seed=1, step=1, pairs=rows).queries["inputs"] for examples in noise)
    assert not torch.equal(still, moved)


def test_a_stop_is_continued_to_the_same(tmp_path: Path) -> None:
    whole = trained(job(), tmp_path / "whole")
    stopped = Training(job(), tmp_path / "parts", log=lambda _: None)
    stopped.advance(2)
    stopped.save()
    stopped.settle()
    again = trained(job(), tmp_path / "parts")
    assert again.result is not None
    assert whole.result is not None
    assert again.result["metrics"] == whole.result["metrics"]
    for key, value in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[key], value)


def test_a_model_that_is_not_finite_has_diverged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its evaluate would make of that. Mutant check: without a look the metrics are those of nan."""
    monkeypatch.setenv("TASKLAB_SCALE", "nan")
    training = Training(job(execution={"verify": False}), tmp_path, log=lambda _: None)
    training.advance(100)
    assert training.result is not None
    assert training.result["outcome"] == "diverged"


def test_duplicates_are_those_of_its_ids() -> None:
    examples = data.task_of(job("Hard")).examples()
    labels = data.open_table("digits[:300]")["label"].to_pylist()
    rows = np.array([5, 9, 5])
    assert examples.ids(rows).pair_ids.tolist() == [labels[row] for row in rows]
    assert data.task_of(job()).examples().ids(rows).pair_ids.tolist() == rows.tolist()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Neighbours", "another view beside other rows"),
        ("Placed", "another view beside other rows"),
        ("Unkeyed", "other ones the second time"),
        ("Counted", r"tasklab:Counted: nearest of evaluate gave \[2\] for 100 rows"),
        ("Raises", r"fails when it is tried: KeyError.*\(tasklab.py, line \d+\)"),
    ],
)
def test_what_is_wrong_with_its_rows_is_found_before_any_trial(name: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        data.check(job(name))


def test_an_encoder_that_does_not_fit_its_views_is_found_before_any_trial() -> None:
    with pytest.raises(
        DataError, match=r"fails when it is tried: RuntimeError: mat1 and mat2.*\(tasklab.py, line \d+\)"
    ):
        data.check(job(model={"name": "tasklab:Broken"}))


def test_views_may_be_numbers(tmp_path: Path) -> None:
    """Also in the gradient check."""
    config = job("Numbered", model={"name": "tasklab:Table", "options": {}}, execution={"micro": 5})
    assert data.check(config) == []
    assert trained(config, tmp_path).result is not None


def test_what_rows_keeps_is_there_in_the_next_trial_too(tmp_path: Path) -> None:
    """Of a warm process. Mutant check: rows kept without the object that has read them fail."""
    results = [trained(job("Stateful", seed=1), tmp_path / name).result for name in ("first", "second")]
    assert results[0] is not None
    assert results[1] is not None
    assert results[0]["metrics"] == results[1]["metrics"]


def test_a_pooling_that_draws_by_itself_is_refused() -> None:
    image = job(task="image", model={"name": "vit", "width": 16, "heads": 2, "options": {}, "pooling": "tasklab:leaky"})
    with pytest.raises(ModelError, match=r"draws random numbers elsewhere than in nn\.Dropout"):
        build(image, image_shape=(1, 8, 8))


def test_what_is_right_passes_and_a_batch_of_more_rows_does_not() -> None:
    assert data.check(job()) == []
    with pytest.raises(DataError, match=r"fewer than batch\.size = 301"):
        data.check(job(batch={"size": 301}))


@pytest.mark.usefixtures("as_users_code")
@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("Blind", {}, "has no method evaluate(encode, rows)"),
        ("Small", {}, "is no class, as its name says"),
        ("Tabular", {"noize": 1}, "its options: noise"),
        ("Tabular", {"noise": "much"}, "options.noise"),
    ],
)
def test_what_is_wrong_with_its_form_is_found_by_a_plan(name: str, options: dict[str, Any], words: str) -> None:
    answer = examined("task", f"tasklab:{name}", options, job().model_dump(mode="json") | {"task": f"tasklab:{name}"})
    assert words in str(answer["faults"])


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"model": {"name": None}}, "model.name = None is no encoder for rows of task = 'tasklab:Tabular'"),
        ({"model": {"name": "some/hub-model"}}, "is no encoder for rows"),
        ({"loss": {"mlm_weight": 0.1}}, "needs tokens, which task = 'tasklab:Tabular' has none of"),
        ({"evaluate": {"metrics": ["mylab:recall"]}}, "let evaluate"),
        ({"data": SOURCES | {"columns": ["image"]}}, "let rows"),
    ],
)
def test_keys_that_it_would_not_heed_are_refused(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=r"is no encoder|needs tokens|let ") as error:
        job(**sections)
    assert words in str(error.value)


@pytest.mark.parametrize("form", ["array", "tensor", "list", "tuple", "mapping", "table"])
def test_rows_may_have_any_form(form: str) -> None:
    table = data.open_table("digits[:10]", columns=["label"])
    labels = table["label"].to_numpy()
    forms: dict[str, Any] = {
        "array": labels,
        "tensor": torch.from_numpy(labels.copy()),
        "list": labels.tolist(),
        "tuple": (labels, labels * 2),
        "mapping": {"label": labels},
        "table": table,
    }
    rows = forms[form]
    chosen: Any = taken(rows, np.array([3, 1]))
    assert (count(rows), count(chosen)) == (10, 2)
    first: Any = chosen[0] if form == "tuple" else chosen["label"] if form in ("mapping", "table") else chosen
    assert [int(str(x)) if form == "table" else int(x) for x in first] == [labels[3], labels[1]]


def test_columns_of_other_lengths_are_no_rows() -> None:
    with pytest.raises(ValueError, match=r"columns of \[2, 3\] rows"):
        count((np.arange(2), np.arange(3)))


# Poolings


@pytest.mark.parametrize("name", ["strongest", "Attention", "Dropping"])
def test_a_pooling_of_ones_own_trains_to_the_same_in_micro_batches(name: str, tmp_path: Path) -> None:
    """On images, whose class token it does not see. Mutant check: parameters that are not trained fail."""
    sections: dict[str, Any] = {
        "task": "image",
        "model": {"name": "vit", "width": 16, "heads": 2, "options": {}, "pooling": f"tasklab:{name}", "dropout": 0.1},
    }
    whole, parts = (
        trained(job(**sections | {"model": dict(sections["model"])}, execution=execution), tmp_path / str(number))
        for number, execution in enumerate(({}, {"micro": 5}))
    )
    ours = {key for key in whole.model.state_dict() if key.startswith("pool.")}
    assert len(ours) == (2 if name == "Attention" else 0)
    for key, value in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[key], value, rtol=1e-8, atol=1e-10)
    fresh = Training(job(**sections, execution={}), tmp_path / "fresh", log=lambda _: None)
    assert all(not torch.equal(fresh.model.state_dict()[key], whole.model.state_dict()[key]) for key in ours)


@pytest.mark.usefixtures("as_users_code")
def test_a_pooling_is_tried_before_anything_runs() -> None:
    plain = job(task="image", model={"name": "vit", "options": {}}).model_dump(mode="json")

    def faults(name: str, **options: Any) -> Any:
        config = plain | {"model": plain["model"] | {"pooling": f"tasklab:{name}", "pooling_options": options}}
        return examined("pooling", f"tasklab:{name}", options, config)["faults"]

    assert faults("strongest", power=1.5) == []
    assert faults("Attention", sharpness=2.0) == []
    assert "padding" in str(faults("careless"))
    assert "its options: power" in str(faults("strongest", powr=1.0))
    assert "tasklab has no attention; did you mean 'tasklab:Attention'" in str(faults("attention"))

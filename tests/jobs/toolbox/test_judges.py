"""Judges: which one a job has, one of the user's own, and every built-in one against its oracle.

A built-in judge without a case here fails the collection.
"""

from __future__ import annotations

import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
from judges import beir
from pydantic import ValidationError
from ranks import SpawnRanks

from jobs import data, models
from jobs.config import ConfigError, JobConfig, components
from jobs.core.outcomes import Outcomes
from jobs.data.tasks.judging import judge_of
from jobs.metrics.evaluate import evaluate
from jobs.train import Training
from jobs.train.components import examined
from orchestrator import sweep as sweeps

CASES: dict[str, list[dict[str, Any]]] = {
    "sts": [{}],
    "classes": [{}, {"references": "more.csv"}],
    "pairs": [{}],
    "bitext": [{}],
    "retrieval": [{}, {"ndcg_at": [3], "recall_at": [2], "skip_same_id": False, "tile": 2}],
}
"""Options to be tried, by judge."""

if without := sorted({*components.builtin_names("judge")} - {*CASES}):
    raise pytest.UsageError(f"a built-in judge is proven here before it is one; there are no cases of {without}")

ROOT = Path(__file__).parents[3]

WORDS = ["red", "green", "blue", "small", "large", "old", "new", "round"]


def sentences(folder: Path, confirm: str, **sections: Any) -> JobConfig:
    """A small job of sentences."""
    (folder / "train.txt").write_text("\n".join(f"a {one} thing is {two}" for one in WORDS for two in WORDS))
    return JobConfig.model_validate(
        {
            "task": "sentence",
            "budget": {"steps": 2},
            "data": {"train": str(folder / "train.txt"), "confirm": confirm, "max_tokens": 16},
            "model": {"width": 16, "heads": 2, "vocabulary": 100},
            "batch": {"size": 8},
        }
        | sections
    )


# Of one's own


@pytest.fixture
def intents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of requests, for the class on the page."""
    page = (ROOT / "docs" / "components.md").read_text("utf-8")
    (block,) = re.findall(r"^```python\n# mylab/judges.py\n(.*?)^```", page, re.M | re.S)
    (tmp_path / "intentlab.py").write_text(block)
    monkeypatch.setenv("ORCHESTRATOR_CODE", str(tmp_path))
    monkeypatch.delitem(sys.modules, "intentlab", raising=False)
    rows = [f"{n},give me the {word} one,{word} thing" for n, word in enumerate(WORDS[:4])]
    (tmp_path / "intents.csv").write_text("\n".join(["id,request,intent", *rows]))
    return tmp_path / "intents.csv"


def test_a_judge_of_ones_own_judges_a_training(tmp_path: Path, intents: Path) -> None:
    """By embeddings of whatever it asks for; its rows' outcomes are kept, and data that change are noticed."""
    config = sentences(
        tmp_path, str(intents), evaluate={"judge": "intentlab:Intents", "judge_options": {"lower": True}}
    )
    assert data.check(config) == []
    training = Training(config, tmp_path / "trial", log=lambda _: None)
    while training.result is None:
        training.advance(10)
    assert training.result is not None
    assert 0 <= training.result["metrics"]["intent_accuracy"] <= 1
    assert (tmp_path / "trial" / "rows.parquet").is_file()
    before = data.digests(config)
    (key,) = (key for key in before if key.startswith("data.confirm"))
    assert 'by intentlab:Intents {"lower": true}' in key
    intents.write_text(intents.read_text().replace("red", "read"))
    assert data.digests(config, before)[key]["digest"] != before[key]["digest"]


def test_it_is_tried_before_anything_runs(tmp_path: Path, intents: Path) -> None:
    config = sentences(tmp_path, str(intents), evaluate={"judge": "intentlab:Intents"})
    whole = config.model_dump(mode="json")
    assert examined("judge", "intentlab:Intents", {}, whole)["faults"] == []
    ((key, _, expected),) = examined("judge", "intentlab:Intents", {"lowr": True}, whole)["faults"]
    assert key == "evaluate.judge_options.lowr"
    assert "did you mean 'lower'" in expected
    named = whole | {"evaluate": whole["evaluate"] | {"judge": "intentlab:F"}}
    ((key, _, expected),) = examined("judge", "intentlab:F", {}, named)["faults"]
    assert key == "evaluate.judge"
    assert "is no class" in expected
    intents.write_text("id,request\n1,red\n2,blue\n")
    with pytest.raises(data.DataError, match=r"intent.*is missing"):
        data.check(config)


def test_a_sweep_with_it_says_which_way_is_better(tmp_path: Path, intents: Path) -> None:
    text = f"""
name = "own-judge"
question = "?"
metric = {{ name = "intent_accuracy" }}
[code]
paths = ["intentlab.py"]
[job]
task = "sentence"
budget = {{ steps = 2 }}
data = {{ train = "train.txt", confirm = "{intents}" }}
evaluate = {{ judge = "intentlab:Intents" }}
[compare]
"loss.temperature" = [0.05, 0.1]
"""
    (tmp_path / "sweep.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"metric.mode.*only intentlab:Intents knows"):
        sweeps.load(tmp_path / "sweep.toml")
    (tmp_path / "sweep.toml").write_text(text.replace('"intent_accuracy"', '"intent_accuracy", mode = "max"'))
    assert len(sweeps.arms_of(sweeps.load(tmp_path / "sweep.toml"))) == 2


# Which


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"evaluate": {"judge": "st"}}, "'retrieval', 'sts' or an import path such as 'mylab.judges:Reranking'"),
        ({"evaluate": {"judge": "sts"}}, "is for task = 'sentence'; with task = 'image' use 'classes'"),
        ({"evaluate": {"judge": "a:B", "metrics": ["a:c"]}}, "are for built-in judges; let evaluate.. of a:B"),
        (
            {"task": "a:Own", "model": {"name": "vit"}, "evaluate": {"judge": "classes"}},
            "let evaluate.. of a:Own do it",
        ),
    ],
)
def test_a_judge_that_cannot_judge_is_refused(sections: dict[str, Any], words: str) -> None:
    whole = {"task": "image", "budget": {"steps": 1}, "data": {"train": "digits", "confirm": "digits"}}
    with pytest.raises(ValidationError, match=words):
        JobConfig.model_validate(whole | sections)


def test_a_job_has_the_judge_of_its_task_and_its_id_of_ever(tmp_path: Path) -> None:
    """Naming the usual judge is another job by its id alone."""
    plain = JobConfig.model_validate(
        {"task": "image", "budget": {"steps": 1}, "data": {"train": "digits[:99]", "confirm": "digits[99:150]"}}
    )
    named = plain.model_copy(update={"evaluate": plain.evaluate.model_copy(update={"judge": "classes"})})
    assert (plain.judge, sentences(tmp_path, "x").judge) == ("classes", "sts")
    assert plain.id != named.id
    assert [len(judge_of(job).read("digits[99:150]").query_labels) for job in (plain, named)] == [51, 51]
    options = {"recall_at": [5], "map_at": []}
    assert components.measures("retrieval", options)[:3] == ("ndcg_at_10", "mrr_at_10", "recall_at_5")


# All of them


def judged_source(judge: str, folder: Path, count: int = 24) -> str:
    """A source that the judge reads, made of the words of the training data."""
    texts = [f"the {WORDS[at % 8]} thing number {at}" for at in range(count)]
    others = [f"the {WORDS[at * 5 % 8]} one, {at // 2}" for at in range(count)]
    if judge == "retrieval":
        return str(beir(folder / "corpus"))
    if judge == "classes":
        rows = ["text,label", *(f"{text},{WORDS[at % 3]}" for at, text in enumerate(texts))]
        (folder / "more.csv").write_text("\n".join([rows[0], *(row.replace("number", "of") for row in rows[1:])]))
    elif judge == "bitext":
        rows = ["source,target", *(f"{a},{b.replace(',', '')} {a[-2:]}" for a, b in zip(texts, others, strict=True))]
    else:
        scale = 2 if judge == "pairs" else 6
        rows = ["sentence1,sentence2,score"]
        rows += [f'{a},"{b}",{at % scale}' for at, (a, b) in enumerate(zip(texts, others, strict=True))]
    path = folder / f"{judge}.csv"
    path.write_text("\n".join(rows))
    return str(path)


def measured_by(jobs: list[JobConfig], group: Any = None) -> list[dict[str, float]]:
    """All metrics of untrained encoders, and what they say of rows."""
    found = []
    for config in jobs:
        task = data.task_of(config)
        model = models.build(config, tokenizer=task.tokenizer, inputs=task.inputs())
        outcomes: dict[str, Outcomes] = {}
        judged = task.judged()
        numbers = evaluate(model, judged, job=config, task=task, group=group, final=True, outcomes=outcomes)
        sums = {
            f"{name} {key}": float(np.nansum(own)) for name, one in outcomes.items() for key, own in one.columns.items()
        }
        assert {len(own) for one in outcomes.values() for own in one.columns.values()} == {len(task.row_ids(judged))}
        found.append(numbers | sums)
    return found


def measured_on_rank(jobs: list[JobConfig], _rank: int) -> list[dict[str, float]]:
    return measured_by(jobs, dist.group.WORLD)


def every_case(folder: Path) -> list[JobConfig]:
    jobs = []
    for judge, cases in CASES.items():
        source = judged_source(judge, folder)
        for options in cases:
            own = options | ({"references": str(folder / "more.csv")} if "references" in options else {})
            evaluation = {"judge": judge, "judge_options": own, "batch": 5, "neighbours": 3}
            jobs.append(sentences(folder, source, evaluate=evaluation))
    return jobs


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[JobConfig], list[dict[str, float]]]:
    jobs = every_case(tmp_path_factory.mktemp("judged"))
    return jobs, measured_by(jobs)


def test_every_judge_measures_what_it_says(cases: tuple[list[JobConfig], list[dict[str, float]]]) -> None:
    """And nothing else, so that a sweep's metric is known before it runs; its data are checked without a word."""
    for config, found in zip(*cases, strict=True):
        named = {*components.measures(config.judge, config.evaluate.judge_options)}
        assert {name for name in found if " " not in name} == named, config.judge
        assert data.check(config) is not None
        digests = data.digests(config)
        assert len(digests) == 2
        assert data.digests(config, digests) == digests


@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.soak), 3])
def test_numbers_do_not_depend_on_ranks(
    cases: tuple[list[JobConfig], list[dict[str, float]]], spawn_ranks: SpawnRanks, world: int
) -> None:
    """Bit for bit."""
    jobs, alone = cases
    assert spawn_ranks(world, partial(measured_on_rank, jobs), timeout_s=200) == [alone] * world


def test_equal_texts_are_ties_though_batches_pad_them_unlike(tmp_path: Path) -> None:
    """A pair that is there several times is found in the order of its rows, whatever rounding does in a batch. Mutant
    check: encoded row by row, in batches of other lengths, equal texts differ in the last bits."""
    several = [("small red thing", "large old thing")] * 7
    rows = [*several, ("small red thing is red and", "large old thing is"), ("a", "old")]
    (tmp_path / "pairs.tsv").write_text("\n".join(["left\tright", *map("\t".join, rows)]))
    encoder = {"width": 128, "heads": 2, "vocabulary": 100}
    for seed in range(4):
        job = sentences(
            tmp_path, f"{tmp_path}/pairs.tsv", evaluate={"judge": "bitext", "batch": 3}, model=encoder, seed=seed
        )
        model = models.build(job, tokenizer=(tokenizer := data.tokenizer_for(job)))
        outcomes: dict[str, Any] = {}
        judged = judge_of(job).read(f"{tmp_path}/pairs.tsv")
        evaluate(model, judged, job=job, tokenizer=tokenizer, outcomes=outcomes)
        for way in ("forward", "backward"):
            places = 1 / outcomes[f"mrr_{way}"].columns[""][: len(several)]
            assert np.diff(places).round(9).tolist() == [1] * 6

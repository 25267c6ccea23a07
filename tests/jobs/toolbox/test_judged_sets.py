"""Several judged sets: each by itself, all together and their mean; against scipy on the same embeddings."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from ranks import SpawnRanks
from scipy.stats import spearmanr
from torch import Tensor

from jobs import data, models
from jobs.artifacts import rows as kept_rows
from jobs.config import ConfigError, JobConfig, components
from jobs.core.outcomes import RowIds, by_row, mean_of
from jobs.data.tasks import task_of
from jobs.data.tasks.judging import judge_of
from jobs.data.tasks.sets import _mean, _named
from jobs.metrics.evaluate import evaluate
from jobs.train import Training
from orchestrator import sweep as sweeps
from orchestrator.session.schedule import wrong_metric
from orchestrator.sweep import plan as planning

WORDS = ["red", "green", "blue", "small", "large", "old", "new", "round"]


def written(path: Path, rows: int, *, grouped: bool = False) -> str:
    """Scored pairs, drawn from the name of the file."""
    draw = random.Random(path.name)
    lines = ["id\tsentence1\tsentence2\tscore" + "\tgroup" * grouped]
    for row in range(rows):
        first, second, other = (draw.choice(WORDS) for _ in range(3))
        pair = f"a {first} thing\ta {draw.choice([first, second])} {other}"
        lines.append(f"{row}\t{pair}\t{draw.randint(0, 5)}" + f"\t{row // 2}" * grouped)
    path.write_text("\n".join([*lines, ""]))
    return str(path)


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "train.txt").write_text("\n".join(f"a {one} thing is {two}" for one in WORDS for two in WORDS))
    return {
        "train": str(tmp_path / "train.txt"),
        "a": written(tmp_path / "a.tsv", 30),
        "b": written(tmp_path / "b.tsv", 17, grouped=True),
    }


def job(sources: dict[str, str], confirm: Any, **sections: Any) -> JobConfig:
    """A small job of sentences."""
    return JobConfig.model_validate(
        {
            "task": "sentence",
            "budget": {"steps": 2},
            "data": {"train": sources["train"], "confirm": confirm, "max_tokens": 16} | sections.pop("data", {}),
            "model": {"width": 16, "heads": 2, "vocabulary": 100},
            "batch": {"size": 8},
        }
        | sections
    )


class Hashed:
    """Embeddings that are a function of the text."""

    group, device = None, "cpu"

    def __call__(self, texts: Sequence[str]) -> Tensor:
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) for text in texts]
        return torch.from_numpy(np.array([np.random.default_rng(seed).normal(size=6) for seed in seeds]))


def read(path: str) -> list[list[str]]:
    return [line.split("\t") for line in Path(path).read_text().splitlines()[1:]]


def correlation(rows: Sequence[Sequence[str]]) -> float:
    """Spearman of cosines and scores, by scipy."""
    left, right = (Hashed()([row[column] for row in rows]).numpy() for column in (1, 2))
    cosines = (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    return float(spearmanr(cosines.round(12), [float(row[3]) for row in rows]).statistic)


def test_each_set_all_of_them_and_their_mean_are_measured(sources: dict[str, str]) -> None:
    """Mutant checks: `all` as the mean; the mean by rows; the pairs of one set beside the scores of another."""
    config = job(sources, {"a": sources["a"], "b": sources["b"]})
    judge = judge_of(config)
    found = judge.evaluate(Hashed(), judge.read(config.eval_split), final=True)
    first, second = read(sources["a"]), read(sources["b"])
    expected = {
        "a/spearman": correlation(first),
        "b/spearman": correlation(second),
        "all/spearman": correlation([*first, *second]),
        "mean/spearman": (correlation(first) + correlation(second)) / 2,
    }
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, abs=1e-12)
    assert len(set(expected.values())) == 4, "so that each was told from the others"
    named = components.measures("sts", {})
    assert set(found) == {f"{name}/{metric}" for name in ("a", "b", "all", "mean") for metric in named}


def test_sets_of_several_judges_have_no_common_metrics(sources: dict[str, str], tmp_path: Path) -> None:
    """Nor have sets of one judge with other options. Mutant check: the first set's judge for all."""
    labelled = "\n".join(f"a {one} thing\ta {two} thing\t{int(one < two)}" for one in WORDS for two in WORDS)
    (tmp_path / "p.tsv").write_text(f"sentence1\tsentence2\tlabel\n{labelled}\n")
    sets = {"a": sources["a"], "p": str(tmp_path / "p.tsv")}
    config = job(sources, sets, evaluate={"judge": {"a": "sts", "p": "pairs"}})
    judge = judge_of(config)
    found = judge.evaluate(Hashed(), judge.read(config.eval_split), final=True)
    own = {name: components.measures(judge, {}) for name, judge in (("a", "sts"), ("p", "pairs"))}
    assert set(found) == {f"{name}/{metric}" for name, metrics in own.items() for metric in metrics}
    assert found["a/spearman"].value == pytest.approx(correlation(read(sources["a"])), abs=1e-12)
    assert [key.partition(" = ")[0] for key in data.digests(config)] == [
        "data.train",
        "data.confirm.a",
        "data.confirm.p",
    ]


def trained(config: JobConfig, folder: Path) -> dict[str, Any]:
    training = Training(config, folder, log=lambda _: None)
    while training.result is None:
        training.advance(10)
    return dict(training.result)


def test_a_set_s_numbers_are_those_that_it_has_alone_and_its_rows_are_kept(
    sources: dict[str, str], tmp_path: Path
) -> None:
    """Bit for bit, at fewer columns too. Row ids are told apart by their set. Mutant checks: rows of all sets for the
    metric of one; one encoding of the texts of all sets, which pads them otherwise."""
    more: dict[str, Any] = {"evaluate": {"dims": [8]}}
    whole = trained(job(sources, {"a": sources["a"], "b": sources["b"]}, **more), tmp_path / "both")["metrics"]
    for name in ("a", "b"):
        alone = trained(job(sources, sources[name], **more), tmp_path / name)["metrics"]
        measured = {key: value for key, value in alone.items() if not key.startswith("train/")}
        assert measured
        assert {key: whole[f"{name}/{key}"] for key in measured} == measured
    content = (tmp_path / "both" / "rows.parquet").read_bytes()
    of_rows = {m: kept_rows.decode(content, f"{m}/spearman") for m in ("a", "b", "all", "mean")}
    assert [one.rows for one in of_rows.values() if one] == [30, 17, 47, 47]
    assert of_rows["b"] is not None
    assert of_rows["b"].groups == 9
    assert len({one.ids for one in of_rows.values() if one}) == 3, "all and mean are of the same rows"
    alone = kept_rows.decode((tmp_path / "b" / "rows.parquet").read_bytes(), "spearman")
    assert alone is not None
    assert of_rows["b"].sizes == alone.sizes or sum(of_rows["b"].sizes) == sum(alone.sizes) == 17


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.lists(st.integers(3, 12), min_size=2, max_size=4))
def test_without_a_block_the_mean_is_the_mean_over_sets_of_what_is_left(seed: int, sizes: list[int]) -> None:
    """Against each set recomputed. A block may have no row of a set. Mutant checks: a block's number within the set in
    place of its own; rows that do not count."""
    rng = np.random.default_rng(seed)
    columns = [rng.normal(size=(size, 2)) for size in sizes]
    values = [np.where(rng.random(size) < 0.2, np.nan, rng.normal(size=size)) for size in sizes]
    for own in values:
        own[:2] = [0.25, 0.5]

    def product(x: Any, y: Any) -> float:
        return float(np.mean(x * y))

    blocks = [rng.integers(0, 5, size=size) for size in sizes]
    blocks[0][:3] = [4, 0, 1]
    for own in blocks[1:]:
        own[:2] = [2, 3]
    together = np.concatenate(blocks)
    means = [mean_of(own[~np.isnan(own)]) for own in values]
    means = [type(mean)(mean.value, {"": own}) for mean, own in zip(means, values, strict=True)]
    products = [by_row(product, x=own[:, 0], y=own[:, 1]) for own in columns]

    def left_of_values(k: int, rows: Any) -> float:
        return float(np.nanmean(values[k][rows]))

    def left_of_products(k: int, rows: Any) -> float:
        return product(columns[k][rows, 0], columns[k][rows, 1])

    for outcomes, left in ((means, left_of_values), (products, left_of_products)):
        found = _mean(outcomes, sizes)
        assert found.value == pytest.approx(np.mean([outcome.value for outcome in outcomes]))
        assert found.without is not None
        for block, without in enumerate(found.without(together)):
            kept = [blocks[k] != block for k in range(len(sizes))]
            if all(rows.any() for rows in kept) and block <= together.max():
                of_sets = [left(k, rows) if not rows.all() else outcomes[k].value for k, rows in enumerate(kept)]
                assert without == pytest.approx(float(np.mean(of_sets)), nan_ok=True)


def test_groups_and_ids_of_sets_are_told_apart() -> None:
    named = [_named(RowIds([1, 2], ["x", None]), name) for name in ("a", "b")]
    assert [own.ids for own in named] == [["a/1", "a/2"], ["b/1", "b/2"]]
    assert named[0].groups == ["a/x", None]
    assert {*named[0].units}.isdisjoint(named[1].units)


def measured(train: str, sets: dict[str, str], group: Any = None) -> dict[str, float]:
    """What an encoder is told of both sets, before it is trained."""
    config = job({"train": train}, sets, execution={"threads": 1})
    tokenizer = data.tokenizer_for(config)
    model = models.build(config, tokenizer=tokenizer).eval()
    judged = task_of(config, tokenizer).judged()
    return evaluate(model, judged, job=config, tokenizer=tokenizer, group=group, final=True)


def on_rank(train: str, sets: dict[str, str], rank: int) -> dict[str, float]:
    return measured(train, sets, dist.group.WORLD)


@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.soak), 3])
def test_any_number_of_ranks_gives_the_same_bits(spawn_ranks: SpawnRanks, sources: dict[str, str], world: int) -> None:
    train, sets = sources["train"], {"a": sources["a"], "b": sources["b"]}
    alone = measured(train, sets)
    assert {"a/spearman", "all/spearman", "mean/uniformity"} <= alone.keys()
    assert all(seen == alone for seen in spawn_ranks(world, partial(on_rank, train, sets), timeout_s=200))


# What is wrong


@pytest.mark.parametrize(
    ("confirm", "more", "words"),
    [
        ({}, {}, "at least 1 item"),
        ({"all": "a.tsv"}, {}, "'all' is no name of a set"),
        ({"a.b": "a.tsv"}, {}, "'a.b' is no name of a set: letters, digits"),
        ({"a": 3}, {}, "valid string"),
        ({"a": "a.tsv"}, {"evaluate": {"judge": {"b": "sts"}}}, "evaluate.judge is a table of b, and the sets of"),
        ("a.tsv", {"evaluate": {"judge": {"b": "sts"}}}, "are one without a name"),
        ({"a": "a.tsv"}, {"evaluate": {"judge": {"a": "stz"}}}, "'sts'"),
        (
            {"a": "a.tsv"},
            {"evaluate": {"judge": {"a": "sts"}, "judge_options": {"k": 1}}},
            "evaluate.judge_options.k is of no set",
        ),
    ],
)
def test_a_table_that_nobody_can_judge_is_refused(
    sources: dict[str, str], confirm: Any, more: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError, match=words.replace("(", r"\(")):
        job(sources, confirm, **more)


def test_a_fault_and_a_warning_name_the_set(sources: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "short.tsv").write_text("sentence1\tsentence2\tscore\na red thing\ta blue one\t3\n")
    with pytest.raises(data.DataError, match=r"data\.confirm\.b needs at least two"):
        data.check(job(sources, {"a": sources["a"], "b": str(tmp_path / "short.tsv")}))
    tune = {"tune": {"a": sources["a"]}}
    (note,) = data.check(job(sources, {"a": sources["a"], "b": sources["b"]}, data=tune))
    assert "data.tune.a = " in note
    assert "data.confirm.a = " in note
    assert "the verdict is on rows that tuning has seen" in note
    (note,) = data.check(job(sources, {"a": sources["a"], "b": f"{sources['a']}[:9]"}))
    assert "these rows count twice" in note


def test_sets_that_no_number_joins_may_be_of_one_file(sources: dict[str, str]) -> None:
    """Each is judged alone, so nothing counts twice. What tuning sees, and what is trained on, is warned of as ever.
    Mutant check: sets of one stage that are never warned of fail the test before."""
    options = {"a": {}, "b": {"references": sources["b"]}}
    two: dict[str, Any] = {"judge": {"a": "classes", "b": "classes"}, "judge_options": options, "neighbours": 3}
    columns = {"judged_columns": ["sentence1", "score"]}
    both = {"a": sources["a"], "b": sources["a"]}
    assert data.check(job(sources, both, evaluate=two, data=columns)) == []
    (note,) = data.check(job(sources, both, evaluate={"judge": "classes", "neighbours": 3}, data=columns))
    assert "data.confirm.a = " in note
    assert "these rows count twice" in note
    tuned = data.check(job(sources, both, evaluate=two, data=columns | {"tune": both}))
    assert len(tuned) == 4
    assert all("the verdict is on rows that tuning has seen" in note for note in tuned)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.integers(1, 5), st.booleans())
def test_groups_of_one_set_are_none_of_another(groups: list[int], others: int, plain: bool) -> None:
    """What is kept of a set that names no groups is what is kept of it alone: its ids, and that it has none. Mutant
    check: a column of groups that holds for all rows of the file."""
    grouped = _named(RowIds(range(len(groups)), groups), "a")
    own = _named(RowIds(range(others), None if plain else [None] * others), "b")
    values = (mean_of(np.ones(len(groups))), mean_of(np.ones(others)))
    content = kept_rows.encode({"a/m": (grouped, values[0]), "b/m": (own, values[1])})
    alone = kept_rows.encode({"b/m": (RowIds(own.ids), values[1])})
    assert content is not None
    assert alone is not None
    first, second, expected = (
        kept_rows.decode(content, "a/m"),
        kept_rows.decode(content, "b/m"),
        kept_rows.decode(alone, "b/m"),
    )
    assert first is not None
    assert first.groups == len(set(groups))
    assert second is not None
    assert expected is not None
    assert (second.groups, second.ids, second.group_of) == (None, expected.ids, None)


def test_what_a_run_records_of_its_data_is_of_each_set(sources: dict[str, str]) -> None:
    """A digest each, by which a change is noticed. Mutant check: the first set's alone."""
    config = job(sources, {"a": sources["a"], "b": sources["b"]})
    before, fingerprint = data.digests(config), data.fingerprint(config)
    assert [key.partition(" = ")[0] for key in before] == ["data.train", "data.confirm.a", "data.confirm.b"]
    assert [entry["rows"] for entry in before.values()] == [64, 30, 17]
    Path(sources["b"]).write_text(Path(sources["b"]).read_text().replace("red", "read"))
    after = data.digests(config)
    assert [key for key in before if before[key]["digest"] != after[key]["digest"]] == [
        f"data.confirm.b = {sources['b']}"
    ]
    assert data.fingerprint(config) != fingerprint


# In a sweep

SWEEP = """
name = "sets"
question = "Does it hold on both sets?"
metric = METRIC
[job]
task = "sentence"
budget = { steps = 2 }
[job.data]
train = "TRAIN"
tune = TUNE
confirm = { a = "A", b = "B" }
[compare]
"loss.name" = ["infonce", "flatnce"]
[tune]
trials = 2
space = { "optimizer.lr" = { low = 1e-4, high = 1e-2 } }
"""


def loaded(sources: dict[str, str], metric: str, tune: str = '{ a = "A" }', *overrides: str) -> sweeps.Sweep:
    text = SWEEP.replace("METRIC", metric).replace("TUNE", tune).replace('"TRAIN"', f'"{sources["train"]}"')
    return sweeps.loads(text.replace('"A"', f'"{sources["a"]}"').replace('"B"', f'"{sources["b"]}"'), overrides)


def test_a_sweep_is_judged_by_metrics_of_its_sets(sources: dict[str, str]) -> None:
    """Which way is better follows the metric, whatever the set. Confirm has sets that tuning does not look at."""
    names = ["a/spearman", "b/spearman", "all/spearman", "mean/alignment"]
    sweep = loaded(sources, "[" + ", ".join(f'{{ name = "{name}" }}' for name in names) + "]")
    assert [metric.mode for metric in sweep.metric.every] == ["max", "max", "max", "min"]
    plan, other = (
        planning.make(sweep),
        planning.make(loaded(sources, '{ name = "a/spearman" }', '{ a = "A" }', "job.data.confirm.b=other.tsv")),
    )
    again = planning.stored(sweeps.resolved(sweep) | {"plan": plan.record()}, plan.rules)
    ids = [made.arms[0].config(stage="confirm", seed=0).id for made in (plan, again, other)]
    assert ids[0] == ids[1]
    assert ids[1] != ids[2], "a set is a part of the job"


@pytest.mark.parametrize(
    ("metric", "tune", "seen"),
    [
        ('{ name = "a/spearman" }', '{ a = "A", b = "B" }', ["data.tune.a and data.confirm.a"]),
        ('{ name = "a/spearman" }', '{ a = "B" }', []),
        ('{ name = "mean/spearman" }', '{ a = "B", c = "other.tsv" }', ["data.tune.a and data.confirm.b"]),
        ('[{ name = "a/spearman" }, { name = "b/spearman" }]', '{ a = "B" }', ["data.tune.a and data.confirm.b"]),
        ('[{ name = "a/spearman" }, { name = "all/spearman" }]', '{ a = "B" }', ["data.tune.a and data.confirm.b"]),
    ],
)
def test_the_plan_warns_of_sets_that_tuning_and_verdict_look_at(
    sources: dict[str, str], metric: str, tune: str, seen: list[str]
) -> None:
    """And of no others: here b is judged, and no claim is made of it. Mutant check: the sources of all sets as one."""
    notes = planning.make(loaded(sources, metric, tune)).warnings
    assert [note.partition(" are the same rows")[0] for note in notes if "are the same rows" in note] == seen


@pytest.mark.parametrize(
    ("metric", "tune", "words"),
    [
        ("spearman", '{ a = "A" }', "'spearman': is not measured in task 'sentence', which knows a/spearman,"),
        ("c/spearman", '{ a = "A" }', "'c/spearman': is not measured"),
        ("b/spearman", '{ a = "A" }', "is not measured on data.tune, which tuning looks at; it has a/spearman"),
        ("all/spearman", '{ a = "A" }', "is not measured on data.tune"),
        ("a/spearman", '"A"', "is not measured on data.tune, which tuning looks at; it has spearman"),
    ],
)
def test_a_metric_that_one_stage_lacks_is_refused(sources: dict[str, str], metric: str, tune: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        loaded(sources, f'{{ name = "{metric}" }}', tune)
    assert words in str(refused.value)


def test_a_metric_that_one_arm_lacks_is_refused(sources: dict[str, str], tmp_path: Path) -> None:
    """Its trials failed once they had been trained. Mutant check: what any arm measures is measured."""
    text = f"""
name = "cuts"
question = "?"
metric = {{ name = "ndcg_at_10" }}
[job]
task = "sentence"
budget = {{ steps = 2 }}
data = {{ train = "{sources["train"]}", confirm = "x" }}
evaluate = {{ judge = "retrieval" }}
[[arm]]
label = "ten"
[[arm]]
label = "five"
evaluate.judge_options = {{ ndcg_at = [5] }}
"""
    (tmp_path / "sweep.toml").write_text(text)
    with pytest.raises(
        ConfigError, match="'ndcg_at_10': is not measured in arm 'five', which has ndcg_at_5, mrr_at_10"
    ):
        sweeps.load(tmp_path / "sweep.toml")
    (tmp_path / "sweep.toml").write_text(text.replace("ndcg_at_10", "recall_at_10"))
    assert sweeps.load(tmp_path / "sweep.toml").metric.name == "recall_at_10"


def test_a_trial_that_lacks_a_metric_says_what_it_measured() -> None:
    said = wrong_metric("c/spearman", {"a/spearman": 0.5, "train/loss": 1.0})
    assert said == "the metric 'c/spearman' was not measured; the trial measured a/spearman"


def test_sets_have_columns_of_their_own(sources: dict[str, str], tmp_path: Path) -> None:
    """Scores and labels of one file. Mutant check: one list of columns for all sets, which no two judges share."""
    file = tmp_path / "both.tsv"
    lines = Path(sources["a"]).read_text().splitlines()
    file.write_text("\n".join([f"{lines[0]}\tlabel", *(f"{line}\t{k % 2}" for k, line in enumerate(lines[1:])), ""]))
    one, pair = str(file), ("sentence1", "sentence2")
    columns = {"sts": (*pair, "score"), "same": (*pair, "label")}
    judge = {"sts": "sts", "same": "pairs"}
    whole = job(sources, {"sts": one, "same": one}, data={"judged_columns": columns}, evaluate={"judge": judge})
    alone = whole.judged_alone("confirm")
    assert {name: own.data.judged_columns for name, own in alone.items()} == columns
    scored, labelled = (judge_of(alone[name]).read(one) for name in ("sts", "same"))
    assert {*scored.score} == {*range(6)}
    assert {*labelled.score} == {0, 1}
    digests = {key: entry["digest"] for key, entry in data.digests(whole).items() if "confirm" in key}
    assert len({*digests.values()}) == 2, "which columns are judged tells the data apart"


@pytest.mark.parametrize(
    ("confirm", "columns", "says"),
    [
        ({"a": "a.tsv"}, {"b": ["x", "y", "z"]}, "judged_columns.b is of no set"),
        ("a.tsv", {"a": ["x", "y", "z"]}, "give [LEFT, RIGHT, SCORE]"),
        ({"a": "a.tsv"}, {"a": ["x", "x", "z"]}, "names a column twice"),
        ({"a": "a.tsv"}, {"a": ["x", "y"]}, "are not the columns that 'sts' judges by"),
    ],
)
def test_columns_of_no_set_are_refused(
    sources: dict[str, str], confirm: object, columns: dict[str, list[str]], says: str
) -> None:
    with pytest.raises(ValidationError, match=re.escape(says)):
        job(sources, confirm, data={"judged_columns": columns})

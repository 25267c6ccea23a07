"""Mined hard negatives: by the rule, written out; by a model in training, the same on any ranks and after any kill."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import SpawnRanks
from torch import Tensor

from jobs import data
from jobs.artifacts import checkpoint
from jobs.config import JobConfig, Mine
from jobs.core.ids import ABSENT
from jobs.data.sentences import sentence_rows
from jobs.data.sentences.pools import corpus_of
from jobs.data.sources import Rows
from jobs.metrics.evaluate import Encoder, evaluation_mode
from jobs.metrics.tasks.sentence import Texts
from jobs.mine import mined
from jobs.mine.__main__ import main as command
from jobs.models import build
from jobs.train import Training

WORDS = ["ash", "bay", "cliff", "dune", "elm", "fern", "grove", "hill", "isle", "jetty", "knoll", "lake"]


def rows_of(pairs: list[tuple[str, list[str]]]) -> Rows:
    table = pa.table({"anchor": [anchor for anchor, _ in pairs], "positive": [texts for _, texts in pairs]})
    return Rows("x", table, (("x", 0, len(pairs)),))


def oracle(pairs: list[tuple[str, list[str]]], vectors: dict[str, list[int]], rule: Mine) -> list[list[str]]:
    """By the rule, row by row, with cosines in steps of 2**-26 and Python's whole numbers."""
    units = {
        text: [round(x * 2**26) for x in F.normalize(torch.tensor(vector).double(), dim=-1).tolist()]
        for text, vector in vectors.items()
    }

    def cosine(one: str, other: str) -> float:
        return float(sum(a * b for a, b in zip(units[one], units[other], strict=True))) / 2**52

    texts = list(dict.fromkeys(text for _, own in pairs for text in own))
    found = []
    for anchor, own in pairs:
        barred = {anchor, *(text for other, theirs in pairs if other == anchor for text in theirs)}
        ranked = sorted((text for text in texts if text not in barred), key=lambda text: -cosine(anchor, text))
        lowest = min(cosine(anchor, text) for text in own)
        kept = [
            text
            for text in ranked[slice(*rule.window)]
            if (rule.margin is None or cosine(anchor, text) <= lowest - rule.margin)
            and (rule.share is None or cosine(anchor, text) <= lowest * rule.share)
        ]
        found.append(kept[: rule.kept or rule.negatives])
    return found


names = st.sampled_from("abcdefgh")
pairs_of = st.lists(st.tuples(names, st.lists(names, min_size=1, max_size=3, unique=True)), min_size=2, max_size=9)


@settings(max_examples=60)
@given(
    pairs_of,
    st.integers(0, 5),
    st.sampled_from([(0, 100), (1, 4), (2, 8)]),
    st.sampled_from([None, -0.2, 0.1]),
    st.sampled_from([None, 0.9]),
)
def test_what_is_mined_is_what_the_rule_says(
    pairs: list[tuple[str, list[str]]], seed: int, window: tuple[int, int], margin: float | None, share: float | None
) -> None:
    """Mutant checks: positives of other rows with the same anchor left in, a margin to the nearest positive in place of
    the furthest, and a window that is counted before the positives are left out, fail this."""
    rule = Mine(negatives=2, window=window, margin=margin, share=share)
    draw = np.random.default_rng(seed)
    vectors = {name: draw.integers(-2, 3, 3).tolist() for name in "abcdefgh"}
    vectors = {name: vector if any(vector) else [1, 1, 1] for name, vector in vectors.items()}
    corpus = corpus_of(rows_of(pairs))
    anchors, texts = (
        torch.tensor([vectors[text] for text in column.to_pylist()], dtype=torch.float64)
        for column in (corpus.anchors, corpus.texts)
    )
    found = mined(corpus, anchors, texts, rule)
    said = corpus.texts.to_pylist()
    mine = [[said[m] for m in found.members[a:b]] for a, b in zip(found.ends, found.ends[1:], strict=False)]
    assert mine == oracle(pairs, vectors, rule)


def test_a_window_is_a_slice_of_what_is_kept_at_least() -> None:
    with pytest.raises(ValueError, match=r"window = \[4, 6\] must be a slice of at least the 3 that are kept"):
        Mine(negatives=3, window=(4, 6))
    with pytest.raises(ValueError, match=r"kept = 1 is fewer than negatives = 2"):
        Mine(negatives=2, kept=1)


# By the model in training


def job(folder: Path, **sections: Any) -> JobConfig:
    judged = [{"sentence1": f"a {n} b", "sentence2": f"a {n + 1} c", "score": n} for n in range(6)]
    (folder / "judged.jsonl").write_text("\n".join(map(json.dumps, judged)))
    rows = [
        {"anchor": f"where is the {WORDS[n % 12]} {n}", "positive": f"the {WORDS[n * 5 % 12]} is {WORDS[n % 7]} {n}"}
        for n in range(24)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    encoder = {"name": "bert", "width": 8, "layers": 1, "heads": 1, "projection_width": 6, "vocabulary": 100}
    whole: dict[str, Any] = {
        "task": "sentence",
        "budget": {"steps": 8},
        "data": {"train": str(folder / "rows.jsonl"), "confirm": str(folder / "judged.jsonl"), "max_tokens": 12},
        "mine": {"negatives": 2, "kept": 3, "window": [1, 8]},
        "model": encoder | {"precision": "fp64", "dropout": 0.2},
        "optimizer": {"name": "sgd", "lr": 0.3},  # Adam makes steps of gradients that are 0 but for rounding
        "batch": {"size": 8},
        "evaluate": {"times": 1},
    }
    return JobConfig.model_validate(whole | sections)


def trained(
    folder: Path, config: JobConfig, into: str, steps: int = 8, group: Any = None, said: list[str] | None = None
) -> dict[str, Tensor]:
    log = (lambda _: None) if said is None else said.append
    training = Training(config, folder / into, group=group, log=log)
    while training.result is None and training.step < steps:
        training.advance(1)
    if training.result is None:
        training.save()
    training.settle()
    return {name: parameter.detach().clone() for name, parameter in training.model.named_parameters()}


def on_a_rank(folder: Path, world: int, rank: int) -> dict[str, Tensor]:
    config = job(folder, execution={"ranks": world, "micro": 3, "verify": True})
    assert rank < world
    return trained(folder, config, f"ranks{world}", group=dist.group.WORLD)


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.soak)])
def test_a_training_that_mines_is_the_same_on_any_ranks_and_in_micro_batches(
    tmp_path: Path, spawn_ranks: SpawnRanks, world: int
) -> None:
    """Mutant check: each rank searching by the batch that it holds fails this."""
    said: list[str] = []
    whole = trained(tmp_path, job(tmp_path), "whole", said=said)
    mined = [line for line in said if line.startswith("mined before step")]
    assert [line.partition(":")[0] for line in mined] == [f"mined before step {step}" for step in (1, 4, 7)]
    assert "72 hard negatives of 24 rows, out of 24 texts in 0." in mined[0]
    for found in spawn_ranks(world, partial(on_a_rank, tmp_path, world)):
        for name, weight in whole.items():
            torch.testing.assert_close(found[name], weight, rtol=1e-8, atol=1e-10)
    plain = trained(tmp_path, job(tmp_path, mine={}), "plain")
    once = trained(
        tmp_path, job(tmp_path, mine={"negatives": 2, "kept": 3, "window": [1, 8], "every_epochs": 0}), "once"
    )
    for other in (plain, once):
        assert any(not torch.equal(other[name], weight) for name, weight in whole.items())


@pytest.mark.parametrize("stopped", [2, 3, 5])
def test_a_training_goes_on_bit_for_bit_after_a_stop_in_an_epoch_and_between_two(tmp_path: Path, stopped: int) -> None:
    """Mutant check: searching again by the weights of the checkpoint fails this in mid-epoch."""
    config = job(tmp_path)
    whole = trained(tmp_path, config, "whole")
    trained(tmp_path, config, "stopped", steps=stopped)
    said: list[str] = []
    for name, weight in trained(tmp_path, config, "stopped", said=said).items():
        assert torch.equal(weight, whole[name])
    again = [line.split()[3] for line in said if line.startswith("mined before step")]
    assert again == [f"{step}:" for step in (4, 7) if step > stopped]


def test_what_is_mined_is_by_the_weights_of_then_without_dropout(tmp_path: Path) -> None:
    """Also of single sentences, each its own positive."""
    for columns, head in ((None, False), (["positive"], True)):
        base = job(tmp_path)
        given = base.model_dump() | {
            "data": base.data.model_dump() | {"columns": columns},
            "evaluate": {"times": 1, "head": head},
        }
        config = JobConfig.model_validate(given)
        training = Training(config, tmp_path / f"one{head}", log=lambda _: None)
        training.advance(1)
        first = build(config, tokenizer=training.tokenizer)
        corpus = corpus_of(training.examples.rows)  # type: ignore[attr-defined]
        assert training.tokenizer is not None
        with evaluation_mode(first):
            embed = Texts(Encoder(first, 7, head), training.tokenizer)
            anchors, texts = (embed(column.to_pylist()) for column in (corpus.anchors, corpus.texts))
        wanted = mined(corpus, anchors, texts, config.mine)
        state = training.mining.state_dict()
        assert state["members"].tolist() == wanted.members.tolist()
        assert len(wanted.members) == 3 * 24
        ids = training.examples.ids(np.arange(24), data.Draw(0, 1))
        assert ids.negative_ids is not None
        assert ids.negative_ids.shape == (24, 2)
        assert not (ids.negative_ids == ABSENT).any()
        assert not (ids.negative_ids == ids.pair_ids[:, None]).any()


def test_only_sentences_are_mined(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mine.negatives = 2 are texts, which task = 'image' has none of"):
        JobConfig.model_validate(
            {
                "task": "image",
                "budget": {"steps": 1},
                "data": {"train": "digits[:50]", "confirm": "digits[50:]"},
                "mine": {"negatives": 2},
            }
        )
    with pytest.raises(
        ValueError, match=r"mine.negatives = 2 finds in training; mine them once, by python -m jobs.mine"
    ):
        job(tmp_path, loss={"name": "gist", "guide": "somewhere"})


def test_a_window_beyond_all_texts_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    """A whole sweep would be trained without what it asks about, and only the log would say so."""
    texts = len(corpus_of(sentence_rows(job(tmp_path))).texts)
    said = rf"has {texts - 1} texts beside a positive, and mine.window = \[{texts - 1}, 99\] passes over"
    with pytest.raises(data.DataError, match=said):
        data.check(job(tmp_path, mine={"negatives": 2, "window": [texts - 1, 99]}))
    data.check(job(tmp_path, mine={"negatives": 2, "window": [texts - 2, 99]}))


# Once before: python -m jobs.mine


def cli(*arguments: object, ranks: int = 1, cwd: Path) -> dict[str, Any]:
    """What it prints."""
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    line = [sys.executable, *several, "-m", "jobs.mine", *map(str, arguments)]
    done = subprocess.run(line, check=False, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_the_command_mines_by_a_trained_encoder_into_a_file_that_a_job_trains_on(tmp_path: Path, ranks: int) -> None:
    config = job(tmp_path, mine={}, budget={"steps": 2}, evaluate={"times": 1, "head": True})
    trained(tmp_path, config, "trial")
    rule = ["--negatives", 3, "--window", "2:10", "--margin", -1]
    done = cli(
        tmp_path / "trial", tmp_path / "rows.jsonl", tmp_path / "mined.parquet", *rule, ranks=ranks, cwd=tmp_path
    )
    assert (done["rows"], done["negatives"], done["rows_with_fewer"]) == (24, 72, 0)
    table = pq.read_table(tmp_path / "mined.parquet")
    assert table.column_names == ["anchor", "positive", "hard_negatives"]

    training = Training(config, tmp_path / "trial", log=lambda _: None)
    model = build(config, tokenizer=training.tokenizer)
    weights = checkpoint.weights(tmp_path / "trial" / "checkpoints")[1]
    model.load_state_dict(weights)
    assert training.tokenizer is not None
    assert isinstance(training.examples, data.SentenceExamples)
    corpus = corpus_of(training.examples.rows)
    with evaluation_mode(model):
        embed = Texts(Encoder(model, config.evaluate.batch, head=True), training.tokenizer)
        anchors, texts = (embed(column.to_pylist()) for column in (corpus.anchors, corpus.texts))
    wanted = mined(corpus, anchors, texts, Mine(negatives=3, window=(2, 10), margin=-1))
    said = corpus.texts.to_pylist()
    assert table["hard_negatives"].to_pylist() == [
        [said[member] for member in wanted.members[low:high]] for low, high in itertools.pairwise(wanted.ends)
    ]
    keys = config.data.model_dump() | {"train": str(tmp_path / "mined.parquet"), "hard_negatives": 2}
    examples = data.train_examples(JobConfig.model_validate(config.model_dump() | {"data": keys}))
    assert examples.hard_negatives == 2


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job(tmp_path)
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([str(tmp_path / "empty"), "rows.jsonl", "out.parquet"], "no tokenizer can be loaded"),
        (["x", "rows.jsonl", str(tmp_path / "rows.jsonl")], "is there already, and nothing is overwritten; name a new"),
        (
            ["x", "rows.jsonl", "out.parquet", "--window", "5"],
            "--window 5 is no slice of ranks; give two whole numbers",
        ),
        (["x", "rows.jsonl", "out.parquet", "--window", "5:7"], "must be a slice of at least the 4 that are kept"),
        (["x", "rows.jsonl", "out.parquet", "--negatives", "0"], "--negatives 0 keeps none; 1 at least, such as 4"),
        (["x", "rows.jsonl", "out.jsonl"], "out.jsonl would hold Parquet under another name"),
        (["x", "rows.jsonl", "gone/out.parquet"], "there is no folder gone; make it"),
    ):
        assert command(arguments) == 2
        assert message in capsys.readouterr().err

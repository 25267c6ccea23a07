"""A guide's rows: of the data as they are, by its own tokenizer and pooling, the same bits whoever asks; and what its
files count for."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import folders
import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import SpawnRanks
from test_losses_of_batches import trained
from torch import Tensor

from jobs.config import JobConfig, components
from jobs.data.__main__ import main as look_at_data
from jobs.data.batches import Draw
from jobs.data.sentences import sentence_examples
from jobs.data.sentences.pools import EMPTY
from jobs.data.validate import check
from jobs.export import export
from jobs.losses import GuideRows, JobLoss
from jobs.models import ModelError
from jobs.train import Training, origin
from jobs.train.guide import BLOCK, Guide


def rows_of_text(n: int) -> list[str]:
    colour, thing = folders.COLOURS[n % 3], folders.THINGS[n % 6]
    return [f"small {colour} {thing}", f"{colour} {thing} {'old ' * (n % 5)}fast", f"round {folders.THINGS[n % 5]}"]


def job_of(folder: Path, guide: Path | str | None, name: str = "gist", **sections: Any) -> JobConfig:
    """Forty pairs with a hard negative."""
    lines = ["\t".join(rows_of_text(n)) for n in range(40)]
    (folder / "train.tsv").write_text("\n".join(["anchor\tpositive\tnegative", *lines]))
    judged = ["\t".join([*rows_of_text(n)[:2], str(n % 7)]) for n in range(20)]
    (folder / "judged.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *judged]))
    loss: dict[str, Any] = {"name": name} | ({} if guide is None else {"guide": str(guide)})
    return JobConfig.model_validate(
        {
            "task": "sentence",
            "budget": {"steps": 4},
            "data": {"train": str(folder / "train.tsv"), "confirm": str(folder / "judged.tsv"), "max_tokens": 6},
            "model": {"name": "bert", "width": 16, "layers": 1, "heads": 2, "vocabulary": 120, "precision": "fp64"},
            "batch": {"size": 8},
            "loss": loss,
            "optimizer": {"name": "sgd", "lr": 0.01},
            "evaluate": {"times": 1},
        }
        | sections
    )


@pytest.fixture(scope="module")
def guide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As sentence-transformers writes it: the first token's state, twelve tokens at most, a prompt."""
    folder = tmp_path_factory.mktemp("guides") / "guide"
    folders.encoder(folder)
    general = {"prompts": {"query": "large "}, "default_prompt_name": "query"}
    return folders.modules(folder, "cls", general=general)


def test_rows_are_what_the_folder_says_of_each_text(tmp_path: Path, guide_folder: Path) -> None:
    """By transformers alone, a text at a time, in double: its prompt and its twelve tokens, not the job's six."""
    from transformers import AutoModel, AutoTokenizer

    network, tokenizer = (
        AutoModel.from_pretrained(guide_folder).double().eval(),
        AutoTokenizer.from_pretrained(guide_folder),
    )
    guide = Guide(job_of(tmp_path, guide_folder), device="cpu")
    rows = np.array([3, 39, 17, 3])
    seen = guide.rows(rows)
    assert seen.negatives is not None
    for place, row in enumerate(rows):
        for column, unit in enumerate((seen.queries[place], seen.keys[place], seen.negatives[place, 0])):
            text = "large " + rows_of_text(int(row))[column]
            inputs = tokenizer([text], truncation=True, max_length=12, return_tensors="pt")
            with torch.no_grad():
                state = network(**inputs).last_hidden_state[0, 0]
            torch.testing.assert_close(unit, state / state.norm(), rtol=1e-12, atol=1e-12)


@settings(max_examples=15)
@given(st.lists(st.lists(st.integers(0, 39), min_size=1, max_size=9), min_size=1, max_size=5))
def test_a_row_has_the_same_bits_whatever_was_asked_for_before(
    guide_folder: Path, tmp_path_factory: pytest.TempPathFactory, asked: list[list[int]]
) -> None:
    """In float32, where bits tell a batch apart. Mutant check: embedding the rows that are missing, and not their
    blocks, fails."""
    job = job_of(tmp_path_factory.getbasetemp(), guide_folder, model={"name": "bert", "width": 16, "heads": 2})
    whole, guide = (Guide(job, device="cpu") for _ in range(2))
    every = whole.rows(np.arange(40))
    for rows in asked:
        seen = guide.rows(np.array(rows))
        assert torch.equal(seen.queries, every.queries[rows])
        assert torch.equal(seen.keys, every.keys[rows])
        assert seen.negatives is not None
        assert every.negatives is not None
        assert torch.equal(seen.negatives, every.negatives[rows])
    blocks = {row // BLOCK for rows in asked for row in rows}
    known = [int(table.known.sum()) for table in guide._tables.values()]
    assert known == [sum(min(BLOCK, 40 - block * BLOCK) for block in blocks)] * 3


def test_the_views_of_single_sentences_are_one_row_and_no_augmentation_is_seen(
    tmp_path: Path, guide_folder: Path
) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(rows_of_text(n)[0] + f" {'old ' * n}" for n in range(20)))
    data = {"train": str(tmp_path / "texts.txt"), "confirm": str(tmp_path / "judged.tsv")}
    job = job_of(tmp_path, guide_folder, data=data)
    plain, shuffled = (
        Guide(of, device="cpu").rows(np.arange(5))
        for of in (job, JobConfig.model_validate(job.model_dump() | {"augment": {"name": "shuffle_tokens"}}))
    )
    assert torch.equal(plain.queries, plain.keys)
    assert torch.equal(plain.queries, shuffled.queries)
    assert plain.negatives is None


def test_what_is_drawn_of_lists_is_what_the_student_sees(tmp_path: Path, guide_folder: Path) -> None:
    """Step by step; the place of a hard negative that is not there has the anchor's. Mutant check: rows for places."""
    from transformers import AutoModel, AutoTokenizer

    lines = [
        {
            "anchor": rows_of_text(n)[0],
            "positive": rows_of_text(n)[1],
            "negatives": [f"old {t}" for t in folders.THINGS[: n % 4]],
        }
        for n in range(24)
    ]
    (tmp_path / "lists.jsonl").write_text("\n".join(map(json.dumps, lines)))
    job = job_of(tmp_path, guide_folder)
    data = {"train": str(tmp_path / "lists.jsonl"), "confirm": str(tmp_path / "judged.tsv"), "hard_negatives": 2}
    job = job_of(tmp_path, guide_folder, data=data, budget={"steps": 2}, execution={"micro": 3, "verify": True})
    network = AutoModel.from_pretrained(guide_folder).double().eval()
    tokenizer = AutoTokenizer.from_pretrained(guide_folder)
    guide, examples = Guide(job, device="cpu"), sentence_examples(job)
    for step in (1, 2):
        rows, pairs = np.array([2, 23, 4, 5]), np.array([6, 1, 0, 3])
        draw = Draw(job.seed, step, pairs)
        seen = guide.rows(rows, draw)
        assert seen.negatives is not None
        (anchor, _), _, *hard = examples.places(rows, draw)
        for number, (column, places) in enumerate(hard):
            for at, place in enumerate(places):
                text = anchor.texts[int(rows[at])] if place == EMPTY else column.texts[int(place)]
                inputs = tokenizer([f"large {text}"], truncation=True, max_length=12, return_tensors="pt")
                with torch.no_grad():
                    state = network(**inputs).last_hidden_state[0, 0]
                torch.testing.assert_close(seen.negatives[at, number], state / state.norm(), rtol=1e-12, atol=1e-12)
    for name in NAMES:
        of = JobConfig.model_validate(job.model_dump() | {"loss": {"name": name, "guide": str(guide_folder)}})
        assert trained(of, tmp_path / name).result is not None


def test_a_warm_rank_embeds_a_text_once(tmp_path: Path) -> None:
    """And other weights in the same folder are others. Mutant check: tables known by the folder's name alone."""
    guide = folders.encoder(tmp_path / "guide")
    job = job_of(tmp_path, guide)
    first, second = (Training(job, tmp_path / name, log=lambda _: None) for name in ("first", "second"))
    assert first.guide is not None
    assert second.guide is not None
    first.advance(2)
    assert first.guide._tables is second.guide._tables
    before = second.guide.rows(np.arange(40)).queries
    weights = folders.encoder(tmp_path / "other", hidden_act="relu")
    (guide / "config.json").write_text((weights / "config.json").read_text())
    third = Training(job, tmp_path / "third", log=lambda _: None)
    assert third.guide is not None
    assert not torch.equal(third.guide.rows(np.arange(40)).queries, before)


def on_rank(folder: Path, guide: Path, rank: int) -> list[dict[str, Tensor]]:
    own = folder / str(rank)
    own.mkdir()
    jobs = [job_of(own, guide, name, execution={"ranks": 3, "micro": 2, "verify": True}) for name in NAMES]
    found = []
    for name, job in zip(NAMES, jobs, strict=True):
        training = Training(job, folder / name, log=lambda _: None, group=dist.group.WORLD)
        while training.result is None:
            training.advance(4)
        found.append(training.model.state_dict())
    return found


NAMES = ("gist", "distillation")


@pytest.mark.soak
def test_ranks_make_the_steps_of_one_process(spawn_ranks: SpawnRanks, tmp_path: Path, guide_folder: Path) -> None:
    (tmp_path / "ranks").mkdir()
    seen = spawn_ranks(3, partial(on_rank, tmp_path / "ranks", guide_folder), timeout_s=300)
    for number, name in enumerate(NAMES):
        alone = trained(job_of(tmp_path, guide_folder, name), tmp_path / name).model.state_dict()
        for key, expected in alone.items():
            torch.testing.assert_close(seen[0][number][key], expected, rtol=1e-6, atol=1e-9)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.sampled_from(["margin", "share"]), st.booleans())
def test_the_positive_is_never_left_out(seed: int, pairs: int, rule: str, own_side: bool) -> None:
    """Where the guide finds every other sentence nearer, nothing is left, and the loss is 0 as is its gradient; where
    it finds none nearer, all of it is InfoNCE."""
    draw = torch.Generator().manual_seed(seed)
    queries, keys, of_guide = (
        torch.nn.functional.normalize(torch.randn(pairs, 4, generator=draw, dtype=torch.float64), dim=1)
        for _ in range(3)
    )
    queries.requires_grad_()
    gist = components.called("loss", "gist", {"rule": rule, "own_side": own_side})
    given = {"queries": queries, "keys": keys, "temperature": 0.1}
    given |= dict.fromkeys(("negatives", "ids", "key_ids", "negative_ids", "guide_negatives"))
    worst = gist(guide_queries=of_guide, guide_keys=-of_guide, **given)
    worst.backward()
    assert rule == "share" or float(worst.detach()) == 0
    assert queries.grad is not None
    assert rule == "share" or float(queries.grad.abs().max()) == 0
    nearest = gist(guide_queries=torch.eye(pairs), guide_keys=torch.eye(pairs), **given)
    sides = [(queries, keys), *([(queries, queries), (keys, keys)] if own_side else [])]
    others = torch.cat([(x @ y.T).fill_diagonal_(-torch.inf) for x, y in sides], 1)
    positive = (queries * keys).sum(1, keepdim=True)
    expected = torch.cat([positive, others], 1).div(0.1).logsumexp(1) - positive[:, 0] / 0.1
    torch.testing.assert_close(nearest, expected.mean(), rtol=1e-10, atol=1e-12)


def refused(job: JobConfig) -> str:
    with pytest.raises((ModelError, ValueError)) as caught:
        check(job)
    return str(caught.value)


def test_what_cannot_be_a_guide_is_refused_in_words(tmp_path: Path, guide_folder: Path) -> None:
    check(job_of(tmp_path, guide_folder))
    gone = refused(job_of(tmp_path, tmp_path / "gone"))
    assert gone.startswith(f"loss.guide = '{tmp_path / 'gone'}' cannot be used: it cannot be looked at")
    assert gone.endswith("or a name that the Hub knows")
    (tmp_path / "broken").mkdir()
    folders.encoder(tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"no weights")
    assert "broken' cannot be used" in refused(job_of(tmp_path, tmp_path / "broken"))
    folders.modules(folders.encoder(tmp_path / "dense"), "mean", "Dense")
    assert "Dense" in refused(job_of(tmp_path, tmp_path / "dense"))
    for name, words in (("bert", "trained from nothing"), ("mylab.models:Mine", "trained from nothing")):
        with pytest.raises(ValueError, match=words):
            job_of(tmp_path, name)
    with pytest.raises(ValueError, match="asked for by no loss of anchors"):
        job_of(tmp_path, guide_folder, "infonce")
    with pytest.raises(ValueError, match="asked for by no argument"):
        JobLoss(job_of(tmp_path, guide_folder, "false_negatives"))
    with pytest.raises(ValueError, match=r"asks for guide_\w+, and loss.guide names no frozen encoder"):
        JobLoss(job_of(tmp_path, None))


def test_its_files_count_as_those_of_an_encoder_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the ranks, and in what `jobs.data` says before a run. Mutant check: a digest of model.name alone."""
    guide = folders.encoder(tmp_path / "guide")
    job = job_of(tmp_path, guide)
    (tmp_path / "job.json").write_text(json.dumps(job.model_dump(mode="json")))
    assert look_at_data([str(tmp_path / "job.json")]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["weights"] is None
    assert answer["guide"]["key"] == "loss.guide"
    seen = origin.look(job, {})
    assert seen.digests["weights"] == {str(guide): answer["guide"]["digest"]}
    expected = {
        "code": seen.digests["code"],
        "versions": seen.digests["versions"],
        "data": answer["data"],
        "weights": {str(guide): answer["guide"]},
    }
    origin.look(job, expected)
    settings_file = guide / "tokenizer_config.json"
    settings_file.write_text(settings_file.read_text() + " ")
    with pytest.raises(origin.OtherOrigin, match=r"loss\.guide = .*guide is not what the run was begun with"):
        origin.look(job, expected)


def test_a_guide_of_images_may_be_an_encoder_that_was_exported(tmp_path: Path) -> None:
    image = {"task": "image", "budget": {"steps": 2}, "data": {"train": "digits[:64]", "confirm": "digits[64:128]"},
             "model": {"name": "vit", "width": 16, "layers": 1, "heads": 2}, "batch": {"size": 8},
             "evaluate": {"times": 1, "probe": False}}  # fmt: skip
    first = JobConfig.model_validate(image)
    trained(first, tmp_path / "teacher")
    export(tmp_path / "teacher", tmp_path / "exported")
    job = JobConfig.model_validate(image | {"loss": {"name": "distillation", "guide": str(tmp_path / "exported")}})
    training = trained(job, tmp_path / "student")
    assert training.result is not None
    assert training.guide is not None
    seen = training.guide.rows(np.arange(4))
    assert isinstance(seen, GuideRows)
    assert torch.equal(seen.queries, seen.keys)
    assert seen.queries.shape == (4, 16)
    assert "cannot be used" in refused(
        JobConfig.model_validate(image | {"loss": {"name": "gist", "guide": str(folders.encoder(tmp_path / "texts"))}})
    )

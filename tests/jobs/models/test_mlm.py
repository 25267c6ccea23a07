"""The auxiliary masked-language-model loss: what is masked, and that its gradient is one process's on all pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_step import ABSENT, HARD, PAIRS, Vocabulary, assert_same, gradients, sentence_job, tokens

from jobs.config import JobConfig
from jobs.core.ids import ABSENT as ABSENT_ID
from jobs.data.sentences import sentence_examples
from jobs.losses import contrastive_loss
from jobs.models import ModelError, build, dropout_keys, initial_hash
from jobs.models.mlm import Masking, masked, masking
from jobs.train import step

WORDS, MASK, SPECIAL = 50, 4, (0, 1, 2, 4)


def how(weight: float = 0.3, probability: float = 0.15) -> Masking:
    return Masking(weight=weight, probability=probability, mask=MASK, special=SPECIAL, vocabulary=WORDS)


# What is masked


def test_a_tokens_mask_depends_on_its_sentence_and_place_alone() -> None:
    """Mutant check: keys from the place in the chunk, or from the padded length, fail this."""
    inputs, rows = tokens(30, 9, 1), torch.arange(100, 130)
    whole = masked(inputs, rows, how(probability=0.5), seed=1, step=2)
    pick = torch.tensor([17, 3, 8])
    width = int(inputs["attention_mask"][pick].sum(1).max())
    cut = {name: F.pad(x[pick, :width], (0, 5)) for name, x in inputs.items()}
    part = masked(cut, rows[pick], how(probability=0.5), seed=1, step=2)
    assert torch.equal(part.inputs["input_ids"][:, :width], whole.inputs["input_ids"][pick, :width])
    assert torch.equal(part.chosen[:, :width], whole.chosen[pick, :width])
    assert not part.chosen[:, width:].any()


@pytest.mark.parametrize("change", [{"seed": 2}, {"step": 3}, {"rows": torch.arange(30) + 1}])
def test_masks_differ_between_seeds_steps_and_sentences(change: dict[str, Any]) -> None:
    """Mutant check: leaving any of the three out of the keys fails this."""
    inputs = tokens(30, 9, 1)
    keys: dict[str, Any] = {"seed": 1, "step": 2, "rows": torch.arange(30)}
    one, other = (masked(inputs, how=how(probability=0.5), **given) for given in (keys, keys | change))
    assert not torch.equal(one.chosen, other.chosen)


def test_masking_is_bert_s_80_10_10_of_the_tokens_that_are_not_special() -> None:
    """Within 5 standard deviations of 200,000 draws. Mutant check: swapping 80 and 10 fails this."""
    ids = torch.randint(0, WORDS, (4000, 50), generator=torch.Generator().manual_seed(0))
    ids[:, 40:] = 0
    inputs = {"input_ids": ids, "attention_mask": (torch.arange(50) < 40).long().expand(4000, 50)}
    found = masked(inputs, torch.arange(4000), how(), seed=1, step=2)
    ordinary = inputs["attention_mask"].bool() & ~torch.isin(ids, torch.tensor(SPECIAL))
    assert not found.chosen[~ordinary].any()
    assert torch.equal(found.inputs["input_ids"][~found.chosen], ids[~found.chosen])
    assert torch.equal(found.labels, ids[found.chosen])
    seen, count = found.inputs["input_ids"][found.chosen], int(found.chosen.sum())
    assert count / int(ordinary.sum()) == pytest.approx(0.15, abs=5 * (0.15 * 0.85 / int(ordinary.sum())) ** 0.5)
    same = float((seen == found.labels).float().mean())
    assert float((seen == MASK).float().mean()) == pytest.approx(0.8 + 0.1 / WORDS, abs=5 * (0.16 / count) ** 0.5)
    assert same == pytest.approx(0.1 + 0.1 / WORDS, abs=5 * (0.09 / count) ** 0.5)
    assert seen.unique().tolist() == list(range(WORDS))


# The gradient


def by_plain_autograd(weight: float, hard: int = 0) -> dict[str, torch.Tensor]:
    """The whole batch in one graph, without `jobs.train.step`: -100 marks what the mean leaves out, as usual. hard:
    hard negatives of each pair, of which those that are ABSENT are none of the sentences whose tokens are guessed."""
    job = sentence_job(0.1, mlm_weight=weight)
    model = build(job, tokenizer=Vocabulary())
    every = [tokens(PAIRS, 7, 1), tokens(PAIRS, 9, 2), *([tokens(PAIRS * hard, 6, 3)] if hard else [])]
    ids = torch.cat([F.pad(x["input_ids"], (0, 9 - x["input_ids"].shape[1])) for x in every])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    first = (2 + hard) * torch.arange(PAIRS)
    rows = torch.cat([first, first + 1, (first[:, None] + 2 + torch.arange(hard)).flatten()])
    with dropout_keys(seed=3, step=5, rows=rows):
        queries, keys, *others = model.embed(inputs).split([PAIRS, PAIRS, *([PAIRS * hard] if hard else [])])
    negatives = others[0].unflatten(0, (PAIRS, hard)) if hard else None
    value, _ = contrastive_loss(queries, keys, hard_negatives=negatives, temperature=model.temperature())
    seen = masked(inputs, rows, how(), seed=3, step=5)
    labels = torch.where(seen.chosen, ids, -100)
    if hard:
        labels[2 * PAIRS :][ABSENT] = -100
    with dropout_keys(seed=3, step=5, rows=-1 - rows):
        logits = model.masked_logits(seen.inputs, torch.ones_like(seen.chosen))
    mlm = F.cross_entropy(logits, labels.flatten(), ignore_index=-100)
    (value + weight * mlm).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norm = torch.cat([x.flatten() for x in found.values()]).norm()
    return found | {"loss": (value + weight * mlm).detach(), "mlm_loss": mlm.detach(), "norm": norm}


def test_the_gradient_is_that_of_the_sum_of_both_means() -> None:
    """Mutant checks: a sum in place of a mean, a forgotten weight, the contrastive views' dropout: each fails."""
    found = gradients(masking=how(0.3))
    assert {"mlm.transform.weight", "mlm.bias", "mlm_loss"} <= found.keys()
    assert_same(found, by_plain_autograd(0.3))


@pytest.mark.parametrize("micro", [PAIRS, 5, 1])
def test_the_place_of_a_hard_negative_that_is_not_there_is_no_sentence(micro: int) -> None:
    """The anchor stands there, and would count again. Mutant checks: what is absent for the whole batch in place of the
    micro-batch's own; the places of anchors and keys counted too."""
    found = gradients(masking=how(0.3), hard=True, lacking=True, micro=micro)
    assert_same(found, by_plain_autograd(0.3, HARD))
    assert float(found["mlm_loss"]) != float(gradients(masking=how(0.3), hard=True, micro=micro)["mlm_loss"])


def test_examples_say_which_hard_negatives_are_not_there(tmp_path: Path) -> None:
    """Against what the lists hold, pair by pair, and with drawn ones as with the columns of a row. Mutant check: places
    side by side in place of pair by pair."""
    lists = [["n1", "n2", "n3"], ["m1"], [], ["k1", "k2"]]
    lines = [json.dumps({"query": f"q {k}", "pos": [f"p {k}"], "neg": own}) for k, own in enumerate(lists)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    job = sentence_job(0.0)
    source = {"train": str(tmp_path / "train.jsonl"), "columns": ("query", "pos", "neg"), "hard_negatives": 2}
    examples = sentence_examples(job.model_copy(update={"data": job.data.model_copy(update=source)}))
    rows = np.array([2, 0, 3, 1])
    views = examples.views(rows, seed=1, step=1, pairs=np.arange(4))
    assert views.absent is not None
    assert views.absent.tolist() == [True, True, False, False, False, False, False, True]
    assert examples.views(rows[1:3], seed=1, step=1, pairs=np.arange(2)).absent is None
    assert examples.ids(rows).negative_ids.eq(ABSENT_ID).flatten().tolist() == views.absent.tolist()  # type: ignore[union-attr]


@settings(max_examples=8, deadline=None)
@given(micro=st.integers(1, 13), keep=st.integers(0, 13), dropout=st.sampled_from([0.0, 0.1, 0.5]), hard=st.booleans())
def test_chunks_do_not_change_it(micro: int, keep: int, dropout: float, hard: bool) -> None:
    options: dict[str, Any] = {"masking": how(), "dropout": dropout, "hard": hard}
    assert_same(gradients(micro=micro, keep=keep, **options), gradients(**options))


ONLY_18 = Masking(
    weight=1.0, probability=0.9, mask=MASK, special=tuple(i for i in range(WORDS) if i != 18), vocabulary=WORDS
)
"""One word alone is ever masked, and it stands in the first pairs only."""

CASES: list[dict[str, Any]] = [
    {},
    {"micro": 2, "keep": 1, "dropout": 0.5, "exchange": "ring", "hard": True},
    {"micro": 1, "masking": ONLY_18, "clip": 1e-3},
    {"micro": 3, "hard": True, "lacking": True},
]


def of_rank(rank: int) -> list[dict[str, torch.Tensor]]:
    return [gradients(group=dist.group.WORLD, **({"masking": how()} | case)) for case in CASES]


@pytest.mark.soak
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_do_not_change_it(spawn_ranks: Any, world: int) -> None:
    """In the third case all ranks but the first have no masked token. Mutant checks: dividing by the rank's own count
    of masked tokens fails, and so does a mean over ranks."""
    per_pair = masked_per_pair(ONLY_18)
    assert sum(per_pair) > 1
    assert not any(per_pair[PAIRS // world :])
    for per_rank in spawn_ranks(world, of_rank):
        for case, found in zip(CASES, per_rank, strict=True):
            alone = {key: value for key, value in case.items() if key not in ("micro", "keep", "exchange")}
            assert_same(found, gradients(**({"masking": how()} | alone)))


def masked_per_pair(given: Masking) -> list[int]:
    chosen = [
        masked(tokens(PAIRS, longest, seed), 2 * torch.arange(PAIRS) + view, given, seed=3, step=5).chosen.sum(1)
        for view, (longest, seed) in enumerate([(7, 1), (9, 2)])
    ]
    counts: list[int] = (chosen[0] + chosen[1]).tolist()
    return counts


def test_without_a_masked_token_there_is_nothing_to_add() -> None:
    nothing = Masking(weight=1.0, probability=0.5, mask=MASK, special=tuple(range(WORDS)), vocabulary=WORDS)
    assert_same(gradients(masking=nothing), gradients())


def test_its_dropout_is_not_that_of_the_contrastive_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant check: the same rows in both fail this."""
    used: list[set[int]] = []

    def noting(*, rows: torch.Tensor, **others: Any) -> Any:
        used.append(set(rows.tolist()))
        return dropout_keys(rows=rows, **others)

    monkeypatch.setattr(step, "dropout_keys", noting)
    gradients(masking=how(), hard=True)
    contrastive, auxiliary = used
    assert len(contrastive) == len(auxiliary) == PAIRS * (2 + HARD)
    assert not contrastive & auxiliary


# The head


def test_weight_0_changes_nothing_and_builds_nothing() -> None:
    losses: list[dict[str, Any]] = [{}, {"mlm_weight": 0.0}, {"mlm_weight": 0.1}]
    plain, off, on = (build(sentence_job(0.1, **loss), tokenizer=Vocabulary()) for loss in losses)
    assert initial_hash(plain) == initial_hash(off) != initial_hash(on)
    assert off.mlm is None
    assert masking(sentence_job(0.1), None) is None
    shared = dict(on.named_parameters())
    assert all(torch.equal(shared[name], value) for name, value in plain.named_parameters())


def test_the_head_is_tied_to_the_encoders_own_table() -> None:
    """Mutant checks: a copy of the table fails this, and so does one without gradient."""
    model = build(sentence_job(0.0, mlm_weight=1.0), tokenizer=Vocabulary())
    assert [name for name, p in model.named_parameters() if len(Vocabulary()) in p.shape] == [
        "encoder.embeddings.word_embeddings.weight",
        "mlm.bias",
    ]
    ids = torch.tensor([[3, 5, 7]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    before = model.masked_logits(inputs, ids == 5)
    with torch.no_grad():
        model.get_parameter("encoder.embeddings.word_embeddings.weight")[9] += 1
    after = model.masked_logits(inputs, ids == 5)
    assert (after != before)[0].nonzero().flatten().tolist() == [9]
    after.sum().backward()
    slope = model.get_parameter("encoder.embeddings.word_embeddings.weight").grad
    assert slope is not None
    assert float(slope[9].norm()) > 0


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"loss": {"mlm_weight": 0.1}}, "loss.mlm_weight = 0.1 needs tokens"),
        ({"execution": {"micro_tokens": 64}}, "execution.micro_tokens = 64 needs tokens"),
    ],
)
def test_images_have_no_tokens(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        JobConfig.model_validate(
            {"task": "image", "budget": {"steps": 1}, "data": {"train": "digits", "confirm": "digits"}, **sections}
        )


def test_an_encoder_without_a_table_is_refused_with_the_remedy() -> None:
    job = sentence_job(0.0, mlm_weight=1.0)
    image = job.model_copy(update={"task": "image", "model": job.model.model_copy(update={"name": "resnet"})})
    with pytest.raises(ModelError, match=r"needs an encoder with a table of token embeddings.*use 'bert'"):
        build(image, image_shape=(1, 8, 8))


def test_a_tokenizer_without_a_mask_token_is_refused_with_the_remedy() -> None:
    class Unmasked(Vocabulary):
        mask_token_id = None

    with pytest.raises(ValueError, match=r"needs a mask token.*mlm_weight = 0"):
        masking(sentence_job(0.0, mlm_weight=1.0), Unmasked())

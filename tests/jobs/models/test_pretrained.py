"""Which files of a pretrained encoder are loaded, from where, and what of them counts."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from folders import encoder, modules
from hub import Hub, cached, encoder_files, revision, save_encoder, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs import data
from jobs.config import JobConfig
from jobs.models import ModelError, build
from jobs.models.pretrained import folder as pretrained
from jobs.models.pretrained.folder import EncoderError, digest
from jobs.models.reading import reading
from orchestrator.run_dir.provenance import held

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of the Hub, and no Hub; a current folder without encoders."""
    place = tmp_path / "hub cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, value in (("HF_HUB_CACHE", str(place)), ("HF_HUB_OFFLINE", "1")):
        monkeypatch.setenv(name, value)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    pretrained._snapshot.cache_clear()
    yield place
    pretrained.hold({})
    pretrained._snapshot.cache_clear()


def sentence_job(name: str, train: str = "a", confirm: str = "a") -> JobConfig:
    return JobConfig.model_validate(
        {
            "task": "sentence",
            "budget": {"steps": 2},
            "data": {"train": train, "confirm": confirm},
            "batch": {"size": 4},
            "model": {"name": name, "projection": "none"},
        }
    )


def sentences(folder: Path) -> tuple[str, str]:
    pq.write_table(pa.table({"text": [f"a {n}" for n in range(12)]}), folder / "train.parquet")
    columns = {"sentence1": ["a", "a b", "c"], "sentence2": ["a", "b", "a c"], "score": [5.0, 2.0, 0.0]}
    pq.write_table(pa.table(columns), folder / "confirm.parquet")
    return str(folder / "train.parquet"), str(folder / "confirm.parquet")


def looked_at(name: str, folder: Path, known: dict[str, Any] | None = None, env: dict[str, str] | None = None) -> Any:
    """What `python -m jobs.data` says of the encoder of a job, or what is wrong with it."""
    (folder / "job.json").write_text(sentence_job(name, *sentences(folder)).model_dump_json())
    command = [sys.executable, "-m", "jobs.data", str(folder / "job.json")]
    if known is not None:
        (folder / "known").write_text(json.dumps({"data": {}, "weights": {name: known}}))
        command += ["--known", str(folder / "known")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    )
    if done.returncode == 0:
        return json.loads(done.stdout)["weights"]
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def first_weight(name: str) -> torch.Tensor:
    return next(build(sentence_job(name)).encoder.parameters())


def test_a_run_goes_on_with_the_revision_that_it_began_with(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen: the old snapshot was compared, and the new one loaded. Mutant check: `hold` that does nothing."""
    cached(cache, "lab/enc", 1, encoder_files(tmp_path / "1"))
    first = digest("lab/enc", tokenizer=True)
    assert first is not None
    assert first["revision"] == revision(1)
    began = first_weight("lab/enc")
    cached(cache, "lab/enc", 2, encoder_files(tmp_path / "2"))
    pretrained._snapshot.cache_clear()
    assert not torch.equal(first_weight("lab/enc"), began), "alone, a job takes what is main's"
    now = digest("lab/enc", first, tokenizer=True)
    assert now == first
    pretrained.hold({"lab/enc": first})
    assert torch.equal(first_weight("lab/enc"), began)
    assert data.tokenizer_for(sentence_job("lab/enc")).name_or_path.endswith(revision(1))
    pretrained.hold({})
    recorded: Any = {"weights": {"lab/enc": first}}
    for key, value in held(recorded).items():
        monkeypatch.setenv(key, value)
    assert torch.equal(first_weight("lab/enc"), began), "nor does an export in a process of its own take another"
    shutil.rmtree(cache / "models--lab--enc" / "snapshots" / revision(1))
    pretrained._snapshot.cache_clear()
    with pytest.raises(EncoderError, match="lab/enc' cannot be looked at"):
        digest("lab/enc", first, tokenizer=True)


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json"])
def test_what_is_only_half_in_the_cache_is_no_encoder(tmp_path: Path, cache: Path, missing: str) -> None:
    """Seen: the tokenizer's digest was recorded as the encoder's, and the first trial to fetch weights changed it."""
    files = encoder_files(tmp_path / "1")
    del files[missing]
    cached(cache, "lab/half", 1, files)
    with pytest.raises(EncoderError, match=rf"lab/half' cannot be looked at .*{missing}"):
        digest("lab/half", tokenizer=True)
    with pytest.raises(ModelError, match="lab/half' is no folder here and not loadable; HF_HUB_OFFLINE is set"):
        build(sentence_job("lab/half"))


STRANGERS = [
    *("notes.txt", "README.md", "1_Pooling/config.json", "checkpoint-1000/model.safetensors"),
    *("pytorch_model.bin", "optimizer.pt", "training_args.bin", "onnx/model.onnx", "tf_model.h5", ".#vocab.txt"),
]


@pytest.mark.parametrize("hub", [True, False])
def test_files_that_are_not_loaded_do_not_count(tmp_path: Path, cache: Path, hub: bool) -> None:
    files = encoder_files(tmp_path / "1")
    folder, name = (cached(cache, "lab/more", 1, files), "lab/more") if hub else (tmp_path / "1", str(tmp_path / "1"))
    first = digest(name, tokenizer=True)
    assert first is not None
    for file in STRANGERS:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text("{}")
    assert digest(name, first, tokenizer=True) == digest(name, tokenizer=True) == first


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    file=st.sampled_from(
        [
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "vocab.txt",
            "bpe.codes",
            "a.spm",
            "b.tiktoken",
            "c.model",
        ]
    ),
    content=st.binary(min_size=1, max_size=8),
)
def test_each_file_that_is_loaded_counts(tmp_path: Path, file: str, content: bytes) -> None:
    shutil.rmtree(tmp_path / "enc", ignore_errors=True)
    (tmp_path / "enc").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / "enc" / name).write_text("{}")
    first = digest(str(tmp_path / "enc"), tokenizer=True)
    assert first is not None
    (tmp_path / "enc" / file).write_bytes(content)
    now = digest(str(tmp_path / "enc"), first, tokenizer=True)
    assert now is not None
    assert now["digest"] != first["digest"]
    without = digest(str(tmp_path / "enc"), tokenizer=False)
    assert without is not None
    assert without["names"] == ["config.json", "model.safetensors"]


def test_shards_count_one_by_one_and_an_index_that_is_none_is_said(tmp_path: Path) -> None:
    save_encoder(tmp_path / "enc", 16, sharded=True)
    shards = sorted(path.name for path in (tmp_path / "enc").glob("model-*.safetensors"))
    assert len(shards) > 1
    first = digest(str(tmp_path / "enc"), tokenizer=False)
    assert first is not None
    assert first["names"] == ["config.json", *shards, "model.safetensors.index.json"]
    content = (tmp_path / "enc" / shards[-1]).read_bytes()
    (tmp_path / "enc" / shards[-1]).write_bytes(content[:-1] + b"x")
    now = digest(str(tmp_path / "enc"), first, tokenizer=False)
    assert now is not None
    assert now["digest"] != first["digest"]
    (tmp_path / "enc" / shards[0]).unlink()
    with pytest.raises(EncoderError, match=shards[0]):
        digest(str(tmp_path / "enc"), tokenizer=False)
    for text in ("[]", "{", "{}", '{"weight_map": 1}', '{"weight_map": {"a": 1}}'):
        (tmp_path / "enc" / "model.safetensors.index.json").write_text(text)
        with pytest.raises(EncoderError, match="no index of weights"):
            digest(str(tmp_path / "enc"), tokenizer=False)


def test_every_file_that_a_tokenizer_of_transformers_names_counts() -> None:
    """Mutant check: leaving out bpe.codes fails this."""
    named = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
    for names in transformers.models.auto.tokenization_auto.TOKENIZER_MAPPING_NAMES.values():
        try:
            kind = getattr(transformers, str(names))
            named |= set(kind.vocab_files_names.values())
        except (ImportError, AttributeError, TypeError):  # needs what is not here, or is put together of others
            continue
    assert len(named) > 15
    assert [name for name in sorted(named) if not pretrained._is_of_tokenizer(name)] == []


def test_a_folder_that_has_vanished_is_not_looked_for_on_the_hub(tmp_path: Path, cache: Path) -> None:
    """Seen: `models/enc` of the Hub was trained on."""
    cached(cache, "models/enc", 1, encoder_files(tmp_path / "1"))
    shutil.copytree(tmp_path / "1", "models/enc")
    first = digest("models/enc", tokenizer=True)
    assert first is not None
    assert first["revision"] is None
    shutil.rmtree("models")
    with pytest.raises(EncoderError, match="'models/enc': the folder of that name is gone; put it back"):
        digest("models/enc", first, tokenizer=True)
    assert "is gone" in looked_at("models/enc", tmp_path, first)
    pretrained.hold({"models/enc": first})
    with pytest.raises(ModelError, match="is gone"):
        build(sentence_job("models/enc"))
    pretrained.hold({})
    assert build(sentence_job("models/enc")).width == 8
    now = digest("models/enc", tokenizer=True)
    assert now is not None
    save_encoder(Path("models/enc"), 16)
    assert digest("models/enc", now, tokenizer=True) == now, "a repository stays one, whatever lies here now"


@pytest.mark.soak
def test_an_encoder_that_cannot_be_looked_at_is_a_sentence_and_exit_code_2(tmp_path: Path) -> None:
    """Reading /proc/self/mem from its beginning fails for everybody, root included."""
    save_encoder(tmp_path / "enc", 8)
    (tmp_path / "enc" / "model.safetensors").unlink()
    (tmp_path / "enc" / "model.safetensors").symlink_to("/proc/self/mem")
    for name in ("x" * 300, f"{tmp_path}/enc", "a/b/c", "nul\0", "/", "lab/nothing", "a" * 5000):
        with pytest.raises(EncoderError, match="cannot be looked at") as caught:
            digest(name, tokenizer=False)
        assert "\n" not in str(caught.value)
    for name in ("x" * 300, f"{tmp_path}/enc"):
        assert re.search("cannot be looked at|not loadable|no tokenizer can be loaded", looked_at(name, tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into any folder")
@pytest.mark.parametrize("where", ["", "model.safetensors", "config.json"])
def test_an_encoder_that_may_not_be_looked_at_is_a_sentence_and_exit_code_2(tmp_path: Path, where: str) -> None:
    save_encoder(tmp_path / "enc", 8)
    (tmp_path / "enc" / where).chmod(0)
    try:
        with pytest.raises(EncoderError, match=r"cannot be looked at .Permission denied"):
            digest(f"{tmp_path}/enc", tokenizer=False)
    finally:
        (tmp_path / "enc").chmod(0o700)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as served:
        yield served


@pytest.fixture
def silent(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A Hub that is not there (`closed`), or that takes connections and says nothing (`mute`)."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{server.getsockname()[1]}"
        if request.param == "mute":
            server.listen()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://{host}")
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            f"http://{host}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        )
        monkeypatch.setattr(pretrained, "ANSWER_S", 0.5)
        pretrained._snapshot.cache_clear()
        yield host


@pytest.mark.parametrize("silent", ["closed", "mute"], indirect=True)
@pytest.mark.parametrize("name", ["lab/nowhere", "encoders-of-mine"])
def test_a_name_is_refused_soon_where_no_hub_answers(cache: Path, silent: str, name: str) -> None:
    """Once it is asked, and not half a minute for each of two files. Mutant check: without the look, 47 s."""
    began = time.monotonic()
    with pytest.raises(EncoderError) as refused:
        pretrained.root_of(name)
    assert time.monotonic() - began < 10
    assert f"model.name = '{name}' is no folder here, and the Hub, where it may be, does not answer" in str(
        refused.value
    )
    assert silent in str(refused.value)


@pytest.mark.parametrize("silent", ["closed"], indirect=True)
def test_what_the_cache_has_is_loaded_soon_where_no_hub_answers(tmp_path: Path, cache: Path, silent: str) -> None:
    """Mutant check: each of a dozen files asked for by itself."""
    snapshot = cached(cache, "lab/here", 0, encoder_files(tmp_path / "1"))
    began = time.monotonic()
    assert pretrained.root_of("lab/here") == snapshot
    assert time.monotonic() - began < 10, silent


@pytest.mark.soak
def test_weights_are_fetched_before_they_are_recorded_and_main_may_move_then(
    tmp_path: Path, cache: Path, hub: Hub
) -> None:
    """From an empty cache, as `launch` looks; then as a later session does, with and without a Hub. Seen: the
    tokenizer alone was digested. Mutant check: fetching what the tokenizer needs alone."""
    hub.repositories["lab/served"] = [encoder_files(tmp_path / "1")]
    online = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"}
    first = looked_at("lab/served", tmp_path, env=online)
    assert first["revision"] == revision(0)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(first["names"])
    hub.repositories["lab/served"].append(encoder_files(tmp_path / "2"))
    hub.asked.clear()
    assert looked_at("lab/served", tmp_path, first, env=online)["digest"] == first["digest"]
    assert hub.asked == [], "what is here is not asked for"
    assert looked_at("lab/served", tmp_path, first)["digest"] == first["digest"]
    moved = looked_at("lab/served", tmp_path, env=online)
    assert (moved["revision"], moved["digest"] != first["digest"]) == (revision(1), True)
    shutil.rmtree(cache)
    again = looked_at("lab/served", tmp_path, first, env=online)
    assert (again["revision"], again["digest"]) == (first["revision"], first["digest"]), "another node fetches those"


@pytest.mark.soak
def test_weights_in_another_format_are_fetched_where_the_hub_has_no_others(tmp_path: Path, hub: Hub) -> None:
    files = encoder_files(tmp_path / "1")
    torch.save(transformers.BertModel.from_pretrained(tmp_path / "1").state_dict(), tmp_path / "pytorch_model.bin")
    del files["model.safetensors"]
    hub.repositories["lab/old"] = [files | {"pytorch_model.bin": (tmp_path / "pytorch_model.bin").read_bytes()}]
    save_encoder(tmp_path / "2", 16, sharded=True)
    hub.repositories["lab/sharded"] = [{path.name: path.read_bytes() for path in (tmp_path / "2").iterdir()}]
    hub.repositories["lab/none"] = [files]
    online = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"}
    assert "pytorch_model.bin" in looked_at("lab/old", tmp_path, env=online)["names"]
    names = looked_at("lab/sharded", tmp_path, env=online)["names"]
    assert sum(name.startswith("model-") for name in names) > 1
    assert "has none of model.safetensors" in looked_at("lab/none", tmp_path, env=online)
    assert "lab/unknown" in looked_at("lab/unknown", tmp_path, env=online)


@pytest.mark.soak
@pytest.mark.parametrize("inside", ["", "0_Transformer"])
def test_the_settings_of_sentence_transformers_are_fetched_with_the_weights(
    tmp_path: Path, cache: Path, hub: Hub, inside: str
) -> None:
    """In today's layout and in the first one. Mutant check: fetching what tokenizer and weights need alone."""
    encoder(tmp_path / "st" / inside)
    folder = modules(tmp_path / "st", "cls", inside=inside)
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hub.repositories["lab/st"] = [files]
    online = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"}
    first = looked_at("lab/st", tmp_path, env=online)
    within = f"{inside}/" if inside else ""
    wanted = {f"{within}{name}" for name in ("config.json", "model.safetensors", "sentence_bert_config.json")}
    assert wanted | {"modules.json", "1_Pooling/config.json"} <= set(first["names"])
    pretrained._snapshot.cache_clear()
    assert reading(sentence_job("lab/st")).record["pooling"] == "cls"
    assert build(sentence_job("lab/st")).width == 16
    pretrained._snapshot.cache_clear()
    pretrained.hold({"lab/st": first})
    assert reading(sentence_job("lab/st")).max_tokens == 12
    shutil.rmtree(cache)
    assert looked_at("lab/st", tmp_path, first, env=online)["digest"] == first["digest"], "another node fetches those"


@pytest.mark.few(1)
@pytest.mark.parametrize("missing", ["modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"])
def test_settings_that_the_cache_lacks_are_not_taken_for_settings_that_there_are_none(
    tmp_path: Path, cache: Path, hub: Hub, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As AutoModel leaves a cache. Seen: mean and 32 tokens in place of cls, 12 and a prompt. Mutant check: asking
    whether the file is there."""
    prompts = {"prompts": {"q": "a "}, "default_prompt_name": "q"}
    folder = modules(encoder(tmp_path / "st"), "cls", general=prompts)
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    cached(cache, "lab/st", 0, {name: content for name, content in files.items() if name != missing}, whole=False)
    with pytest.raises(ModelError, match=rf"{missing} is not in the cache .* hf download lab/st"):
        reading(sentence_job("lab/st"))
    explicit = sentence_job("lab/st").model_dump()
    explicit["model"]["pooling"], explicit["data"]["max_tokens"] = "mean", 20
    assert reading(JobConfig.model_validate(explicit)).max_tokens == 20
    known = digest("lab/st", tokenizer=True)
    assert known is not None
    pretrained.hold({"lab/st": known})
    assert reading(sentence_job("lab/st")), "a run goes on with what it began with"
    pretrained.hold({})
    hub.repositories["lab/st"] = [{name: content for name, content in files.items() if name != missing}]
    online = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"}
    looked_at("lab/st", tmp_path, env=online)
    pretrained._snapshot.cache_clear()
    assert reading(sentence_job("lab/st")), "the Hub has said that there is none"

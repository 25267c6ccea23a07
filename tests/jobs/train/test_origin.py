"""A rank trains with the code, versions, rows and weights that its session expects, or not at all; and what a session
makes of one that does not."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import transformers
from hub import cached, save_encoder
from real import LONG, RANK, SWEEP, call, driver, named, status, wait_for
from test_pretrained import sentence_job, sentences
from test_provenance import write_images
from test_session import done, opened, play

from jobs import data
from jobs.config import JobConfig
from jobs.core import provenance
from jobs.core.failures import Failure, kind_of, root_cause
from jobs.core.provenance import OTHER_ORIGIN
from jobs.models.pretrained import folder as pretrained
from jobs.train import Training, origin
from jobs.train.origin import OtherOrigin, look
from orchestrator.run_dir.folder import RunFolder
from orchestrator.run_dir.provenance import expected as session_expects
from orchestrator.session import ending
from orchestrator.session.writer import Dispatch

ROOT = Path(__file__).parents[3]


@pytest.fixture
def job(tmp_path: Path) -> JobConfig:
    """A sentence job with an encoder of its own, in files that can be changed."""
    save_encoder(tmp_path / "enc", 8)
    return sentence_job(str(tmp_path / "enc"), *sentences(tmp_path))


def expects(job: JobConfig) -> dict[str, Any]:
    """What a session expects that begins now."""
    weights = pretrained.digest(job.model.name, tokenizer=True)
    record: Any = {"code": provenance.code_digest(), "versions": provenance.versions(), "data": data.digests(job)}
    return dict(session_expects(record | {"weights": {str(job.model.name): weights}, "files": {}}, None))


def load(job: JobConfig, folder: Path, expected: dict[str, Any]) -> Training:
    try:
        return Training(job, folder, log=lambda _: None, expected=expected)
    finally:
        pretrained.hold({})


def rewrite(job: JobConfig, what: str) -> None:
    """Change something that the job is loaded from."""
    train, encoder = Path(job.data.train), Path(str(job.model.name))
    match what:
        case "order of rows":
            table = data.open_table(str(train))
            import pyarrow.parquet as pq

            pq.write_table(table.take(list(range(len(table)))[::-1]), train)
        case "rows gone":
            train.unlink()
        case "rows unreadable":
            train.write_bytes(b"no Parquet")
        case "weights":
            save_encoder(encoder, 8)
        case "weights unreadable":
            (encoder / "model.safetensors").write_bytes(b"no weights")
        case "tokenizer":
            path = encoder / "tokenizer.json"
            path.write_text(path.read_text().replace('"a": 2', '"b": 2'))
        case "encoder gone":
            shutil.rmtree(encoder)


CHANGES = {
    "order of rows": r"data.train = .* is not what the run was begun with: its digest was \w+ and is \w+",
    "rows gone": r"train.parquet.*it was there when this session began",
    "rows unreadable": r"train.parquet.*it was there when this session began",
    "weights": r"model.name = .*enc is not what the run was begun with: its digest was \w+ and is \w+",
    "weights unreadable": r"model.name = .*enc is not what the run was begun with",
    "tokenizer": r"model.name = .*enc is not what the run was begun with",
    "encoder gone": r"the folder of that name is gone; put it back; it was there when this session began",
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_rank_refuses_what_its_session_does_not_expect(job: JobConfig, tmp_path: Path, what: str) -> None:
    """Whatever is the matter with it, in an exception of its own, before anything is written of the trial but its
    folder. Mutant checks: comparing what is found alone lets what is gone through; a ValueError fails trial after
    trial."""
    expected = expects(job)
    weights: Any = load(job, tmp_path / "before", expected).provenance["weights"]
    assert weights.keys() == {job.model.name}
    rewrite(job, what)
    with pytest.raises(OtherOrigin, match=CHANGES[what]) as refusal:
        load(job, tmp_path / "trial", expected)
    assert kind_of(refusal.value) == root_cause({1: refusal.value}).kind == OTHER_ORIGIN
    assert not (tmp_path / "trial" / "points.jsonl").exists()


def test_a_job_alone_is_told_what_is_wrong_and_nothing_of_sessions(job: JobConfig, tmp_path: Path) -> None:
    rewrite(job, "rows gone")
    with pytest.raises(data.DataError, match=r"train\.parquet"):
        load(job, tmp_path / "trial", {})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"code": "0" * 12}, r"jobs/ is code \w+, not 000000000000"),
        ({"versions": {"torch": "1.0"}}, r"torch is .*, not 1.0; .* was not there"),
        ({"versions": {"jax": "0.4"} | provenance.versions()}, "jax is not there, not 0.4"),
        ({"versions": {key: v for key, v in provenance.versions().items() if key != "numpy"}}, "numpy is .* not there"),
        ({"data": {}}, "data.train = .* is nothing that this session has looked at"),
        ({"weights": {}}, "model.name = .*enc is nothing that this session has looked at"),
    ],
)
def test_a_rank_refuses_code_versions_and_sources_of_no_session(
    job: JobConfig, change: dict[str, Any], words: str
) -> None:
    """Seen: both travelled to the ranks, and nobody looked at them."""
    look(job, expects(job))
    with pytest.raises(OtherOrigin, match=words):
        look(job, expects(job) | change)
    look(job, {})


def test_a_module_that_is_imported_after_it_was_edited_is_refused(
    job: JobConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A rank that lives long imports some modules late. Mutant check: comparing the first digest alone."""
    package = tmp_path / "copy" / "jobs"
    shutil.copytree(ROOT / "jobs", package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(origin, "PACKAGE", package)
    monkeypatch.setattr(origin, "_imported", set())
    provenance.code_files(package)
    for module, file in (("models.mlm", "models/mlm.py"), ("optim", "optim/__init__.py")):
        monkeypatch.setattr(f"jobs.{module}.__file__", str(package / file))
    expected = expects(job)
    look(job, expected)
    (package / "optim" / "__init__.py").write_text("x = 1\n")
    look(job, expected)  # it was imported as it was expected
    monkeypatch.setattr(origin, "_imported", {"jobs.models.mlm"})
    with pytest.raises(OtherOrigin, match=r"jobs/optim/__init__.py changed after this process had started"):
        look(job, expected)


def test_files_that_change_between_two_looks_are_refused(job: JobConfig) -> None:
    """The same bytes, written again while they are loaded: nobody knows what was read."""
    before = look(job, {})
    origin.refuse_change(before, look(job, {}))
    path = Path(str(job.model.name)) / "model.safetensors"
    path.write_bytes(path.read_bytes())
    with pytest.raises(OtherOrigin, match="has changed while it was loaded"):
        origin.refuse_change(before, look(job, {}))


def test_what_is_not_expected_ends_the_session_and_charges_no_trial(tmp_path: Path) -> None:
    """Seen: exit code 1, every other trial failed one by one with its retries used up. Mutant check: `user_error`."""
    words = "rank 1: OtherOrigin: data.train = x is not what the run was begun with"
    refused: list[str] = []

    def answer(dispatch: Dispatch) -> dict[str, Any] | Failure:
        if len(refused) or dispatch.job["loss"]["name"] != "flatnce":
            return done(dispatch)
        refused.append(dispatch.trial)
        return Failure(OTHER_ORIGIN, 1, words, "")

    with opened(tmp_path, {"tune": None}, concurrent=1) as (session, ledger, _, _plan):
        session.start()
        play(session, answer)
        assert session.stopping()
        found = ending.of(session)
        assert (found.code, found.state) == (2, "stopped")
        assert any(words in line for line in found.lines)
        (attempt,) = ledger.attempts(refused[0])
        assert (attempt.state, attempt.failure) == ("interrupted", "interrupted")
        assert ledger.trial(refused[0]).state == "queued"
        assert not ledger.trials(state="failed")
        session.interrupt("SIGINT")
        assert ending.of(session).code == 130


def save_image_encoder(folder: Path, width: int = 16) -> None:
    config = transformers.ViTConfig(
        image_size=8, patch_size=4, num_channels=1, hidden_size=width, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.ViTModel(config).save_pretrained(folder)


@pytest.mark.soak
def test_weights_and_rows_that_change_or_vanish_end_every_session_with_2(tmp_path: Path) -> None:
    """An encoder in a folder, rows in a file: other weights in the middle of a session, then at the beginning of one;
    the folder gone, with a repository of that name in the Hub's cache; the rows in another order, and gone. Each ends
    with 2 and costs no trial, and all put back the run is finished."""
    home = tmp_path / "here"
    (home / "models").mkdir(parents=True)
    encoder, rows = home / "models" / "enc", home / "rows.parquet"
    save_image_encoder(encoder)
    write_images(rows, rows=300)
    toml = SWEEP.replace("ranks = 2", "ranks = 1").replace("steps = 8", "steps = 40")
    toml = toml.replace('name = "resnet"\nwidth = 8\nlayers = 1', 'name = "models/enc"')
    for part, cut in (("[:300]", "[:150]"), ("[300:400]", "[150:200]"), ("[400:500]", "[200:]")):
        toml = toml.replace(f'"digits{part}"', f'"rows.parquet{cut}"')
    (home / "sweep.toml").write_text(toml)
    cache = tmp_path / "cache"
    env = {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "ORCHESTRATOR_RUNS": str(home / "runs")}
    kept = tmp_path / "kept"
    shutil.copytree(encoder, kept)
    with driver("launch", "sweep.toml", "--offline", "--set", "resources.concurrent=1", cwd=home, env=env) as process:
        wait_for(lambda: (home / "runs/small/sweep.json").exists() and status(home)["counts"]["done"] >= 1)
        save_image_encoder(encoder)
        said = process.communicate(timeout=120)[0]
        assert process.returncode == 2, said
    assert "model.name = models/enc is not what the run was begun with" in said
    stood = status(home)
    before = stood["counts"]["done"]
    assert (before < 10, stood["counts"]["failed"]) == (True, 0), stood["counts"]

    def refused(words: str, cwd: Path = home) -> None:
        said = call("resume", "small", "--offline", cwd=cwd, code=2, env=env)
        assert words in said
        assert status(home)["counts"] == stood["counts"]

    refused("model.name = models/enc is not what the run was begun with: its digest was")
    shutil.rmtree(encoder)
    refused("'models/enc': the folder of that name is gone", tmp_path)
    save_image_encoder(tmp_path / "other")
    cached(cache, "models/enc", 1, {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir()})
    refused("'models/enc': the folder of that name is gone")
    shutil.copytree(kept, encoder)
    content = rows.read_bytes()
    table = data.open_table(str(rows))
    import pyarrow.parquet as pq

    pq.write_table(table.take(list(range(300))[::-1]), rows)
    refused("data.train = rows.parquet[:150] is not what the run was begun with: its digest was")
    rows.unlink()
    refused("rows.parquet", tmp_path)
    rows.write_bytes(content)
    call("resume", "small", cwd=home, env=env)
    found = json.loads(call("verify", "small", "--json", cwd=home))
    assert (found["ok"], found["notes"]) == (True, []), found
    with contextlib.closing(RunFolder(home / "runs" / "small").open()) as ledger:
        run: Any = ledger.run.provenance
        attempts = [attempt for attempt in ledger.attempts() if attempt.state == "done"]
        wanted = {use: entry["digest"] for use, entry in run["data"].items()}
        for attempt in attempts:
            ran = attempt.provenance or {}
            assert (ran["code"], ran["versions"]) == (provenance.code_digest(), provenance.versions())
            assert ran["weights"] == {"models/enc": run["weights"]["models/enc"]["digest"]}
            assert ran["data"] == wanted
        assert len(attempts) == 10
        assert ledger.trials(state="failed") == []


@pytest.mark.soak
@pytest.mark.slow
def test_code_that_is_edited_while_a_sweep_runs_is_not_mixed_into_it(tmp_path: Path) -> None:
    """A rank is killed after the edit, so that a new one imports it. Seen: its numbers were pooled, and launch ended
    with 0."""
    other = tmp_path / "other"
    for package in ("jobs", "orchestrator"):
        shutil.copytree(ROOT / package, other / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "sweep.toml").write_text(LONG.replace("ranks = 2", "ranks = 1"))
    env = {"PYTHONPATH": str(other)}
    arguments = ("launch", "sweep.toml", "--offline", "--set", "resources.concurrent=1")
    with driver(*arguments, cwd=tmp_path, env=env) as process:
        points = tmp_path / "runs" / "small" / "trials"
        wait_for(lambda: list(points.glob("*/points.jsonl")))
        (rank,) = named(RANK, process.pid)
        evaluate = other / "jobs" / "metrics" / "builtin" / "knn_accuracy.py"
        evaluate.write_text(evaluate.read_text().replace("KNN_TEMPERATURE = 0.07", "KNN_TEMPERATURE = 0.7"))
        os.kill(rank.pid, signal.SIGKILL)
        said = process.communicate(timeout=120)[0]
        assert process.returncode == 2, said
    assert "this is not the code that the session was begun with" in said
    stood = status(tmp_path, env=env)
    assert stood["counts"]["failed"] == 0

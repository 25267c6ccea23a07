"""A relative path of a job is looked for where its run began, then in the current folder, and errors name both."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub import save_encoder

from jobs import data
from jobs.config import JobConfig
from jobs.core import paths
from jobs.data import DataError
from jobs.data.resolve import locate
from jobs.models import ModelError, build


@pytest.fixture
def began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where a run began, whose name is a pattern to a glob; the current folder is another."""
    base, elsewhere = tmp_path / "began [a-c]* here", tmp_path / "elsewhere"
    base.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("ORCHESTRATOR_BASE", str(base))
    return base


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": [text]}), path)


def texts(source: str) -> list[str]:
    found: list[str] = data.open_table(source)["text"].to_pylist()
    return found


@pytest.mark.parametrize("source", ["dätä/zü ge.parquet", "dätä", "dätä/*.parquet", "./dätä/z*.parquet", "dätä[:1]"])
def test_files_folders_and_globs_are_found_where_the_run_began(began: Path, source: str) -> None:
    """Mutant check: a glob of folder and pattern in one string fails this, for the folder's name is a pattern."""
    write(began / "dätä" / "zü ge.parquet", "where it began")
    assert texts(source) == ["where it began"]
    write(Path("dätä/zü ge.parquet"), "here")
    assert texts(source) == ["where it began"], "the current folder comes second"
    (began / "dätä" / "zü ge.parquet").unlink()
    assert texts(source) == ["here"], "an empty folder has nothing to offer"
    assert [file.path for file in locate(source).files] == ["dätä/zü ge.parquet"], "a name that was given stays"


@pytest.mark.parametrize("base", ["gone", "file", ""])
def test_a_base_that_is_no_folder_leaves_the_current_one(
    began: Path, monkeypatch: pytest.MonkeyPatch, base: str
) -> None:
    (began / "file").touch()
    monkeypatch.setenv("ORCHESTRATOR_BASE", str(began / base) if base else "")
    write(Path("a.parquet"), "here")
    assert texts("a.parquet") == ["here"]


def test_absolute_paths_and_names_under_the_data_folder_mean_what_they_meant(
    began: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write(tmp_path / "shelf [x]" / "wiki.parquet", "shelf")
    assert texts(str(tmp_path / "shelf [x]" / "wiki.parquet")) == ["shelf"]
    monkeypatch.setenv("ORCHESTRATOR_DATA", str(tmp_path / "shelf [x]"))
    for name in ("wiki", "wiki.parquet", "w*"):
        assert texts(name) == ["shelf"], "the folder's name is no pattern"


@pytest.mark.parametrize("name", ["no.parquet", "in/no*.csv", "owner/name"])
def test_an_error_names_both_folders_once_each(began: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    for root in ("", str(began.parent)):
        monkeypatch.setenv("ORCHESTRATOR_DATA", root)
        with pytest.raises(DataError) as caught:
            data.open_table(name)
        said = str(caught.value)
        assert said.count(f"{began} (where the run began)") == said.count(f"{Path.cwd()} (the current folder)") == 1
    monkeypatch.setenv("ORCHESTRATOR_BASE", os.curdir)
    with pytest.raises(DataError) as caught:
        data.open_table(name)
    assert "where the run began" not in str(caught.value), "it is the current folder: nothing to explain"


@pytest.mark.parametrize("name", ["x" * 300, "a**b/*.csv", "nul\0.csv", "~nobody-of-this-name/x.csv", "~"])
def test_what_no_file_system_takes_is_a_data_error(began: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(began))
    with pytest.raises(DataError):
        data.open_table(name)


def test_a_current_folder_that_is_gone_is_named_as_such(began: Path) -> None:
    Path.cwd().rmdir()
    with pytest.raises(DataError, match=r"where the run began\) or in a folder that is gone"):
        data.open_table("no.parquet")
    write(began / "a.parquet", "where it began")
    assert texts("a.parquet") == ["where it began"]


def sentence_job(name: str) -> JobConfig:
    return JobConfig.model_validate(
        {"task": "sentence", "budget": {"steps": 1}, "data": {"train": "a", "confirm": "a"}, "batch": {"size": 4}}
        | {"model": {"name": name, "projection": "none"}}
    )


def test_an_encoder_s_folder_is_found_where_the_run_began(began: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and tokenizer alike, also below `~`. Mutant check: giving transformers the name as it is fails this."""
    save_encoder(began / "enc/small", 8)
    monkeypatch.setenv("HOME", str(began))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("enc/small", "~/enc/small"):
        assert build(sentence_job(name)).width == 8
        assert data.tokenizer_for(sentence_job(name)).vocab_size == 3
    save_encoder(Path("enc/here"), 16)
    assert build(sentence_job("enc/here")).width == 16
    with pytest.raises(ModelError, match=r"is no folder in .* \(where the run began\) or in .* and not loadable"):
        build(sentence_job("enc/no"))
    with pytest.raises(DataError, match=r"a folder with one, looked for in .* \(where the run began\)"):
        data.tokenizer_for(sentence_job("enc/no"))


def test_without_a_base_only_the_current_folder_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORCHESTRATOR_BASE", raising=False)
    assert paths.folders() == [Path()]
    assert paths.looked_in("a") == ""

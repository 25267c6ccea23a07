"""`orchestrator schema`: what the loader reads is valid by it, and what one key alone makes wrong is not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from jobs.config import ConfigError, JobConfig, field_names
from orchestrator import sweep as sweeps
from orchestrator.cli import main
from orchestrator.cli.schema import sweep as schemas

ROOT = Path(__file__).parents[3]
SWEEPS = sorted((ROOT / "sweeps").glob("*.toml"))
PAGES = [page for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")] if "```toml" in page.read_text("utf-8")]
BLOCKS = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"^```toml\n(.*?)^```", page.read_text("utf-8"), re.M | re.S))
]
SCHEMA = schemas.sweep_schema()
TAPLO = Path(sys.executable).parent / "taplo"

SMALL = """
name = "small"
question = "Which?"
metric = { name = "knn_accuracy" }
[job]
task = "image"
budget = { steps = 8 }
data = { train = "digits[:300]", tune = "digits[300:400]", confirm = "digits[400:500]" }
"""
LOSSES = SMALL + '[compare]\n"loss.name" = ["infonce", "dcl"]\n'
SENTENCES = LOSSES.replace('task = "image"', 'task = "sentence"').replace("knn_accuracy", "spearman")
LR = '[tune.space]\n"optimizer.lr" = { low = 1e-4, high = 1e-2 }\n'


def by(metric: str) -> str:
    """The sweep of two losses, judged by this."""
    return LOSSES.replace('{ name = "knn_accuracy" }', metric)


def faults(text: str, schema: dict[str, Any] = SCHEMA) -> list[str]:
    """What the schema has against a file."""
    return [
        f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(tomllib.loads(text))
    ]


def loaded(text: str, folder: Path) -> str:
    """What the loader has against it."""
    (folder / "base.toml").write_text(LOSSES + LR)
    (folder / "sweep.toml").write_text(text)
    try:
        sweeps.load(folder / "sweep.toml")
    except ConfigError as error:
        return str(error)
    return ""


def properties(node: Any, where: str = "#") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every key that the schema offers, and its schema; conditions offer none."""
    if isinstance(node, dict):
        for name, below in node.get("properties", {}).items():
            yield f"{where}/{name}", below
        for key, below in node.items():
            if key not in ("if", "then", "else", "not"):
                yield from properties(below, f"{where}/{key}")


def test_it_is_a_schema_of_its_dialect() -> None:
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(SCHEMA)
    refs = set(re.findall(r'"\$ref": "#/\$defs/([^"]+)"', json.dumps(SCHEMA)))
    assert refs <= SCHEMA["$defs"].keys()
    assert all(re.fullmatch(r"[\w.]+", ref) for ref in refs), "Taplo refuses what is no URI, such as one with a blank"


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_shipped_sweep_is_valid(path: Path) -> None:
    assert faults(path.read_text("utf-8")) == []


@pytest.mark.parametrize("block", BLOCKS)
def test_every_sweep_on_a_page_is_valid(block: str) -> None:
    assert faults(block) == []


def test_there_are_sweeps_to_check() -> None:
    assert len(SWEEPS) > 5
    assert len(BLOCKS) > 1


FORMS = {
    "dotted keys": LOSSES,
    "tables": SMALL
    + '[compare.loss]\nname = ["infonce", "dcl"]\n[tune.space.optimizer]\nlr = { low = 1e-4, high = 1e-2 }\n',
    "none for no value": SMALL
    + '[compare]\n"optimizer.clip" = ["none", 1.0]\n"batch.negatives_group" = ["None", 16]\n',
    "none in a section": LOSSES.replace("[compare]", '[job.optimizer]\nclip = "NULL"\n[compare]'),
    "none for a number of trials": LOSSES + '[resources]\nconcurrent = "none"\n',
    "whole numbers for decimals": SMALL + '[compare]\n"loss.temperature" = [1, 2]\n"optimizer.clip" = [1, 2]\n',
    "learned temperature": SMALL + '[compare]\n"loss.temperature" = ["learned", 0.5]\n',
    "levels that are lists": SMALL + '[compare]\n"optimizer.betas" = [[0.9, 0.99], [0.9, 0.999]]\n',
    "named arms": SMALL + '[[arm]]\nlabel = "a"\nloss.name = "dcl"\n[[arm]]\nlabel = 1\n"batch.size" = 16\n',
    "the budget is the arms'": LOSSES.replace("budget = { steps = 8 }\n", "") + '"budget.steps" = [8, 9]\n',
    "an exclusion of one level, or several": LOSSES
    + '"batch.size" = [16, 32, 64]\n[[exclude]]\nloss.name = "dcl"\n"batch.size" = [16, 32]\n',
    "conditions": LOSSES
    + """[tune.space]
"optimizer.name" = { choices = ["adamw", "sgd"] }
"optimizer.momentum" = { low = 0.5, high = 0.99, when = { optimizer.name = "sgd" } }
"optimizer.warmup" = { low = 0.0, high = 0.1, when = { arm = ["dcl"], "batch.negatives_group" = "none" } }
""",
    "several metrics": by("[{ name = 'knn_accuracy' }, { name = 'alignment' }]"),
    "choices of none": LOSSES + '[tune.space]\n"model.dropout" = { choices = ["none", 0.1] }\n',
    "a range with a step": LOSSES + '[tune.space]\n"batch.size" = { low = 16, high = 64, step = 16 }\n',
    "defaults": LOSSES + f'[tune]\ndefaults = [{{ optimizer.lr = 1e-3 }}, {{ "optimizer.lr" = 1e-2 }}]\n{LR}',
    "seeds as lists": LOSSES + f"[tune]\nseeds = [7]\n{LR}[confirm]\nseeds = [1, 2, 3]\n",
    "columns": SENTENCES.replace("data = {", 'data = { columns = ["text"], judged_columns = ["a", "b", "score"],'),
    "another sweep extended by a question": 'extends = "base.toml"\nquestion = "And now?"\n',
    "another sweep extended by parts of its sections": 'extends = "base.toml"\n[job.data]\ntune = "digits"\n'
    '[tune.space]\n"optimizer.lr" = { low = 1e-5 }\n[metric]\nsmallest_difference = 0.1\n',
    "another sweep extended by factors in place of arms": 'extends = "base.toml"\narm = []\n'
    '[compare]\n"batch.size" = [16, 32]\n',
}  # fmt: skip


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_what_the_loader_reads_is_valid(text: str, tmp_path: Path) -> None:
    """Mutant check: a schema without the forms of the loader (that of the models) fails half of these."""
    assert loaded(text, tmp_path) == ""
    assert faults(text) == []


WRONG = {
    "a section that there is none of": LOSSES + "[tuning]\ntrials = 3\n",
    "no question": LOSSES.replace('question = "Which?"\n', ""),
    "no name of a metric": LOSSES.replace('name = "knn_accuracy"', "smallest_difference = 0.1"),
    "no name of a further metric": LOSSES.replace(
        'metric = { name = "knn_accuracy" }', 'metric = [{ name = "knn_accuracy" }, { mode = "max" }]'
    ),
    "no metric in a list": by("[]"),
    "a name that makes no folder": LOSSES.replace('"small"', '"a b"'),
    "a long name": LOSSES.replace('"small"', f'"{"a" * 101}"'),
    "no task": LOSSES.replace('task = "image"\n', ""),
    "another task": LOSSES.replace('"image"', '"video"'),
    "a seed in the job": LOSSES.replace("[job]", "[job]\nseed = 1"),
    "a key of a job that there is none of": LOSSES.replace("[compare]", "[job.loss]\ntemprature = 0.1\n[compare]"),
    "a dotted key in the job": LOSSES.replace("[job]", '[job]\n"loss.temperature" = 0.1'),
    "a text for a number": LOSSES.replace("steps = 8", 'steps = "8"'),
    "true for a number": LOSSES.replace("steps = 8", "steps = true"),
    "a number below its bound": LOSSES.replace("steps = 8", "steps = 0"),
    "none where there must be a value": LOSSES.replace("[compare]", '[job.batch]\nsize = "none"\n[compare]'),
    "a factor that is no key": SMALL + '[compare]\n"loss.nmae" = ["infonce", "dcl"]\n',
    "a factor that is the task": SMALL + '[compare]\n"task" = ["image", "sentence"]\n',
    "a level that is none": SMALL + '[compare]\n"loss.name" = ["infonce", "dlc"]\n',
    "no levels": SMALL + '[compare]\n"loss.name" = []\n',
    "a level in place of a list": SMALL + '[compare]\n"loss.name" = "infonce"\n',
    "a level out of bounds, in a table": SMALL + "[compare.batch]\nsize = [1, 16]\n",
    "two ways of comparing": LOSSES + '[[arm]]\nlabel = "a"\n[[arm]]\nlabel = "b"\nloss.name = "dcl"\n',
    "an arm without a label": SMALL + '[[arm]]\nlabel = "a"\n[[arm]]\nloss.name = "dcl"\n',
    "an arm with a key that there is none of": SMALL + '[[arm]]\nlabel = "a"\n[[arm]]\nlabel = "b"\nloss.nam = "dcl"\n',
    "an exclusion of what is no level of any sweep": LOSSES + '[[exclude]]\n"loss.name" = "dlc"\n',
    "no space": LOSSES + "[tune]\ntrials = 3\n",
    "a space of the key of another tool": LOSSES + '[tune.space]\n"optimizer.lr" = { min = 1e-4, max = 1e-2 }\n',
    "a space that is a list": LOSSES + '[tune.space]\n"optimizer.lr" = [1e-4, 1e-2]\n',
    "a range without an end": LOSSES + '[tune.space]\n"optimizer.lr" = { low = 1e-4 }\n',
    "a range without an end, in a table": LOSSES + "[tune.space.optimizer]\nlr = { low = 1e-4 }\n",
    "choices and a range": LOSSES + '[tune.space]\n"optimizer.lr" = { choices = [0.1], low = 1e-4 }\n',
    "a choice that is none": LOSSES + '[tune.space]\n"optimizer.name" = { choices = ["adam", "sgd"] }\n',
    "a budget that is tuned": LOSSES + '[tune.space]\n"budget.steps" = { choices = [8, 16] }\n',
    "a condition on what is no key": LOSSES + LR.replace(" }", ', when = { "loss.nam" = "dcl" } }'),
    "a sampler that there is none of": LOSSES + f'[tune]\nsampler = "bayes"\n{LR}',
    "no trials": LOSSES + f"[tune]\ntrials = 0\n{LR}",
    "seeds in words": LOSSES + '[confirm]\nseeds = "many"\n',
    "a class of failures that there is none of": LOSSES + "[retry]\noom = 1\n",
    "GPUs below none": LOSSES + "[resources]\ngpus_per_rank = -1\n",
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_what_one_key_makes_wrong_is_wrong_by_both(text: str, tmp_path: Path) -> None:
    assert loaded(text, tmp_path) != ""
    assert faults(text) != []


def test_an_editor_finds_the_same(tmp_path: Path) -> None:
    """Taplo, by the first line of each file. Mutant check: a reference with a blank fails this."""
    if not TAPLO.exists():
        pytest.skip("taplo is not installed: make .venv/optional")
    (tmp_path / "sweep.schema.json").write_text(json.dumps(SCHEMA))
    right = [*(path.read_text("utf-8") for path in SWEEPS), *FORMS.values()]
    for name, text in [*((f"right{n}", text) for n, text in enumerate(right)), *WRONG.items()]:
        (tmp_path / f"{name}.toml").write_text(f"#:schema ./sweep.schema.json\n{text}")

    def lint(files: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([TAPLO, "lint", files], cwd=tmp_path, capture_output=True, check=False)

    done = lint("right*.toml")
    assert done.returncode == 0, done.stderr.decode()
    for name in list(WRONG)[::4]:  # a process each
        done = lint(f"{name}.toml")
        # It points at a line of the file. Its own last lines may be lost, as it does not wait for them.
        assert (done.returncode, b"\nerror: " in b"\n" + done.stderr) == (1, True), (name, done.stderr)


def test_every_key_is_described_by_a_sentence() -> None:
    """Mutant check: a field of a section without a docstring fails this."""
    keys = dict(properties(SCHEMA))
    assert len(keys) > 400
    for where, key in keys.items():
        about = key.get("description") or SCHEMA["$defs"][key["$ref"].removeprefix("#/$defs/")].get("description", "")
        assert about.endswith((".", "?", ".)")), where
        assert "\n" not in about, where


def test_every_field_of_the_models_is_in_it_with_its_default_and_bounds() -> None:
    """So a new field is in it by itself."""
    of_jobs = {name for name in field_names(JobConfig) if "." in name or name == "task"}
    assert {f"job.{name}" for name in of_jobs} <= SCHEMA["$defs"].keys()
    assert of_jobs - SCHEMA["properties"]["compare"]["properties"].keys() == {"task"}
    assert set(sweeps.Sweep.model_fields) | {"extends"} == set(SCHEMA["properties"])
    rate = SCHEMA["$defs"]["job.optimizer.lr"]
    assert (rate["type"], rate["default"], rate["exclusiveMinimum"]) == ("number", 1e-3, 0)
    assert SCHEMA["$defs"]["job.batch.negatives_group"]["default"] == "none"
    assert SCHEMA["$defs"]["Tune"]["properties"]["trials"]["default"] == 8
    assert '"null"' not in json.dumps([value for key, value in SCHEMA.items() if key != "$defs"])


def test_keys_of_a_table_that_takes_any_may_be_compared_and_tuned() -> None:
    text = LOSSES + '"loss.options.gamma" = [1, "x"]\n[tune.space]\n"loss.options.beta" = { low = 1, high = 2 }\n'
    assert faults(text) == []
    assert faults(text.replace("loss.options", "loss.optoins")) != []
    assert faults(text.replace("low = 1", "lo = 1")) != []
    assert faults(LOSSES.replace("[compare]", "[job.loss.options]\ngamma = 1\n[compare]")) == []
    assert faults(LOSSES + "[compare.loss.options]\ngamma = [1, 2]\n") == []


def test_the_command_prints_it_without_torch_and_ray() -> None:
    done = CliRunner().invoke(main, ["schema"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output) == SCHEMA
    probe = (
        "import sys; from orchestrator.cli import main; main(['schema'], standalone_mode=False); "
        "assert not {'torch', 'ray', 'optuna', 'mlflow', 'sqlalchemy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", probe], check=True, stdout=subprocess.DEVNULL)

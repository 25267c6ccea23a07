"""Names to code: what a component's name may be, and how its options are checked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mylab
import pytest
from pydantic import ValidationError

from jobs.config import JobConfig, components, trial_id
from jobs.config.validation import issues
from jobs.losses import JobLoss

JOB: dict[str, Any] = {"task": "image", "budget": {"steps": 1}, "data": {"train": "digits", "confirm": "digits"}}


def job(**loss: Any) -> JobConfig:
    return JobConfig.model_validate(JOB | {"loss": loss})


def words(error: ValidationError) -> str:
    return "; ".join(map(str, issues(error, JobConfig)))


@pytest.mark.parametrize("kind", components.KINDS)
def test_every_built_in_is_a_module_with_an_object_of_its_name(kind: str) -> None:
    """The folder is the table: no list of names is kept anywhere else."""
    assert components.builtin_names(kind)
    for name in {*components.builtin_names(kind)} - {*components.KINDS[kind].names}:
        assert components.load(kind, name) is not None


@pytest.mark.parametrize(
    "name", ["mylab:focal", "my_lab.deep.module_2:Loss", "a:b"], ids=lambda name: name.replace(":", " ")
)
def test_an_import_path_is_a_name(name: str) -> None:
    assert job(name=name).loss.name == name


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("infonc", "did you mean 'infonce'"),
        ("mylab.focal", "import path such as 'mylab.losses:focal_nce'"),
        ("mylab/losses.py:focal", "import path"),
        ("mylab:focal()", "import path"),
        (":focal", "import path"),
        ("my lab:focal", "import path"),
        ("mylab:föcal", "import path"),
    ],
)
def test_what_is_neither_is_refused_with_what_would_be(name: str, hint: str) -> None:
    with pytest.raises(ValidationError) as error:
        job(name=name)
    assert "must be" in words(error.value)
    assert hint in words(error.value)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        (
            "no_such_package.losses:focal",
            r'there is no module no_such_package; .*\[code\] paths = \["no_such_package/"\]',
        ),
        ("mylab:focall", "mylab has no focall; did you mean 'mylab:focal'"),
        ("mylab.deep:focal", "there is no module mylab.deep"),
    ],
)
def test_code_that_is_not_there_is_named_with_what_is(name: str, hint: str) -> None:
    with pytest.raises(components.ComponentError, match=hint):
        components.load("loss", name)


def test_a_module_that_fails_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fails_at_once.py").write_text("raise RuntimeError('as ever')\n")
    (tmp_path / "needs_another.py").write_text("import no_such_other\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(components.ComponentError, match=r"cannot be imported: RuntimeError: as ever"):
        components.load("loss", "fails_at_once:x")
    with pytest.raises(components.ComponentError, match="No module named"):
        components.load("loss", "needs_another:x")


@pytest.mark.parametrize(
    ("component", "given", "expected"),
    [
        ("focal", {"gamma": 1.5}, {"gamma": 1.5}),
        ("focal", {"gamma": 3}, {"gamma": 3}),
        ("focal", {}, {}),
        ("vicreg", {"covariance": 2.0}, {"covariance": 2.0}),
        ("Centred", {"momentum": 0.5, "width": 4}, {"momentum": 0.5, "width": 4}),
        ("banded", {"low": 0.2}, {"low": 0.2, "high": 0.9}),
    ],
)
def test_options_are_those_of_the_signature_or_of_a_model(component: str, given: Any, expected: Any) -> None:
    """Of a model with its defaults, as the function may have none."""
    assert components.options("loss", getattr(mylab, component), given) == expected


@pytest.mark.parametrize(
    ("component", "given", "said"),
    [
        ("focal", {"gama": 1.0}, "gama = 1.0: unknown key; did you mean 'gamma'?"),
        ("focal", {"gamma": "two"}, "gamma = 'two': should be a valid number"),
        ("focal", {"v": 1.0}, "v = 1.0: unknown key"),
        ("Centred", {"width": 2.5}, "width = 2.5: should be a valid integer"),
        ("banded", {"low": 0.0}, "low = 0.0: should be greater than 0"),
        ("everything", {"step": 3}, "step = 3: unknown key"),
    ],
)
def test_options_that_a_component_does_not_have_are_refused(component: str, given: Any, said: str) -> None:
    found = getattr(mylab, component)
    with pytest.raises(ValidationError) as error:
        components.options("loss", found, given)
    assert said in "; ".join(map(str, issues(error.value, components.options_model("loss", found))))


def test_a_required_option_is_missed_before_anything_runs() -> None:
    def needs(queries: Any, keys: Any, *, scale: float) -> Any: ...

    with pytest.raises(ValidationError):
        components.options("loss", needs, {})
    assert components.options("loss", needs, {"scale": 1.0}) == {"scale": 1.0}


def test_built_in_losses_have_no_options() -> None:
    """It is seen where the loss is loaded, and before that by whoever tries it."""
    with pytest.raises(ValidationError):
        JobLoss(job(name="dcl", options={"gamma": 1.0}))
    (answer,) = asked({"name": "dcl", "options": {"gamma": 1.0}, "job": JOB | {"loss": {"name": "dcl"}}})
    assert answer["faults"] == [
        [
            "loss.options.gamma",
            "1.0",
            "unknown key; it has no options; an option that one arm alone has is tuned with `when`",
        ]
    ]


def test_options_and_code_count_in_a_trials_id_and_nothing_else_is_renamed() -> None:
    """The first id is the one that the version before options gave: a new field renames nothing."""
    plain = job().model_dump(mode="json")
    without = {**plain, "loss": {key: value for key, value in plain["loss"].items() if key != "options"}}
    assert trial_id(plain) == trial_id(without)
    ids = {
        trial_id(plain),
        trial_id(plain, code="a" * 64),
        trial_id(plain, code="b" * 64),
        *(job(name="mylab:focal", options={"gamma": gamma}).id for gamma in (1.0, 2.0)),
        job(name="mylab:focal").id,
    }
    assert len(ids) == 6


def asked(*entries: dict[str, Any], env: dict[str, str] | None = None) -> list[dict[str, Any]]:
    whole = {"asked": [{"kind": "loss", "options": {}, "job": JOB} | entry for entry in entries]}
    done = subprocess.run(
        [sys.executable, "-m", "jobs.train.components"],
        input=json.dumps(whole), capture_output=True, text=True, env=env, check=True,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_components_are_tried_in_a_process_of_their_own(tmp_path: Path) -> None:
    """What a module prints is no answer; what it raises names its line."""
    import os

    (tmp_path / "ownlab.py").write_text(
        "print('hello')\n"
        "def good(queries, keys): return (queries * keys).sum()\n"
        "def bad(queries, keys, *, k: int = 3):\n    return queries[99].sum()\n"
        "def flat(queries, keys): return (queries * keys).sum(1)\n"
        "def still(queries, keys): return (queries * keys).sum().detach()\n"
        "text = 'no function'\n"
    )
    env = os.environ | {"ORCHESTRATOR_CODE": str(tmp_path)}
    names = ["good", "bad", "flat", "still", "text", "none"]
    answers = asked(
        *({"name": f"ownlab:{name}", "job": JOB | {"loss": {"name": f"ownlab:{name}"}}} for name in names), env=env
    )
    said = {name: " ".join(fault[2] for fault in answer["faults"]) for name, answer in zip(names, answers, strict=True)}
    assert said["good"] == ""
    assert "IndexError" in said["bad"]
    assert "(ownlab.py, line 4)" in said["bad"]
    assert "returned [6] torch.float32 on cpu" in said["flat"]
    assert "without a gradient" in said["still"]
    assert "is a str" in said["text"]
    assert "ownlab has no none" in said["none"]


def test_code_of_nowhere_is_refused_and_installed_code_is_recorded() -> None:
    """`mylab` stands on the path of these tests alone; torch is installed."""
    import os

    env = os.environ | {"PYTHONPATH": str(Path(mylab.__file__).parent)}
    own, installed = asked(
        {"name": "mylab:focal", "job": JOB | {"loss": {"name": "mylab:focal"}}},
        {
            "name": "torch.nn.functional:mse_loss",
            "job": JOB | {"loss": {"name": "torch.nn.functional:mse_loss"}},
        },
        env=env,
    )
    assert "neither in [code] nor an installed distribution" in own["faults"][0][2]
    assert installed["distribution"][0] == "torch"


def test_keys_of_losses_of_anchors_are_refused_beside_a_function_of_the_batch(tmp_path: Path) -> None:
    import os

    (tmp_path / "ownlab2.py").write_text("def good(queries, keys): return (queries * keys).sum()\n")
    loss = {"name": "ownlab2:good", "symmetric": True, "margin": 0.1}
    env = os.environ | {"ORCHESTRATOR_CODE": str(tmp_path)}
    (answer,) = asked({"name": "ownlab2:good", "job": JOB | {"loss": loss}}, env=env)
    assert [fault[0] for fault in answer["faults"]] == ["loss.symmetric", "loss.margin"]

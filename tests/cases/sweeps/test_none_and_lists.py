"""What a job may have as None or as a list can be compared, tuned, set and undone like any other value.

Mutant check: levels of the types str, int, float and bool alone, as before, refuse every sweep here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from click.testing import CliRunner
from ledgers import Run, start

from jobs.config import ConfigError
from orchestrator.cli import main
from orchestrator.session.schedule import Schedule
from orchestrator.sweep import Tune, arms_of, load, resolved
from orchestrator.sweep.plan import Plan, changed_keys, make, stored
from orchestrator.sweep.search import suggest, suggestions
from orchestrator.sweep.search.sampling import Observed

HEAD = """
name = "small"
question = "Does it matter?"
metric = { name = "knn_accuracy", smallest_difference = 0.01 }
[job]
task = "image"
budget = { samples = 1_000 }
[job.data]
train = "digits[:1000]"
tune = "digits[1000:1400]"
confirm = "digits[1400:]"
"""
TUNE = """
[tune]
trials = 3
[tune.space]
"optimizer.lr" = { low = 1e-4, high = 1e-2, log = true }
"""
Samplers = Literal["tpe", "gp", "random", "grid"]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def _write(text: str) -> Path:
        path = tmp_path / "sweep.toml"
        path.write_text(HEAD + text)
        return path

    return _write


def again(plan: Plan) -> Plan:
    """The plan as the ledger gives it back."""
    kept = json.loads(json.dumps(resolved(plan.sweep) | {"plan": plan.record()}))
    return stored(kept, plan.rules)


def complaint(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "levels", "labels", "values"),
    [
        ("optimizer.clip", '["none", 1.0]', ["clip=none", "clip=1.0"], [None, 1.0]),
        ("batch.negatives_group", '[128, "none"]', ["negatives_group=128", "negatives_group=none"], [128, None]),
        ("model.dropout", '["None", 0, 0.1]', ["dropout=none", "dropout=0", "dropout=0.1"], [None, 0.0, 0.1]),
        ("optimizer.betas", "[[0.9, 0.999], [0.9, 0.95]]", ["betas=[0.9, 0.999]", "betas=[0.9, 0.95]"], None),
        ("data.image_shape", '["none", [8, 8]]', ["image_shape=none", "image_shape=[8, 8]"], [None, [8, 8]]),
    ],
)
def test_none_and_lists_are_levels(
    write: Callable[[str], Path], key: str, levels: str, labels: list[str], values: list[Any] | None
) -> None:
    plan = make(load(write(f'[compare]\n"{key}" = {levels}\n{TUNE}')))
    assert [arm.label for arm in plan.arms] == labels
    assert [arm.values[key] for arm in plan.arms] == (values or [[0.9, 0.999], [0.9, 0.95]])
    assert plan.contrasts == tuple((label, labels[0]) for label in labels[1:])
    assert [arm.values for arm in again(plan).arms] == [arm.values for arm in plan.arms]
    for label in labels:
        before, after = (of.confirm_trials(label, {"optimizer.lr": 1e-3}) for of in (plan, again(plan)))
        assert [trial.id for trial in before] == [trial.id for trial in after]


def test_none_in_an_arm_undoes_what_the_job_sets(write: Callable[[str], Path]) -> None:
    arms = (
        '[job.optimizer]\nclip = 1.0\n[[arm]]\nlabel = "clip"\n[[arm]]\nlabel = "no clip"\n"optimizer.clip" = "none"\n'
    )
    sweep = load(write(arms + TUNE))
    assert [arm.values["optimizer.clip"] for arm in arms_of(sweep)] == [1.0, None]
    set_in_job = load(write(arms + TUNE), ["job.optimizer.clip=none", "arm.no clip.optimizer.clip=2.0"])
    assert [arm.values["optimizer.clip"] for arm in arms_of(set_in_job)] == [None, 2.0]
    assert changed_keys(resolved(sweep), resolved(set_in_job))


def test_none_in_a_sweep_undoes_what_the_sweep_below_sets(write: Callable[[str], Path], tmp_path: Path) -> None:
    base = write('[job.optimizer]\nclip = 1.0\n[compare]\n"loss.name" = ["infonce", "flatnce"]\n' + TUNE)
    base.rename(tmp_path / "base.toml")
    (tmp_path / "over.toml").write_text('extends = "base.toml"\njob.optimizer.clip = "none"\n')
    assert {arm.values["optimizer.clip"] for arm in arms_of(load(tmp_path / "over.toml"))} == {None}


def test_a_text_that_a_key_may_be_stays_a_text(write: Callable[[str], Path]) -> None:
    """`none` is a projection, and may be the name of an encoder's folder or of a column."""
    text = '[compare]\n"model.projection" = ["none", "mlp"]\n"model.name" = ["none", "vit"]\n'
    values = [arm.values for arm in arms_of(load(write(text + TUNE)))]
    assert {value["model.projection"] for value in values} == {"none", "mlp"}
    assert {value["model.name"] for value in values} == {"none", "vit"}


CHOICES = """[compare]
"loss.name" = ["infonce", "flatnce"]
[tune]
trials = 40
sampler = "SAMPLER"
defaults = [{ "optimizer.clip" = "none", "optimizer.betas" = [0.9, 0.95] }, {}]
[tune.space]
"optimizer.clip" = { choices = ["none", 1.0, 2] }
"optimizer.betas" = { choices = [[0.9, 0.999], [0.9, 0.95]] }
"model.dropout" = { choices = ["none", 0.1], when = { "optimizer.clip" = ["none", 1.0] } }
"optimizer.warmup" = { choices = [0.0, 0.1], when = { "optimizer.betas" = [0.9, 0.95] } }
"""


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "grid"])
def test_none_and_lists_are_choices_of_every_sampler(write: Callable[[str], Path], sampler: Samplers) -> None:
    """Suggested, told again from JSON, and put into jobs; conditions on them hold where they should."""
    plan = make(load(write(CHOICES.replace("SAMPLER", sampler))))
    tune, arm = plan.sweep.tune, plan.arms[0]
    assert tune is not None
    count = min(16, plan.suggestions[arm.label])
    history: list[Observed] = []
    for number in range(count):
        params = suggest(
            tune, mode="max", sweep_seed=0, arm=arm.label, number=number, history=history, base=dict(arm.values)
        )
        assert ("model.dropout" in params) == (params["optimizer.clip"] in (None, 1.0))
        assert ("optimizer.warmup" in params) == (params["optimizer.betas"] == [0.9, 0.95])
        (trial,) = plan.tune_trials(arm.label, number, params)
        assert trial.job.optimizer.clip == params["optimizer.clip"]
        assert list(trial.job.optimizer.betas) == params["optimizer.betas"]
        history.append(Observed(number, json.loads(json.dumps(params)), float(params["optimizer.clip"] or 0), "done"))
    assert history[0].params["optimizer.clip"] is None
    assert history[0].params["optimizer.betas"] == [0.9, 0.95]
    assert history[1].params["optimizer.betas"] == [0.9, 0.999], "a default is completed from the arm, None included"
    assert history[1].params["optimizer.clip"] is None
    assert len({json.dumps(one.params["optimizer.clip"]) for one in history}) == 3
    assert len({json.dumps(one.params["optimizer.betas"]) for one in history}) == 2


def test_a_grid_of_none_and_lists_has_each_point_once(write: Callable[[str], Path]) -> None:
    """By hand: (none: 2, 1.0: 2, 2: 1) x (1 + 2), and the first default, whose warm-up is the job's and no choice. The
    default [0, 1] is the choice [0.0, 1.0]."""
    plan = make(load(write(CHOICES.replace("SAMPLER", "grid"))))
    assert set(plan.suggestions.values()) == {15 + 1}
    ints = Tune.model_validate(
        {
            "sampler": "grid",
            "defaults": [{"a": 1, "b": [0, 1]}],
            "space": {"a": {"choices": [1.0, 2.0]}, "b": {"choices": [[0.0, 1.0]]}},
        }
    )
    assert suggestions(ints) == 2


def test_what_the_samplers_learn_of_lists_matters() -> None:
    space: dict[str, Any] = {"b": {"choices": [[0.1 * k, 0.5] for k in range(8)]}}
    for sampler in ("tpe", "gp"):
        tune = Tune.model_validate({"trials": 40, "sampler": sampler, "space": space})
        history = [Observed(n, {"b": [0.1 * (n % 8), 0.5]}, -abs(n % 8 - 5), "done") for n in range(24)]
        asked: list[Any] = [
            suggest(tune, mode="max", sweep_seed=seed, arm="x", number=24, history=history)["b"] for seed in range(12)
        ]
        assert sum(abs(value[0] - 0.5) < 0.15 for value in asked) >= 6


def test_levels_that_are_lists_or_none_are_excluded(write: Callable[[str], Path]) -> None:
    compare = '[compare]\n"optimizer.clip" = ["none", 1.0, 2.0]\n"optimizer.betas" = [[0.9, 0.999], [0.9, 0.95]]\n'
    for exclude, left in (
        ('"optimizer.betas" = [0.9, 0.95]\n"optimizer.clip" = 1.0', 5),
        ('"optimizer.betas" = [[0.9, 0.95]]\n"optimizer.clip" = [1.0, 2.0]', 4),
        ('"optimizer.betas" = [[0.9, 0.999], [0.9, 0.95]]\n"optimizer.clip" = 2.0', 4),
    ):
        assert len(arms_of(load(write(f"{compare}[[exclude]]\n{exclude}\n{TUNE}")))) == left
    all_none = f'{compare}[[exclude]]\n"optimizer.clip" = "none"\n{TUNE}'
    assert "optimizer.clip = none is excluded beside it" in complaint(write(all_none))
    wrong = f'{compare}[[exclude]]\n"optimizer.betas" = [0.8, 0.95]\n{TUNE}'
    assert "= [0.8, 0.95]: is no level of optimizer.betas, which has [[0.9, 0.999], [0.9, 0.95]]" in complaint(
        write(wrong)
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[compare]\n"optimizer.clip" = ["none", 1.0, "None"]\n', "compare.optimizer.clip = none: is a level twice"),
        ('[compare]\n"optimizer.betas" = [[0.9, 0.95], [0.9, 0.950]]\n', "is a level twice"),
        (
            '[compare]\n"optimizer.betas" = [0.9, 0.95]\n',
            "each level of optimizer.betas is a list itself: [[0.9, 0.95], ...]",
        ),
        ('[compare]\n"batch.size" = ["none", 16]\n', "job.batch.size = 'none': should be a valid integer"),
        ('[compare]\n"batch.size" = [[16, 32], 64]\n', "job.batch.size = [16, 32]: should be a valid integer"),
        (
            '[compare]\n"optimizer.clip" = [1979-05-27, 1.0]\n',
            "must be a text, a number, true, false, 'none', or a list",
        ),
        (
            '[compare]\n"optimizer.clip" = [{ a = 1 }, 1.0]\n',
            "must be a text, a number, true, false, 'none', or a list",
        ),
        ('[compare]\n"optimizer.clip" = [nan, 1.0]\n', "must be a text, a number"),
    ],
)
def test_levels_that_cannot_be_are_refused_in_one_line(write: Callable[[str], Path], text: str, words: str) -> None:
    assert words in complaint(write(text + TUNE))


SPACE = '[compare]\n"loss.name" = ["infonce", "flatnce"]\n[tune]\ntrials = 3\n[tune.space]\n'


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ('"optimizer.clip" = { choices = ["none", 1.0, 1] }', "choices = 1: is a choice twice"),
        ('"optimizer.betas" = { choices = [[0.9, 0.95], [0.9, 0.95]] }', "choices = [0.9, 0.95]: is a choice twice"),
        ('"optimizer.lr" = { min = 1e-4, max = 1e-2 }', "has min, max; did you mean low, high?"),
        ('"optimizer.lr" = { values = [1e-4, 1e-2] }', "has values; did you mean choices?"),
        ('"optimizer.lr" = [1e-4, 1e-2]', "is a list; write { choices = [0.0001, 0.01] }, or low and high"),
        ('"loss.temperature" = { low = 1e-40, high = 1.0, log = true }', "must lie between 1e-06 and 1e+06"),
        ('"optimizer.lr" = { choices = [1e-40, 1e-2] }', "must be 0 or between 1e-30 and 1e+30"),
        ('"batch.size" = { choices = ["none", 16] }', "should be a valid integer"),
        (
            '"optimizer.clip" = { low = 0.5, high = 2.0, when = { "optimizer.betas" = [0.8, 0.95] } }',
            "is never the value",
        ),
    ],
)
def test_spaces_that_cannot_be_are_refused_in_words(write: Callable[[str], Path], space: str, words: str) -> None:
    assert words in complaint(write(SPACE + space + "\n"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("job.loss.temperature=1e-40", "temperature = 1e-40 must lie between 1e-06 and 1e+06"),
        ("job.loss.temperature=1e-9", "job.loss.temperature = 1e-09: must lie between 1e-06 and 1e+06"),
        ("job.optimizer.weight_decay=1e-200", "must be 0 or between 1e-30 and 1e+30"),
        ("job.budget.samples=100000000000000000000", "must be at most 9,007,199,254,740,992"),
        ("confirm.seeds=1000000", "confirm.seeds = 1,000,000 seeds: at most 1,000"),
        ("confirm.seeds=1000000000000000", "at most 1,000"),
        ("tune.seeds=1000000000000", "tune.seeds = 1,000,000,000,000 seeds: at most 1,000"),
        ("tune.seeds=[2147483647]", "leaves no room for confirm seeds"),
        ("tune.trials=1000000000", "at most 1,000,000 for an arm"),
    ],
)
def test_a_bound_is_said(write: Callable[[str], Path], override: str, words: str) -> None:
    assert words in complaint(write(SPACE + '"optimizer.lr" = { low = 1e-4, high = 1e-2 }\n'), override)


@pytest.mark.parametrize("label", ["big ", " big", "\u00a0big", "big\u3000"])
def test_labels_that_look_alike_are_refused(write: Callable[[str], Path], label: str) -> None:
    arms = "".join(f'[[arm]]\nlabel = "{name}"\n"batch.size" = {size}\n' for name, size in (("big", 16), (label, 8)))
    assert "the label begins or ends with a blank; write 'big'" in complaint(write(arms))


def test_zero_and_usual_numbers_are_within_bounds(write: Callable[[str], Path]) -> None:
    path = write(SPACE + '"optimizer.lr" = { low = 1e-4, high = 1e8, log = true }\n')
    load(path, ["job.loss.temperature=0.001", "job.optimizer.weight_decay=0", "confirm.seeds=1000"])


def test_a_mark_at_the_beginning_of_the_file_is_dropped(tmp_path: Path) -> None:
    """As editors on Windows write it; in the file that it extends too."""
    (tmp_path / "base.toml").write_text(HEAD + SPACE + '"optimizer.lr" = { low = 1e-4, high = 1e-2 }\n', "utf-8-sig")
    (tmp_path / "over.toml").write_text('extends = "base.toml"\nname = "over"\n', "utf-8-sig")
    assert load(tmp_path / "over.toml").name == "over"


ARMS = """[[arm]]
label = "plain"
[[arm]]
label = "a.b = c"
"batch.size" = 64
[[arm]]
label = "no clip [x]"
"batch.size" = 32
"""


@pytest.mark.parametrize(
    ("override", "arm", "key", "value"),
    [
        ("arm.plain.batch.size=128", 0, "batch.size", 128),
        ('arm.plain."batch.size"=128', 0, "batch.size", 128),
        ("arm.a.b = c.batch.size=128", 1, "batch.size", 128),
        ('arm."a.b = c".batch.size = 128', 1, "batch.size", 128),
        ("arm.'no clip [x]'.optimizer.clip=none", 2, "optimizer.clip", None),
        ("arm.no clip [x].optimizer.betas=[0.9, 0.95]", 2, "optimizer.betas", [0.9, 0.95]),
        ("arm[1].optimizer.clip=1.5", 1, "optimizer.clip", 1.5),
        ("arm.1.batch.negatives_group=16", 1, "batch.negatives_group", 16),
    ],
)
def test_a_key_of_a_named_arm_can_be_set(
    write: Callable[[str], Path], override: str, arm: int, key: str, value: Any
) -> None:
    before, after = (arms_of(load(write(ARMS + TUNE), given)) for given in ([], [override]))
    assert after[arm].values[key] == value
    assert [one.settings for one in after if one is not after[arm]] == [
        one.settings for one in before if one is not before[arm]
    ]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("arm.plan.batch.size=64", "no arm has the label or number 'plan'; did you mean 'plain'?"),
        ("arm[7].batch.size=64", "no arm has the label or number 7"),
        ("arm.plain.batch.sise=64", "did you mean 'batch.size'?"),
        ("arm.plain=3", "names no key of the arm"),
        ('arm."plain.batch.size=64', "must be key=value"),
        ("tune.defaults[3].optimizer.lr=0.1", "defaults[3] is not there; defaults has none"),
        ("=3", "must be key=value"),
        ("job..loss=3", "must be key=value"),
    ],
)
def test_an_override_that_cannot_be_is_refused_in_words(
    write: Callable[[str], Path], override: str, words: str
) -> None:
    assert words in complaint(write(ARMS + TUNE), override)


def test_quoted_keys_are_the_same_as_bare_ones(write: Callable[[str], Path]) -> None:
    path = write(CHOICES.replace("SAMPLER", "grid"))
    for bare, quoted in (
        ("job.loss.temperature=0.2", 'job."loss"."temperature"=0.2'),
        ("job.loss.temperature=0.2", "job.'loss.temperature'=0.2"),
        ("compare.loss.name=['dcl', 'infonce']", """compare."loss.name"=["dcl", "infonce"]"""),
        ("tune.space.optimizer.clip.choices=[1.0, 'none']", """tune.space."optimizer.clip".choices=[1.0, "none"]"""),
        ("tune.space.model.dropout.when.optimizer.clip=none", 'tune.space."model.dropout".when."optimizer.clip"=none'),
        ("tune.defaults[1].optimizer.clip=1.0", 'tune.defaults.1."optimizer.clip"=1.0'),
    ):
        assert resolved(load(path, [bare])) == resolved(load(path, [quoted])) != resolved(load(path))


def test_plan_status_and_the_ledger_show_none_and_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("ORCHESTRATOR_LEDGER", raising=False)
    arms = '[compare]\n"optimizer.clip" = ["none", 1.0]\n"optimizer.betas" = [[0.9, 0.999], [0.9, 0.95]]\n'
    tune = """[tune]
trials = 2
space = { "model.dropout" = { choices = ["none", 0.1] }, "data.image_shape" = { choices = [[8, 8], [4, 16]] } }"""
    tune = tune.replace(', "data.image_shape" = { choices = [[8, 8], [4, 16]] }', "")
    run: Run = start(tmp_path / "runs" / "demo", arms, tune=tune)
    trials = Schedule(run.plan, run.ledger).advance()
    suggested = [one.params for one in run.ledger.suggestions()]
    assert suggested
    assert {one.config.optimizer.clip for one in trials.values()} == {None, 1.0}
    run.ledger.close()
    planned = CliRunner().invoke(main, ["plan", str(tmp_path / "runs" / "demo" / "sweep.toml")]).output
    lines = [line.split() for line in planned.splitlines()]
    assert ["arm", "betas", "clip", "samples", "steps"] in lines
    assert "clip=none, betas=[0.9, 0.95]" in planned
    assert any(line[-5:] == ["[0.9,", "0.95]", "none", "768", "3"] for line in lines), planned
    shown = "".join(CliRunner().invoke(main, ["status", "demo"]).output.split())
    assert "clip=none," in shown

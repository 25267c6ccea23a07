"""What the verbs print with --json is what their schemas promise: no key is missing, and none is left undescribed.

Real output of other verbs, of runs that were trained, is held to them where it is made: `answered` in test_driver,
test_export, test_verify, test_doctor and test_submission, and every answer that `answer_of` gives.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from answers import PROMISED, answered, faults, promises, strict
from click.testing import CliRunner, Result
from jsonschema import Draft202012Validator
from ledgers import BETTER, TUNED, TWO, Begin, Run, answer_of, finished, tuned

from orchestrator.cli import main
from orchestrator.cli.schema.answers import ANSWERS, answer_schema
from orchestrator.ledger import WAITS
from orchestrator.system.versions import VERSIONS

TESTS = Path(__file__).parents[2]
SWEEPS = sorted((TESTS.parent / "sweeps").glob("*.toml"))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def printed(*arguments: str, code: int = 0) -> Any:
    """What a verb prints, which is valid."""
    done = run(*arguments)
    assert done.exit_code == code, done.output
    return answered(arguments[0], done.stdout)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of runs, the usual one."""
    for name in ("ORCHESTRATOR_LEDGER", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ORCHESTRATOR_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def released(run: Run) -> Run:
    """The same run, which nobody drives."""
    run.ledger.release()
    return run


# The schemas


@pytest.mark.parametrize("verb", ANSWERS)
def test_each_is_a_schema_of_its_dialect_with_a_version_that_the_output_has_too(verb: str) -> None:
    schema = json.loads(run("schema", verb).stdout)
    Draft202012Validator.check_schema(schema)
    assert schema == json.loads(json.dumps(answer_schema(verb)))
    assert (schema["title"], schema["version"]) == (f"orchestrator {verb} --json", VERSIONS[verb])
    assert schema["$id"].endswith(f":{verb}:{VERSIONS[verb]}")
    for body in schema.get("anyOf", [schema]):
        assert body["properties"]["version"]["const"] == VERSIONS[verb]
        assert "version" in body["required"]
        assert body["description"]


def test_every_verb_with_json_has_one_and_no_other() -> None:
    options = {name: {text for one in command.params for text in one.opts} for name, command in main.commands.items()}
    assert {name for name, own in options.items() if "--json" in own} == set(ANSWERS) == set(VERSIONS)


@pytest.mark.parametrize(
    ("verb", "words"), [("stats", "did you mean 'status'?"), ("logs", "these do: plan, doctor, status, compare")]
)
def test_a_verb_without_one_is_met_with_those_that_have(verb: str, words: str) -> None:
    done = run("schema", verb)
    assert (done.exit_code, words in done.output) == (2, True), done.output


def test_without_a_verb_it_is_the_schema_of_a_sweep() -> None:
    assert json.loads(run("schema").stdout)["title"] == "Sweep"


def test_a_missing_key_and_one_that_is_not_described_are_seen(begin: Begin) -> None:
    """The instrument. Programs may meet more keys, so the shipped schema allows them."""
    answer = {"version": 1, **answer_of(finished(begin(), BETTER).ledger)}
    assert faults("compare", answer) == []
    (more,) = faults("compare", answer | {"new": 1})
    assert more == "strictly: $: Additional properties are not allowed ('new' was unexpected)"
    lacks = "$: 'arms' is a required property"
    assert faults("compare", {key: answer[key] for key in answer if key != "arms"}) == [lacks, f"strictly: {lacks}"]
    answer["comparisons"][0]["verdict"] = "probably"
    assert faults("compare", answer)[0].startswith("$.comparisons[0].verdict: 'probably' is not one of [")
    assert strict({"type": "object", "properties": {"a": {}}})["additionalProperties"] is False


# Real output


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_plan(path: Path, home: Path) -> None:
    plan = printed("plan", str(path), "--json")
    # Where nothing is trained all seeds say the same, and no number of them finds anything.
    assert bool(plan["power"]) == (path.stem not in ("whitening", "whitening_cpu"))


def test_plan_by_looks_and_by_the_spread_of_earlier_runs(home: Path) -> None:
    released(finished(Run(*started(home / "before")), BETTER)).ledger.close()
    sweep = str(home / "before" / "sweep.toml")
    assert printed("plan", sweep, "--json")["power"][0]["sd"] > 0
    assert printed("plan", sweep, "--json", "--set", 'confirm.seeds="enough"')["seeds_by"]["source"]
    looks = printed("plan", sweep, "--json", "--set", "confirm.seeds={looks=[7, 10, 14]}")
    assert looks["seeds_by"]["looks"] == [7, 10, 14]


def started(folder: Path, **options: Any) -> tuple[Any, Any]:
    """Ledger and plan of a run in its place."""
    from ledgers import start

    made = start(folder, **options)
    return made.ledger, made.plan


@pytest.mark.parametrize("name", ["crossed", "diverged"])
def test_runs_of_earlier_versions(name: str, home: Path) -> None:
    """One of them has neither ended nor any of the newer columns."""
    shutil.copytree(TESTS / "begun" / name, home / name)
    stood = printed("status", name, "--json")
    assert all(trial["params"] is not None and trial["created"] for trial in stood["trials"])
    answer = printed("compare", name, "--json")
    assert {arm["label"] for arm in answer["arms"]} == {arm["label"] for arm in stood["arms"]}


def test_a_run_that_is_tuned_with_trials_of_every_kind(home: Path) -> None:
    run = tuned(home / "tuned")
    stood = printed("status", "tuned", "--json")
    assert stood["driver"]["holder"] == "test"
    assert {trial["state"] for trial in stood["trials"]} == {"done", "failed"}
    released(run)
    assert printed("status", "tuned", "--json")["driver"] is None
    answer = printed("compare", "tuned", "--json")
    assert {value["params"]["optimizer.lr"] for arm in answer["arms"] for value in arm["values"]} == {2e-3}
    for arm in answer["arms"]:
        assert all(value["started"] <= value["ended"] for value in arm["values"])
    run.ledger.close()


def test_a_run_that_waits_and_one_in_which_arms_diverge(home: Path, begin: Begin) -> None:
    waiting = Run(*started(home / "waiting", tune=TUNED))
    waiting.ledger.set_run(state="queued")
    waiting.ledger.event(WAITS, "waits for 2 CPUs")
    stood = printed("status", "waiting", "--json")
    assert (stood["waits"], stood["trials"], stood["arms"][0]["frozen"]) == ("waits for 2 CPUs", [], None)
    answer = printed("compare", "waiting", "--json")
    assert (answer["complete"], answer["arms"][0]["values"]) == (False, [])
    waiting.ledger.close()
    fallen = Run(*started(home / "fallen"))
    for arm, metrics in BETTER.items():
        for trial, metric in zip(fallen.confirm(arm), metrics, strict=True):
            fallen.done(trial, metric, outcome="diverged" if arm == "flat" else "ok")
    verdicts = [one["verdict"] for one in printed("compare", "fallen", "--json")["comparisons"]]
    assert verdicts == ["diverges"]
    assert "diverged" in {trial["failure"] for trial in printed("status", "fallen", "--json")["trials"]}
    fallen.ledger.close()


def test_several_runs_results_of_another_trainer_and_a_question_to_an_incumbent(home: Path) -> None:
    for name, arms in (("one", TWO), ("two", TWO + '"budget.samples" = 2000\n')):
        run = Run(*started(home / name, arms=arms, seeds=9))
        values = {arm: [*own, *(value + 0.001 for value in own[:3])] for arm, own in BETTER.items()}
        released(finished(run, values)).ledger.close()
    several = printed("compare", "one", "two", "--json")
    assert [own["name"] for own in several["runs"]] == ["one", "two"]
    asked = printed("compare", "two", "--incumbent", "one", "--arm", "flat", "--questions", "10", "--json")
    assert asked["question"] == 1
    lines = ["arm,seed,row,accuracy"]
    for arm in range(3):
        lines += [f"a{arm},{seed},{row},{(arm + seed + row) % 3 / 2}" for seed in range(6) for row in range(20)]
    (home / "rows.csv").write_text("\n".join([*lines, ""]))
    outside = printed("compare", "--csv", str(home / "rows.csv"), "--metric", "accuracy", "--json")
    assert (outside["planned"], outside["comparisons"][0]["interval_rows"] is None) == (False, False)


def test_the_pages_of_a_run_with_a_server_and_without(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(*started(home / "paged"))
    run.ledger.set_run(mlflow_experiment_id="7", mlflow_run_id="0" * 32)
    run.ledger.close()
    assert printed("ui", "paged", "--json")["server"] is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert set(printed("ui", "paged", "--json")["pages"]) == {"answer", "report"}


def test_a_verification_of_what_is_damaged(home: Path) -> None:
    run = Run(*started(home / "broken"))
    run.ledger.release()
    run.ledger.close()
    (home / "broken" / "ledger.db").write_bytes(b"not a database, but long enough to look like one" * 100)
    assert printed("verify", "broken", "--json", code=1)["faults"]


# Promises


def test_what_was_promised_holds_while_the_version_stays() -> None:
    """A key that goes, is no longer always there, or may be something else, such as a new verdict, breaks programs.
    Mutant check: a field of a record less."""
    made = [line.split(maxsplit=2) for line in PROMISED.read_text("utf-8").splitlines()]
    kept = {" ".join(line) for line in made if int(line[1]) == VERSIONS[line[0]]}
    assert kept - set(promises()) == set(), "raise the version of the verb, then: python tests/support/.../answers.py"
    assert {line.split()[0] for line in kept} == set(ANSWERS), "python tests/support/records/answers.py write"

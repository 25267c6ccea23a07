"""Verbs, texts and exit codes, through click's own runner; whole sweeps are in test_driver."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from orchestrator import sweep as sweeps
from orchestrator.cli import main, printing
from orchestrator.ledger import WAITS, Ledger, RunState, Trial, sqlite_url, this_process

SWEEPS = Path(__file__).parents[3] / "sweeps"
PLAN = {"trials": {"tune": 0, "confirm": 1}}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ORCHESTRATOR_RUNS", str(tmp_path))
    monkeypatch.delenv("ORCHESTRATOR_LEDGER", raising=False)
    made = tmp_path / "quick"
    made.mkdir()
    trial = Trial(id="abc123", stage="confirm", arm="dcl", seed=1, job={})
    url = sqlite_url(made / "ledger.db")
    ledger = Ledger.create(url, name="quick", sweep={"question": "Which?", "plan": PLAN}, trials=[trial])
    (made / "sweep.json").write_text(json.dumps({"run": ledger.uuid}))
    ledger.acquire(this_process(), 30)
    attempt = ledger.start_attempt("abc123", {}, "here")
    ledger.finish_attempt("abc123", attempt, state="failed", failure="user_error", message="KeyError: 'labell'")
    ledger.release()
    ledger.close()
    return made


def test_plan_prints_the_pinned_json() -> None:
    done = run("plan", str(SWEEPS / "quickstart.toml"), "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert [arm["label"] for arm in found["arms"]] == ["temperature=1.0", "temperature=0.1"]
    assert found["trials"] == {"tune": 8, "confirm": 12}
    assert found["smallest_p"] == 2**-5
    assert found["warnings"] == []


SHIPPED = sorted(SWEEPS.glob("*.toml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_sweep_opens_with_its_question_and_plan_says_what_differs_and_what_it_can_show(
    path: Path,
) -> None:
    """Both at once, as the components of a sweep are tried once in a process, which takes seconds."""
    assert path.read_text().startswith("# "), f"{path.name} must open with the question it answers"
    done = run("plan", str(path))
    assert done.exit_code == 0, done.output
    for words in ("equal in every arm", "smallest p reachable", "contrasts:", "trials:"):
        assert words in done.output
    assert sweeps.load(path).question.endswith("?")


def test_there_are_sweeps_to_check() -> None:
    assert SHIPPED


def test_plan_of_hundreds_of_arms_is_no_wall_and_takes_no_time(tmp_path: Path) -> None:
    """Seen: a minute, as the contrasts that are tested were looked for anew for each. Seeds are ranges."""
    temperatures, sizes = [round(0.05 + n / 100, 2) for n in range(25)], [16 * (n + 1) for n in range(10)]
    head = (SWEEPS / "quickstart.toml").read_text("utf-8").partition("[compare]")[0]
    table = f'[compare]\n"loss.temperature" = {temperatures}\n"batch.size" = {sizes}\n'
    (tmp_path / "many.toml").write_text(f"{head}{table}[confirm]\nseeds = [0, 1, 2, 3, 9, 11]\n")
    began = time.process_time()
    done = run("plan", str(tmp_path / "many.toml"))
    took = time.process_time() - began
    assert done.exit_code == 0, done.output
    (contrasts,) = [line for line in done.output.splitlines() if line.startswith("contrasts:")]
    assert contrasts.startswith("contrasts: 240: temperature=0.06, size=16 against temperature=0.05, size=16; ")
    assert contrasts.endswith("; and 237 more")
    assert "confirm 0-3, 9, 11" in done.output
    assert took < 5


def test_plan_shows_every_budget_and_how_to_learn_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Budgets that are equal stand in the table too. Mutant check: showing only what differs fails this."""
    monkeypatch.setenv("ORCHESTRATOR_RUNS", str(tmp_path / "none"))
    monkeypatch.delenv("ORCHESTRATOR_LEDGER", raising=False)
    path = str(SWEEPS / "quickstart.toml")
    lines = [line.split() for line in run("plan", path).output.splitlines()]
    assert ["arm", "temperature", "samples", "steps"] in lines
    assert ["temperature=0.1", "0.1", "3,200", "100"] in lines
    assert f"nothing like it has run here: orchestrator plan {path} --probe measures it" in run("plan", path).output
    monkeypatch.setenv("A_TOKEN", "w0rd-of-mine")
    told = run("plan", path, "--set", "question='is w0rd-of-mine better'").output
    assert "is *** better" in told
    assert "w0rd-of-mine" not in told.partition("orchestrator plan")[2], "the command is one to be copied and shown"
    assert not (tmp_path / "none").exists()


def test_plan_estimates_from_earlier_runs(folder: Path) -> None:
    """Mutant check: the plan that a ledger keeps must not change with what has run."""
    from orchestrator import sweep
    from orchestrator.run_dir.environment import machine
    from orchestrator.session.schedule import as_trial
    from orchestrator.sweep import plan

    path = SWEEPS / "quickstart.toml"
    made = plan.make(sweep.load(path))
    trials = [as_trial(planned) for arm in made.arms for planned in made.confirm_trials(arm.label, {})]
    (folder.parent / "first").mkdir()
    url = sqlite_url(folder.parent / "first" / "ledger.db")
    ledger = Ledger.create(url, name="q", sweep=sweep.resolved(made.sweep), environment=machine(), trials=trials)
    ledger.acquire(this_process(), 30)
    for trial in trials:
        result = {"seconds": 20.0, "samples": 3200, "peak_memory_mb": 512.4}
        attempt = ledger.start_attempt(trial.id, {}, "here")
        ledger.finish_attempt(trial.id, attempt, state="done", outcome="ok", metric=0.9, result=result)
    ledger.close()
    shown = run("plan", str(path), "--set", "resources.concurrent=1").output
    assert ["temperature=0.1", "0.1", "3,200", "100", "20", "512"] in [line.split() for line in shown.splitlines()]
    assert "about 7 min (20 trials, one at a time)" in shown
    assert f"from 12 trials of {folder.parent / 'first'}" in shown
    found = json.loads(run("plan", str(path), "--json", "--set", "resources.concurrent=1").output)
    estimate = found.pop("estimate")
    assert (estimate["seconds"], estimate["concurrent"]) == (pytest.approx(400), 1)
    assert estimate["rank_hours"] == pytest.approx(20 * 20 * 2 / 3600)
    assert [arm["label"] for arm in estimate["arms"]] == ["temperature=1.0", "temperature=0.1"]
    assert set(estimate["arms"][0]) >= {"trial_seconds", "peak_memory_mb", "source"}
    assert found.pop("power")[0]["sd"] is None, "of trials without a metric"
    assert found.pop("version") == 1
    assert found == json.loads(json.dumps(made.summary()))


def test_set_changes_the_plan_and_a_bad_key_ends_with_2() -> None:
    path = str(SWEEPS / "quickstart.toml")
    done = run("plan", path, "--json", "--set", "confirm.seeds=4", "--set", "tune.trials=1")
    found = json.loads(done.output)
    assert found["trials"] == {"tune": 2, "confirm": 8}
    assert "cannot reach p <= 0.05" in found["warnings"][0]
    bad = run("plan", path, "--set", "job.los.name=dcl")
    assert (bad.exit_code, "did you mean 'job.loss'" in bad.output) == (2, True), bad.output


def test_status_is_a_table_for_people_and_json_for_programs(folder: Path) -> None:
    table = run("status", "quick")
    assert table.exit_code == 0, table.output
    assert "quick: planned; failed 1; driven by nobody; continue it: orchestrator resume quick" in table.output
    assert "user_error: KeyError: 'labell'" in table.output.replace("\n", " ")
    found = json.loads(run("status", str(folder), "--json").output)
    assert found["trials"][0]["failure"] == "user_error"


def trial_of(number: int, **changes: Any) -> dict[str, Any]:
    told: dict[str, Any] = {
        "id": f"{number:012x}",
        "stage": "tune",
        "arm": "größer 大",
        "seed": number,
        "state": "done",
        "step": 5,
    }
    return told | {"metric": 0.5, "attempts": 1, "failure": None, "message": None} | changes


def told_of(trials: list[dict[str, Any]]) -> Any:
    return {
        "sweep": "quick",
        "state": "running",
        "waits": None,
        "driver": None,
        "counts": {},
        "trials": trials,
    }


def test_many_trials_are_told_in_no_time_and_each_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Mutant check: a table of rich takes a millisecond for each."""
    trials = [trial_of(number) for number in range(20_000)]
    trials[7] |= {"state": "failed", "failure": "user_error", "message": "row 3\n\x1b[31mred [b]"}
    began = time.process_time()
    printing.print_status(told_of(trials), "runs/quick")
    assert time.process_time() - began < 5
    head, names, *rows = capsys.readouterr().out.splitlines()
    assert head == "quick: running; driven by nobody; continue it: orchestrator resume runs/quick"
    assert names.split() == list(printing.TRIAL)
    assert [row.split()[0] for row in rows] == [trial["id"] for trial in trials]
    assert rows[7].endswith(r"user_error: row 3\n\x1b[31mred [b]")
    assert {row.index("0.5000") for row in rows} == {rows[0].index("0.5000")}


@pytest.mark.parametrize(("count", "shown"), [(3, [0, 1, 2]), (5000, [1, 2])])
def test_of_many_trials_a_watch_shows_those_that_move(count: int, shown: list[int]) -> None:
    before = [trial_of(number) for number in range(count)]
    after = [*before]
    after[1], after[2] = trial_of(1, state="running"), trial_of(2, attempts=2)
    before[1] = after[1]
    found = printing._watched(told_of(after), told_of(before))
    assert found == [after[number] for number in shown]
    changed = [trial_of(number, attempts=2) for number in range(count)]
    assert len(printing._watched(told_of(changed), told_of(before))) == min(count, printing.MOST_WATCHED)


@pytest.mark.parametrize("state", ["queued", "stopped", "done"])
def test_a_run_that_nobody_drives_waits_for_nothing_and_names_the_way_on(folder: Path, state: RunState) -> None:
    """Its driver died while it waited. Mutant check: the last reason, as long as the state is `queued`."""
    ledger = Ledger.open(sqlite_url(folder / "ledger.db"))
    ledger.acquire(this_process(), 30)
    ledger.event(WAITS, "waits for 2 CPUs; job 5 holds them")
    ledger.set_run(state=state)
    held = run("status", "quick")
    assert ("job 5" in held.output) == (state == "queued"), held.output
    ledger.release()
    ledger.close()
    left = run("status", "quick").output
    assert "job 5" not in left
    assert ("continue it: orchestrator resume quick" in left) == (state != "done")
    assert ";;" not in left.replace(" ", "")


def test_an_unknown_run_ends_with_2_and_names_the_known(folder: Path) -> None:
    done = run("status", "quik")
    assert (done.exit_code, "did you mean 'quick'?" in done.output) == (2, True), done.output


@pytest.mark.parametrize("verb", ["status", "stop", "compare", "verify", "resume", "ui"])
def test_a_store_that_cannot_be_reached_ends_with_4(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    done = run(verb, "s3://bucket/quick?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1")
    assert (done.exit_code, "curl -sI http://127.0.0.1:9" in done.output) == (4, True), done.output


def test_a_broken_ledger_ends_with_4(folder: Path) -> None:
    (folder / "ledger.db").write_bytes(b"not a database, but long enough to look like one" * 100)
    done = run("status", "quick")
    assert done.exit_code == 4, done.output
    assert done.output.startswith("error: ")


def test_a_held_lease_ends_with_3_and_names_the_holder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator import driver
    from orchestrator.ledger import LeaseHeld

    def held(*_: object, **__: object) -> int:
        raise LeaseHeld("host pid 1 has been driving this run", holder="host pid 1", since=0, expires=1, token=1)

    monkeypatch.setattr(driver, "resume", held)
    done = run("resume", "quick")
    assert (done.exit_code, "host pid 1" in done.output) == (3, True), done.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("resume", "quick", "--class", "hung"), "give --failed or --give-up with it"),
        (("resume", "quick", "--failed", "--give-up"), "opposite things"),
        (("resume", "quick", "--set", "job.loss.name=dcl"), "only job.execution may change"),
        (("logs", "quick", "abc"), "names 0 trials"),
    ],
)
def test_misuse_ends_with_2_and_says_what_would_work(folder: Path, arguments: tuple[str, ...], words: str) -> None:
    done = run(*arguments)
    assert (done.exit_code, words in done.output) == (2, True), done.output


def test_plan_says_which_arms_are_one_objective() -> None:
    said = run("plan", str(SWEEPS / "batch_size_vs_accumulation_cpu.toml")).output
    assert "one objective: exact accumulation and big batch differ in execution alone: tuned once" in said
    assert "12 tune" in said, "three searches of four for four arms"


@pytest.mark.soak
def test_a_watch_ends_when_nobody_drives_the_run(folder: Path) -> None:
    """Its driver was killed, say. Mutant check: waiting for the state alone never ends."""
    ledger = Ledger.open(sqlite_url(folder / "ledger.db"))
    ledger.acquire(this_process(), 30)
    ledger.set_run(state="running")
    command = [sys.executable, "-m", "orchestrator.cli", "status", str(folder), "--watch"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(4)
            ledger.release()
            ledger.close()
            said, _ = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 0
    assert "running" in said
    assert "driven by nobody" in said

"""Claims about the runs of arms in MLflow: what they say is what the report has, whatever happened on the way, and
whatever somebody did to them there."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledgers import TUNED, Begin, Run
from mlflow.entities import Metric
from projected import CROSSED, flushed

from orchestrator import report
from orchestrator.ledger import Suggestion, Trial
from orchestrator.run_dir.folder import RunFolder
from orchestrator.tracking import MlflowRun, Projection, runs_of
from orchestrator.tracking.arms import RECORDED, ArmRun, Shown, difference, wanted
from orchestrator.tracking.metadata import ArmKeys
from orchestrator.tracking.store import connect
from orchestrator.verify import verify

KEYS = ArmKeys.of("knn_accuracy")


def of_arms(run: Run, uri: str) -> dict[str, MlflowRun]:
    """MLflow's runs of arms, by label. Fails where an arm has two."""
    found = [one for one in runs_of(uri, run.ledger.uuid) if one["kind"] == "arm"]
    by_label = {one["tags"]["arm"]: one for one in found}
    assert len(by_label) == len(found)
    return by_label


def last(run: MlflowRun) -> dict[str, float]:
    """The last value of each metric."""
    return {key: curve[-1][2] for key, curve in run["metrics"].items()}


def confirmed(run: Run, values: dict[str, list[float]]) -> dict[str, list[Trial]]:
    """Confirm trials of arms, of which as many are done as there are values."""
    trials = {}
    for arm, metrics in values.items():
        trials[arm] = run.confirm(arm)
        for trial, metric in zip(trials[arm], metrics, strict=False):
            run.done(trial, metric)
    return trials


VALUES = {"plain": [0.90, 0.91, 0.89], "flat": [0.92, 0.925, 0.91]}


def test_an_arm_says_what_the_report_has(begin: Begin, uri: str) -> None:
    """Mutant check: an interval of the standard error fails this."""
    run = begin(seeds=3)
    confirmed(run, VALUES)
    run.ledger.set_run(state="done")
    flushed(run.ledger, uri)
    told = of_arms(run, uri)
    parent = run.ledger.run.mlflow_run_id
    for place, arm in enumerate(report.summarize(run.ledger).arms, 1):
        one, numbers = told[arm.label], last(told[arm.label])
        assert arm.ci95 is not None
        assert arm.mean is not None
        assert (numbers[KEYS.mean], numbers[KEYS.n]) == (arm.mean, arm.n)
        assert (numbers[KEYS.low], numbers[KEYS.high]) == arm.ci95
        sd = math.sqrt(sum((value - arm.mean) ** 2 for value in VALUES[arm.label]) / 2)
        assert numbers[KEYS.sd] == pytest.approx(sd, rel=1e-12)
        assert [value for *_, value in one["metrics"][KEYS.interval]] == [arm.ci95[0], arm.mean, arm.ci95[1]]
        assert {value for *_, value in one["metrics"][KEYS.place]} == {place}
        assert (one["status"], one["parent"], one["name"]) == ("FINISHED", parent, arm.label)
        tags = {"arm": arm.label, "stage": "arm", "outcome": "ok", "seeds": "3 of 3", "orchestrator.kind": "arm"}
        assert tags.items() <= one["tags"].items()
    assert told["plain"]["params"] == {"loss.name": "infonce"}
    assert told["flat"]["params"] == {"loss.name": "flatnce"}
    assert sorted(told["flat"]["metrics"])[0] == "knn_accuracy", "Compare opens on the first one"


FURTHER = 'metric=[{name="knn_accuracy"},{name="alignment",smallest_difference=0.02}]'


def judged_by_both(run: Run, lacking: int | None = None) -> None:
    """End confirm trials by two metrics; in flat the trial of a seed lacks the second one."""
    for arm, metrics in VALUES.items():
        for k, (trial, metric) in enumerate(zip(run.confirm(arm), metrics, strict=True)):
            lacks = arm == "flat" and trial.seed == lacking
            run.done(trial, metric, more={"alignment": math.nan if lacks else 0.4 + metric / 3 + k / 50})
    run.ledger.set_run(state="done")


def test_an_arm_says_what_it_came_to_by_each_metric(begin: Begin, uri: str) -> None:
    """Mean, interval and curve of each, as the report has them. Mutant check: the values of the first one for all."""
    run = begin(overrides=[FURTHER], seeds=3)
    judged_by_both(run)
    flushed(run.ledger, uri)
    told, keys = of_arms(run, uri), ArmKeys.of("alignment")
    for arm in report.summarize(run.ledger).arms:
        numbers, by = last(told[arm.label]), arm.by_metric["alignment"]
        assert by.ci95 is not None
        assert (numbers[KEYS.mean], numbers[KEYS.n]) == (arm.mean, 3)
        assert (numbers[keys.mean], numbers[keys.n], (numbers[keys.low], numbers[keys.high])) == (by.mean, 3, by.ci95)
        sd = math.sqrt(sum((value - (by.mean or 0.0)) ** 2 for value in by.values.values()) / 2)
        assert numbers[keys.sd] == pytest.approx(sd, rel=1e-12)
        curves = told[arm.label]["metrics"]
        assert [value for *_, value in curves[keys.interval]] == [by.ci95[0], by.mean, by.ci95[1]]
        assert curves[keys.place] == curves[KEYS.place]
        note = told[arm.label]["tags"]["mlflow.note.content"].replace("\\", "")
        assert f"knn_accuracy {arm.mean:.4f}, the mean over seeds (3 of 3)" in note
        assert f"alignment {by.mean:.4f}; sd {sd:.4f}" in note


@pytest.mark.parametrize("lacking", [None, 1])
def test_by_a_further_metric_those_count_that_the_report_counts(begin: Begin, lacking: int | None) -> None:
    """A seed that lacks it counts by the first one alone."""
    run = begin(overrides=[FURTHER], seeds=3)
    judged_by_both(run, lacking)
    found, keys = wanted(run.ledger)["flat"], ArmKeys.of("alignment")
    by = next(arm for arm in report.summarize(run.ledger).arms if arm.label == "flat").by_metric["alignment"]
    assert found.latest[KEYS.n][2] == 3
    assert found.latest[keys.n][2] == by.n == (3 if lacking is None else 2)
    assert found.latest[keys.mean][2] == by.mean


@pytest.mark.parametrize(
    "spoil", ["a better mean", pytest.param("a curve of before", marks=pytest.mark.soak), "nothing of it"]
)
def test_what_is_wrong_with_a_further_metric_is_found_and_put_in_order(begin: Begin, uri: str, spoil: str) -> None:
    """By verify, and by the next session; `nothing of it` as a version has left it that told of the first metric alone.
    Mutant check: a look at the keys of the first one."""
    run, keys = begin(overrides=[FURTHER], seeds=3), ArmKeys.of("alignment")
    judged_by_both(run)
    flushed(run.ledger, uri)
    before = of_arms(run, uri)
    folder, client = RunFolder(Path(str(run.ledger._database.path)).parent), connect(uri)
    assert arm_faults(run, folder, uri) == []
    run_id = before["flat"]["run_id"]
    if spoil == "a better mean":
        client.log_metric(run_id, keys.mean, 0.1, step=10**6)
    elif spoil == "a curve of before":
        client.log_batch(run_id, metrics=[Metric(keys.interval, 0.1, 5, 7)])
    else:
        client.delete_run(run_id)
        made = client.create_run(before["flat"]["experiment_id"], tags=before["flat"]["tags"])
        for key, curve in before["flat"]["metrics"].items():
            points = [] if key.startswith("alignment") else [Metric(key, v, at, step) for step, at, v in curve]
            client.log_batch(made.info.run_id, metrics=points)
    assert arm_faults(run, folder, uri), "verify sees it"
    flushed(run.ledger, uri)
    assert arm_faults(run, folder, uri) == []
    assert {label: last(one) for label, one in of_arms(run, uri).items()} == {
        label: last(one) for label, one in before.items()
    }


@given(st.lists(st.tuples(st.sampled_from(["ok", "ok", "diverged", "failed", "queued"]), st.floats(0, 1)), max_size=5))
def test_numbers_and_outcome_of_an_arm_are_those_of_the_report(ends: list[tuple[str, float]]) -> None:
    """However its seeds ended, also where some have not."""
    import tempfile

    from ledgers import start

    with tempfile.TemporaryDirectory() as folder:
        run = start(Path(folder) / "run", seeds=5)
        with contextlib.closing(run.ledger):
            for trial, (end, metric) in zip(run.confirm("flat"), ends, strict=False):
                if end == "failed":
                    run.lost(trial)
                elif end != "queued":
                    run.done(trial, metric, outcome=end)
            found = wanted(run.ledger).get("flat")
            arm = next(arm for arm in report.summarize(run.ledger).arms if arm.label == "flat")
            ended = [end for end, _ in ends if end != "queued"]
            assert (found is None) == (not ended)
            if found is None:
                return
            numbers = {key: value for key, (_, _, value) in found.latest.items()}
            assert numbers[KEYS.n] == arm.n
            assert numbers.get(KEYS.mean) == arm.mean
            low, high = numbers.get(KEYS.low), numbers.get(KEYS.high)
            assert (None if low is None or high is None else (low, high)) == arm.ci95
            complete = len(ended) == 5
            assert (found.tags["outcome"] == "not complete") == (not complete)
            if complete:
                lost = ended.count("diverged")
                ill = "diverged" if lost and 2 * lost >= lost + arm.n else "failed" if not arm.n else None
                assert found.tags["outcome"] == (ill or "ok")
                assert (found.status == "FAILED") == bool(ill)


def test_an_arm_that_diverged_or_failed_looks_so_and_one_that_is_trained_for_has_its_seeds_so_far(
    begin: Begin, uri: str
) -> None:
    run = begin(CROSSED, seeds=3)
    labels = [arm.label for arm in run.plan.arms]
    trials = {label: run.confirm(label) for label in labels}
    for trial in trials[labels[0]]:
        run.done(trial, 0.5, outcome="diverged")
    for trial in trials[labels[1]]:
        run.lost(trial)
    for trial in trials[labels[2]][:2]:
        run.done(trial, 0.5 + trial.seed / 10)
    run.ledger.set_run(state="running")
    projection = flushed(run.ledger, uri)
    told = of_arms(run, uri)
    assert sorted(told) == sorted(labels[:3]), "of the last arm no seed has ended"
    diverged, failed, trained = (told[label] for label in labels[:3])
    assert (diverged["status"], diverged["name"]) == ("FAILED", f"{labels[0]} (diverged)")
    assert (failed["status"], failed["name"]) == ("FAILED", f"{labels[1]} (failed)")
    assert (diverged["tags"]["mlflow.runColor"], failed["tags"]["mlflow.runColor"]) == ("#d62728", "#7f7f7f")
    assert (diverged["tags"]["seeds"], failed["tags"]["seeds"]) == ("0 of 3, 3 diverged", "0 of 3, 3 failed")
    assert KEYS.mean not in diverged["metrics"].keys() | failed["metrics"].keys()
    assert (trained["status"], trained["tags"]["outcome"]) == ("RUNNING", "not complete")
    assert last(trained)[KEYS.n] == 2
    assert KEYS.interval not in trained["metrics"], "which is drawn once, as MLflow takes no point back"
    run.done(trials[labels[2]][2], 0.8)
    assert projection.flush(), projection.last_error
    again = of_arms(run, uri)[labels[2]]
    assert (again["run_id"], again["status"], last(again)[KEYS.n]) == (trained["run_id"], "FINISHED", 3)
    assert len(again["metrics"][KEYS.interval]) == 3
    assert len(again["metrics"][KEYS.mean]) == 2
    run.ledger.requeue(trials[labels[1]][0].id)
    run.done(trials[labels[1]][0], 0.7)
    run.ledger.set_run(state="done")
    assert projection.flush(), projection.last_error
    mended = of_arms(run, uri)[labels[1]]
    assert (mended["status"], mended["name"], mended["tags"]["outcome"]) == ("FINISHED", labels[1], "ok")
    assert mended["tags"]["seeds"] == "1 of 3, 2 failed"


def test_an_arm_that_was_never_confirmed_is_there_and_failed(begin: Begin, uri: str) -> None:
    run = begin(tune=TUNED, seeds=3)
    for number, lr in enumerate((1e-3, 5e-3, 2e-3)):
        for arm in ("plain", "flat"):
            planned = run.plan.tune_trials(arm, number, {"optimizer.lr": lr})
            trials = [Trial(p.id, "tune", arm, p.seed, p.job.model_dump(mode="json"), number=number) for p in planned]
            run.ledger.add_suggestion(
                Suggestion(arm, number, {"optimizer.lr": lr}, tuple(trial.id for trial in trials)), trials
            )
            for trial in trials:
                run.done(trial, 0.8, outcome="diverged" if arm == "flat" else "ok")
    run.ledger.freeze("plain", {"optimizer.lr": 2e-3}, 2, "abc")
    for trial in run.confirm("plain", {"optimizer.lr": 2e-3}):
        run.done(trial, 0.8 + trial.seed / 100)
    run.ledger.set_run(state="done")
    flushed(run.ledger, uri)
    told = of_arms(run, uri)
    assert (told["flat"]["status"], told["flat"]["tags"]["outcome"]) == ("FAILED", "diverged")
    assert told["flat"]["params"] == {"loss.name": "flatnce"}
    assert told["plain"]["params"] == {"loss.name": "infonce", "optimizer.lr": "0.002"}


def test_places_put_the_levels_of_the_first_key_side_by_side(begin: Begin) -> None:
    run = begin(CROSSED, seeds=2)
    confirmed(run, {arm.label: [0.5, 0.6] for arm in run.plan.arms})
    places = {label: arm.curves[KEYS.place][0][2] for label, arm in wanted(run.ledger).items()}
    ordered = sorted(places, key=lambda label: places[label])
    assert [label.partition(", ")[2] for label in ordered] == ["size=16"] * 2 + ["size=64"] * 2


def test_an_arm_whose_seeds_are_all_trained_again_is_gone_meanwhile(begin: Begin, uri: str) -> None:
    run = begin(seeds=2)
    trials = run.confirm("flat")
    for trial in trials:
        run.lost(trial)
    projection = flushed(run.ledger, uri)
    assert of_arms(run, uri)["flat"]["status"] == "FAILED"
    for trial in trials:
        run.ledger.requeue(trial.id)
    assert projection.flush(), projection.last_error
    assert of_arms(run, uri) == {}
    for trial, metric in zip(trials, (0.5, 0.7), strict=True):
        run.done(trial, metric)
    assert projection.flush(), projection.last_error
    (arm,) = of_arms(run, uri).values()
    assert (arm["status"], last(arm)[KEYS.mean], last(arm)[KEYS.n]) == ("FINISHED", 0.6, 2)


def test_of_one_seed_there_is_a_mean_and_no_interval(begin: Begin, uri: str) -> None:
    run = begin(seeds=2)
    first, second = run.confirm("flat")
    run.done(first, 0.5)
    run.lost(second)
    flushed(run.ledger, uri)
    (arm,) = of_arms(run, uri).values()
    assert last(arm) == {KEYS.mean: 0.5, KEYS.n: 1, KEYS.interval: 0.5, KEYS.place: 2}


# Again, and after a kill


def test_telling_twice_adds_nothing(begin: Begin, uri: str) -> None:
    run = begin(seeds=3)
    confirmed(run, VALUES)
    run.ledger.set_run(state="done")
    projection = flushed(run.ledger, uri)
    told = runs_of(uri, run.ledger.uuid, deleted=True)
    noted = len(run.ledger.events(RECORDED))
    assert projection.flush()
    flushed(run.ledger, uri)
    run.ledger.unproject()
    flushed(run.ledger, uri)
    assert runs_of(uri, run.ledger.uuid, deleted=True) == told
    assert len(run.ledger.events(RECORDED)) == noted == 2


CALLS = 38
"""Calls of that session that write."""


class Killed(BaseException):
    """In place of a kill: nothing catches it."""


def killed_at(client: type[Any], number: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Have the process end after the n-th call that writes. Returns how many there were."""
    count = 0

    def ending(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            nonlocal count
            found = real(*arguments, **keywords)
            count += 1
            if count == number:
                raise Killed
            return found

        return call

    for name in ("create_run", "log_batch", "set_terminated", "update_run", "delete_run", "set_tag"):
        monkeypatch.setattr(client, name, ending(getattr(client, name)))
    return lambda: count


MIDST = (5, 8, 12)
"""Calls in the midst of each of the three arms."""

MOMENTS = (*MIDST, CALLS + 1, *(number for number in range(1, CALLS + 1) if number not in MIDST))
"""After which call to MLflow the session ends; one more than there are comes early, so that a change of their number is
seen by `make test`."""


@pytest.mark.few(4)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_at_any_moment_leaves_one_run_an_arm(
    begin: Begin, uri: str, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a session that has an arm to make, one to bring forward and one to make again. Mutant check: not looking for
    what has an arm's tags makes a second one."""
    run = begin(CROSSED, seeds=3)
    labels = [arm.label for arm in run.plan.arms]
    trials = confirmed(run, {labels[0]: [0.5, 0.6], labels[1]: [0.6, 0.7, 0.8]})
    run.ledger.set_run(state="running")
    flushed(run.ledger, uri)
    run.done(trials[labels[0]][2], 0.7)
    confirmed(run, {labels[2]: [0.3, 0.4, 0.5]})
    client = connect(uri)
    client.log_param(of_arms(run, uri)[labels[1]]["run_id"], "mine", "1")
    with monkeypatch.context() as patch:
        counted = killed_at(type(client), moment, patch)
        with contextlib.suppress(Killed):
            Projection(run.ledger, uri).flush()
    assert (counted() == moment) == (moment <= CALLS)
    flushed(run.ledger, uri)
    told = of_arms(run, uri)
    assert sorted(told) == sorted(labels[:3])
    for label, want in wanted(run.ledger).items():
        assert shown_difference(told[label], want) is None


def shown_difference(run: MlflowRun, want: ArmRun) -> Any:
    return difference(want, Shown(run["status"], run["end"], run["params"], run["tags"], run["metrics"]))


DAMAGES: dict[str, Callable[[Any, MlflowRun, str], Any]] = {
    "deleted": lambda client, arm, _: client.delete_run(arm["run_id"]),
    "gone": lambda client, arm, _: client._tracking_client.store._hard_delete_run(arm["run_id"]),
    "made twice": lambda client, arm, _: client.create_run(arm["experiment_id"], tags=arm["tags"]),
    "another status": lambda client, arm, _: client.set_terminated(arm["run_id"], "KILLED"),
    "another outcome": lambda client, arm, _: client.set_tag(arm["run_id"], "outcome", "diverged"),
    "another arm": lambda client, arm, _: client.set_tag(arm["run_id"], "arm", "mine"),
    "a parameter of somebody's": lambda client, arm, _: client.log_param(arm["run_id"], "mine", "1"),
    "a better mean": lambda client, arm, _: client.log_metric(arm["run_id"], KEYS.mean, 0.99, step=10**6),
    "a wider interval": lambda client, arm, _: client.log_batch(
        arm["run_id"], metrics=[Metric(KEYS.interval, 0.1, 5, 7)]
    ),
    "a metric of somebody's": lambda client, arm, _: client.log_metric(arm["run_id"], "mine", 1.0),
    "its tags taken away": lambda client, arm, _: [
        client.delete_tag(arm["run_id"], key) for key in ("orchestrator.run", "orchestrator.kind", "arm", "stage")
    ],
    "under no parent": lambda client, arm, _: client.delete_tag(arm["run_id"], "mlflow.parentRunId"),
    "a run of an arm that is none": lambda client, arm, _: client.create_run(
        arm["experiment_id"], tags=arm["tags"] | {"arm": "none"}
    ),
    "all deleted": lambda client, arm, parent: [client.delete_run(one) for one in (arm["run_id"], parent)],
    "the experiment deleted": lambda client, arm, _: client.delete_experiment(arm["experiment_id"]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_somebody_did_to_an_arm_is_found_by_verify_and_put_in_order(begin: Begin, uri: str, name: str) -> None:
    run = begin(seeds=3)
    confirmed(run, VALUES)
    run.ledger.set_run(state="done")
    flushed(run.ledger, uri)
    before = of_arms(run, uri)
    folder = RunFolder(Path(str(run.ledger._database.path)).parent)
    assert arm_faults(run, folder, uri) == []
    DAMAGES[name](connect(uri), before["flat"], str(run.ledger.run.mlflow_run_id))
    assert arm_faults(run, folder, uri), "verify sees it"
    flushed(run.ledger, uri)
    assert arm_faults(run, folder, uri) == []
    told = of_arms(run, uri)
    assert {label: (last(one), one["params"]) for label, one in told.items()} == {
        label: (last(one), one["params"]) for label, one in before.items()
    }
    assert told["plain"] == before["plain"] or name in ("the experiment deleted", "all deleted")
    assert len([one for one in runs_of(uri, run.ledger.uuid) if one["kind"] == "sweep"]) == 1
    assert {one["experiment_id"] for one in runs_of(uri, run.ledger.uuid)} == {run.ledger.run.mlflow_experiment_id}


def arm_faults(run: Run, folder: RunFolder, uri: str) -> list[str]:
    """What `verify` has against MLflow's runs. (The ledger of this test says that trials trained, and none did.)"""
    run.ledger.release()
    try:
        found = verify(folder, uri)
        assert found["mlflow_runs"] in (0, 6), "runs of arms are not counted among those of trials"
        return [fault for fault in found["faults"] if "MLflow" in fault]
    finally:
        run.ledger.acquire("test", 3600)

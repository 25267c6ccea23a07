"""Whatever was done to a run in MLflow, the next session finds it by ids and tags and puts it in order.

Every case is tried on a real store, and most of them on a real server too. Mutant checks: looking for the experiment by
its name fails the renamed ones; taking a recorded id as it is fails the half whose id another has; not looking for
deleted runs fails the deleted ones.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Metric
from projected import agree, curve, finish, flushed, fresh, planned, train
from real import Server

from orchestrator.ledger import LeaseLost, Ledger, sqlite_url
from orchestrator.tracking import LOGGED, MOVED, Encoder, Projection, logged, runs_of
from orchestrator.tracking.arms import Shown, difference, wanted
from orchestrator.tracking.runs import experiments
from orchestrator.tracking.store import connect

SWEEP: Any = {
    "question": "A or B?",
    "metric": {"name": "knn_accuracy", "mode": "max"},
    "plan": {
        "arms": [{"label": "arm 0", "settings": {}}, {"label": "arm 1", "settings": {}}],
        "contrasts": [["arm 1", "arm 0"]],
        "confirm_seeds": [0, 1],
        "trials": {"tune": 0, "confirm": 4},
    },
}


@dataclass
class Case:
    """A run of four trials, three of them started, that MLflow has been told; and the hands of others in MLflow."""

    ledger: Ledger
    uri: str
    store: str
    """The same store without a server, where more can be done to it."""
    folder: Path

    @property
    def client(self) -> Any:
        return connect(self.uri)

    @property
    def experiment(self) -> str:
        assert self.ledger.run.mlflow_experiment_id is not None
        return self.ledger.run.mlflow_experiment_id

    @property
    def parent(self) -> str:
        assert self.ledger.run.mlflow_run_id is not None
        return self.ledger.run.mlflow_run_id

    @property
    def name(self) -> str:
        return self.ledger.run.name

    def rename(self) -> Any:
        self.client.rename_experiment(self.experiment, f"{self.name} renamed by somebody")

    def run_of(self, trial: str) -> str:
        run_id = self.ledger.trial(trial).mlflow_run_id
        assert run_id is not None
        return run_id

    def gone(self, run_id: str) -> Any:
        """Delete a run for good, as `mlflow gc` does."""
        connect(self.store)._tracking_client.store._hard_delete_run(run_id)

    def experiment_gone(self) -> Any:
        """Delete the experiment and its runs for good."""
        client, experiment = connect(self.store), self.experiment
        for run in client.search_runs([experiment], run_view_type=3):
            self.gone(run.info.run_id)
        client.delete_experiment(experiment)
        client._tracking_client.store._hard_delete_experiment(experiment)

    def sql(self, statement: str, *values: Any) -> Any:
        with contextlib.closing(sqlite3.connect(self.store.removeprefix("sqlite:///"))) as database, database:
            assert database.execute(statement, values).rowcount > 0

    def other(self, name: str) -> Ledger:
        """Another sweep of that name, told to the same MLflow."""
        url = sqlite_url(self.folder / f"other {name}.db")
        made = Ledger.create(url, name=name, sweep={"question": "C or D?"}, trials=planned(2))
        made.acquire("another driver", 600)
        train(made, "trial0")
        flushed(made, self.uri)
        return made

    def move(self, *run_ids: str) -> Any:
        """Have runs lie in an experiment of somebody's. MLflow's pages move none; a database does."""
        elsewhere = self.client.create_experiment(f"of somebody {self.name}")
        for run_id in run_ids:
            self.sql("UPDATE runs SET experiment_id = ? WHERE run_uuid = ?", int(elsewhere), run_id)

    def split_by_name(self) -> Any:
        """What a version that went by the experiment's name made of a renamed one."""
        client = self.client
        self.rename()
        second = client.create_experiment(self.ledger.run.name)
        for trial in ("trial1", "trial2"):
            data = client.get_run(self.run_of(trial)).data
            self.gone(self.run_of(trial))
            run_id = client.create_run(second, tags=data.tags).info.run_id
            self.ledger.set_mlflow_run(trial, run_id)
            for key, value in data.params.items():
                client.log_param(run_id, key, value)
            points = [(p.key, p.value, int(p.time * 1000), p.step) for p in self.ledger.points(trial)]
            ended = self.ledger.trial(trial).ended
            points += [("peak_memory_mb", 100.0, int(ended * 1000), 2)] if ended else []
            client.log_batch(run_id, metrics=[Metric(*point) for point in points])
            client.set_terminated(run_id) if ended else client.update_run(run_id, "RUNNING")
        self.ledger.set_run(mlflow_experiment_id=second)


def begin(folder: Path, uri: str, store: str, name: str) -> Case:
    ledger = Ledger.create(sqlite_url(folder / "ledger.db"), name=name, sweep=SWEEP, trials=planned(4))
    ledger.acquire("the test", 600)
    train(ledger, "trial0")
    train(ledger, "trial1", end=False)
    train(ledger, "trial2", steps=4)
    ledger.set_run(state="running")
    flushed(ledger, uri)
    return Case(ledger, uri, store, folder)


@pytest.fixture
def case(tmp_path: Path, tables: Path) -> Iterator[Case]:
    uri = fresh(tmp_path / "runs", tables)
    made = begin(tmp_path, uri, uri, "small")
    yield made
    made.ledger.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tables: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    fresh(folder, tables)
    started = Server(folder)
    started.start()
    yield started
    started.kill()


ALL = ("trial0", "trial1", "trial2")
"""Trials that were started."""

DAMAGES: dict[str, Callable[[Case], Any]] = {
    "nested deleted": lambda case: case.client.delete_run(case.run_of("trial0")),
    "running nested deleted": lambda case: case.client.delete_run(case.run_of("trial1")),
    "nested gone": lambda case: case.gone(case.run_of("trial0")),
    "every nested gone": lambda case: [case.gone(case.run_of(f"trial{n}")) for n in range(3)],
    "parent deleted": lambda case: case.client.delete_run(case.parent),
    "parent gone": lambda case: case.gone(case.parent),
    "parent and nested deleted": lambda case: [
        case.client.delete_run(one) for one in (case.parent, case.run_of("trial2"))
    ],
    "everything gone but a nested one": lambda case: [case.gone(one) for one in (case.parent, case.run_of("trial0"))],
    "experiment deleted": lambda case: case.client.delete_experiment(case.experiment),
    "experiment gone": lambda case: case.experiment_gone(),
    "experiment gone, its id taken": lambda case: (case.experiment_gone(), case.other(f"thief of {case.name}")),
    "renamed": lambda case: case.rename(),
    "renamed, the name taken": lambda case: (
        case.rename(),
        case.other(case.name),
    ),
    "renamed, the name taken, deleted": lambda case: (
        case.rename(),
        case.other(case.name),
        case.client.delete_experiment(case.experiment),
    ),
    "gone, the name taken by another sweep that was renamed": lambda case: (
        case.experiment_gone(),
        case.client.rename_experiment(str(case.other(f"not {case.name}").run.mlflow_experiment_id), case.name),
    ),
    "split by an earlier version": lambda case: case.split_by_name(),
    "split, and the parent deleted": lambda case: (case.split_by_name(), case.client.delete_run(case.parent)),
    "split, and the parent gone": lambda case: (case.split_by_name(), case.gone(case.parent)),
    "split, the recorded half and the parent gone, its id taken": lambda case: (
        case.split_by_name(),
        case.experiment_gone(),
        case.other(f"thief of {case.name}"),
        case.gone(case.parent),
    ),
    "a nested one in another experiment": lambda case: case.move(case.run_of("trial0")),
    "renamed, and nested ones in another experiment": lambda case: (
        case.rename(),
        case.move(case.run_of("trial0"), case.run_of("trial1")),
    ),
    "renamed, the name taken, and nested ones in another experiment": lambda case: (
        case.rename(),
        case.other(case.name),
        case.move(case.run_of("trial0"), case.run_of("trial2")),
    ),
    "the parent in another experiment": lambda case: case.move(case.parent),
    "all of it in another experiment": lambda case: case.move(case.parent, *map(case.run_of, ALL)),
    "renamed, and all of it in another experiment": lambda case: (
        case.rename(),
        case.move(case.parent, *map(case.run_of, ALL)),
    ),
    "under a wrong parent": lambda case: case.client.set_tag(case.run_of("trial0"), "mlflow.parentRunId", "f" * 32),
    "under no parent": lambda case: case.client.delete_tag(case.run_of("trial0"), "mlflow.parentRunId"),
    "tags of the nested taken away": lambda case: [
        case.client.delete_tag(case.run_of("trial0"), f"orchestrator.{key}") for key in ("run", "trial", "kind")
    ],
    "tags of the parent taken away": lambda case: [
        case.client.delete_tag(case.parent, f"orchestrator.{key}") for key in ("run", "kind")
    ],
    "a run of a trial that was never started": lambda case: case.client.create_run(
        case.experiment, tags=case.client.get_run(case.run_of("trial0")).data.tags | {"orchestrator.trial": "trial3"}
    ),
    "a run that says another state": lambda case: case.client.set_terminated(case.run_of("trial0"), "KILLED"),
    "a run that says another arm": lambda case: case.client.set_tag(case.run_of("trial0"), "arm", "mine"),
    "a run with a parameter of somebody's": lambda case: case.client.log_param(case.run_of("trial0"), "mine", "1"),
    "a point of somebody's, and then deleted": lambda case: (
        case.client.log_metric(case.run_of("trial0"), "train/loss", 7.0, step=99),
        case.client.delete_run(case.run_of("trial0")),
    ),
    "points lost, and then deleted": lambda case: (
        case.sql("DELETE FROM metrics WHERE run_uuid = ?", case.run_of("trial0")),
        case.client.delete_run(case.run_of("trial0")),
    ),
    "several at once": lambda case: (
        case.rename(),
        case.other(case.name),
        case.gone(case.run_of("trial0")),
        case.client.delete_run(case.run_of("trial1")),
        case.gone(case.parent),
        case.client.delete_experiment(case.experiment),
    ),
}


def go_on(case: Case) -> None:
    """A later session: trials end, another begins."""
    case.ledger.record_points("trial1", 1, curve("trial1", 2, offset=3))
    finish(case.ledger, "trial1")
    train(case.ledger, "trial3")
    case.ledger.set_run(state="done")
    projection = Projection(case.ledger, case.uri)
    assert projection.flush(), projection.last_error


def in_order(case: Case) -> None:
    """One experiment that is not deleted has all of it, once, and shows what the ledger says."""
    nested = agree(case.ledger, case.uri)
    experiment = case.client.get_experiment(case.experiment)
    assert experiment.lifecycle_stage == "active"
    assert {run["trial"]: run["status"] for run in nested} == dict.fromkeys(
        (f"trial{number}" for number in range(4)), "FINISHED"
    )
    for run in nested:
        assert run["tags"]["arm"] == case.ledger.trial(str(run["trial"])).arm
        assert "mine" not in run["params"]
        assert run["params"]["loss.name"] == "infonce"
    parent = case.client.get_run(case.parent)
    assert (parent.info.status, parent.data.tags["trials.done"]) == ("FINISHED", "4")
    arms = [run for run in runs_of(case.uri, case.ledger.uuid) if run["kind"] == "arm"]
    assert [run["tags"]["arm"] for run in arms] == ["arm 0", "arm 1"]
    for run, want in zip(arms, wanted(case.ledger).values(), strict=True):
        shown = Shown(run["status"], run["end"], run["params"], run["tags"], run["metrics"])
        assert difference(want, shown) is None
        assert run["parent"] == case.parent
    assert sum(found.name == experiment.name for found in experiments(case.client)) == 1
    mine = [tag for tag in experiment.tags if tag.startswith("orchestrator.run.")]
    assert mine == [f"orchestrator.run.{case.ledger.uuid}"], "no other sweep lies in it"


EXAMPLES = ["nested deleted", "parent gone", "experiment gone, its id taken", "several at once"]
"""What `make test` does to a run."""
ORDERED = [*EXAMPLES, *(name for name in DAMAGES if name not in EXAMPLES)]


@pytest.mark.few(4)
@pytest.mark.parametrize("name", ORDERED)
def test_the_next_session_puts_in_order_what_was_done_to_a_run(case: Case, name: str) -> None:
    before = case.run_of("trial0")
    DAMAGES[name](case)
    go_on(case)
    in_order(case)
    told = runs_of(case.uri, case.ledger.uuid, deleted=True)
    flushed(case.ledger, case.uri)
    assert runs_of(case.uri, case.ledger.uuid, deleted=True) == told, "the session after that has nothing to do"
    if name in ("nested deleted", "parent deleted", "parent gone", "renamed", "experiment deleted", "under no parent"):
        assert case.run_of("trial0") == before, "what is still there is not made again"


@pytest.mark.few(4)
@pytest.mark.parametrize("name", ORDERED)
def test_so_does_a_session_that_was_at_work_meanwhile(case: Case, name: str) -> None:
    """At once, where MLflow refuses what is told; else the session after it. Mutant check: not connecting anew after a
    refusal fails where the run of the running trial is deleted or gone."""
    projection = flushed(case.ledger, case.uri)
    DAMAGES[name](case)
    case.ledger.record_points("trial1", 1, curve("trial1", 2, offset=3))
    assert projection.flush(), projection.last_error
    go_on(case)
    in_order(case)


@pytest.mark.soak
def test_so_it_is_with_a_server(tmp_path: Path, server: Server) -> None:
    """One run after another in one server, which so holds others' experiments too. Takes half a minute."""
    for number, name in enumerate(DAMAGES):
        folder = tmp_path / str(number)
        folder.mkdir()
        case = begin(folder, server.uri, server.store, f"small {number}")
        DAMAGES[name](case)
        go_on(case)
        try:
            in_order(case)
        except AssertionError as error:
            raise AssertionError(name) from error
        case.ledger.close()


@pytest.mark.soak
@pytest.mark.parametrize("takers", [pytest.param(0, marks=pytest.mark.soak), pytest.param(1, marks=pytest.mark.slow)])
def test_a_server_that_was_restarted_empty_is_told_everything(tmp_path: Path, tables: Path, takers: int) -> None:
    """Also where another sweep was first and has the id that the ledger has recorded."""
    server = Server(tmp_path / "runs")
    fresh(tmp_path / "runs", tables)
    server.start()
    try:
        case = begin(tmp_path, server.uri, server.store, "small")
        recorded = case.experiment
        projection = flushed(case.ledger, case.uri)
        server.kill()
        for path in (tmp_path / "runs").glob("mlflow.db*"):
            path.unlink()
        shutil.copy(tables, tmp_path / "runs")
        server.start()
        others = [case.other(f"first {number}") for number in range(takers)]
        assert [other.run.mlflow_experiment_id for other in others] == [recorded] * takers
        assert projection.flush(), projection.last_error
        go_on(case)
        in_order(case)
        assert (case.experiment == recorded) == (not takers)
        for other in others:
            assert len(runs_of(case.uri, other.uuid)) == 2
            other.close()
        case.ledger.close()
    finally:
        server.kill()


def name_of(case: Case, ledger: Ledger) -> str:
    return str(case.client.get_experiment(ledger.run.mlflow_experiment_id).name)


def test_two_sweeps_of_one_name_share_no_experiment(case: Case) -> None:
    """Neither do two runs of one sweep: an experiment's description is the verdict of one run."""
    twin = case.other("small")
    assert twin.run.mlflow_experiment_id != case.experiment
    assert (name_of(case, case.ledger), name_of(case, twin)) == ("small", f"small {twin.uuid[:8]}")
    go_on(case)
    in_order(case)
    assert len(runs_of(case.uri, twin.uuid)) == 2


@pytest.mark.parametrize("deleted", [False, True])
def test_an_experiment_that_others_may_have_something_in_is_not_taken(case: Case, deleted: bool) -> None:
    """Whatever it holds: runs of the first versions, which did not tag experiments, and anybody's. One that is empty
    and nobody's is taken, so that a person may choose where artifacts lie. Mutant check: to go by tags alone."""
    taken, empty = (case.client.create_experiment(name) for name in ("taken", "empty"))
    case.client.create_run(taken)
    if deleted:
        case.client.delete_experiment(taken)
        case.client.delete_experiment(empty)
    late, first = case.other("taken"), case.other("empty")
    assert name_of(case, late) == f"taken {late.uuid[:8]}"
    assert first.run.mlflow_experiment_id == empty
    assert case.client.get_experiment(empty).lifecycle_stage == "active"


def test_what_runs_of_an_earlier_version_share_they_keep(case: Case) -> None:
    """They go by what is recorded. Whoever comes anew gets one of its own."""
    twin = case.other("small")
    shared = case.experiment
    for run in runs_of(case.uri, twin.uuid):
        case.sql("UPDATE runs SET experiment_id = ? WHERE run_uuid = ?", int(shared), run["run_id"])
    twin.set_run(mlflow_experiment_id=shared)
    for ledger in (twin, case.ledger):
        flushed(ledger, case.uri)
        assert ledger.run.mlflow_experiment_id == shared
    assert case.other("small again").run.mlflow_experiment_id != shared


@pytest.mark.parametrize("there", ["nothing", "an empty experiment"])
def test_two_that_begin_at_the_same_moment_get_one_each(
    case: Case, monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    """The other one comes in just before this one makes what it has not found, or takes what it has found empty. Mutant
    checks: not to go on with the next name fails, and not to look again shares the empty one."""
    real, others = type(case.client).get_experiment_by_name, list[Ledger]()
    if there != "nothing":
        case.client.create_experiment("both")

    def slow(client: Any, name: str) -> Any:
        found = real(client, name)
        if not others and name == "both":
            monkeypatch.undo()
            others.append(case.other("both"))
        return found

    monkeypatch.setattr(type(case.client), "get_experiment_by_name", slow)
    (case.folder / "slow").mkdir()
    late = begin(case.folder / "slow", case.uri, case.store, "both")
    assert late.experiment != others[0].run.mlflow_experiment_id
    assert name_of(case, late.ledger) == f"both {late.ledger.uuid[:8]}"
    assert name_of(case, others[0]) == "both"
    go_on(late)
    in_order(late)
    late.ledger.close()


def test_more_runs_and_experiments_than_a_page_holds_are_all_found(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant check: the first page only."""
    from orchestrator.tracking import runs

    monkeypatch.setattr(runs, "EXPERIMENTS", 2)
    for number in range(5):
        case.client.create_experiment(f"another {number}")
    case.client.delete_run(case.run_of("trial0"))
    go_on(case)
    in_order(case)


def test_a_driver_that_was_replaced_touches_nothing(case: Case) -> None:
    """Mutant check: without asking for the lease first, it restores what its successor has deleted."""
    case.client.delete_run(case.run_of("trial0"))
    case.ledger.release()
    successor = Ledger.open(str(case.ledger._database.url))
    successor.acquire("successor", 600)
    before = runs_of(case.uri, case.ledger.uuid, deleted=True)
    with pytest.raises(LeaseLost):
        Projection(case.ledger, case.uri).flush()
    assert runs_of(case.uri, case.ledger.uuid, deleted=True) == before
    successor.close()


# What else the parent run and the experiment carry


def tell_answer(case: Case, folder: Path) -> None:
    """As a driver does at the end of each session: the report, and the encoders that MLflow does not have."""
    projection = Projection(case.ledger, case.uri)
    projection.start()
    assert projection.settled(60)
    projection.log_report(folder, "# A is better", metrics={"p": 0.5}, tags={"verdict": "A is better"}, step=3)
    due = {"trial0"} - logged(case.ledger.events())
    projection.log_encoders([Encoder(case.ledger.trial(trial), folder) for trial in due])
    assert projection.stop(60), projection.last_error


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("name", "again"),
    [
        ("parent gone", False),
        ("parent deleted", False),
        ("nested deleted", False),
        ("nested gone", True),
        ("experiment gone", True),
        ("experiment gone, its id taken", True),
        ("several at once", True),
    ],
)
def test_a_parent_that_was_made_again_has_the_report_and_the_encoders(
    case: Case, tmp_path: Path, name: str, again: bool
) -> None:
    """An encoder is logged again only where it, or the run that it belongs to, is gone. Mutant check: asking which are
    logged before MLflow has been put in order fails the last four."""
    from mlflow.artifacts import download_artifacts

    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "report.md").write_text("# A is better\n")
    (folder / "embed.py").write_text("def load(folder):\n    return lambda rows: rows\n")
    tell_answer(case, folder)
    assert len(case.ledger.events(LOGGED)) == 1
    DAMAGES[name](case)
    tell_answer(case, folder)
    tell_answer(case, folder)
    assert len(case.ledger.events(LOGGED)) == 1 + again
    agree(case.ledger, case.uri)
    parent = case.client.get_run(case.parent)
    assert parent.data.tags["verdict"] == "A is better"
    assert parent.data.metrics == {"p": 0.5}
    found = download_artifacts(run_id=case.parent, artifact_path="report/report.md", tracking_uri=case.uri)
    assert Path(found).read_text() == "# A is better\n"
    assert case.client.get_experiment(case.experiment).tags["mlflow.note.content"] == "A or B? A is better"
    (model,) = case.client.search_logged_models([case.experiment])
    assert model.source_run_id == case.run_of("trial0")
    outputs = case.client.get_run(case.run_of("trial0")).outputs
    assert outputs is not None
    assert [output.model_id for output in outputs.model_outputs] == [model.model_id]


def test_an_encoder_that_somebody_deleted_is_missed(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "embed.py").write_text("def load(folder):\n    return lambda rows: rows\n")
    tell_answer(case, folder)
    (model,) = case.client.search_logged_models([case.experiment])
    case.client.delete_logged_model(model.model_id)
    tell_answer(case, folder)
    assert [event.kind for event in case.ledger.events() if event.kind in (LOGGED, MOVED)] == [LOGGED, MOVED, LOGGED]
    assert len(case.client.search_logged_models([case.experiment])) == 1


def test_a_training_that_diverged_is_failed_in_mlflow_also_where_it_was_told_otherwise(case: Case) -> None:
    """In ledgers of before, a diverged trial has the metric of its untrained encoder."""
    old = {"metric": 0.1, "metrics": {"knn_accuracy": 0.25}}
    for trial, kept in (("trial1", {}), ("trial3", old)):
        number = case.ledger.start_attempt(trial, {}, "h") if trial == "trial3" else 1
        case.ledger.record_points(trial, number, curve(trial, 1))
        case.ledger.finish_attempt(trial, number, state="done", outcome="diverged", step=1, **kept)  # type: ignore[arg-type]
    flushed(case.ledger, case.uri)
    client = case.client
    for trial in ("trial1", "trial3"):
        run = client.get_run(case.run_of(trial))
        assert (run.info.status, run.data.tags["outcome"], run.data.tags["state"]) == ("FAILED", "diverged", "done")
        assert run.data.tags["mlflow.note.content"].endswith("done: diverged, so it has no knn_accuracy")
    client.set_terminated(case.run_of("trial3"), "FINISHED")
    client.delete_tag(case.run_of("trial3"), "outcome")  # as the version before told it
    flushed(case.ledger, case.uri)
    run = client.get_run(case.run_of("trial3"))
    assert (run.info.status, run.data.tags["outcome"]) == ("FAILED", "diverged")


@pytest.mark.soak
def test_every_pair_of_damages_is_put_in_order(case: Case, tmp_path: Path, tables: Path) -> None:
    """Two things that are done to one run, in either order, where the second one can still be done."""
    simple = ["nested deleted", "nested gone", "parent deleted", "parent gone", "renamed", "experiment deleted"]
    for number, (first, second) in enumerate(itertools.permutations(simple, 2)):
        folder = tmp_path / str(number)
        uri = fresh_in(folder, tables)
        pair = begin(folder, uri, uri, "small")
        DAMAGES[first](pair)
        with contextlib.suppress(Exception):  # a deleted experiment cannot be renamed
            DAMAGES[second](pair)
        go_on(pair)
        try:
            in_order(pair)
        except AssertionError as error:
            raise AssertionError(f"{first}, {second}") from error
        pair.ledger.close()


def fresh_in(folder: Path, tables: Path) -> str:
    folder.mkdir()
    return fresh(folder / "runs", tables)

"""What a reader finds in MLflow's pages about the arms of a sweep, in a real browser of 1400 x 900, beginning at the
addresses that `orchestrator ui` prints. Screenshots lie in test-output/."""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import shot
from ledgers import Run, start
from real import free_port

from orchestrator import report
from orchestrator.ledger import Suggestion, Trial
from orchestrator.ledger.stored import JsonObject
from orchestrator.tracking import Projection, embedded_uri

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.slow

WIDTH, HEIGHT = 1400, 900

WAIT_MS = 60_000
"""The first page of a cold server on a busy machine."""

ARMS = """[compare]
"loss.temperature" = [0.05, 0.1, 0.2]
"batch.size" = [16, 64]
"""
TUNE = '[tune]\ntrials = 1\nspace = { "optimizer.lr" = { low = 1e-4, high = 1e-2 } }'
BEST = {16: 0.05, 64: 0.2}
"""The temperature of the highest mean, by batch."""

DIVERGED, FAILED = (0.2, 16), (0.05, 64)


@dataclass
class Answered:
    """A finished run in MLflow, and where `orchestrator ui` says to look."""

    run: Run
    summary: report.Summary
    addresses: dict[str, str] = field(default_factory=dict)

    def arms(self) -> dict[tuple[float, int], Any]:
        """Arms by temperature and batch."""
        return {(arm.settings["loss.temperature"], arm.settings["batch.size"]): arm for arm in self.summary.arms}  # type: ignore[misc]


def trained(folder: Path) -> Run:
    """A run whose best temperature depends on the batch; one arm diverges, and one seed of another fails."""
    question = "Which temperature is best at batch 64?"
    run = start(folder, ARMS, tune=TUNE, question=question, name="temperature", seeds=3)
    draw = random.Random(0)
    for arm in run.plan.arms:
        temperature, size = float(str(arm.settings["loss.temperature"])), int(str(arm.settings["batch.size"]))
        lr: JsonObject = {"optimizer.lr": 1e-3 * draw.uniform(0.5, 2)}
        planned = run.plan.tune_trials(arm.label, 0, lr)
        tried = [Trial(p.id, "tune", arm.label, p.seed, p.job.model_dump(mode="json"), number=0) for p in planned]
        run.ledger.add_suggestion(Suggestion(arm.label, 0, lr, tuple(trial.id for trial in tried)), tried)
        for trial in tried:
            run.done(trial, 0.7)
        run.ledger.freeze(arm.label, lr, 0, "abc")
        for trial in run.confirm(arm.label, lr):
            value = 0.86 - 0.02 * abs(math.log2(temperature / BEST[size])) + draw.gauss(0, 0.004)
            last = 4096 // size
            curve = {0: 0.1, last // 4: value - 0.3, last // 2: value - 0.1, last: value}
            if (temperature, size) == DIVERGED:
                run.done(trial, value, outcome="diverged", curve={0: 0.1, last // 4: 0.2})
            elif (temperature, size) == FAILED and trial.seed == run.plan.confirm_seeds[0]:
                run.lost(trial)
            else:
                run.done(trial, value, curve=curve)
    run.ledger.set_run(state="done")
    return run


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answered]:
    home = tmp_path_factory.mktemp("home")
    run = trained(home / "runs" / "temperature")
    summary = report.write(run.ledger, home / "runs" / "temperature" / "report")
    projection = Projection(run.ledger, embedded_uri(home / "runs"))
    projection.log_report(
        home / "runs" / "temperature" / "report", report.note(summary), tags={"verdict": summary.sentence}
    )
    assert projection.flush(), projection.last_error
    found = Answered(run, summary)
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", "ui", "temperature", "--port", str(free_port())],
        cwd=home,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if match := re.match(r"(\w+): +(http\S+)$", line):
                found.addresses[match[1]] = match[2]
            if "Ctrl-C" in line:
                break
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        process.communicate()
        run.ledger.close()


@dataclass
class Reader:
    """A person with a mouse, whose clicks are counted."""

    page: Page
    clicks: int = 0

    def click(self, what: Locator) -> None:
        self.clicks += 1
        if what.get_attribute("target") == "_blank":
            with self.page.context.expect_page() as opened:
                what.click()
            self.page = opened.value
        else:
            what.click()

    def rows(self) -> list[str]:
        """Names in the table of runs, from top to bottom, as far as they can be seen."""
        listed = self.page.locator(".ag-pinned-left-cols-container .ag-row")
        listed.nth(3).wait_for()
        found = []
        for row in listed.all():
            box = row.bounding_box()
            if box is not None and box["y"] + box["height"] <= HEIGHT:
                cell = row.locator(".ag-cell").nth(1)  # behind the box to choose it by
                link = cell.get_by_role("link")  # a group has none
                name = (link if link.count() else cell).inner_text()
                found.append((box["y"], name.strip().partition("\n")[0]))
        return [name for _, name in sorted(found)]


@pytest.fixture
def reader(browser: Browser) -> Iterator[Reader]:
    context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT})
    context.set_default_timeout(WAIT_MS)
    # MLflow opens a chat beside wide pages until somebody closes it once.
    context.add_init_script("localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')")
    yield Reader(context.new_page())
    context.close()


def drawn(page: Page, title: str) -> list[dict[str, Any]]:
    """The traces of the chart with this title, as plotly has them."""
    card = page.locator("[data-testid='experiment-view-compare-runs-card']").filter(
        has=page.get_by_text(title, exact=True)
    )
    plot = card.first.locator(".js-plotly-plot")
    plot.locator(".trace").first.wait_for(state="attached")
    found: str = plot.evaluate(
        "plot => JSON.stringify(plot.data.map(({x, y, type, name, marker}) => ({x, y, type, name, marker})))"
    )
    traces: list[dict[str, Any]] = json.loads(found)
    return traces


@pytest.mark.parametrize("begins_at", ["answer", "arms", "charts"])
def test_which_temperature_is_best_at_batch_64_takes_three_clicks_at_most(
    answered: Answered, reader: Reader, begins_at: str
) -> None:
    """Rows are grouped by batch and sorted by the metric, so that the first one below `64` says it."""
    reader.page.goto(answered.addresses[begins_at])
    if begins_at == "answer":
        reader.click(reader.page.get_by_role("link", name="arms as a table").first)
    rows = reader.rows()
    assert reader.clicks <= 3
    best = rows[rows.index("Group: 64") + 1]
    arms = {key: arm for key, arm in answered.arms().items() if key[1] == 64}
    assert max(arms, key=lambda key: arms[key].mean)[0] == BEST[64]
    assert best == f"temperature={BEST[64]}, size=64"
    shot(reader.page, f"mlflow-best-from-{begins_at}", whole=False)


def test_the_metric_comes_first_as_bars_with_an_interval_an_arm_beside_them(answered: Answered, reader: Reader) -> None:
    """Seeds are collapsed: a bar is the mean that the report has, and a line from low over mean to high is its
    interval. An arm that diverged has neither."""
    page = reader.page
    page.goto(answered.addresses["charts"])
    measured = {(*arm.ci95, arm.mean) for arm in answered.summary.arms if arm.ci95 is not None and arm.mean is not None}
    (bars,) = drawn(page, "knn_accuracy")
    assert bars["type"] == "bar"
    assert sorted(bars["x"]) == pytest.approx(sorted(mean for _, _, mean in measured), abs=1e-12)
    lines = [trace for trace in drawn(page, "knn_accuracy_interval") if len(trace["x"] or ()) == 3]
    upright = {tuple(trace["y"]) for trace in lines}
    assert all(len(set(trace["x"])) == 1 for trace in lines)
    assert {tuple(round(value, 9) for value in one) for one in upright} == {
        tuple(round(value, 9) for value in (low, mean, high)) for low, high, mean in measured
    }
    cards = page.get_by_test_id("experiment-view-compare-runs-card")
    first = cards.first.bounding_box()
    assert cards.first.get_by_text("knn_accuracy", exact=True).count() == 1
    assert first is not None
    assert first["y"] + first["height"] < HEIGHT, "the first chart is in view"
    page.get_by_text("Parallel Coordinates").first.scroll_into_view_if_needed()
    axes = page.locator(".parcoords .label")
    axes.first.wait_for()
    assert axes.all_text_contents() == ["loss.temperature", "batch.size", "optimizer.lr", "knn_accuracy"]
    shot(page, "mlflow-arms-charts", whole=False)


def test_curves_end_at_the_mean_and_run_over_the_pairs_seen(answered: Answered, reader: Reader) -> None:
    """Nothing is smoothed. Mutant check: a chart that does not say so is smoothed by MLflow, and ends 0.05 off."""
    reader.page.goto(answered.addresses["curves"])
    lines = drawn(reader.page, "knn_accuracy")
    ends = {
        round(trace["y"][-1], 9) for trace in lines if trace["x"] and trace["x"][-1] == 4096 and None not in trace["x"]
    }
    means = {round(arm.mean, 9) for arm in answered.summary.arms if arm.mean is not None}
    assert ends == means
    assert reader.page.locator(".xtitle").first.text_content() == "pairs_seen"
    shot(reader.page, "mlflow-arms-curves", whole=False)


def test_the_table_has_compared_keys_tuned_keys_metric_interval_and_outcome(answered: Answered, reader: Reader) -> None:
    page = reader.page
    page.set_viewport_size({"width": 2400, "height": HEIGHT})  # as a reader who scrolls to the right sees it
    page.goto(answered.addresses["arms"])
    page.get_by_text("temperature=0.2, size=64").first.wait_for()
    headings = [
        (box["x"], heading.inner_text().strip())
        for heading in page.locator(".ag-header-cell[col-id*='.']").all()
        if (box := heading.bounding_box()) is not None
    ]
    keys = ["loss.temperature", "batch.size", "optimizer.lr"]
    keys += [f"knn_accuracy{end}" for end in ("", "_low", "_high", "_sd", "_n")]
    assert [name for _, name in sorted(headings)] == ["Run Name", *keys, "outcome", "seeds"]
    rows = page.locator(".ag-center-cols-container .ag-row")
    assert rows.filter(has=page.get_by_text("2 of 3, 1 failed")).count() == 1
    assert rows.filter(has=page.get_by_text("0 of 3, 3 diverged")).count() == 1
    shot(page, "mlflow-arms-table", whole=False)


def test_what_diverged_or_failed_looks_so(answered: Answered, reader: Reader) -> None:
    """In lists, which show no status, and in charts, by its name and by the colour of its dot."""
    page = reader.page
    page.goto(answered.addresses["arms"])
    row = page.locator(".ag-pinned-left-cols-container .ag-row").filter(has_text="(diverged)")
    row.first.wait_for()
    assert row.count() == 1
    colours = "row => [...row.querySelectorAll('*')].map(one => getComputedStyle(one).backgroundColor)"
    assert "rgb(214, 39, 40)" in row.evaluate(colours)
    page.goto(answered.addresses["curves"])
    for ill in ("temperature=0.2, size=16 seed 1 (diverged)", "temperature=0.05, size=64 seed 1 (failed)"):
        assert page.get_by_role("link", name=ill).count() <= 1
    names = {run.data.tags["mlflow.runName"] for run in _runs(answered) if run.info.status == "FAILED"}
    assert sum(name.endswith("(diverged)") for name in names) == 4
    assert sum(name.endswith("(failed)") for name in names) == 1


def _runs(answered: Answered) -> list[Any]:
    from orchestrator.tracking.runs import search
    from orchestrator.tracking.store import connect

    uri = f"sqlite:///{Path(str(answered.run.ledger._database.path)).parent.parent / 'mlflow.db'}"
    return list(search(connect(uri), answered.run.ledger.uuid))


def test_compare_opens_on_the_metric(answered: Answered, reader: Reader) -> None:
    """Of the arms that have one, at the address that is printed; and of two confirm trials that somebody chooses."""
    page = reader.page
    page.goto(answered.addresses["compare"])
    page.get_by_text("Comparing 5 Runs from 1 Experiment").wait_for()
    chosen = page.locator(".ant-select-selection-item-content, [class*='select-selection-item-content']")
    chosen.nth(3).wait_for()
    assert chosen.all_inner_texts() == ["batch.size", "loss.temperature", "optimizer.lr", "knn_accuracy"]
    shot(page, "mlflow-arms-compare", whole=False)
    trials = [trial.mlflow_run_id for trial in answered.run.ledger.trials("confirm", state="done") if trial.metric]
    two = json.dumps(trials[:1] + trials[-1:], separators=(",", ":"))
    page.goto("about:blank")  # a page that is there already keeps the runs that it compares
    page.goto(re.sub(r"runs=[^&]*&", f"runs={two}&", answered.addresses["compare"]))
    page.get_by_text("Comparing 2 Runs from 1 Experiment").wait_for()
    chosen.last.wait_for()
    assert chosen.all_inner_texts()[-1] == "knn_accuracy"


def test_the_pages_are_listed_as_saved_views(answered: Answered, reader: Reader) -> None:
    page = reader.page
    page.goto(answered.addresses["charts"])
    page.get_by_role("button", name="Arms", exact=True).click()
    for name in ("Arms", "Curves", "Search"):
        page.get_by_role("menuitem").filter(has_text=re.compile(f"^{name}$")).first.wait_for()
    page.goto(answered.addresses["search"])
    page.get_by_text("optimizer.lr vs. knn_accuracy").first.wait_for()
    shot(page, "mlflow-arms-search", whole=False)

"""MLflow's pages on a finished sweep, in a real browser: the answer, nested runs, charts, Compare, report, models.

`orchestrator ui` serves them, and what it prints is where the browser goes. Screenshots lie in test-output/.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser import shot
from real import free_port, status

from orchestrator import report
from orchestrator.report import formatting
from orchestrator.run_dir.folder import RunFolder

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

WAIT_MS = 60_000
"""The first page of a cold server on a busy machine."""


@pytest.fixture(scope="module")
def addresses(finished: Path) -> Iterator[dict[str, str]]:
    """What `orchestrator ui` prints, while it serves."""
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", "ui", "small", "--port", str(free_port())],
        cwd=finished,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        said: dict[str, str] = {}
        for line in process.stdout:
            if match := re.match(r"(\w+): +(http\S+)$", line):
                said[match[1]] = match[2]
            if "Ctrl-C" in line:
                break
        yield said
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        process.communicate()


@pytest.fixture(scope="module")
def answer(finished: Path) -> report.Summary:
    """The ledger's."""
    with contextlib.closing(RunFolder(finished / "runs" / "small").open()) as ledger:
        return report.summarize(ledger)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A new browser, which remembers nothing, as wide as MLflow's own layout wants."""
    context = browser.new_context(viewport={"width": 1800, "height": 1100})
    context.set_default_timeout(WAIT_MS)
    # MLflow opens a chat beside wide pages until somebody closes it once.
    context.add_init_script("localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')")
    yield context.new_page()
    context.close()


def test_a_newcomer_reads_the_answer_within_three_clicks(
    addresses: dict[str, str], answer: report.Summary, page: Page
) -> None:
    """From the list of experiments, which is what the command prints first when no run is named, in a browser that
    has not been there before: MLflow then shows pages for language-model applications until one says otherwise."""
    page.goto(addresses["answer"].partition("#")[0] + "#/experiments")
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name="small", exact=True))
    assert answer.sentence in row.inner_text(), "the list of experiments says the verdict already"
    shot(page, "mlflow-experiments", whole=False)
    page.get_by_text("Model training", exact=True).click()
    page.get_by_role("link", name="small", exact=True).click()
    page.wait_for_url(re.compile(r"/experiments/\d+/"))
    page.locator("a[href*='/runs/']").filter(has_text=re.compile("^small$")).first.click()
    page.get_by_text(answer.sentence).first.wait_for()
    shot(page, "mlflow-three-clicks", whole=False)


def test_the_sweeps_run_shows_verdict_table_nested_runs_and_data(
    addresses: dict[str, str], answer: report.Summary, page: Page
) -> None:
    page.goto(addresses["answer"])
    page.get_by_text(answer.sentence).first.wait_for()
    page.get_by_text("Show more").click()
    # Not any row of that name: a window that is high enough lists the metrics named after the contrast, too.
    rows = page.get_by_test_id("note-editor-preview-content").get_by_role("row")
    row = rows.filter(has_text=re.compile(r"flatnce\s+infonce"))
    (one,) = answer.comparisons
    result = one.result
    for told in (formatting.signed(result.delta), formatting.probability(result.p_adjusted), "inconclusive"):
        assert told in row.inner_text()
    page.get_by_role("link", name=re.compile("(infonce|flatnce) seed [123]")).first.wait_for()
    page.get_by_text("digits[:300]").first.wait_for()
    shot(page, "mlflow-answer")


def test_the_report_is_rendered_as_an_artifact(addresses: dict[str, str], answer: report.Summary, page: Page) -> None:
    page.goto(addresses["report"])
    frame = page.frame_locator("iframe").first
    assert frame.get_by_role("heading").first.inner_text() == answer.question
    frame.get_by_text(answer.sentence).first.wait_for()
    frame.locator("figure svg").nth(2).wait_for()
    shot(page, "mlflow-report", whole=False)


def test_curves_are_drawn_by_arm_with_the_metric_first(addresses: dict[str, str], page: Page) -> None:
    """Nested runs lie folded away under their parent otherwise, and no chart is drawn. Mutant check: an address
    without the view fails this."""
    page.goto(addresses["curves"])
    for arm in ("infonce", "flatnce"):
        page.get_by_text(f"Group: {arm}").first.wait_for()
    page.get_by_text("Confirm trials by arm").first.wait_for()
    lines = page.locator(".js-plotly-plot .scatterlayer .trace path.js-line")
    lines.first.wait_for(state="attached")
    first = page.locator(".js-plotly-plot").first
    first.locator(".scatterlayer .trace").nth(1).wait_for(state="attached")
    page.get_by_text(re.compile(r"(infonce|flatnce) \(knn_accuracy\)")).nth(1).wait_for(state="attached")
    page.get_by_text("What they took").first.scroll_into_view_if_needed()
    bars = page.locator(".js-plotly-plot .barlayer .trace")  # speed and memory, by arm
    bars.nth(1).wait_for(state="attached")
    shot(page, "mlflow-charts", whole=False)


def test_compare_sets_two_arms_side_by_side_and_shows_what_differs(
    addresses: dict[str, str], finished: Path, page: Page
) -> None:
    trials = [t for t in status(finished)["trials"] if t["stage"] == "confirm" and t["seed"] == 1]
    two = {trial["arm"]: trial["mlflow_run_id"] for trial in trials}
    everything = re.search(r"runs=(.*)&experiments", addresses["compare"])
    assert everything is not None
    ids = "%5B" + "%2C".join(f"%22{run}%22" for run in (two["infonce"], two["flatnce"])) + "%5D"
    page.goto(addresses["compare"].replace(everything[1], ids))
    page.get_by_text("Comparing 2 Runs from 1 Experiment").wait_for()
    page.locator(".js-plotly-plot").first.wait_for(state="attached")  # parallel coordinates
    page.get_by_text("Parameters", exact=True).last.scroll_into_view_if_needed()
    page.get_by_text("Show diff only").first.click()
    row = page.get_by_role("row").filter(has_text="loss.name").first
    assert re.sub(r"\s+", " ", row.inner_text()) == "loss.name infonce flatnce"
    assert page.get_by_role("row").filter(has_text="batch.size").count() == 0, "it is the same"
    shot(page, "mlflow-compare")


def test_the_best_encoder_of_each_arm_is_listed_as_a_model(addresses: dict[str, str], page: Page) -> None:
    page.goto(addresses["answer"].partition("/runs/")[0] + "/models?workflowType=machine_learning")
    for arm in ("infonce", "flatnce"):
        page.get_by_role("link", name=arm, exact=True).first.wait_for()
    page.get_by_text("Ready").nth(1).wait_for()
    assert page.get_by_text("Ready").count() == 2
    shot(page, "mlflow-models", whole=False)


@pytest.mark.soak
def test_a_trials_run_shows_what_it_used_of_the_machine(addresses: dict[str, str], finished: Path, page: Page) -> None:
    trial = next(t for t in status(finished)["trials"] if t["stage"] == "confirm")
    runs = addresses["answer"].partition("/runs/")[0]
    page.goto(f"{runs}/runs/{trial['mlflow_run_id']}/system-metrics?workflowType=machine_learning")
    page.get_by_text("memory_usage_megabytes").first.wait_for()
    page.locator(".js-plotly-plot").first.wait_for()
    shot(page, "mlflow-system", whole=False)

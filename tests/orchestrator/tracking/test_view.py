"""The pages that are kept as tags of a run's experiment. tests/orchestrator/tracking/test_mlflow_arms.py looks at them
in a browser."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import replace
from typing import Any

import pytest
from ledgers import TUNED, Begin, Run

from orchestrator.report import mlflow_note
from orchestrator.tracking import view

CROSSED = """[compare]
"loss.temperature" = [0.05, 0.1]
"batch.size" = [16, 64]
"loss.name" = ["infonce", "flatnce"]
"""


def state(run: Run, page: view.Page) -> dict[str, Any]:
    """The state of a page, as MLflow reads it."""
    saved = json.loads(view.tags(run.ledger.run)[view.TAG + view.key(run.ledger.uuid, page)])
    assert isinstance(saved["createdAt"], int)
    assert saved["name"] == page.capitalize()
    text = saved["state"]
    if text.startswith("deflate;"):
        text = zlib.decompress(base64.b64decode(text.removeprefix("deflate;"))).decode()
    found: dict[str, Any] = json.loads(text)
    return found


def charts(state: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = state["compareRunCharts"]
    return found


@pytest.mark.parametrize("page", ["arms", "curves", "search"])
def test_no_chart_of_any_page_is_smoothed(begin: Begin, page: view.Page) -> None:
    """MLflow smooths a line chart that does not say how much."""
    found = state(begin(CROSSED, tune=TUNED), page)
    assert found["globalLineChartConfig"]["lineSmoothness"] == 0
    lines = [chart for chart in charts(found) if chart["type"] == "LINE"]
    assert [(chart["lineSmoothness"], chart["useGlobalLineSmoothing"]) for chart in lines] == [(0, False)] * len(lines)
    assert bool(lines) == (page != "search")


def test_arms_are_grouped_by_all_compared_keys_but_the_first(begin: Begin) -> None:
    """So that the levels of the first stand below one another, the best one first."""
    found = state(begin(CROSSED), "arms")
    keys = [{"mode": "param", "groupByData": key} for key in ("batch.size", "loss.name")]
    assert found["groupBy"]["groupByKeys"] == keys
    assert found["useGroupedValuesInCharts"] is False
    assert (found["orderByKey"], found["orderByAsc"]) == ("metrics.`knn_accuracy`", False)
    assert state(begin(), "arms")["groupBy"] is None
    assert state(begin(mode="min"), "arms")["orderByAsc"] is True


def test_columns_are_compared_keys_tuned_keys_metric_and_outcome(begin: Begin) -> None:
    run = begin(CROSSED, tune=TUNED)
    params = [f"params.`{key}`" for key in ("loss.temperature", "batch.size", "loss.name", "optimizer.lr")]
    ends = [f"metrics.`knn_accuracy{end}`" for end in ("", "_low", "_high", "_sd", "_n")]
    assert state(run, "arms")["selectedColumns"] == [*params, *ends, "tags.`outcome`", "tags.`seeds`"]
    for page in ("curves", "search"):
        found = state(run, page)
        assert found["selectedColumns"] == [*params, ends[0], "tags.`state`", "tags.`outcome`"]
    assert state(run, "arms")["columnOrder"][2:-1] == state(run, "arms")["selectedColumns"]


def test_a_loop_of_the_users_own_is_drawn_over_its_steps(begin: Begin) -> None:
    run = begin()
    (line,) = [chart for chart in charts(state(run, "curves")) if chart["type"] == "LINE"]
    assert (line["xAxisKey"], line["selectedXAxisMetricKey"]) == ("metric", "pairs_seen")
    sweep = json.loads(json.dumps(run.ledger.run.sweep))
    sweep["job"]["task"] = "mylab.train:main"
    run.ledger.set_run(sweep=sweep)
    (line,) = [chart for chart in charts(state(run, "curves")) if chart["type"] == "LINE"]
    assert line["xAxisKey"] == "step"


def test_a_view_of_many_keys_is_compressed_and_none_is_longer_than_a_tag_may_be(begin: Begin) -> None:
    run = begin(tune=TUNED)
    sweep = json.loads(json.dumps(run.ledger.run.sweep))
    for count, kept in ((100, 3), (20_000, 0)):
        sweep["tune"]["space"] = {f"loss.options.a{number:06}": {"low": 0, "high": 1} for number in range(count)}
        run.ledger.set_run(sweep=sweep)
        tags = view.tags(run.ledger.run)
        assert sum(key.startswith(view.TAG) for key in tags) >= kept
        assert max(map(len, tags.values())) <= view.LONGEST_TAG
    sweep["tune"]["space"] = {f"loss.options.a{number:06}": {"low": 0, "high": 1} for number in range(200)}
    run.ledger.set_run(sweep=sweep)
    assert len(state(run, "search")["selectedColumns"]) > 200


def test_a_ledger_without_a_plan_has_no_pages(begin: Begin) -> None:
    run = begin().ledger.run
    bare: Any = {"question": "A or B?"}
    tags = view.tags(replace(run, sweep=bare))
    assert not [key for key in tags if key.startswith(view.TAG)]
    assert view.with_links("*A or B?*\nIt does.", replace(run, sweep=bare), "7") == "*A or B?*\nIt does."


def test_the_description_has_links_to_the_pages_in_its_first_line_and_room_for_them(begin: Begin) -> None:
    run = begin(CROSSED, tune=TUNED).ledger.run
    note = "*Which one?*\n" + "x" * (mlflow_note.LONGEST - 20)
    linked = view.with_links(note, run, "1234567890")
    first = linked.partition("\n")[0]
    assert first.startswith("*Which one?*")
    for page, mode in (("arms", "TABLE"), ("arms", "CHART"), ("curves", "CHART"), ("search", "CHART")):
        assert f"viewStateShareKey={view.key(run.uuid, page)}&compareRunsMode={mode})" in first  # type: ignore[arg-type]
    assert len(linked) <= 5000
    assert "[report](" not in first, "MLflow does not have the run yet"
    first = view.with_links(note, replace(run, mlflow_run_id="f00d"), "7").partition("\n")[0]
    assert "[report](#/experiments/7/runs/f00d/artifacts/report/report.html?" in first

"""report.html as a reader sees it: a real browser, from a file, without a network, on a desk and on a phone."""

from __future__ import annotations

import contextlib
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from browser import shot
from ledgers import BETTER, TUNED, TWO, Run, finished, start, tuned

from orchestrator import report
from orchestrator.ledger import Suggestion, Trial
from orchestrator.ledger.stored import JsonObject

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PAPER = (794, 1123)
"""A4 at 96 dots an inch."""

DESK, PHONE = (1400, 900), (360, 740)
QUESTION = "Does FlatNCE beat InfoNCE when the batch is small, at an equal budget of pairs?"
REPORTS = ("one", "unwell", "several", "crossed", "long", "failed", "diverging", "single", "forty")
SCREENS = ((1400, 900), (390, 844))
"""A desk's and a phone's."""

ANSWERS = {
    "asked": "knn_accuracy: higher is better",
    "won": "knn_accuracy",
    "sure": "the chance of any wrong claim",
    "cost": "of CPU or GPU",
    "again": "orchestrator launch",
}
"""Selector of each answer, and what is in it: what was asked, what won where, how sure, at what cost, how to rerun."""

READABLE = """() => {
  const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, k) => sum + c * [0.2126, 0.7152, 0.0722][k], 0);
  const ground = node => {
    for (; node; node = node.parentElement) {
      const [r, g, b, a = 1] = rgb(getComputedStyle(node).backgroundColor);
      if (a > 0) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), parent = walker.currentNode.parentElement;
    if (!text || parent.closest("style, script, defs") || !parent.getClientRects().length) continue;
    const style = getComputedStyle(parent);
    const ink = luminance(rgb(parent.closest("svg") ? style.fill : style.color)), paper = luminance(ground(parent));
    const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    found.push([text, ratio]);
  }
  return found;
}"""
"""Every visible text of a page and its contrast to what is behind it, as WCAG computes it."""


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run; one in which things went wrong, with long names; and two runs in one report."""
    home = tmp_path_factory.mktemp("reports")
    pages = {name: home / name / "report" for name in REPORTS}
    with contextlib.ExitStack() as stack:

        def closing(run: Run) -> Run:
            stack.callback(run.ledger.close)
            return run

        one = closing(tuned(home / "one"))
        report.write(one.ledger, pages["one"])
        report.write(closing(_unwell(home / "unwell")).ledger, pages["unwell"])
        dcl = TWO.replace("flat", "dcl").replace('"dclnce"', '"dcl"')
        other = closing(start(home / "other", dcl, question="Is dcl better?", environment={"commit": "aaaaaaa"}))
        finished(other, {"plain": BETTER["plain"], "dcl": [x + 0.02 for x in BETTER["plain"]]})
        report.write_several({"quickstart": one.ledger, "dcl-again": other.ledger}, pages["several"])
        report.write(closing(_crossed(home / "crossed")).ledger, pages["crossed"])
        arms = "".join(f"[[arm]]\nlabel = {json.dumps(label)}\n" for label in LONG) + '"loss.name" = "flatnce"\n'
        long = closing(start(home / "long", arms, question=f"Does {LONG[0]} help?"))
        report.write(finished(long, dict(zip(LONG, BETTER.values(), strict=True))).ledger, pages["long"])
        for name, run in {
            "failed": _ended_as(home / "failed", "lost"),
            "diverging": _ended_as(home / "diverging", "diverged"),
            "single": _seeds(home / "single", 8, ended=1),
            "forty": _seeds(home / "forty", 40, ended=40),
        }.items():
            report.write(closing(run).ledger, pages[name])
    return {name: folder / "report.html" for name, folder in pages.items()}


LONG = [f"{'accumulation in eight pools of two thousand pairs, ' * 4}{end}"[-200:].strip() for end in ("early", "late")]
"""As long as labels may be, and alike but for their last word."""


def _crossed(folder: Path) -> Run:
    """Eight temperatures at three batches."""
    arms = '[compare]\n"loss.temperature" = [0.02, 0.05, 0.07, 0.1, 0.2, 0.3, 0.5, 1.0]\n"batch.size" = [16, 64, 256]\n'
    run = start(folder, arms, question="Which temperature is best, and does it depend on the batch?", seeds=8)
    for arm in run.plan.arms:
        temperature, size = (float(str(arm.settings[key])) for key in ("loss.temperature", "batch.size"))
        best = 0.8 - 0.06 * (math.log10(temperature) + 1) ** 2 + 0.01 * math.log2(size / 16)
        for trial in run.confirm(arm.label):
            run.done(trial, best + random.Random(f"{arm.label} {trial.seed}").gauss(0, 0.003))
    return run


def _ended_as(folder: Path, how: str) -> Run:
    """Four tuned temperatures at two batches, one of which has failed, or diverged, in every seed."""
    arms = '[compare]\n"loss.temperature" = [0.05, 0.1, 0.2, 0.5]\n"batch.size" = [16, 64]\n'
    run = start(folder, arms, tune=TUNED, question="Which temperature is best?", seeds=8)
    for arm in run.plan.arms:
        temperature, size = (float(str(arm.settings[key])) for key in ("loss.temperature", "batch.size"))
        for number, rate in enumerate((1e-4, 3e-3, 9e-3)):
            setting: JsonObject = {"optimizer.lr": rate}
            planned = run.plan.tune_trials(arm.label, number, setting)
            trials = [Trial(p.id, "tune", p.arm, p.seed, p.job.model_dump(mode="json"), number=number) for p in planned]
            run.ledger.add_suggestion(Suggestion(arm.label, number, setting, tuple(t.id for t in trials)), trials)
            for trial in trials:
                run.done(trial, 0.7 + 0.02 * number + trial.seed / 500)
        run.ledger.freeze(arm.label, {"optimizer.lr": 9e-3}, 2, "abc")
        for trial in run.confirm(arm.label, {"optimizer.lr": 9e-3}):
            noise = random.Random(f"{arm.label} {trial.seed}").gauss(0, 0.003)
            best = 0.8 - 0.06 * (math.log10(temperature) + 1) ** 2 + 0.01 * math.log2(size / 16)
            bad = (temperature, size) == (0.5, 64.0)
            if bad and how == "lost":
                run.lost(trial)
            else:
                run.done(trial, best + noise, outcome="diverged" if bad else "ok")
    run.ledger.set_run(state="done")
    return run


def _seeds(folder: Path, planned: int, *, ended: int) -> Run:
    """Three losses, of which one is better by about what matters, after so many of the seeds."""
    run = start(folder, '[compare]\n"loss.name" = ["infonce", "flatnce", "dcl"]\n', question=QUESTION, seeds=planned)
    for arm in run.plan.arms:
        gain = 0.006 * (arm.settings["loss.name"] == "dcl")
        for trial in run.confirm(arm.label)[:ended]:
            run.done(trial, 0.8 + gain + random.Random(f"{arm.label} {trial.seed}").gauss(0, 0.008))
    if ended == planned:
        run.ledger.set_run(state="done")
    return run


def _unwell(folder: Path) -> Run:
    """Three arms, one of a long name; a seed lost, one diverged, one to come; another budget; a real environment."""
    arms = TWO + '"budget.samples" = 2000\n[[arm]]\nlabel = "accumulation in eight pools, batch.size=16384, lr=0.003"\n'
    environment = {
        "command": f"orchestrator launch sweeps/flatnce_cpu.toml --into {'/a/long/path' * 6}/runs/flatnce",
        "commit": "8a9f79180a9f79180a9f79180a9f79180a9f7918 with changes",
        "python": "3.11.7",
        "packages": {"torch": "2.13.0+cpu", "ray": "2.60.1", "scikit-learn": "1.7.2"},
        "platform": "Linux-6.12.74-cloud-amd64-x86_64-with-glibc2.36",
        "processor": "AMD EPYC 9B45 128-Core Processor",
        "gpus": [],
    }
    run = start(folder, f'{arms}"batch.size" = 64\n', tune=TUNED, question=QUESTION, environment=environment)
    for k, arm in enumerate(run.plan.arms):
        for trial, metric in zip(run.confirm(arm.label), BETTER["plain"], strict=True):
            place = (k, trial.seed - 2)
            if place == (1, 2):
                run.lost(trial, "RuntimeError: rank 1 ended with signal 9 (killed) " * 3)
            elif place != (2, 5):
                run.done(trial, metric + k / 50, outcome="diverged" if place == (1, 3) else "ok")
    return run


@contextlib.contextmanager
def opened(
    browser: Browser, path: Path, size: tuple[int, int], *, scheme: Literal["light", "dark"] = "light"
) -> Iterator[Page]:
    """The page, loaded from its file with the network off. It must load nothing else and complain of nothing."""
    loaded: list[str] = []
    said: list[str] = []
    viewport: Any = {"width": size[0], "height": size[1]}
    context = browser.new_context(viewport=viewport, color_scheme=scheme, offline=True)
    try:
        page = context.new_page()
        page.on("request", lambda request: loaded.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(path.as_uri())
        yield page
        assert loaded == [path.as_uri()]
        assert said == []
    finally:
        context.close()


def unfold(page: Page) -> None:
    """Open every folded part."""
    page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")


def in_view(page: Page, size: tuple[int, int]) -> None:
    """The question is the first heading, and the verdict below it ends above the lower edge."""
    first = page.locator("h1, h2, h3").first
    assert first.evaluate("node => node.tagName") == "H1"
    assert first.inner_text().endswith("?")
    for part in (first, page.locator(".verdict").first):
        box = part.bounding_box()
        assert box is not None
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= size[1]


@pytest.mark.few(3)
@pytest.mark.parametrize("name", REPORTS)
def test_on_a_phone_the_verdict_is_in_view_and_nothing_but_a_table_is_wider(
    browser: Browser, reports: dict[str, Path], name: str
) -> None:
    """Mutant checks: notes above the verdict, a table that does not scroll by itself, a path that cannot break."""
    with opened(browser, reports[name], PHONE) as page:
        in_view(page, PHONE)
        unfold(page)
        assert page.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth]") == [360, 360]
        shot(page, f"report-{name}-phone")


@pytest.mark.few(2)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", REPORTS)
def test_on_a_desk_the_verdict_is_in_view_and_all_text_stands_out_from_what_is_behind_it(
    browser: Browser, reports: dict[str, Path], name: str, scheme: Literal["light", "dark"]
) -> None:
    """WCAG AA, 4.5, plots included. Mutant check: plots in colours of their own are black on black when dark."""
    with opened(browser, reports[name], DESK, scheme=scheme) as page:
        in_view(page, DESK)
        unfold(page)
        found = page.evaluate(READABLE)
        assert len(found) > 100
        assert [(text, ratio) for text, ratio in found if ratio < 4.5] == []
        shot(page, f"report-{name}-{'desktop' if scheme == 'light' else scheme}")


@pytest.mark.few(4)
@pytest.mark.parametrize("size", SCREENS, ids=["desk", "phone"])
@pytest.mark.parametrize("name", ["crossed", "long", *(name for name in REPORTS if name not in ("crossed", "long"))])
def test_five_questions_are_answered_within_two_screens(
    browser: Browser, reports: dict[str, Path], name: str, size: tuple[int, int]
) -> None:
    """Mutant check: the answers below the notes, of which a run in trouble has many."""
    with opened(browser, reports[name], size) as page:
        for key, words in ANSWERS.items():
            (answer,) = page.locator(f"#{key}").all()
            assert words in answer.inner_text()
            box = answer.bounding_box()
            assert box is not None
            assert box["y"] + box["height"] <= 2 * size[1]
        shot(page, f"report-{name}-answers-{size[0]}", whole=False)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["crossed", *(name for name in REPORTS if name != "crossed")])
def test_printed_it_is_dark_on_light_and_nothing_is_folded(
    browser: Browser, reports: dict[str, Path], name: str
) -> None:
    """Seen: the table of 40 seeds across four sheets. Mutant check: tables as wide as on a screen."""
    with opened(browser, reports[name], PAPER, scheme="dark") as page:
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(254, 254, 254)"
        assert all(part.is_visible() for part in page.locator("details table, details pre").all())
        assert [(text, ratio) for text, ratio in page.evaluate(READABLE) if ratio < 4.5] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= PAPER[0], "nothing beyond the edge"
        shot(page, f"report-{name}-print")


def test_folded_parts_open(browser: Browser, reports: dict[str, Path]) -> None:
    with opened(browser, reports["one"], PHONE) as page:
        folded = page.locator("details")
        titles = ["The sweep, resolved", "columns"]
        assert folded.count() == len(titles)
        for k, title in enumerate(titles):
            part = folded.nth(k)
            inside = part.locator("pre, table")
            assert title in part.locator("summary").inner_text()
            assert not inside.is_visible()
            part.locator("summary").click()
            assert inside.is_visible()

"""Data stays data in everything that people read of a run: terminal, report, pictures, MLflow, an encoder's card.

One run whose question, labels, failures, logs, command and host are HOSTILE, through every verb that prints and every
page that is written. What would be wrong is told by real readers: an HTML parser, a Markdown renderer, Chromium, and
MLflow's own store.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
from browser import chromium, shot
from click.testing import CliRunner, Result
from hostile import ANYTHING, BRACKETS, HTML, LABELS, MARKDOWN, MARKS, Seen, harmless, one_line, read_markdown
from ledgers import Run, start
from mlflow import MlflowClient
from real import free_port, wait_for

from jobs.config import JobConfig
from jobs.core.plain import visible
from jobs.export import card
from jobs.export.embed import Settings
from orchestrator import report
from orchestrator.cli import main
from orchestrator.report.mlflow_note import metric_names
from orchestrator.run_dir.folder import RunFolder
from orchestrator.tracking import UI_ENVIRONMENT, Projection, embedded_uri, encoders, ui_command

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Page

ARMS = ["plain", *LABELS]
QUESTION = f"Is {MARKDOWN} {HTML} {BRACKETS} {MARKS} better? #"
NOTE = "mlflow.note.content"
PICTURE = ("svg", "g", "defs", "path", "use", "text", "tspan", "clippath", "rect", "style")
TAME = ["plain", *(f"arm {k}, which is as long as others are and has one word a thing" for k in range(len(LABELS)))]


def arms(labels: list[str]) -> str:
    return "".join(
        f'[[arm]]\nlabel = {json.dumps(label)}\n"loss.temperature" = {0.05 + k / 100}\n'
        for k, label in enumerate(labels)
    )


def ended(folder: Path, labels: list[str], question: str, others: list[str]) -> Run:
    """A run in which every arm has one failed, one diverged and some good trials."""
    environment: dict[str, Any] = {
        "command": f"orchestrator launch {others[-1]}",
        "commit": others[0],
        "python": others[1],
    }
    environment |= {"packages": {others[2]: others[3]}, "processor": MARKS if others is not TAME else "cpu"}
    run = start(folder, arms(labels), question=question, environment=environment, seeds=3)
    for k, label in enumerate(labels):
        for number, trial in enumerate(run.confirm(label)):
            if number == 1:
                run.lost(trial, others[-1 - k])
            elif number == 2:
                run.done(trial, 0.0, outcome="diverged")
            else:
                run.done(trial, 0.8 + number / 100 + k / 1000)
    run.ledger.event("note", others[0])
    run.ledger.set_run(state="done")
    return run


def told(run: Run, answer: report.Summary, home: Path) -> None:
    """Tell MLflow the run, as it was created and as it ended."""
    projection = Projection(run.ledger, embedded_uri(home))
    assert projection.flush(), projection.last_error
    client, ledger = MlflowClient(embedded_uri(home)), run.ledger
    begun = client.get_experiment(str(ledger.run.mlflow_experiment_id)).tags[NOTE]
    assert read_markdown(begun).lines == [("p", one_line(QUESTION))], "before there is a verdict"
    tags = {"verdict": answer.sentence, "question": answer.question}
    folder, numbers = home / "wild" / "report", report.numbers(answer)
    projection.log_report(folder, report.note(answer), metrics=numbers, tags=tags)
    assert projection.flush(), projection.last_error


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two runs of one shape, `wild` and `tame`, their reports, and what MLflow is told of them."""
    home = tmp_path_factory.mktemp("data is data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCHESTRATOR_RUNS", str(home))
        patch.delenv("ORCHESTRATOR_LEDGER", raising=False)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for name, labels, question, others in (
            ("wild", ARMS, QUESTION, ANYTHING),
            ("tame", TAME, "Is it better?", ["boom"] * len(ANYTHING)),
        ):
            run = ended(home / name, labels, question, others)
            answer = report.write(run.ledger, home / name / "report")
            if name == "wild":
                told(run, answer, home)
            else:
                run.ledger.set_run(mlflow_experiment_id="1", mlflow_run_id="f00d")
            report.write(run.ledger, home / name / "report")  # which says where it is in MLflow
            run.ledger.release()
            run.ledger.close()
            log = home / name / "trials" / run.plan.confirm_trials("plain", {})[0].id / "log.rank0.txt"
            log.parent.mkdir(parents=True)
            log.write_text("\n".join(ANYTHING[:-2]) if name == "wild" else "ok")
        for name in ("wild", "tame"):
            assert CliRunner().invoke(main, ["compare", name]).exit_code == 0
        yield home


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), env={"ORCHESTRATOR_TRACEBACK": "1", "COLUMNS": "400"})


def unwrapped(text: str) -> str:
    return "".join(text.split())


# Verbs


def test_every_verb_that_prints_shows_data_as_data(home: Path) -> None:
    (trial,) = (path.name for path in (home / "wild" / "trials").iterdir())
    outputs = {
        "plan": run("plan", str(home / "wild" / "sweep.toml")),
        "status": run("status", "wild"),
        "watch": run("status", "wild", "--watch"),
        "logs": run("logs", "wild", trial),
        "compare": run("compare", "wild"),
        "verify": run("verify", "wild"),
    }
    for verb, done in outputs.items():
        assert done.exit_code == (1 if verb == "verify" else 0), (verb, done.output, done.exception)
        assert harmless(done.output), verb
    for verb in ("plan", "status", "watch", "compare"):
        shown = unwrapped(outputs[verb].output)
        for label in LABELS:  # of a folded cell the first line
            assert unwrapped(visible(label))[: 8 if verb in ("status", "watch") else 20] in shown, (verb, label)
    logged = outputs["logs"].output
    assert all(visible(line) in logged for text in ANYTHING[:-2] for line in text.replace("\r", "").split("\n"))
    several = run("compare", "wild", "tame", "--into", str(home / "both"))
    assert several.exit_code == 0, several.output
    assert harmless(several.output)
    assert harmless((home / "both" / "report.html").read_text("utf-8"))
    assert "img" in read_markdown((home / "both" / "report.md").read_text("utf-8")).tags
    assert not {"script", "a"} & set(read_markdown((home / "both" / "report.md").read_text("utf-8")).tags)


@pytest.mark.parametrize("verb", ["plan", "status", "compare", "verify"])
def test_json_is_json_and_holds_the_data_as_they_are(home: Path, verb: str) -> None:
    where = str(home / "wild" / "sweep.toml") if verb == "plan" else "wild"
    done = run(verb, where, "--json")
    found = json.loads(done.stdout)
    assert done.stdout.isascii()
    assert harmless(done.stdout)
    if verb != "verify":
        held = [arm["label"] for arm in found["arms"]] if "arms" in found else [one["arm"] for one in found["trials"]]
        assert list(dict.fromkeys(held)) == ARMS


@pytest.mark.parametrize("name", ["no\x1b[31mrun", "[/x]", "no\u202erun", "<b>"])
def test_errors_that_echo_a_name_show_it(home: Path, name: str) -> None:
    for arguments in (["status", name], ["logs", "wild", name], ["export", "wild", name, str(home / "e")],
                      ["compare", name], ["plan", name], ["ui", name], ["stop", name], ["resume", name]):  # fmt: skip
        done = run(*arguments)
        assert done.exit_code in (2, 4), (arguments, done.output, done.exception)
        assert harmless(done.output), arguments
        assert visible(name) in done.output or ascii(name)[1:-1] in done.output or repr(name)[1:-1] in done.output


@pytest.mark.parametrize("value", [BRACKETS, HTML, "a\x1b[2Jb", "c\u202ed"])
def test_errors_of_a_sweep_show_keys_and_values_as_they_are(home: Path, tmp_path: Path, value: str) -> None:
    text = (home / "wild" / "sweep.toml").read_text()
    for wrong in (f"{json.dumps(value)} = 1\n{text}", text.replace('task = "image"', f"task = {json.dumps(value)}"),
                  text.replace('name = "knn_accuracy"', f"name = {json.dumps(value)}")):  # fmt: skip
        (tmp_path / "sweep.toml").write_text(wrong)
        done = run("plan", str(tmp_path / "sweep.toml"))
        assert done.exit_code == 2, done.output
        assert harmless(done.output)
        assert value.split(maxsplit=1)[0].rstrip("\x1b\u202e")[:1] in done.output


# Reports


def outside(seen: Seen) -> list[str]:
    """The elements beside those of pictures, in which a longer label has more lines."""
    return [tag for tag in seen.shape if tag not in PICTURE]


def test_the_page_has_the_same_elements_whatever_the_data_say(home: Path) -> None:
    """Mutant check: a text that is not escaped makes an element more."""
    wild, tame = (Seen((home / name / "report" / "report.html").read_text("utf-8")) for name in ("wild", "tame"))
    assert outside(wild) == outside(tame)
    assert {key for key, _ in wild.attributes} == {key for key, _ in tame.attributes}
    assert harmless("".join(text for _, text in wild.lines))
    cells = {text for tag, text in wild.lines if tag in ("td", "h1", "li", "p")}
    assert {visible(label) for label in LABELS} <= cells
    assert visible(QUESTION) in cells
    for text in ANYTHING[-len(ARMS) :]:
        first = next(line.strip() for line in text.splitlines() if line.strip())
        assert visible(first) in cells, text


def test_pictures_keep_colours_and_words_in_labels_apart(home: Path) -> None:
    """Mutant check: the page's colours put in place of a label that is called like one."""
    html = (home / "wild" / "report" / "report.html").read_text("utf-8")
    titles = [text for tag, text in Seen(html).lines if tag == "text"]
    assert titles
    assert "#666666" in "".join(titles)
    assert "var(--" not in "".join(titles)
    assert 'id="differences-' not in "".join(titles)
    assert "$x^2$" in (home / "wild" / "report" / "report.html").read_text("utf-8")


def test_the_sweep_on_the_page_is_json_that_can_be_copied(home: Path) -> None:
    for name in ("wild", "tame"):
        html = (home / name / "report" / "report.html").read_text("utf-8")
        blocks = [text for tag, text in Seen(html).lines if tag == "pre"]
        (sweep,) = (json.loads(text) for text in blocks if text.startswith("{"))
        assert sweep["question"] == (QUESTION if name == "wild" else "Is it better?")
        assert [arm["label"] for arm in sweep["arm"]] == (ARMS if name == "wild" else TAME)


def test_the_markdown_report_shows_the_same_words_and_no_element_more(home: Path) -> None:
    pages = {name: (home / name / "report" / "report.md").read_text("utf-8") for name in ("wild", "tame")}
    wild, tame = (read_markdown(pages[name]) for name in ("wild", "tame"))
    assert wild.shape == tame.shape
    assert wild.attributes == tame.attributes
    assert harmless(pages["wild"])
    cells = {text for _, text in wild.lines}
    assert {one_line(label) for label in LABELS} <= cells
    assert one_line(QUESTION) in cells


def test_results_are_raw(home: Path) -> None:
    table = pq.read_table(home / "wild" / "report" / "results.parquet")
    assert set(table["arm"].to_pylist()) == set(ARMS)
    kept = {text for text in table["message"].to_pylist() if text is not None}
    assert kept == {text.replace("\x00", "\\x00").replace("\udcff", "\\udcff") for text in ANYTHING[-len(ARMS) :]}


# MLflow


def test_mlflow_has_descriptions_that_are_text_and_tags_that_find_the_arm(home: Path) -> None:
    texts = _told(MlflowClient(embedded_uri(home)))
    texts["parent"], links = re.subn(
        r"\[[a-z ]+\]\(#/experiments/\d+/runs(/\w+/artifacts/report/report\.html)?\?[\w=&]+\)", "", texts["parent"]
    )
    assert links == 4, "to the report, and to pages of MLflow: arms, as table and charts, and curves"
    for where, text in texts.items():
        seen = read_markdown(text)
        assert not {"img", "a", "script", "del", "hr", "h2"} & set(seen.tags), (where, text)
        assert harmless(text), where
    said = {where: read_markdown(text).text for where, text in texts.items()}
    assert one_line(QUESTION) in said["experiment"]
    assert one_line(QUESTION) in said["parent"]
    for label in ARMS:
        assert any(one_line(label) in text for text in said.values()), label
    own = [text for where, text in texts.items() if where not in ("experiment", "parent")]
    assert all(read_markdown(text).tags == ["p", "strong"] for text in own)
    with contextlib.closing(RunFolder(home / "tame").open()) as ledger:
        assert set(read_markdown(texts["parent"]).tags) <= set(
            read_markdown(report.note(report.summarize(ledger))).tags
        )
    assert texts["parent"].rstrip().endswith("`tags.arm = '...'`."), "long labels leave room for the end"


def _told(client: MlflowClient) -> dict[str, str]:
    """Every description that MLflow has of the run."""
    folder = RunFolder(Path(str(client.tracking_uri).removeprefix("sqlite:///")).parent / "wild")
    with contextlib.closing(folder.open()) as ledger:
        owned, uuid = str(ledger.run.mlflow_experiment_id), ledger.uuid
    found = {"experiment": client.get_experiment(owned).tags[NOTE]}
    for one in client.search_runs([owned], f"tags.`orchestrator.run` = '{uuid}'", max_results=500):
        kind = one.data.tags["orchestrator.kind"]
        of_arm = f"arm {one.data.tags['arm']}" if kind == "arm" else None
        where = "parent" if kind == "sweep" else of_arm or one.data.tags["orchestrator.trial"]
        found[where] = one.data.tags[NOTE]
        assert harmless(one.info.run_name)
        if kind != "sweep":
            assert one.data.tags["arm"] in ARMS, "which people search by"
    return found


def test_numbers_of_arms_are_told_apart_though_mlflows_names_hold_few_characters(home: Path) -> None:
    with contextlib.closing(RunFolder(home / "wild").open()) as ledger:
        answer = report.summarize(ledger)
    named = report.numbers(answer)
    assert len([key for key in named if key.startswith("mean/")]) == sum(arm.mean is not None for arm in answer.arms)
    assert len({encoders.name_of(label) for label in ARMS}) > 1
    assert all(harmless(encoders.name_of(label)) for label in ARMS)


def test_two_labels_that_differ_in_what_mlflow_does_not_take_have_numbers_of_their_own() -> None:
    named = metric_names(["lr!", "lr?", "lr_", "other"])
    assert len(set(named.values())) == 4
    assert named["other"] == "other"
    assert all(re.fullmatch(r"[\w\-/ .:]+", name) for name in named.values())


# An encoder's card


@pytest.mark.parametrize("text", [text for text in ANYTHING if "\udcff" not in text])
def test_the_card_of_an_encoder_shows_run_arm_and_question_as_they_are(text: str) -> None:
    job = JobConfig.model_validate({"task": "image", "budget": {"samples": 1000},
                                    "data": {"train": "digits", "tune": "digits", "confirm": "digits"}})  # fmt: skip
    settings: Settings = {"task": "image", "width": 8, "hidden": 8, "pooling": "map", "head": [], "code": None,
                          "image_shape": [1, 8, 8], "load": {}, "precision": "fp32", "prefix_tokens": 0, "prompt": "",
                          "normalise": False, "lower": False, "skipped": 0, "max_tokens": None}  # fmt: skip

    def page(said: str) -> Seen:
        about = card.About(question=said, run=said, arm=said)
        written = card.text(about, job, trial="t", step=1, points=[], settings=settings)
        front, _, rest = written.removeprefix("---\n").partition("\n---\n")
        assert front.splitlines() == ["library_name: sentence-transformers", "pipeline_tag: image-feature-extraction"]
        assert harmless(written)
        return read_markdown(rest)

    seen = page(text)
    assert seen.tags == page("tame").tags
    assert ("p", one_line(text)) in seen.lines
    assert [line for line in seen.lines if line == ("td", one_line(text))] == [("td", one_line(text))] * 2
    assert ("h1", f"Image encoder: {one_line(text)}") in seen.lines


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """After which MLflow's client is asked no more: playwright runs an event loop in this thread."""
    with chromium() as opened:
        yield opened


def heard(page: Page) -> tuple[list[str], list[str]]:
    """What a page asks for from now on, and what scripts on it say."""
    asked: list[str] = []
    said: list[str] = []

    def dismiss(dialog: Dialog) -> None:
        said.append(dialog.message)
        dialog.dismiss()

    page.on("request", lambda one: asked.append(one.url))
    page.on("dialog", dismiss)
    return asked, said


@pytest.mark.slow
def test_a_browser_runs_and_loads_nothing(home: Path, browser: Browser) -> None:
    page = browser.new_page()
    asked, said = heard(page)
    page.goto((home / "wild" / "report" / "report.html").as_uri())
    assert page.locator("h1").inner_text() == " ".join(visible(QUESTION).split())
    assert asked == [(home / "wild" / "report" / "report.html").as_uri()]
    assert said == []
    assert page.evaluate("document.querySelectorAll('img, script, a, iframe').length") == 0


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[str]:
    """MLflow's own, with what it was told."""
    port = free_port()
    with (home / "server.log").open("wb") as log:
        command, environment = ui_command(embedded_uri(home), port=port), os.environ | UI_ENVIRONMENT
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(lambda: process.poll() is not None or answers(port), seconds=90, what="MLflow's answer")
        assert process.poll() is None, (home / "server.log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
            return bool(answer.read() == b"OK")
    except OSError:
        return False


@pytest.mark.soak
@pytest.mark.slow
def test_mlflows_pages_show_the_words_and_load_nothing_for_them(home: Path, browser: Browser, server: str) -> None:
    """Its own reader of Markdown, of which there is none in Python. Mutant check: a question that is told as it is."""
    page = browser.new_page(viewport={"width": 1800, "height": 1100})
    page.set_default_timeout(60_000)
    asked, said = heard(page)
    with contextlib.closing(RunFolder(home / "wild").open()) as ledger:
        experiment, parent = str(ledger.run.mlflow_experiment_id), str(ledger.run.mlflow_run_id)
        lost = {trial.message: trial for trial in ledger.trials() if trial.failure}
    page.goto(f"{server}/#/experiments/{experiment}/runs/{parent}?workflowType=machine_learning")
    note = page.get_by_test_id("note-editor-preview-content")
    note.get_by_text("better?").first.wait_for()
    assert " ".join(one_line(QUESTION).split()) in " ".join(note.inner_text().split())
    shot(page, "mlflow-hostile-answer", whole=False)
    for message, trial in lost.items():
        if message is None or len(message) > 1000:
            continue
        page.goto(f"{server}/#/experiments/{experiment}/runs/{trial.mlflow_run_id}?workflowType=machine_learning")
        page.get_by_text(f"seed {trial.seed}: failed").first.wait_for()
        words = " ".join(note.inner_text().split())
        assert " ".join(one_line(trial.arm).split()) in words
        assert " ".join(one_line(message).split()) in words
    page.goto(f"{server}/#/experiments?workflowType=machine_learning")
    page.get_by_role("link", name="demo", exact=True).wait_for()
    shot(page, "mlflow-hostile-experiments", whole=False)
    assert not [url for url in asked if "evil.invalid" in url]
    assert said == []

"""What is written for people is true: the commands, the links, the table of faults."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from jobs.config import ConfigError, components
from orchestrator import sweep as sweeps
from orchestrator.cli import main
from orchestrator.sweep import plan as planning

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
SKIPPED = {".venv", ".git", "runs", "test-output", "build", "dist"}
PAGES = sorted(p for p in ROOT.rglob("*.md") if not SKIPPED & set(p.relative_to(ROOT).parts))
COMMANDS = sorted(main.commands)
INFRA = sorted(path.name for path in (ROOT / "infra").iterdir() if path.suffix in (".sh", ".yaml", ".sql"))


def code(page: str) -> list[str]:
    """The lines of a page's fenced blocks."""
    return [line for block in re.findall(r"^```.*?\n(.*?)^```", page, re.M | re.S) for line in block.splitlines()]


def command_lines(lines: list[str]) -> list[list[str]]:
    """The arguments of each `orchestrator ...` line, without what is said behind a # and where its output goes."""
    found = (line.strip().removeprefix("$ ").removeprefix(".venv/bin/").partition(" > ")[0] for line in lines)
    return [shlex.split(line, comments=True)[1:] for line in found if line.startswith("orchestrator ")]


def complaint(arguments: list[str]) -> str:
    """What the command line has against these arguments, the existence of files left aside; empty if nothing."""
    name, *rest = arguments
    command = main.commands.get(name)
    if command is None:
        return "" if name.startswith("-") else f"there is no command {name}"
    context = click.Context(command, info_name=name)
    try:
        command.make_parser(context).parse_args(rest)
    except click.UsageError as error:
        return error.format_message()
    return ""


def slugs(page: str) -> set[str]:
    """The anchors that a page's headings have on a code host."""
    plain = re.sub(r"^```.*?^```", "", page, flags=re.M | re.S)
    heads = re.findall(r"^#+ +(.*?)\s*$", plain, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def broken_links(page: str, folder: Path) -> list[str]:
    """Relative links of a page that lead nowhere."""
    plain = re.sub(r"^```.*?^```|`[^`\n]*`", "", page, flags=re.M | re.S)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)|<img[^>]*src=\"([^\"]+)\"", plain):
        path, _, anchor = "".join(target).partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        there = folder / path if path else None
        lost = there is not None and not there.exists()
        if lost or (anchor and anchor not in slugs(there.read_text("utf-8") if there else page)):
            broken.append("".join(target))
    return broken


# The README


def test_the_readme_says_what_this_is_by_line_3_and_how_to_start_by_line_15() -> None:
    lines = README.splitlines()
    assert lines[0].startswith("# ")
    assert any(len(line.split()) >= 6 and not line.startswith(("#", "!", "<", "[")) for line in lines[1:3])
    for command in ("make quickstart", "make test"):
        assert any(command in line for line in lines[:15]), f"{command} belongs in the first 15 lines"


def test_the_readme_is_read_in_a_few_minutes() -> None:
    assert 110 <= len(README.splitlines()) <= 130


SWEEPS = [page for page in PAGES if "```toml" in page.read_text("utf-8") and page.name != "components.md"]
"""Pages with sweeps. Those of components.md need its code: see the last test."""


@pytest.mark.parametrize("page", SWEEPS, ids=lambda p: p.name)
def test_a_sweep_on_a_page_is_one(page: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"^```toml\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    for number, block in enumerate(blocks):
        path = tmp_path / f"{number}.toml"
        path.write_text(block)
        made = planning.make(sweeps.load(path))
        assert len(made.arms) > 1


def test_every_page_of_the_manual_is_linked_from_the_readme() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{page.name})" in README


@pytest.mark.parametrize("name", INFRA)
def test_every_file_for_a_cluster_is_told_of_in_its_readme(name: str) -> None:
    assert name in (ROOT / "infra" / "README.md").read_text("utf-8")


# Commands


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_an_example_that_it_accepts(name: str) -> None:
    text = main.commands[name].help or ""
    examples = [line for line in text.splitlines() if line.strip().startswith(f"orchestrator {name}")]
    assert examples, f"`{name}` needs an example"
    for arguments in command_lines(examples):
        assert complaint(arguments) == "", " ".join(arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_command_on_a_page_is_one_that_exists(page: Path) -> None:
    """Fenced `orchestrator ...` lines parse, and every `make target`, fenced or in back quotes, is a target."""
    text = page.read_text("utf-8")
    for arguments in command_lines(code(text)):
        assert complaint(arguments) == "", f"orchestrator {' '.join(arguments)}"
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    named = [
        *re.findall(r"`make ([a-z]+)", text),
        *re.findall(r"^\s*(?:\$ )?make ([a-z]+)", "\n".join(code(text)), re.M),
    ]
    assert set(named) <= targets


def test_the_readme_names_every_command() -> None:
    for name in COMMANDS:
        assert re.search(rf"orchestrator {name}\b", README), f"`orchestrator {name}` is not in the README"


# Links


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_between_pages_resolve(page: Path) -> None:
    assert broken_links(page.read_text("utf-8"), page.parent) == []


# The instruments


def test_a_broken_link_is_found() -> None:
    page = (
        "# One head, two\n[a](LICENSE) [b](gone.md) [c](#one-head-two) [d](#gone) [e](https://x.y/z) `[f](code.md)`\n"
    )
    assert broken_links(page, ROOT) == ["gone.md", "#gone"]


def test_a_wrong_example_is_found() -> None:
    (good, bad, gone) = command_lines(
        ["$ orchestrator status runs/x --json  # a remark", "orchestrator status runs/x --jsno", "orchestrator begin"]
    )
    assert good == ["status", "runs/x", "--json"]
    assert complaint(good) == ""
    assert "--jsno" in complaint(bad)
    assert complaint(gone) == "there is no command begin"


FAULT_ROWS = re.findall(r"^\| (\d+) \| (.*) \|$", (ROOT / "infra" / "FAULTS.md").read_text("utf-8"), re.M)


@pytest.mark.parametrize(("number", "row"), FAULT_ROWS, ids=[number for number, _ in FAULT_ROWS])
def test_every_row_of_the_fault_table_names_tests_that_are_there(number: str, row: str) -> None:
    """Mutant check: a row without a test, or with the name of a file that is gone, fails this."""
    _, _, tests, _ = (cell.strip() for cell in re.split(r"(?<!\\)\|", row))
    named = re.findall(r"`(tests/[^`]+\.py)`", tests)
    assert named, f"row {number} names no test"
    for name in named:
        assert (ROOT / name).is_file(), f"row {number}: {name} is not there"


def test_the_rows_of_the_fault_table_are_counted_and_tests_name_rows_that_there_are() -> None:
    numbers = [int(number) for number, _ in FAULT_ROWS]
    assert numbers == list(range(1, len(numbers) + 1))
    tests = [path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    assert {int(number) for text in tests for number in re.findall(r"def test_row_(\d+)_", text)} <= set(numbers)


# Components


@pytest.mark.soak
def test_the_components_on_the_page_are_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's files are written down, its sweep is planned with them, and every other component is tried."""
    page = (ROOT / "docs" / "components.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n# (\S+)\n(.*?)^```", page, re.M | re.S)
    assert len(blocks) == 8
    for name, text in blocks:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "mylab" / "__init__.py").write_text("")
    sweep, of_a_task = re.findall(r"^```toml\n(.*?)^```", page, re.M | re.S)
    (tmp_path / "task.toml").write_text(of_a_task)
    assert len(planning.make(sweeps.load(tmp_path / "task.toml")).arms) == 2
    parts = """
augment = { name = "mylab.parts:solarised", options = { above = 0.6 } }
optimizer = { schedule = "mylab.parts:staircase", transform = "mylab.parts:GradientNoise" }
evaluate = { after = "mylab.parts:centred", metrics = METRICS, metric_options = { nearest_share = { k = 3 } } }
""".replace("METRICS", '["mylab.parts:nearest_share", "mylab.balanced:balanced_accuracy"]')
    text = sweep.replace("budget = {", parts.strip() + "\nbudget = {")
    text = text.replace('confirm = "digits[1400:]" }', 'confirm = "digits[1400:]", sampler = "mylab.parts:in_order" }')
    text = text.replace('model = { name = "resnet", width = 8, layers = 1 }', 'model = { name = "mylab.parts:Flat" }')
    names = '"mylab.moving:Centred", "mylab.checked:banded"]'
    text = text.replace('"mylab.losses:vicreg"]', f'"mylab.losses:vicreg", {names}')
    for number, whole in enumerate((sweep, text)):
        path = tmp_path / f"{number}.toml"
        path.write_text(whole)
        made = planning.make(sweeps.load(path))
        assert len(made.arms) == (5 if number else 3)
    loop = re.sub(r'model = .*|batch = .*|"loss.*', "", sweep).replace('task = "image"', 'task = "mylab.train:main"')
    loop = loop.replace("samples = 3_200", "steps = 20").replace('"knn_accuracy"', '"accuracy", mode = "max"')
    loop = loop.replace("[compare]", '[compare]\n"options.lr" = [0.1, 0.2]').replace(
        "ranks = 2, verify = true", "ranks = 1"
    )
    (tmp_path / "loop.toml").write_text(loop.partition("[tune]")[0])
    assert len(planning.make(sweeps.load(tmp_path / "loop.toml")).arms) == 2
    path.write_text(text.replace("k = 3", "n = 3"))
    with pytest.raises(ConfigError, match=r"metric_options.*n = 3: unknown key"):
        sweeps.load(path)


def test_the_table_of_kinds_names_what_each_is_called_with() -> None:
    """Mutant check: an argument that a protocol has and the page does not."""
    page = (ROOT / "docs" / "components.md").read_text("utf-8")
    rows = {cells[0]: cells[2] for cells in re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| [^|]+ \|$", page, re.M)}
    for name, kind in components.KINDS.items():
        if name not in ("loss", "task"):
            cell = rows["gradient transform" if name == "transform" else name]
            assert {*re.findall(r"`(\w+)`", cell)} == {*kind.provided} - {*kind.beside}, name
    losses = page.partition("| argument | is |")[2].partition("\n\n")[0]
    cells = " ".join(line.split("|")[1] for line in losses.splitlines() if "|" in line)
    assert {*re.findall(r"`(\w+)`", cells)} == {*components.LOSS.provided} - {"v"}

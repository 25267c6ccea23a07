"""Dependencies point down, and what must be quick imports nothing heavy.

Two instruments: the syntax tree of every file, which also sees imports inside functions, and a fresh process that
imports a module and is asked what came with it. Both are shown to be able to fail.
"""

from __future__ import annotations

import ast
import os
import re
import resource
import subprocess
import sys
from functools import cache
from pathlib import Path

import figures
import pytest
from shelves import ROOT, arrows, levels, with_picture

FILES = sorted(str(p.relative_to(ROOT)) for top in ("jobs", "orchestrator") for p in (ROOT / top).rglob("*.py"))
HEAVY = "torch ray optuna mlflow transformers sklearn pandas matplotlib"

QUICK = [
    *(
        "jobs.config",
        "jobs.config.identity",
        "jobs.core.provenance",
        "jobs.data.validate",
        "jobs.models",
        "jobs.workers.node_info",
        "orchestrator.sweep",
        "orchestrator.sweep.plan",
        "orchestrator.ledger",
        "orchestrator.statistics",
    ),
    *("orchestrator.sweep.search", "orchestrator.run_dir.folder", "orchestrator.session.session", "orchestrator.cli"),
    "orchestrator.cli.python",
]
"""Modules that the verbs without training need."""

LIGHT = (
    "jobs.config",
    *("jobs.core.failures", "jobs.core.paths", "jobs.core.plain", "jobs.core.provenance"),
    *(
        "jobs.artifacts.bucket",
        "jobs.artifacts.manifest",
        "jobs.artifacts.objects",
        "jobs.artifacts.rows",
        "jobs.artifacts.storage",
        "jobs.artifacts.trial_dir",
    ),
)
"""Modules of jobs that the orchestrator may import."""

OWNERS = {
    "ray": (
        "jobs/workers/group.py",
        "orchestrator/session/tune_executor.py",
        "orchestrator/session/cluster",
    ),
    "ray.tune": ("orchestrator/session/tune_executor.py",),
    "ray.train": (),
    "optuna": ("orchestrator/sweep/search/sampling.py",),
    "mlflow": ("orchestrator/tracking",),
    "sqlalchemy": ("orchestrator/ledger",),
    "torch": ("jobs/", "orchestrator/sweep/search/sampling.py"),  # where Optuna computes with it, for `gp` alone
    "transformers": ("jobs/",),
    "orchestrator": ("orchestrator/",),
}
"""Who may import a package: paths, or the beginnings of paths."""


def imports(source: str, folder: str = "") -> set[str]:
    """Every module that a file of `folder` imports, wherever in it, `from a import b` as both `a` and `a.b`. What
    stands under `if __name__ == "__main__"` is how a file is started and not what it needs."""
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and "__main__" in ast.dump(node.test))]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = folder.split("/")[: len(folder.split("/")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


@cache
def imports_of(path: str) -> set[str]:
    return imports((ROOT / path).read_text("utf-8"), str(Path(path).parent))


def uses(found: set[str], package: str) -> bool:
    return any(name == package or name.startswith(package + ".") for name in found)


def leaked(modules: str, forbidden: str) -> list[str]:
    """Which of `forbidden` a fresh process holds after importing `modules`, which are separated by commas."""
    probe = f"import sys, {modules}; print(*(m for m in {forbidden.split()} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.split()


def test_there_are_files_to_check() -> None:
    assert "jobs/config/job.py" in FILES


# What may be imported by whom


@pytest.mark.parametrize("path", FILES)
def test_only_the_owner_imports_a_package(path: str) -> None:
    """Mutant check: `import ray` inside a function of jobs/train/loop.py fails this."""
    for package, owners in OWNERS.items():
        if not path.startswith(owners):
            assert not uses(imports_of(path), package), f"{package} may be imported by {' '.join(owners) or 'nobody'}"


@pytest.mark.parametrize("path", [path for path in FILES if path.startswith("orchestrator/")])
def test_the_orchestrator_imports_of_jobs_what_needs_neither_torch_nor_ray(path: str) -> None:
    """And the executor the group of ranks, which needs ray."""
    allowed = (*LIGHT, *(["jobs.workers.group"] if path.endswith("tune_executor.py") else []))
    used = {
        name for name in imports_of(path) if name.startswith("jobs.") and not any(uses({name}, one) for one in allowed)
    }
    folders = {one.rpartition(".")[0] for one in allowed}
    assert used <= folders, "workers are started, or run as `python -m jobs.NAME`; they are not imported"


# Shelves


@pytest.mark.parametrize("folder", sorted({str(Path(path).parent) for path in FILES}))
def test_every_module_has_its_place_on_a_shelf_of_twelve(folder: str) -> None:
    """Mutant check: a new file without a place in tests/house/shelves.py fails this."""
    there = {Path(path).stem for path in FILES if str(Path(path).parent) == folder}
    there |= {path.parent.name for path in (ROOT / folder).glob("*/__init__.py")}
    assert there - {"__init__"} == set(levels(folder)), f"give each its place in SHELVES of {folder}"
    assert len(there - {"__init__"}) <= 12


def test_every_arrow_points_down() -> None:
    """And so there is no circle. Mutant check: importing orchestrator.report from orchestrator/ledger fails this."""
    up = {
        f"{folder}: {user} imports {used}"
        for folder, user, used in arrows()
        if levels(folder)[user] >= levels(folder)[used]
    }
    assert not up
    assert len(arrows()) > 300


def test_the_picture_is_made_of_the_table() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    assert page == with_picture(page), "python tests/house/shelves.py write"


def test_the_house_keeps_its_limits_and_a_house_that_does_not_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert figures.main([]) == 0
    for top in ("jobs", "orchestrator"):
        (tmp_path / top).mkdir()
        (tmp_path / top / "__init__.py").touch()
        (tmp_path / top / "one.py").write_text(f"import {top}.two\n\nclass A:\n    def f(self): pass\n" + "\n" * 460)
        (tmp_path / top / "two.py").write_text(f"from {top} import one\n")
    assert figures.main([str(tmp_path)]) == 1
    over = [line.partition("  ")[0] for line in capsys.readouterr().out.splitlines() if "OVER" in line]
    assert over == ["longest file, lines", "circles"]


# Words

BANNED = [
    "Again",
    "COMPUTING",
    "FAR",
    "HEAR_S",
    "Pace",
    "Problem",
    "Pulse",
    "PULSE_S",
    "BLAME_S",
    "TURN_S",
    "ServerAway",
    "Work",
    "aside_of",
    "attend",
    "bring_",
    "described",
    "glance",
    "grows",
    "hand_over",
    "hung_",
    "judged_on",
    "mark_of",
    "set_aside",
    "withheld",
    "_hear",
    "_meetings",
    "_told_apart",
]
"""Names that said what something is in the grammar of a sentence; docs/glossary.md has the words of today."""


@pytest.mark.parametrize("path", FILES)
def test_names_are_words_of_the_field(path: str) -> None:
    """Mutant check: `Pace` in place of `BudgetMeter` fails this."""
    names = {
        getattr(node, key, None)
        for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8")))
        for key in ("id", "arg", "attr", "name")
    }
    assert not names & set(BANNED)


VERBS = frozenset(
    """
    Accept Add Allow Answer Append Apply Ask Audit Average Be Begin Bring Build Call Change Check Choose Claim
    Close Collect Combine Commit Compare Complete Compute Connect Continue Convert Copy Count Create Cut Deal
    Decide Decode Delete Derive Describe Determine Do Download Draw Embed Encode End Enqueue Escape Estimate
    Expand Explain Export Extract Fetch Fill Find Fit Flatten Follow Forget Format Gather Generate Give Go Group
    Guess Hand Handle Hash Have Hold Ignore Import Invert Join Judge Keep Label Leave Let List Load Lock Log
    Look Make Map Mark Mask Measure Merge Mine Move Name Note Number Open Pack Pair Parse Pass Permute Plan Prepare
    Print Probe Prove Provide Put Queue Quote Raise Read Rebuild Reconcile Record Reduce Refuse Release Remove
    Rename Render Renew Replace Report Require Resolve Return Round Run Save Say Scale See Seed Select Send
    Separate Serialise Serve Set Shorten Show Sort Split Stack Start State Stop Store Strip Submit Suggest Sum
    Summarise Take Tell Train Try Turn Undo Unpack Update Upload View Wait Warn Watch Weigh Wrap Write Yield
    """.split()  # noqa: SIM905 - lines of words
)
"""What the docstring of a function begins with, beside properties, which are named by what they are."""

STILTED = re.compile(r"for\s+want\s+of|\b(?:is|are|was|were|been)\s+told\b(?!\s+(?:from|apart))|\bof\s+ours\b")
"""Phrases that messages and pages do without."""


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text("utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def is_property(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(
        ast.unparse(mark).rpartition(".")[2] in ("property", "cached_property") for mark in function.decorator_list
    )


def test_the_docstring_of_a_function_begins_with_its_verb() -> None:
    """Mutant check: "The rows of a file." in place of "Return the rows of a file." fails this."""
    nouns = [
        f"{path}:{function.lineno} {text.split()[0]}"
        for path in FILES
        for function in functions(ROOT / path)
        if not is_property(function) and (text := ast.get_docstring(function))
        if text.split()[0].strip(".,:;") not in VERBS or re.match(r"(?!Warn)\w+ of\b", text)
    ]
    assert nouns == []


def test_messages_and_pages_are_in_plain_words() -> None:
    """Mutant check: "ended for want of memory" fails this."""
    pages = [
        *({*ROOT.glob("*.md")} - {ROOT / "CHANGELOG.md"}),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "infra").rglob("*"),
    ]
    texts = {path: path.read_text("utf-8") for path in (*map(ROOT.joinpath, FILES), *pages) if path.is_file()}
    assert [(path, phrases) for path, text in texts.items() if (phrases := STILTED.findall(text))] == []


# What comes with an import


@pytest.mark.parametrize("module", sorted({*QUICK, *LIGHT}))
def test_what_must_be_quick_imports_nothing_heavy(module: str) -> None:
    assert leaked(module, HEAVY) == [], f"{module} must not import these, even indirectly"


@pytest.mark.soak
def test_no_job_loads_torchs_compiler_unless_it_compiles() -> None:
    """Two seconds of processor time in every process that looks at data, and in every rank. Seen: a decorator of
    torch.compiler is enough."""
    assert leaked("jobs.train, jobs.data.validate, jobs.metrics.evaluate, jobs.export", "torch._dynamo sympy") == []


def test_jobs_import_no_orchestrator_and_only_the_group_of_ranks_imports_ray() -> None:
    modules = [path[:-3].replace("/", ".").removesuffix(".__init__") for path in FILES if path.startswith("jobs/")]
    plain = [name for name in modules if name != "jobs.workers.group" and not name.endswith("__main__")]
    assert leaked(",".join(plain), "orchestrator ray optuna mlflow") == []
    assert leaked("jobs.workers.group", "orchestrator ray optuna mlflow") == ["ray"]


def test_help_answers_at_once() -> None:
    """0.4 s of processor time, the best of five, as a busy machine says nothing about the program."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-c", "from orchestrator.cli import main; main()", "--help"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            env=os.environ,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(times) < 0.4


# The instruments


def test_the_probe_can_fail() -> None:
    """Also on what a module imports by way of another."""
    assert leaked("jobs.config", "torch pydantic pydantic_core ray") == ["pydantic", "pydantic_core"]


def test_the_syntax_tree_sees_imports_inside_functions() -> None:
    source = (
        "def f():\n    from ray import tune\n    import optuna.samplers as s\n"
        "if __name__ == '__main__':\n    import mlflow\n"
    )
    found = imports(source)
    assert uses(found, "ray.tune")
    assert uses(found, "optuna")
    assert not uses(found, "mlflow")
    assert not uses(found, "ray.train")
    assert not uses({"rayon"}, "ray")


def test_the_syntax_tree_resolves_relative_imports() -> None:
    assert imports("from .schema import runs", "orchestrator/ledger") >= {"orchestrator.ledger.schema"}
    assert imports("from ..report import text", "orchestrator/ledger") >= {"orchestrator.report.text"}
    assert imports("from . import text", "orchestrator/report") >= {"orchestrator.report.text"}

"""Dependencies point down, and what must be quick imports nothing heavy.

Two instruments: the syntax tree of every file, which also sees imports inside functions, and a fresh process that
imports a module and is asked what came with it. Both are shown to be able to fail.
"""

from __future__ import annotations

import ast
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
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
]
"""Modules that the verbs without training need."""

ORDER = {
    "orchestrator": "cli > driver submission > doctor > executor > tracking report cluster > analysis > ledger > "
    "plan > search > sweep",
    "jobs": "gang > train > step > losses collectives kernels models data evaluate optim checkpoint > provenance > "
    "config > identity",
}
"""From top to bottom, as in ARCHITECTURE.md. A module imports from the levels after its own, and in `jobs` from its own
level too. Modules without a place here must still not form a cycle."""

OWNERS = {
    "ray": (
        "jobs/workers/group.py",
        "orchestrator/session/tune_executor.py",
        "orchestrator/cluster",
        "orchestrator/submission",
    ),
    "ray.tune": ("orchestrator/session/tune_executor.py",),
    "ray.train": (),
    "optuna": ("orchestrator/sweep/search.py",),
    "mlflow": ("orchestrator/tracking",),
    "sqlalchemy": ("orchestrator/ledger",),
    "torch": ("jobs/", "orchestrator/sweep/search.py"),  # where Optuna computes with it, for `gp` alone
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


def exists(module: str) -> bool:
    path = ROOT / module.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def unit(path: str) -> str:
    """`ledger` for orchestrator/ledger.py and for every file of orchestrator/ledger/."""
    return Path(path).with_suffix("").parts[1]


def edges(top: str) -> Iterator[tuple[str, str]]:
    """(user, used) between the modules of a package, folders counting as one module."""
    units = {unit(path) for path in FILES if path.startswith(top + "/")}
    for path in FILES:
        for name in imports_of(path) if path.startswith(top + "/") else ():
            parts = name.split(".")
            if parts[0] == top and len(parts) > 1 and parts[1] in units - {unit(path)}:
                yield unit(path), parts[1]


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
def test_the_orchestrator_knows_only_what_a_job_is_and_the_executor_the_gang(path: str) -> None:
    """`verify.mending` knows a trial's folder too, and `remote` how files are uploaded: by modules that need neither
    torch nor ray."""
    more = {
        "orchestrator/session/tune_executor.py": {"gang"},
        "orchestrator/run_dir/bucket.py": {"storage"},
        "orchestrator/verify/mending.py": {"storage", "trial"},
    }
    allowed = {"config", "faults", "identity", "paths", "plain", "provenance"} | more.get(path, set())
    used = {name.split(".")[1] for name in imports_of(path) if name.startswith("jobs.")}
    assert used <= allowed, "workers are started, or run as `python -m jobs.NAME`; they are not imported"


@pytest.mark.parametrize("top", ORDER)
def test_modules_form_no_cycle(top: str) -> None:
    graph: dict[str, set[str]] = {}
    for user, used in edges(top):
        graph.setdefault(user, set()).add(used)
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"{top}: {' -> '.join(error.args[1])}")
    assert len(order) > 1 or len(FILES) < 5


@pytest.mark.parametrize("top", ORDER)
def test_every_arrow_points_down(top: str) -> None:
    """Mutant check: importing orchestrator.report from orchestrator/ledger fails this."""
    level = {name: depth for depth, line in enumerate(ORDER[top].split(" > ")) for name in line.split()}
    for user, used in edges(top):
        if user in level and used in level:
            aside = top == "jobs" and level[user] == level[used]
            assert level[user] < level[used] or aside, f"{user} imports {used}"


# What comes with an import


@pytest.mark.parametrize("module", [module for module in QUICK if exists(module)])
def test_what_must_be_quick_imports_nothing_heavy(module: str) -> None:
    assert leaked(module, HEAVY) == [], f"{module} must not import these, even indirectly"


def test_no_job_loads_torchs_compiler_unless_it_compiles() -> None:
    """Two seconds of processor time in every process that looks at data, and in every rank. Seen: a decorator of
    torch.compiler is enough."""
    assert leaked("jobs.train, jobs.data.validate, jobs.metrics.evaluate, jobs.export", "torch._dynamo sympy") == []


def test_jobs_import_no_orchestrator_and_only_the_gang_imports_ray() -> None:
    modules = [path[:-3].replace("/", ".").removesuffix(".__init__") for path in FILES if path.startswith("jobs/")]
    plain = [name for name in modules if name != "jobs.workers.group" and not name.endswith("__main__")]
    assert leaked(",".join(plain), "orchestrator ray optuna mlflow") == []
    if "jobs.workers.group" in modules:
        assert leaked("jobs.workers.group", "orchestrator ray optuna mlflow") == ["ray"]


@pytest.mark.skipif(not exists("orchestrator.cli"), reason="there is no command line yet")
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
    assert imports("from ..report import text", "orchestrator/ledger") >= {"orchestrator.report.formatting"}
    assert imports("from . import text", "orchestrator/report") >= {"orchestrator.report.formatting"}

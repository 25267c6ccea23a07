"""Where every module stands, and what may import what: the table that test_architecture.py holds the code to, and from
which the picture in ARCHITECTURE.md is made.

    python tests/house/shelves.py         print the picture
    python tests/house/shelves.py write   put it into ARCHITECTURE.md
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]

TABLE = "*"
"""In place of a folder's modules: its files and the families below it are the table, so that a component is added by
its own file alone. They may use one another."""

SHELVES = {
    "jobs": "workers > train > export mine > metrics > data > artifacts losses models optim > core > config",
    "jobs/artifacts": "audit > bucket checkpoint rows > trial_dir > objects storage > manifest",
    "jobs/config": "catalogue job > identity > sections > after_sections > data_sections > section > "
    "components validation > json_values protocols user_code",
    "jobs/core": "failures > collectives device ids outcomes paths plain provenance randomness usage",
    "jobs/data": "__main__ > validate > tasks > images sentences > sources > resolve > formats > "
    "batches faults remedies > samplers",
    "jobs/data/formats": "objects tables > arrow decoded lines quick",
    "jobs/data/images": "pixels > encoded > links > arrays > augmentations decoding finding layout mistaken survey",
    "jobs/data/images/augmentations": TABLE,
    "jobs/data/samplers": TABLE,
    "jobs/data/tasks": "judging > sets",
    "jobs/data/sentences": "judged retrieval > scored > beside cells duplicates > augmented > tokens > pools > texts > "
    "columns > augmentations",
    "jobs/data/sentences/augmentations": TABLE,
    "jobs/data/sentences/retrieval": "files",
    "jobs/export": "attention_module image_module > __main__ card folder > embed",
    "jobs/losses": "named > generic > tiled > agreement stream > masks > tiles > builtin > spec",
    "jobs/losses/builtin": TABLE,
    "jobs/losses/builtin/scored": TABLE,
    "jobs/losses/builtin/weighted": TABLE,
    "jobs/losses/builtin/with_state": TABLE,
    "jobs/losses/builtin/without_negatives": TABLE,
    "jobs/mine": "__main__ > in_training",
    "jobs/metrics": "tasks > judges > evaluate > builtin kept > judged > after search",
    "jobs/metrics/after": TABLE,
    "jobs/metrics/tasks": TABLE,
    "jobs/metrics/builtin": TABLE,
    "jobs/metrics/builtin/isotropy": TABLE,
    "jobs/metrics/builtin/pairs": TABLE,
    "jobs/metrics/builtin/ranking": TABLE,
    "jobs/metrics/judges": TABLE,
    "jobs/models": "model > encoders fitness > reading > transformer > modeling_resnet pretrained > dropout errors mlm "
    "poolings resnet",
    "jobs/models/encoders": TABLE,
    "jobs/models/poolings": TABLE,
    "jobs/models/pretrained": "weights > anatomy > folder > modules tokenizer",
    "jobs/optim": "builtin schedules transforms > average eager layers",
    "jobs/optim/builtin": TABLE,
    "jobs/optim/builtin/exponentiated": TABLE,
    "jobs/optim/builtin/layerwise": TABLE,
    "jobs/optim/builtin/signs": TABLE,
    "jobs/optim/schedules": TABLE,
    "jobs/optim/transforms": TABLE,
    "jobs/train": "__main__ components > function loop > resumable > gradient_check microbatches > "
    "budget continuing guide origin step",
    "jobs/train/components": "__main__ > judging > training",
    "jobs/workers": "group > heartbeat profile report > memory network node_info streams",
    "orchestrator": "cli > driver > preflight verify > tracking > report > session > run_dir > ledger sweep > "
    "statistics system",
    "orchestrator/cli": "__main__ > answer python > commands comparing reading > places > group > "
    "printing schema > submission",
    "orchestrator/cli/python": "run > child records written",
    "orchestrator/cli/schema": "answers > shapes sweep",
    "orchestrator/cli/submission": "bring > verbs > follow > asking meaning > package parcel server > rest",
    "orchestrator/ledger": "ledger > writing > reading > rows > lease readonly > "
    "database > outage postgres schema > records > stored",
    "orchestrator/preflight": "doctor spread > checks estimate > findings node requirements",
    "orchestrator/preflight/estimate": "history probing text > model",
    "orchestrator/report": "incumbent mlflow_note terminal write > parquet render > tables > summary > "
    "formatting naming swaps variance",
    "orchestrator/report/render": "page > plots > cost differences levels lines tuned > looks > figure",
    "orchestrator/report/summary": "multi_run outside > evidence > arms best warnings > "
    "budgets compatibility pairs sentences > untested > records",
    "orchestrator/report/summary/outside": "judging > direction reading",
    "orchestrator/report/summary/records": "views > metrics tuning > plain_json",
    "orchestrator/report/tables": "content > answers grids uncertainty > measures > blocks",
    "orchestrator/run_dir": "export > context creation provenance > own_code rows > folder > bucket environment status",
    "orchestrator/session": "ending shutdown tune_executor > holding session > writer > cluster progress schedule > "
    "reports",
    "orchestrator/session/cluster": "headwatch slots > inquiry picture room start > access board capacity sharing",
    "orchestrator/session/schedule": "extension swapping > confirming pruning stopping",
    "orchestrator/statistics": "comparison > looks > judging which > described joint > "
    "intervals pairing power rows tests > numbers",
    "orchestrator/sweep": "plan > load search > components validate > labels limits "
    "overrides shape space > model > values",
    "orchestrator/sweep/model": "metric",
    "orchestrator/sweep/plan": "examined summary swaps trials warnings > seeds",
    "orchestrator/sweep/search": "sampling",
    "orchestrator/sweep/space": "grid multiples > conditions",
    "orchestrator/system": "scratch > exit_codes > addresses terminal > display masking process threads versions",
    "orchestrator/tracking": "projection publish ui > settle > arms > runs > store > "
    "encoders pyfunc_model view > metadata",
    "orchestrator/verify": "mending > disk_checks ledger_checks mlflow_checks origin_checks > facts",
}
"""Folder -> its modules and folders from top to bottom, levels apart by `>`. One imports from the levels below its own.
`__init__` has no place in it: it is the folder's own, which gathers what is below."""

BEGIN, END = "```\n", "```\n"

WIDTH, START = 120, "  START HERE"


def levels(folder: str) -> dict[str, int]:
    """Depth of each unit of a folder, 0 at the top."""
    if SHELVES[folder] == TABLE:
        files = (path.stem for path in (ROOT / folder).glob("*.py") if path.stem != "__init__")
        families = (path.parent.name for path in (ROOT / folder).glob("*/__init__.py"))
        return dict.fromkeys((*files, *families), 0)
    return {name: depth for depth, level in enumerate(SHELVES[folder].split(" > ")) for name in level.split()}


@cache
def modules(root: Path = ROOT) -> dict[str, str]:
    """Dotted name -> path of every module of both packages."""
    paths = sorted(path.relative_to(root) for top in ("jobs", "orchestrator") for path in (root / top).rglob("*.py"))
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path.as_posix() for path in paths}


def imported(source: str, package: str, known: set[str]) -> Iterator[str]:
    """The modules of `known` that a source in `package` imports, wherever in it, as far down as they are named."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                if whole in known or base in known:
                    yield whole if whole in known else base


@cache
def arrows(root: Path = ROOT) -> list[tuple[str, str, str]]:
    """(folder, user, used) for each import between two units of a folder: where the paths of both modules part."""
    known = modules(root)
    found = []
    for name, path in known.items():
        package = name if path.endswith("__init__.py") else name.rpartition(".")[0]
        for other in imported((root / path).read_text("utf-8"), package, set(known)):
            mine, its = path.split("/"), known[other].split("/")
            depth = next((at for at, (a, b) in enumerate(zip(mine, its, strict=False)) if a != b), None)
            if depth:
                user, used = (part[depth].removesuffix(".py") for part in (mine, its))
                if "__init__" not in (user, used) and SHELVES.get("/".join(mine[:depth])) != TABLE:
                    found.append(("/".join(mine[:depth]), user, used))
    return found


def picture() -> str:
    """The folders and files from top to bottom, each with the first sentence of what it says of itself."""
    lines: list[str] = []
    for top in ("orchestrator", "jobs"):
        lines += [f"{top + '/':<24}{_sentence(top)}", *_below(top, 1)]
        if top == "orchestrator":
            lines.append(" ===== the boundary: ranks import what is below it, which imports nothing of what is above")
    return "\n".join(line if len(line) <= WIDTH else _cut(line) for line in lines) + "\n"


def _cut(line: str) -> str:
    """A line up to its colon, or else to the last comma that leaves it short enough."""
    head, colon, rest = line.partition(": ")
    mark = START if rest.endswith(START) else ""
    return f"{head}{mark}" if colon and len(head) <= WIDTH else line[:WIDTH].rpartition(", ")[0]


def _below(folder: str, depth: int) -> Iterator[str]:
    for name in levels(folder):
        inner = f"{folder}/{name}"
        if inner in SHELVES:
            yield f"{'  ' * depth + name + '/':<24}{_sentence(inner)}"
            yield from _below(inner, depth + 1)
        elif depth == 1:
            yield f"{'  ' * depth + name + '.py':<24}{_sentence(inner)}"


def _sentence(unit: str) -> str:
    path = ROOT / unit
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text("utf-8")
    text = " ".join((ast.get_docstring(ast.parse(source)) or "").split())
    first = text.partition(". ")[0].removesuffix(".")
    return f"{first}{START}" if START.strip() in text and START.strip() not in first else first


def with_picture(page: str) -> str:
    """ARCHITECTURE.md with today's picture in the place of its first block."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}{picture()}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    page = ROOT / "ARCHITECTURE.md"
    if sys.argv[1:] == ["write"]:
        page.write_text(with_picture(page.read_text("utf-8")), "utf-8")
    else:
        sys.stdout.write(picture())

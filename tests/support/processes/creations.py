"""Kills a process that creates a run at every line of the creation, and sees that the next one begins the same run.

    python tests/support/processes/creations.py SWEEP.toml WHERE DATABASE EVERY

WHERE: a folder or a URI that does not exist yet; each creation takes one beside it. DATABASE: a URL, or "" for a ledger
in the folder. EVERY: 1 for every line that Python runs there, 7 for every seventh. Prints one line for each that went
wrong, and then how many kills there were. Every step is a process forked from this one, which itself opens no
database and no bucket.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

from orchestrator import sweep
from orchestrator.ledger import Ledger, LedgerError, LedgerMissing, database, ledger, sqlite_url
from orchestrator.run_dir import creation
from orchestrator.run_dir import folder as runs
from orchestrator.run_dir.bucket import RemoteError
from orchestrator.run_dir.environment import Origin, environment, origin
from orchestrator.sweep import plan
from orchestrator.system.exit_codes import InfrastructureMissing

TRACED = {module.__file__ for module in (creation, ledger, database)}


def forked(function: Callable[[], Any]) -> tuple[int, Any]:
    """Carry out in a process of its own. Returns the signal that ended it, or 0, and what was returned or raised."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        result: Any = "it ended in an error of Python's"
        try:
            result = function()
        except (ValueError, OSError, LedgerError, RemoteError, InfrastructureMissing):
            result = traceback.format_exc()
        finally:
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump(result, pipe)
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        content = pipe.read()
    _, status = os.waitpid(child, 0)
    return status & 0x7F, pickle.loads(content) if content else None


def create(sweep_file: Path, where: str, *, die_at: int | None) -> str:
    """Begin a run as `launch` does. die_at: kill this process before that line, counted from 1."""
    folder, left = runs.at(where), die_at

    def on_line(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in TRACED:
            return None
        if event == "line" and left is not None:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return on_line

    planned = plan.make(sweep.load(sweep_file))
    if left is not None:
        sys.settrace(on_line)
    try:
        if not folder.exists:
            creation.refuse_what_is_no_run(folder, sweep_file)
            creation.create(sweep_file, planned, folder).close()
    finally:
        sys.settrace(None)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.check_out()
    return "created"


def stands(sweep_file: Path, where: str, others: set[str]) -> tuple[str, set[str]]:
    """What is wrong with the run, and the uuids of all runs in the database afterwards."""
    folder = runs.at(where)
    with contextlib.closing(folder.open()) as opened:
        uuid = opened.uuid
        if opened.run.state != "planned" or opened.trials():
            return "it is not as it was made", others
    known = {run.uuid for run in Ledger.runs(folder.ledger_url())}
    if folder.remote is None:
        names = {path.name for path in folder.path.iterdir()} - {"ledger.db-wal", "ledger.db-shm"}
        content = (folder.path / "sweep.toml").read_bytes()
    else:
        names, content = set(folder.remote.files()) - {"driver.log"}, folder.remote.read("sweep.toml") or b""
    inside = folder.ledger_url() == sqlite_url(folder.path / "ledger.db")
    wanted = {"sweep.toml", "sweep.json", "submitted.diff"} | ({"ledger.db"} if inside else set())
    if names != wanted:
        return f"the files are {sorted(names)}", known
    if content != sweep_file.read_bytes():
        return "sweep.toml is not the one that was given", known
    if not inside and known != others | {uuid}:
        return f"runs in the database besides: {sorted(known - others - {uuid})}", known
    return ("" if len(known) == 1 or not inside else f"{len(known)} runs in its ledger"), known


def everything(sweep_file: Path, where: str, database_url: str, every: int) -> int:
    """Kill at every line, and the creation after it too, at a random one. Returns how often something went wrong."""
    if database_url:
        os.environ["ORCHESTRATOR_LEDGER"] = database_url
    else:
        os.environ.pop("ORCHESTRATOR_LEDGER", None)
    head, mark, query = where.partition("?")
    moments, wrong, kills, lines = random.Random(every), 0, 0, 1
    signal_, others = forked(lambda: {run.uuid for run in existing(database_url)})
    assert signal_ == 0, others
    for number in count():
        line, place = 1 + number * every, f"{head}-{number}{mark}{query}"
        ended, result = forked(partial(create, sweep_file, place, die_at=line))
        kills += ended == signal.SIGKILL
        lines = max(lines, line)
        steps = [("first", ended, result)]
        if ended:
            again = moments.randrange(1, 2 * lines + 2)
            steps.append(("second", *forked(partial(create, sweep_file, place, die_at=again))))
            kills += steps[-1][1] == signal.SIGKILL
            steps.append(("last", *forked(partial(create, sweep_file, place, die_at=None))))
        complaints = [f"{name}: {got}" for name, signal_, got in steps if not signal_ and got != "created"]
        _, judged = forked(partial(stands, sweep_file, place, others))
        if isinstance(judged, tuple):
            complaint, known = judged
            others = others if not database_url else known
            complaints += [complaint] if complaint else []
        else:
            complaints.append(str(judged))
        if complaints:
            wrong += 1
            print(f"killed before line {line}, then at {steps[1:2]}: {'; '.join(complaints)}")
        if not ended:
            break
    print(json.dumps({"kills": kills, "lines": lines, "wrong": wrong}))
    return wrong


def existing(database_url: str) -> list[Any]:
    """The runs that a database has."""
    with contextlib.suppress(LedgerMissing):
        return list(Ledger.runs(database_url)) if database_url else []
    return []


if __name__ == "__main__":
    # What git and the graphics driver say takes longest and is asked before anything is made.
    found = environment(origin())
    made_up = Origin("orchestrator launch", "/", "1", diff=b"a change")
    vars(creation).update(environment=lambda _: found, origin=lambda: made_up)
    sys.exit(bool(everything(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))))

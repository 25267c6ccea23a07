"""`orchestrator export`: which trial of a run is meant, and the process that writes its encoder; torch stays there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

from jobs.config import OF_SEED
from jobs.core.paths import BASE
from orchestrator.ledger import Run, Stage, Trial
from orchestrator.run_dir import provenance
from orchestrator.run_dir.folder import RunError, RunFolder
from orchestrator.system.display import counted
from orchestrator.system.exit_codes import InfrastructureMissing
from orchestrator.system.scratch import folder as scratch_folder


class Written(TypedDict):
    """What `python -m jobs.export` says that it has written."""

    step: int
    path: str
    """The new folder."""
    task: str
    width: int
    """Columns of an embedding."""
    head: bool
    """Whether embeddings are those after the projection head."""
    trust_remote_code: bool
    """Whether loading it takes code of the folder."""
    difference: float
    """To the trial's own embeddings, at most."""
    metrics: dict[str, float]
    """Of the checkpoint, where it was evaluated."""
    remarks: list[str]


class Exported(Written):
    """An encoder that was written to a folder, and whose it is."""

    trial: str
    arm: str
    stage: Stage
    seed: int
    metric: float | None
    """At the trial's end; None of one that diverged."""
    chosen: str
    """Why this trial, in words."""


def export(folder: RunFolder, wanted: str, dest: Path) -> Exported:
    """Write the encoder of a trial of the run to the new folder `dest`. Returns what was written, as plain JSON.

    wanted: a trial's id, which may be shortened, or the label of an arm, for its best confirm trial.
    Raises RunError, InfrastructureMissing, and as `RunFolder.open`.
    """
    with contextlib.closing(folder.open()) as ledger:
        run, trials = ledger.run, ledger.trials()
    trial, why = choose(run, trials, wanted, folder)
    (written,) = _write(folder, run, [(trial, dest)], trials)
    return _exported(trial, why, written)


def export_each(folder: RunFolder, arm: str, dest: str) -> Iterator[Exported]:
    """Write the encoder of each confirm trial of an arm to the folder `dest`, with the trial's seed in the place of
    `{seed}`, one after another. Raises RunError for what is no arm, and as `export`; then those before are there."""
    with contextlib.closing(folder.open()) as ledger:
        run, trials = ledger.run, ledger.trials()
    arms = list(dict.fromkeys(trial.arm for trial in trials))
    own = [t for t in trials if t.arm == arm and t.stage == "confirm" and t.state == "done" and t.outcome == "ok"]
    if not own:
        raise RunError(
            f"{arm!r} is no arm of {folder.name} with a confirm trial that is done; {OF_SEED} in {dest} stands for the "
            f"seeds of one: {', '.join(arms) or 'none yet'}"
        )
    named = [(trial, Path(dest.replace(OF_SEED, str(trial.seed)))) for trial in own]
    for trial, written in zip(own, _write(folder, run, named, trials), strict=True):
        yield _exported(trial, f"trial {trial.id} of arm {arm}", written)


def _write(folder: RunFolder, run: Run, named: Sequence[tuple[Trial, Path]], trials: list[Trial]) -> Iterator[Written]:
    """Write the encoders of trials to folders, one after another in one process, as torch takes seconds to import.
    trials: all of the run's."""
    # A session of its own: Ctrl-C is for us, who say what then happens.
    command = [sys.executable, "-m", "jobs.export", "--each"]
    with scratch_folder("export") as temporary:
        env = os.environ | {"TMPDIR": str(temporary)} | provenance.held(run.provenance)
        if (directory := provenance.folder_of(run.environment)) is not None:
            env[BASE] = directory  # where the run began: its data may be named by relative paths
        asked, told = temporary / "asked", temporary / "told"
        asked.write_text("".join(json.dumps(arguments(folder, run, *one)) + "\n" for one in named), "utf-8")
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True, "env": env}
        written = 0
        with (
            asked.open() as stdin,
            told.open("wb") as stderr,
            subprocess.Popen(command, stdin=stdin, stderr=stderr, **pipes) as process,
        ):
            try:
                for line in process.stdout or ():
                    if (said := _said(line)) is not None:
                        written += 1
                        yield said
                code = process.wait()
            finally:
                process.kill()
        if code != 0:
            text = told.read_text("utf-8", "replace")
            last = named[min(written, len(named) - 1)][0]  # it may end so once all are written
            raise _failure(code, text, last, trials, f"orchestrator resume {folder.quoted}")


def arguments(folder: RunFolder, run: Run, trial: Trial, dest: Path) -> list[str]:
    """Return what `python -m jobs.export` is asked for: a trial, the new folder, and what its card says of the run."""
    uri = folder.trial_uri(trial.id)
    # With "=", so that no label is taken for an option.
    about = [f"--question={run.sweep['question']}", f"--run={run.name}, {run.uuid}", f"--arm={trial.arm}"]
    if trial.stage == "swap":  # by a job of the confirm stage
        about.append("--stage=swap (the arm at another one's setting)")
    options = about if uri is None else [*about, f"--remote={uri}"]
    return [*options, "--", str(folder.trial(trial.id)), str(dest)]


def _said(line: str) -> Written | None:
    """Read what was written from a line, which may be one that a library printed."""
    with contextlib.suppress(ValueError):
        said: Written = json.loads(line)
        if isinstance(said, dict) and Written.__required_keys__ <= said.keys():
            return said
    return None


def _exported(trial: Trial, why: str, written: Written) -> Exported:
    return {
        **written,
        "trial": trial.id,
        "arm": trial.arm,
        "stage": trial.stage,
        "seed": trial.seed,
        "metric": None if trial.outcome == "diverged" else trial.metric,
        "chosen": why,
    }


def choose(run: Run, trials: list[Trial], wanted: str, folder: RunFolder) -> tuple[Trial, str]:
    """Choose the trial that a person means, and say in words why this one. Raises RunError."""
    arms = list(dict.fromkeys(trial.arm for trial in trials))
    if wanted in arms:
        return _best(run, trials, wanted, f"orchestrator resume {folder.quoted}")
    named = [trial for trial in trials if trial.id.startswith(wanted)] if wanted else []
    if len(named) == 1:
        at = " at another arm's setting" if named[0].stage == "swap" else ""
        return named[0], f"trial {named[0].id} of arm {named[0].arm}{at}"
    some = ", ".join(trial.id for trial in (named or trials)[:5]) or "none yet"
    raise RunError(
        f"{wanted!r} names {len(named)} trials of {folder.name} and no arm; trials there: {some}; "
        f"arms: {', '.join(arms) or 'none yet'}"
    )


def _best(run: Run, trials: list[Trial], arm: str, resume: str) -> tuple[Trial, str]:
    """Choose the confirm trial of an arm that the sweep's metric likes best; the earliest of equals. resume: the
    command that continues the run."""
    metric, mode = run.sweep["metric"]["name"], run.sweep["metric"]["mode"]
    own = [trial for trial in trials if trial.arm == arm]
    sound = [t for t in own if t.stage == "confirm" and t.state == "done" and t.outcome == "ok"]
    scored = [(trial.metric, trial) for trial in sound if trial.metric is not None]
    if not scored:
        done = [trial.id for trial in own if trial.state == "done"]
        named = f", or name one of its trials that are done: {', '.join(done[:5])}" if done else ""
        raise RunError(
            f"arm {arm} has no confirm trial that is done and has not diverged; continue the run: {resume}{named}"
        )
    of = counted(len(scored), "confirm trial")
    best, trial = (max if mode == "max" else min)(scored, key=lambda pair: pair[0])
    return trial, f"trial {trial.id}, the best of arm {arm}'s {of} by {metric} ({best:.4f})"


def _failure(code: int, stderr: str, trial: Trial, trials: list[Trial], resume: str) -> Exception:
    """Turn what the process printed when it did not write the folder into the error that the command line ends with."""
    error = re.search(r"^error: (.*)", stderr, re.M | re.S)
    if error is None:
        return RuntimeError(f"python -m jobs.export ended with {code}:\n{stderr}")
    text = error[1].strip()
    if code != 2:
        return InfrastructureMissing(text)
    if trial.state == "done":
        return RunError(text)
    done = [other.id for other in trials if other.state == "done" and other.outcome == "ok"]
    hint = f"done are {', '.join(done[:5])}" if done else f"continue the run: {resume}"
    return RunError(f"{text}. The ledger says that trial {trial.id} is {trial.state}; {hint}")

"""The files of a report: report.html, report.md, results.parquet and a PNG for each plot."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.ledger import Ledger
from orchestrator.report import parquet
from orchestrator.report.render import content, page, plots
from orchestrator.report.render.blocks import Block
from orchestrator.report.summary import multi_run
from orchestrator.report.summary.evidence import answer, curves
from orchestrator.system.scratch import folder as scratch_folder

Top = tuple[str, Sequence[str], str, Sequence[str]]
"""Question, verdicts, subtitle, notes."""

STALE_S = 3600
"""A half-written report older than this was left by a process that was killed."""


def write(ledger: Ledger, folder: Path) -> dict[str, Any]:
    """Write the report of a run, finished or not, into `folder`, and return its answer.

    Every file is finished beside the folder and then put in place of the one before, so a reader, or a process killed
    at any moment, leaves whole files there. Plots that are no longer drawn go. Raises OSError when the disk is full.
    """
    found = answer(ledger)
    drawn = plots.draw(found, curves(ledger, found))
    table = parquet.table({found["sweep"]: ledger})
    body = content.blocks(found, drawn, ledger.run.sweep, parquet.columns(table.schema))
    top = (found["question"], [found["sentence"]], content.subtitle(found), found["notes"])
    _put(folder, top, body, drawn, table)
    return found


def write_several(named: Mapping[str, Ledger], folder: Path) -> dict[str, Any]:
    """The same of several runs, on one page; see several.answer for what it says and raises."""
    found = multi_run.answer(named)
    drawn = plots.draw(found, multi_run.curves(named, found))
    table = parquet.table(named)
    sweeps = {name: ledger.run.sweep for name, ledger in named.items()}
    body = content.blocks_of_several(found, drawn, sweeps, parquet.columns(table.schema))
    verdicts = [*(f"{one['name']}: {one['sentence']}" for one in found["runs"]), found["sentence"]]
    _put(folder, (found["question"], verdicts, content.subtitle_of_several(found), found["notes"]), body, drawn, table)
    return found


def _put(folder: Path, top: Top, body: Sequence[Block], drawn: Sequence[plots.Plot], table: pa.Table) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _sweep_up(folder)
    with scratch_folder("report", within=folder.parent) as made:
        for plot in drawn:
            (made / f"{plot.name}.png").write_bytes(plot.png)
        pq.write_table(table, made / "results.parquet")
        (made / "report.md").write_text(page.markdown(*top, body), "utf-8")
        (made / "report.html").write_text(page.html(*top, body), "utf-8")
        files = sorted(made.iterdir())
        for file in files:
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        for file in files:
            file.replace(folder / file.name)
        for old in {f"{name}.png" for name in plots.NAMES} - {file.name for file in files}:
            (folder / old).unlink(missing_ok=True)


def _sweep_up(folder: Path) -> None:
    """What processes of other machines have left; those of this one are known to be gone."""
    for left in folder.parent.glob(".orchestrator-report-*"):
        if left.is_dir() and time.time() - left.stat().st_mtime > STALE_S:
            shutil.rmtree(left, ignore_errors=True)

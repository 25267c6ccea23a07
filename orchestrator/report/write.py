"""The files of a report: report.html, report.md, results.parquet, a PNG for each plot; and rows.json, which makes the
next one quick."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.ledger import Ledger
from orchestrator.report import parquet
from orchestrator.report.render import page, plots
from orchestrator.report.summary import evidence, multi_run
from orchestrator.report.summary.records import MultiRunSummary, Summary
from orchestrator.report.tables import content
from orchestrator.report.tables.blocks import Block, Paragraph
from orchestrator.run_dir.rows import NAME as KNOWN
from orchestrator.run_dir.rows import RowFiles
from orchestrator.system.scratch import folder as scratch_folder

STALE_S = 3600
"""A half-written report older than this was left by a process that was killed."""


def write(ledger: Ledger, folder: Path, rows: RowFiles | None = None, pages: Sequence[tuple[str, str]] = ()) -> Summary:
    """Write the report of a run, finished or not, into `folder`, and return its summary. rows: what its trials have
    kept row by row. pages: what is to be seen in MLflow, and at which address.

    Every file is finished beside the folder and then put in place of the one before, so a reader, or a process killed
    at any moment, leaves whole files there. Plots that are no longer drawn go. Raises OSError when the disk is full.
    """
    with _few_collections():
        summary = evidence.summarize(ledger, rows)
        table = parquet.table({summary.sweep: ledger})
        words = content.page(summary, ledger.run.sweep, parquet.columns(table.schema), _mlflow(ledger, pages))
        _put(folder, words, plots.draw(summary, partial(evidence.curves, ledger), evidence.space(ledger)), table, rows)
    return summary


def write_several(named: Mapping[str, Ledger], folder: Path, rows: RowFiles | None = None) -> MultiRunSummary:
    """Write the report of several runs on one page, and return its summary; see multi_run.summarize for what it says
    and raises."""
    with _few_collections():
        summary = multi_run.summarize(named, rows)
        table = parquet.table(named)
        sweeps = {name: ledger.run.sweep for name, ledger in named.items()}
        words = content.multi_run_page(summary, sweeps, parquet.columns(table.schema))
        _put(folder, words, plots.draw(summary, partial(multi_run.curves, named)), table, rows)
    return summary


def _mlflow(ledger: Ledger, pages: Sequence[tuple[str, str]]) -> Block | None:
    """Say where the run is in MLflow; None while it is not."""
    run = ledger.run
    if run.mlflow_run_id is None:
        return None
    named = f"In MLflow this is run {run.mlflow_run_id} of experiment {run.mlflow_experiment_id}"
    return Paragraph(f"{named}:", pages) if pages else Paragraph(f"{named}; orchestrator ui opens its pages.")


@contextlib.contextmanager
def _few_collections() -> Iterator[None]:
    """Have Python look for garbage rarely: through thousands of trials that are read it would go again and again, which
    takes a quarter of the time."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _put(
    folder: Path, words: content.Page, drawn: Sequence[plots.Plot], table: pa.Table, rows: RowFiles | None
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _sweep_up(folder)
    with scratch_folder("report", within=folder.parent) as made:
        for plot in drawn:
            (made / f"{plot.name}.png").write_bytes(plot.png)
        pq.write_table(table, made / "results.parquet")
        (made / "report.md").write_text(page.markdown(words, drawn), "utf-8")
        (made / "report.html").write_text(page.html(words, drawn), "utf-8")
        if rows is not None and (computed := rows.to_keep()) is not None:
            (made / KNOWN).write_text(computed, "utf-8")
        files = sorted(made.iterdir())
        for file in files:
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        for file in files:
            file.replace(folder / file.name)
        for old in [file for file in folder.glob("*.png") if plots.is_of_a_report(file.name)]:
            if old.name not in {file.name for file in files}:
                old.unlink(missing_ok=True)


def _sweep_up(folder: Path) -> None:
    """Delete old leftovers of processes of other machines; of this machine it is known which processes are gone."""
    for left in folder.parent.glob(".orchestrator-report-*"):
        if left.is_dir() and time.time() - left.stat().st_mtime > STALE_S:
            shutil.rmtree(left, ignore_errors=True)

"""What a run says of itself, in the shapes that `--json` prints: here alone the two are made the same."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.ledger.stored import JsonObject
from orchestrator.run_dir import status as statuses
from orchestrator.run_dir.folder import RunFolder
from orchestrator.run_dir.rows import RowFiles
from orchestrator.run_dir.status import Status
from orchestrator.system.versions import versioned

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


def status(folder: RunFolder) -> Status:
    """Return what `status --json` prints. Raises RunError, LedgerError or RemoteError, as all of these do."""
    with contextlib.closing(folder.open()) as ledger:
        return statuses.status(ledger)


def answer(folder: RunFolder) -> JsonObject:
    """Return what `compare --json` prints. Writes nothing."""
    from orchestrator import report

    with contextlib.closing(folder.open()) as ledger:
        summary = report.summarize(ledger, RowFiles.of(folder))
    made: JsonObject = json.loads(json.dumps(versioned("compare", summary.to_json()), allow_nan=False))
    return made


def trials(folder: RunFolder) -> pa.Table:
    """Build the table of results.parquet as of this moment."""
    from orchestrator.report import parquet

    with contextlib.closing(folder.open()) as ledger:
        return parquet.table({ledger.run.name: ledger})


def frame(table: pa.Table) -> pd.DataFrame:
    """Convert the table to a DataFrame, whole numbers as such though some are missing. Raises ModuleNotFoundError."""
    import pyarrow as pa

    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "trials() as a DataFrame needs pandas: pip install 'contrastive-orchestrator[notebook]'; without it, "
            "trials(as_='rows') gives dicts",
            name="pandas",
        ) from error
    return table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)


def report(folder: RunFolder) -> Path:
    """Write the report, as `compare` does, and say where its page is."""
    from orchestrator import report as reports

    with contextlib.closing(folder.open()) as ledger:
        reports.write(ledger, folder.report, RowFiles.of(folder))
    folder.check_in_report()
    return folder.report / "report.html"


def is_driven(folder: RunFolder) -> bool:
    """Return whether a driver holds the run now."""
    with contextlib.closing(folder.open()) as ledger:
        return ledger.holder() is not None

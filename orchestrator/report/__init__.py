"""The answer of a run, read from its ledger alone: as numbers (`summarize`), as a page, plots and a data file
(`write`), as a table for the terminal (`table`) and as a short description (`note`). Works at any moment of a run; what
is not known yet is said, not guessed. `summarize_several`, `write_several` and `table_of_several` are the same for
several runs at once, which `names` names.

Three layers, each of which knows the ones below: `summary` has the numbers, with their types and as JSON; `tables` the
words; `render` the ink.
"""

from orchestrator.report.mlflow_note import note, numbers
from orchestrator.report.summary.evidence import summarize
from orchestrator.report.summary.multi_run import folder_name, names
from orchestrator.report.summary.multi_run import summarize as summarize_several
from orchestrator.report.summary.outside import Asked, judge
from orchestrator.report.summary.records import MultiRunSummary, OutsideSummary, Summary
from orchestrator.report.terminal import multi_run_table as table_of_several
from orchestrator.report.terminal import table
from orchestrator.report.write import write, write_several

__all__ = [
    "Asked",
    "MultiRunSummary",
    "OutsideSummary",
    "Summary",
    "folder_name",
    "judge",
    "names",
    "note",
    "numbers",
    "summarize",
    "summarize_several",
    "table",
    "table_of_several",
    "write",
    "write_several",
]

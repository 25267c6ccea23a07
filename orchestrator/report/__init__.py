"""The answer of a run, read from its ledger alone: as JSON (`answer`), as a page, plots and a data file (`write`), as
a table for the terminal (`table`) and as a short description (`note`). Works at any moment of a run; what is not known
yet is said, not guessed. `write_several` and `table_of_several` are the same for several runs at once, which `names`
names."""

from orchestrator.report.formatting import table, table_of_several
from orchestrator.report.mlflow_note import note, numbers
from orchestrator.report.summary.evidence import answer
from orchestrator.report.summary.multi_run import answer as answer_of_several
from orchestrator.report.summary.multi_run import folder_name, names
from orchestrator.report.write import write, write_several

__all__ = [
    "answer",
    "answer_of_several",
    "folder_name",
    "names",
    "note",
    "numbers",
    "table",
    "table_of_several",
    "write",
    "write_several",
]

"""The answer of a run, read from its ledger alone: as JSON (`answer`), as a page, plots and a data file (`write`), and
as a table for the terminal (`table`). Works at any moment of a run; what is not known yet is said, not guessed."""

from orchestrator.report.evidence import answer
from orchestrator.report.files import write
from orchestrator.report.note import note
from orchestrator.report.text import table

__all__ = ["answer", "note", "table", "write"]

"""The answer on results that another trainer has written: `judge` reads a CSV and judges it like a run."""

from orchestrator.report.summary.outside.judging import Asked, judge
from orchestrator.report.summary.outside.reading import ResultsError

__all__ = ["Asked", "ResultsError", "judge"]

"""Whether a sweep can run here or on a cluster, and what to do where it cannot.

`examine` looks at everything; `refuse` is what `launch` and `resume` do first: only what would stop them, or what would
make trials measure something else on one node than on another. What it warns of stands in the report.
"""

from orchestrator.preflight.checks import examine, refuse
from orchestrator.preflight.findings import BLOCKER, OK, WARNING, Finding, lines, summary

__all__ = ["BLOCKER", "OK", "WARNING", "Finding", "examine", "lines", "refuse", "summary"]

"""The same verbs in Python, as a notebook uses them.

A driver never runs in the process that calls these: it is the command line's, in a child. So the caller has neither ray
nor torch in it, nor a signal handler, a thread or an open file of a driver.
"""

from __future__ import annotations

from orchestrator.cli.python.child import DriverError
from orchestrator.cli.python.run import Run, launch, open_run
from orchestrator.cli.python.written import Sweep

__all__ = ["DriverError", "Run", "Sweep", "launch", "open_run"]

"""Comparisons of training jobs: from a sweep file to a verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.cli.python import DriverError as DriverError
    from orchestrator.cli.python import Run as Run
    from orchestrator.cli.python import Sweep as Sweep
    from orchestrator.cli.python import launch as launch
    from orchestrator.cli.python import open_run as open_run

__version__ = "0.1.0"

__all__ = ["DriverError", "Run", "Sweep", "launch", "open_run"]


def __getattr__(name: str) -> object:
    """Import what notebooks use when it is asked for: every module of this package imports this one first."""
    if name in __all__:
        from orchestrator.cli import python

        used: object = getattr(python, name)
        return used
    raise AttributeError(f"module 'orchestrator' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

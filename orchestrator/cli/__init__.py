"""The command line."""

from __future__ import annotations

from orchestrator.cli import commands, comparing, reading
from orchestrator.cli.group import main

__all__ = ["commands", "comparing", "main", "reading"]

"""The command line."""

from __future__ import annotations

from orchestrator.cli import commands, reading
from orchestrator.cli.group import main

__all__ = ["commands", "main", "reading"]

"""The command line."""

from __future__ import annotations

from orchestrator.cli.commands import main as main

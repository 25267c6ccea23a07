"""`python -m orchestrator.cli`: the command line where it is not installed."""

from __future__ import annotations

from orchestrator.cli.commands import main

if __name__ == "__main__":
    main()

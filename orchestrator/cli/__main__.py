"""`python -m orchestrator.cli`: the command line where it is not installed."""

from __future__ import annotations

from orchestrator.cli.group import main

if __name__ == "__main__":
    main()

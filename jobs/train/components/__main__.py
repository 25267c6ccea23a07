"""`python -m jobs.train.components`: what `jobs.train.components` says it does."""

from __future__ import annotations

from jobs.train.components import main

if __name__ == "__main__":
    main()

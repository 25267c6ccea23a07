"""`python -m jobs.data JOB...`: check the data of jobs (TOML or JSON) before any trial starts.

Prints one line of JSON for each and ends with 0, or prints what is wrong with the first bad one and ends with 2.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from jobs.config import ConfigError, load_job
from jobs.data.check import check, fingerprint, train_rows
from jobs.data.formats import DataError


def main(arguments: list[str]) -> int:
    """Exit status for these command-line arguments."""
    if not arguments or arguments[0].startswith("-"):
        sys.stderr.write("usage: python -m jobs.data JOB...    where a JOB is a job in TOML or a trial's job.json\n")
        return 0 if arguments in (["-h"], ["--help"]) else 2
    for path in arguments:
        try:
            job = load_job(Path(path))
            warnings = check(job)
            found = {"rows": len(train_rows(job)), "fingerprint": fingerprint(job), "warnings": warnings}
        except (ConfigError, DataError) as error:
            sys.stderr.write(f"error: {error}\n")
            return 2
        sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

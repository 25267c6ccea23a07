"""`python -m jobs.export TRIAL_FOLDER DEST`: write a trained encoder as a folder that transformers loads.

Prints one line of JSON and ends with 0; or says what is wrong and ends with 2 if a person can mend it by what they ask
for, with 1 if a disk is full, a bucket cannot be reached, or what was written does not give the trial's embeddings.

With `--each` alone it reads such arguments from standard input, a line of a JSON list each, and ends at the first that
goes wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run with these command-line arguments and return the exit status."""
    if (sys.argv[1:] if arguments is None else arguments) == ["--each"]:
        return next(filter(None, (main(json.loads(line)) for line in sys.stdin)), 0)
    parser = argparse.ArgumentParser(prog="python -m jobs.export", description="Write a trained encoder as a folder.")
    parser.add_argument("trial", type=Path, help="a trial's folder, such as RUN/trials/ID or the --into of jobs.train")
    parser.add_argument("dest", type=Path, help="a folder that is not there yet, or is empty")
    parser.add_argument("--remote", metavar="URI", help="where the trial's files are kept; TRIAL then is a work folder")
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step, and not the newest")
    parser.add_argument("--question", help="for the model card, as are --run, --arm and --stage")
    parser.add_argument("--run")
    parser.add_argument("--arm")
    parser.add_argument("--stage", help="of the trial, where its job has another one")
    options = parser.parse_args(arguments)
    from jobs.artifacts.storage import StorageFull
    from jobs.core.plain import visible_lines
    from jobs.export import About, Differs, export

    _be_quiet()
    about = About(question=options.question, run=options.run, arm=options.arm, stage=options.stage)
    try:
        done = export(options.trial, options.dest, remote=options.remote, step=options.step, about=about)
    except (StorageFull, ConnectionError, Differs) as error:
        sys.stderr.write(visible_lines(f"error: {error}\n"))
        return 1
    except (ValueError, OSError) as error:
        sys.stderr.write(visible_lines(f"error: {error}\n"))
        return 2
    sys.stdout.write(json.dumps(done) + "\n")
    sys.stdout.flush()
    return 0


def _be_quiet() -> None:
    """Have transformers print nothing of loading and saving, which would hide what is printed here."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    sys.exit(main())

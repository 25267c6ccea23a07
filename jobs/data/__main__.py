"""`python -m jobs.data [--known FILE | --encoders] JOB...`: check the data of jobs, in TOML or JSON, before trials.

Prints one line of JSON for each and ends with 0, or prints what is wrong with the first bad one and ends with 2:

    {"rows", "fingerprint", "warnings", "reading": {...}, "data": {"data.train = SOURCE": {...}, ...}, "weights": {...}}

`reading` is how the encoder takes and pools its inputs, also where the job leaves that to its folder. `weights` may be
null; `guide` is the same of the encoder that `loss.guide` names, if a job has one.

A pretrained encoder is fetched for that, so that what is digested is what the job will load.

FILE: `data` of an earlier answer, and its `weights` by the name of the encoder. Data that it knows are then not checked
again, and read only where their files are no longer the same; `rows` and `fingerprint`, for which all are read, are
left out, and encoders are looked for where they were.

--encoders: look at the jobs' encoders alone, as far as they are folders here, and say nothing but `warnings`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from jobs.config import ConfigError, JobConfig, load_job
from jobs.config.json_values import Json, JsonObject
from jobs.core.plain import visible_lines
from jobs.data.formats import DataError
from jobs.data.images.links import looked_at_once
from jobs.data.validate import check, check_encoder_here, digests, fingerprint, train_rows
from jobs.models import ModelError, refused_guide
from jobs.models.pretrained import folder as pretrained
from jobs.models.pretrained.folder import EncoderError
from jobs.models.reading import reading


def main(arguments: list[str]) -> int:
    """Run the check with these command-line arguments; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m jobs.data", description="Check the data of jobs.")
    parser.add_argument("job", type=Path, nargs="+", help="a job in TOML or a trial's job.json")
    parser.add_argument("--known", type=Path, help="`data` and `weights` of an earlier answer, as JSON")
    parser.add_argument("--encoders", action="store_true", help="look at encoders alone, if they are folders here")
    try:
        options = parser.parse_args(arguments)
    except SystemExit as done:  # which has said why
        return int(done.code or 0)
    try:
        known = None if options.known is None else json.loads(options.known.read_text("utf-8"))
    except (OSError, ValueError) as error:
        sys.stderr.write(
            visible_lines(f"error: --known {options.known} cannot be read: {error}; give an answer of before\n")
        )
        return 2
    for path in options.job:
        try:
            job = load_job(path)
            if options.encoders:
                answer: dict[str, Json] = {"warnings": check_encoder_here(job)}
            else:
                answer = _checked(job) if known is None else _compared(job, known)
        except (ConfigError, DataError, EncoderError, ModelError, ConnectionError) as error:
            sys.stderr.write(visible_lines(f"error: {error}\n"))
            return 2
        sys.stdout.write(json.dumps(answer) + "\n")
    return 0


@looked_at_once()
def _checked(job: JobConfig) -> dict[str, Json]:
    warnings = check(job)
    rows: dict[str, Json] = {"rows": len(train_rows(job)), "fingerprint": fingerprint(job), "warnings": warnings}
    rows["reading"] = reading(job).record
    return rows | {"data": digests(job), "weights": _weights(job)} | _of_guide(job, {})


def _compared(job: JobConfig, known: Mapping[str, Mapping[str, JsonObject]]) -> dict[str, Json]:
    encoders = known.get("weights") or {}
    weights = encoders.get(str(job.model.name))
    answer: dict[str, Json] = {"warnings": [], "data": digests(job, known["data"]), "weights": _weights(job, weights)}
    return answer | _of_guide(job, encoders)


def _of_guide(job: JobConfig, known: Mapping[str, JsonObject]) -> dict[str, Json]:
    """Hash the files of the guide, if the job has one."""
    name = job.loss.guide
    if name is None:
        return {}
    try:
        found = pretrained.digest(name, known.get(name), tokenizer=job.task == "sentence")
    except EncoderError as error:
        raise refused_guide(job, error) from error
    return {} if found is None else {"guide": {**found, "key": "loss.guide"}}


def _weights(job: JobConfig, known: JsonObject | None = None) -> dict[str, Json] | None:
    return pretrained.digest(job.model.name, known, tokenizer=job.task == "sentence")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

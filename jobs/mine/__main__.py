"""`python -m jobs.mine MODEL TRAIN INTO`: hard negatives of the rows of TRAIN, mined by an encoder, as a Parquet file.

python -m jobs.mine runs/one data/pairs.parquet data/mined.parquet --negatives 8 --window 10:100
torchrun --nproc-per-node 2 -m jobs.mine runs/one data/pairs.parquet data/mined.parquet     the same file

MODEL is a trial's folder, or what `model.name` may be of a pretrained encoder; TRAIN a source as `data.train` names
one. The file has the columns that were read, and `hard_negatives`, a list of texts, the nearest first (of single
sentences also `positive`, which is the sentence). A job trains on it with `data.hard_negatives = N`. Prints one line of
JSON and ends with 0; or says what is wrong and ends with 2.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from jobs.config import Execution, JobConfig, Mine

if TYPE_CHECKING:
    import torch.distributed as dist

    from jobs.data.sources import Rows
    from jobs.mine import Mined
    from jobs.models import ContrastiveModel

COLUMN = "hard_negatives"


def main(arguments: list[str] | None = None) -> int:
    """Run with these command-line arguments and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m jobs.mine", description="Mine hard negatives of sentences.")
    parser.add_argument("model", help="a trial's folder, or the folder or Hub name of a pretrained encoder")
    parser.add_argument("train", help="the rows, as data.train names them")
    parser.add_argument("into", type=Path, help="a Parquet file that is not there yet")
    parser.add_argument("--negatives", type=int, default=4, metavar="N", help="kept of each row (4)")
    parser.add_argument("--window", default="0:100", help="ranks that are looked at, as a slice (0:100)")
    parser.add_argument("--margin", type=float, help="leave out what is above the positive's cosine less this")
    parser.add_argument("--share", type=float, help="leave out what is above this share of the positive's cosine")
    parser.add_argument("--threads", type=int, default=1, help="of a rank, which may change last bits (1)")
    parser.add_argument("--columns", help="anchor and positive, separated by a comma, as data.columns names them")
    options = parser.parse_args(arguments)
    from jobs.core.plain import visible_lines

    try:
        done = mine(
            options.model,
            options.train,
            options.into,
            rule=_rule(options.negatives, options.window, options.margin, options.share),
            columns=None if options.columns is None else tuple(options.columns.split(",")),
            threads=options.threads,
        )
    except ValidationError as error:
        said = "; ".join(str(fault["msg"]).removeprefix("Value error, ") for fault in error.errors())
        sys.stderr.write(visible_lines(f"error: {said}\n"))
        return 2
    except (ValueError, OSError) as error:
        sys.stderr.write(visible_lines(f"error: {error}\n"))
        return 2
    if int(os.environ.get("RANK", "0")) == 0:
        sys.stdout.write(json.dumps(done) + "\n")
    return 0


def mine(
    model: str, train: str, into: Path, *, rule: Mine, columns: tuple[str, ...] | None = None, threads: int = 1
) -> dict[str, int | str]:
    """Mine hard negatives of the rows of `train` and write them to `into`. Returns what was found.

    Raises ValueError for what a person can mend: a file that is there, a model or rows that cannot be read.
    """
    import torch

    from jobs import data
    from jobs.core.device import device_of
    from jobs.data.sentences import sentence_examples
    from jobs.mine.in_training import Mining

    _refuse_place(into)
    group = _group()
    trial = _trial(Path(model))
    job = _job(model, trial, train, columns, rule, threads=threads)
    torch.set_num_threads(job.execution.threads)
    tokenizer = data.tokenizer_for(job if trial is None else trial)
    device = device_of(job.execution)
    encoder = _encoder(model, job, tokenizer, device, is_trial=trial is not None)
    examples = sentence_examples(job, tokenizer)
    if COLUMN in examples.rows.table.column_names:
        raise ValueError(
            f"the rows have a column {COLUMN} already; leave it out: --columns "
            f"{','.join(name for name in examples.rows.table.column_names if name != COLUMN)}"
        )
    mining = Mining(job, examples, tokenizer)
    mining.search(1, encoder, group, device)
    found = mining.found
    assert found is not None
    if group is None or int(os.environ["RANK"]) == 0:
        _write(into, examples.rows, found, mining.texts)
    if group is not None:
        import torch.distributed as dist

        dist.destroy_process_group()
    return {
        "rows": len(examples),
        "texts": len(mining.texts),
        "negatives": len(found.members),
        "rows_with_fewer": found.few(rule.negatives),
        "path": str(into),
    }


def _refuse_place(into: Path) -> None:
    """Raise ValueError, before anything is searched, where no file can be written that a job reads."""
    if into.exists():
        raise ValueError(f"{into} is there already, and nothing is overwritten; name a new file")
    if into.suffix.lower() not in (".parquet", ".pq"):
        raise ValueError(
            f"{into} would hold Parquet under another name, and a job goes by the name; name {into.stem}.parquet"
        )
    if not into.parent.is_dir():
        raise ValueError(f"there is no folder {into.parent}; make it, or name a file in another one")


def _rule(negatives: int, window: str, margin: float | None, share: float | None) -> Mine:
    if negatives < 1:
        raise ValueError(f"--negatives {negatives} keeps none; 1 at least, such as 4")
    first, colon, last = window.partition(":")
    if not colon or not (first + last).isdecimal() or not first or not last:
        raise ValueError(f"--window {window} is no slice of ranks; give two whole numbers, such as 10:100")
    return Mine(negatives=negatives, window=(int(first), int(last)), margin=margin, share=share)


def _trial(folder: Path) -> JobConfig | None:
    """Read the job of a trial's folder; None for what is no trial."""
    from jobs.artifacts import bucket, trial_dir

    return trial_dir.read_job(bucket.at(folder, None)) if (folder / "job.json").is_file() else None


def _job(
    model: str, trial: JobConfig | None, train: str, columns: tuple[str, ...] | None, rule: Mine, *, threads: int
) -> JobConfig:
    """Describe the search as a job: the trial's, or one of a pretrained encoder, with these rows."""
    if trial is not None and trial.task != "sentence":
        raise ValueError(f"{model} is a trial of task = '{trial.task}'; hard negatives are mined of sentences")
    read = {"train": train, "confirm": train, "columns": columns, "hard_negatives": 0}
    execution = Execution(threads=threads).model_dump()
    if trial is None:
        encoder = {"name": model, "projection": "none"}
        given = {"task": "sentence", "budget": {"steps": 1}, "data": read, "model": encoder, "batch": {"size": 2}}
        return JobConfig.model_validate(given | {"mine": rule.model_dump(), "execution": execution})
    kept = {"max_tokens": trial.data.max_tokens}
    whole = trial.model_dump() | {"data": read | kept, "mine": rule.model_dump(), "stage": "confirm"}
    return JobConfig.model_validate(whole | {"execution": execution})


def _encoder(name: str, job: JobConfig, tokenizer: object, device: object, *, is_trial: bool) -> ContrastiveModel:
    """Build the encoder, with the newest weights of a trial."""
    from jobs import models
    from jobs.artifacts import bucket, checkpoint
    from jobs.models.model import BESIDE

    model = models.build(job, tokenizer=tokenizer, device=device)  # type: ignore[arg-type]
    if is_trial:
        _, weights, _, _ = checkpoint.weights(bucket.at(Path(name), None).inside("checkpoints"))
        model.load_state_dict({key: values for key, values in weights.items() if not key.startswith(BESIDE)})
    return model.eval()


def _group() -> dist.ProcessGroup | None:
    """Join the other ranks, where torchrun has started some."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=datetime.timedelta(minutes=60))
    return dist.group.WORLD


def _write(into: Path, rows: Rows, found: Mined, texts: pa.ChunkedArray) -> None:
    """Write the rows with what was mined, aside and then renamed."""
    table = rows.table
    if table.num_columns == 1:
        table = pa.table({"anchor": table[0], "positive": table[0]})
    lists = pa.LargeListArray.from_arrays(pa.array(found.ends), texts.take(pa.array(found.members)).combine_chunks())
    aside = into.with_name(f".{into.name}.new")
    pq.write_table(table.append_column(COLUMN, lists), aside)
    aside.replace(into)


if __name__ == "__main__":
    sys.exit(main())

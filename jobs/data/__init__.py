"""What a job trains on and is judged on. Imports neither ray nor the orchestrator.

python -m jobs.data job.json        check a job's data before any trial starts
"""

from __future__ import annotations

from jobs.config import JobConfig
from jobs.data.batches import Draw, Ids, Inputs, Views, batch_rows
from jobs.data.formats import DataError
from jobs.data.images import ImageEvaluation, ImageExamples
from jobs.data.images.links import looked_at_once
from jobs.data.images.pixels import Images
from jobs.data.sentences import SentenceExamples, tokenizer_for
from jobs.data.sentences.duplicates import note_on_batch
from jobs.data.sentences.scored import SentenceEvaluation
from jobs.data.sources import open_table
from jobs.data.tasks import Examples, Task, task_of
from jobs.data.validate import check, dataset_info, digests, fingerprint
from jobs.models.pretrained.tokenizer import Tokenizer

__all__ = [
    "DataError",
    "Draw",
    "Examples",
    "Ids",
    "ImageEvaluation",
    "ImageExamples",
    "Images",
    "Inputs",
    "SentenceEvaluation",
    "SentenceExamples",
    "Task",
    "Tokenizer",
    "Views",
    "batch_rows",
    "check",
    "dataset_info",
    "digests",
    "evaluation_data",
    "fingerprint",
    "looked_at_once",
    "note_on_batch",
    "open_table",
    "task_of",
    "tokenizer_for",
    "train_examples",
]


def train_examples(job: JobConfig, tokenizer: Tokenizer | None = None) -> Examples:
    """Return what `job` trains on. tokenizer: of a sentence job; None: tokenizer_for(job). Raises DataError."""
    return task_of(job, tokenizer).examples()


def evaluation_data(job: JobConfig) -> object:
    """Return what the stage of `job` is judged on, as its task reads it. Raises DataError."""
    return task_of(job).judged()

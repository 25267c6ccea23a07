"""What a job trains on and is judged on. Imports neither ray nor the orchestrator.

python -m jobs.data job.json        check a job's data before any trial starts
"""

from __future__ import annotations

from typing import Any

from jobs.config import JobConfig
from jobs.data.batches import Ids, Inputs, Views, batch_rows
from jobs.data.formats import DataError
from jobs.data.images import ImageEvaluation, ImageExamples, image_evaluation, image_examples
from jobs.data.images.links import looked_at_once
from jobs.data.images.pixels import Images
from jobs.data.sentences import SentenceExamples, sentence_examples, tokenizer_for
from jobs.data.sentences.duplicates import note_on_batch
from jobs.data.sentences.scored import SentenceEvaluation, sentence_evaluation
from jobs.data.sources import open_table
from jobs.data.validate import check, dataset_info, digests, fingerprint

__all__ = [
    "DataError",
    "Ids",
    "ImageEvaluation",
    "ImageExamples",
    "Images",
    "Inputs",
    "SentenceEvaluation",
    "SentenceExamples",
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
    "tokenizer_for",
    "train_examples",
]


def train_examples(job: JobConfig, tokenizer: Any = None) -> ImageExamples | SentenceExamples:
    """What `job` trains on. tokenizer: of a sentence job; None: tokenizer_for(job). Raises DataError."""
    return image_examples(job) if job.task == "image" else sentence_examples(job, tokenizer)


def evaluation_data(job: JobConfig) -> ImageEvaluation | SentenceEvaluation:
    """What the stage of `job` is judged on. Raises DataError."""
    assert job.eval_split is not None, "JobConfig refuses a job without it"
    if job.task == "image":
        return image_evaluation(job, job.eval_split)
    return sentence_evaluation(job.eval_split, job.data.judged_columns)

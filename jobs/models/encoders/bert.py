"""BERT, Devlin et al. 2019 (arXiv:1810.04805), of the job's size."""

from __future__ import annotations

from torch import nn

from jobs.config import JobConfig
from jobs.models import transformer
from jobs.models.reading import reading


def bert(job: JobConfig, vocabulary: int) -> nn.Module:
    """Build BERT with positions for the longest sentence."""
    return transformer.bert(job, vocabulary, reading(job).max_tokens)

"""Barlow Twins, Zbontar et al. 2021 (arXiv:2103.03230), without negatives: the cross-correlation of the columns of both
sides over the global batch is to be the identity."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

EPSILON = 1e-5
"""Added to a variance before its root, as batch normalisation does."""


def barlow_twins(queries: Tensor, keys: Tensor, *, off_diagonal: Annotated[float, Field(ge=0)] = 5e-3) -> Tensor:
    """Sum (1 - c_dd)^2 over columns, and off_diagonal times c_de^2 over pairs of different columns. queries, keys
    [B, D]."""
    standard = [(side - side.mean(0)) / (side.var(0, correction=0) + EPSILON).sqrt() for side in (queries, keys)]
    correlation = standard[0].T @ standard[1] / len(queries)
    diagonal = correlation.diagonal()
    others = correlation.square().sum() - diagonal.square().sum()
    return (1 - diagonal).square().sum() + off_diagonal * others


barlow_twins.normalised = False  # type: ignore[attr-defined]

"""FlatNCE, Chen et al. 2021 (arXiv:2107.01152): DCL's gradient; its value is InfoNCE's, so that curves can be read."""

from __future__ import annotations

from jobs.losses.builtin.dcl import dcl
from jobs.losses.builtin.infonce import value
from jobs.losses.spec import RowLoss

flatnce = RowLoss(value, dcl.weights)

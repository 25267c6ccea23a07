"""The keys of `evaluate` that say what is done to embeddings before they are judged, and by whom they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from jobs.config.components import AfterName, JudgeName
from jobs.config.data_sections import SETS, branch
from jobs.config.section import Options, Section

AT = "_at_"
"""What stands between a metric's name and how many columns it is measured on."""


DRAWN = ("random_projection",)
"""Built-ins of `after` that are functions of the job's seed."""

Judges: TypeAlias = Annotated[
    Annotated[JudgeName, Tag("str")] | Annotated[dict[str, JudgeName], Field(min_length=1), Tag(SETS)],
    Discriminator(branch),
]
"""The judge of all rows, or of each set of them, by the set's name."""


class AfterTraining(Section):
    """What judges are given in place of the encoder's output."""

    after: AfterName | None = None
    """What is done to embeddings before they are judged, fitted on rows of data.train and never on those that are
    judged: `whitening`, `pca`, `random_projection` (jobs/metrics/after has the rules), or an import path of your own.
    None: nothing."""

    after_options: Options = {}
    """Arguments of it, by name."""

    after_rows: int = Field(10_000, gt=1)
    """Rows of data.train (the first ones) that it is fitted to: the images without augmentation; of sentences anchor
    and positive. Each evaluation encodes them once more."""

    dims: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(strict=False)] = ()
    """Each metric is measured on the first d columns too, for these d: `spearman_at_64`. What is done to embeddings
    comes first."""

    @model_validator(mode="after")
    def _agree(self) -> AfterTraining:
        if list(self.dims) != sorted(set(self.dims)):
            raise ValueError(
                f"dims = {list(self.dims)} are numbers of columns in ascending order, such as [16, 32, 64]"
            )
        if self.after is None and self.after_options:
            raise ValueError(
                f"after_options = {self.after_options} are of no component; give after too, such as 'whitening'"
            )
        return self


def at_dims(metrics: Iterable[str], dims: Iterable[int]) -> list[str]:
    """Name the metrics that are measured on the first columns, for each of dims."""
    names = list(metrics)
    return [f"{name}{AT}{d}" for d in dims for name in names]


def without_dims(metric: str) -> str:
    """Return the name of a metric on all columns: `spearman` of `spearman_at_64`."""
    name, _, columns = metric.rpartition(AT)
    return name if name and columns.isdecimal() else metric


def without_set(metric: str) -> str:
    """Return the name that a metric has where a single set is judged: `spearman` of `stsb/spearman`. What is measured
    while training keeps its name."""
    set_name, _, name = metric.partition("/")
    return name if name and set_name not in ("train", "system") else metric

"""What the arms of a sweep are judged by: a metric, or several, which are one family of the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, JsonValue, SerializerFunctionWrapHandler, model_serializer, model_validator

from jobs.config import Section
from jobs.config.after_sections import without_dims, without_set

LOWER_IS_BETTER = (
    *("uniformity", "alignment", "largest_eigenvalue_share", "random_pair_cosine"),
    *("loss", "train/loss", "train/infonce"),
)
"""Metrics of which less is better. Of every other one, more is."""


class OneMetric(Section):
    """A metric: its name, which way is better, and what of it is worth having."""

    name: str
    """What the judge measures: knn_accuracy or probe_accuracy of images, spearman of sentences, ndcg_at_10 of
    retrieval, alignment or uniformity of any."""

    mode: Literal["max", "min"] = "max"
    """Which way is better. Follows the metric unless given."""

    mode_is_meant: bool = False
    """The mode is given against the usual direction of the metric, and meant so."""

    smallest_difference: float = Field(0.0, ge=0)
    """The smallest difference worth having; arms closer than this count as equivalent. 0: never equivalent."""

    @model_validator(mode="before")
    @classmethod
    def _mode_follows_the_metric(cls, given: object) -> object:
        return with_usual_mode(given)


class Metric(OneMetric):
    """What the arms are judged by. Tuning, pruning and freezing look at this metric alone."""

    also: list[OneMetric] = []
    """Further metrics by which every comparison is judged too, as one family with this one. In a file, metric =
    [{ name = "a" }, { name = "b" }] says the same."""

    @model_validator(mode="before")
    @classmethod
    def _first_of_a_list(cls, given: object) -> object:
        if not isinstance(given, list):
            return given
        first, *others = given or [None]
        if not isinstance(first, Mapping):
            raise ValueError(f"is a list of tables, such as {EXAMPLE}")  # noqa: TRY004 - pydantic collects ValueErrors
        if "also" in first:
            raise ValueError(
                "is a list, and its first table has `also`; leave that out and put its metrics in the list"
            )
        return with_usual_mode({**first, "also": others})

    @model_serializer(mode="wrap")
    def _without_none_further(self, handler: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        """Leave out `also` where there is none, as sweeps of before have no such key."""
        plain: dict[str, JsonValue] = handler(self)
        return plain if self.also else {key: value for key, value in plain.items() if key != "also"}

    @property
    def every(self) -> tuple[OneMetric, ...]:
        """All metrics, this one first."""
        return (self, *self.also)

    @property
    def smallest_differences(self) -> tuple[float, ...]:
        """Of each metric."""
        return tuple(metric.smallest_difference for metric in self.every)


EXAMPLE = '[{ name = "knn_accuracy", smallest_difference = 0.005 }, { name = "alignment" }]'


def usual_mode(metric: str) -> Literal["max", "min"]:
    """Return the better direction of a metric."""
    return "min" if without_dims(without_set(metric)) in LOWER_IS_BETTER else "max"


def with_usual_mode(given: object) -> object:
    """Fill the mode of a metric in, where its table names the metric and no mode."""
    if isinstance(given, Mapping) and isinstance(given.get("name"), str) and "mode" not in given:
        return {**given, "mode": usual_mode(given["name"])}
    return given

"""The sections of a job that say what it trains on, and how an image becomes two views."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, TypeAlias

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from jobs.config.components import AugmentationName, SamplerName
from jobs.config.section import Options, Section

SETS = "function-sets"
"""Branch of a union that is a table by the names of sets; as such it has no place in the key of a fault."""

SET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")

TAKEN = ("all", "mean", "train", "system")
"""What stands before the slash of other metrics than those of a set."""


def branch(value: object) -> str:
    """Name the branch of a union that is one value for all sets, or a table by their names."""
    return SETS if isinstance(value, Mapping) else "str"


Judged: TypeAlias = Annotated[
    Annotated[str, Tag("str")] | Annotated[dict[str, str], Field(min_length=1), Tag(SETS)], Discriminator(branch)
]
"""A source of rows that are judged, or several, by the names of the sets."""

Columns: TypeAlias = Annotated[tuple[str, ...], Field(min_length=2, max_length=3, strict=False)]

JudgedColumns: TypeAlias = Annotated[
    Annotated[Columns, Tag("str")] | Annotated[dict[str, Columns], Field(min_length=1), Tag(SETS)],
    Discriminator(branch),
]
"""Columns of rows that are judged: of all sets, or by their names."""


class Data(Section):
    """Where the rows come from. A source is `digits`; a path, glob or URI; a name under $ORCHESTRATOR_DATA; or a Hub
    data set, `owner/name[:config]:split`. It may end in a slice of rows: `fashion-mnist-test[:2000]`."""

    train: str
    """Rows trained on."""

    tune: Judged | None = None
    """Rows the tune stage is judged on: a source, or a table of several, { stsb = "SOURCE", sick = "SOURCE" }, of which
    each set is judged, and its metrics are called `stsb/spearman`."""

    confirm: Judged | None = None
    """Rows the confirm stage, and so the verdict, is judged on: a source, or a table of several."""

    columns: Annotated[tuple[str, ...], Field(min_length=1, strict=False)] | None = None
    """Columns of `train`: image and label; or text; or anchor, positive and any number of hard negatives. Images are
    encoded files, raw pixels, or paths of files. None: by the names usual in the field. Of a file that has other
    columns too, only these are read."""

    judged_columns: JudgedColumns | None = None
    """Columns of `tune` and `confirm` in a sentence job: the two sentences of a pair, and its score; or what another
    judge reads, such as a text and its label. Of several sets, a table may name those of some of them. None: by the
    names usual in the field, such as sentence1, sentence2 and score or label."""

    hard_negatives: int | None = Field(None, ge=0)
    """Hard negatives of each pair of sentences, drawn in each step out of all that its row has in the third and further
    columns, of texts or of lists; the places of a row with fewer stay empty. With it the second column may have lists,
    too, of which a positive is drawn. None: one of each column."""

    scores: str | None = None
    """Column of `train` in a sentence job that scores or labels each pair, for losses that ask for scores. None: the
    data have none."""

    max_tokens: int | None = Field(None, ge=4)
    """Longest sentence, in tokens, special ones and the prompt included; the rest is cut. None: what the encoder's
    folder says, if it is one of sentence-transformers and `model.pooling` is `auto`; else 32."""

    source: str | None = None
    """Column of `train` that says which source a row is from, for samplers that ask for sources. None: its file, where
    `train` is several."""

    label: str | None = None
    """Column of `train` with a label of each row, for samplers that ask for labels. None: of images, their label; of
    sentences, they have none."""

    sampler: SamplerName = "shuffled"
    """Which rows a batch holds: `shuffled`, epochs in a random order; `no_duplicates`, of which no two share a text or
    an image; `by_source`; `by_label`; or an import path of a function of the step."""

    sampler_options: Options = {}
    """Arguments of a sampler that has some, by name."""

    image_shape: Annotated[tuple[int, ...], Field(min_length=2, max_length=3, strict=False)] | None = None
    """[height, width] or [height, width, channels]. Raw pixel rows are read so, channels last; of nested lists it says
    which are the channels where they do not; encoded images are resized to it, and are grey or coloured by its
    channels. None: raw rows are square and grey, nested lists [H, W], [H, W, 1 or 3] or [1 or 3, H, W], encoded images
    of one size, all in colour if any that is trained on has some."""

    @field_validator("tune", "confirm")
    @classmethod
    def _sets_have_names(cls, given: Judged | None) -> Judged | None:
        for name in given if isinstance(given, dict) else ():
            if SET_NAME.fullmatch(name) is None or name in TAKEN:
                raise ValueError(
                    f"{name!r} is no name of a set: letters, digits, _ and -, 40 at most, and none of "
                    f"{', '.join(TAKEN)}; for example {{ stsb = 'stsb-dev.csv', sick = 'sick.csv' }}"
                )
        return given

    def sets(self, stage: str) -> dict[str, str]:
        """Return the sources that judge a stage, by the names of the sets; a single source has none, and none where
        the stage has no rows."""
        given: Judged | None = self.tune if stage == "tune" else self.confirm
        return dict(given) if isinstance(given, dict) else {} if given is None else {"": given}

    def columns_of(self, name: str) -> Columns | None:
        """Return the columns of a set, if they are named; of a single source, which has no name, those that are."""
        given = self.judged_columns
        return given.get(name) if isinstance(given, dict) else given

    @property
    def every_source(self) -> list[str]:
        """List the sources of all rows."""
        return [self.train, *(source for stage in ("tune", "confirm") for source in self.sets(stage).values())]

    @model_validator(mode="after")
    def _different_columns(self) -> Data:
        judged = self.judged_columns
        sets = [name for stage in ("tune", "confirm") for name in self.sets(stage)]
        if isinstance(judged, dict) and (unknown := [name for name in judged if name not in sets]):
            wanted = f"name those of {', '.join(dict.fromkeys(sets))}" if any(sets) else "give [LEFT, RIGHT, SCORE]"
            raise ValueError(f"judged_columns.{unknown[0]} is of no set of data.tune or data.confirm; {wanted}")
        for columns in judged.values() if isinstance(judged, dict) else [judged] if judged else []:
            if len(set(columns)) < len(columns):
                raise ValueError(
                    f"judged_columns = {list(columns)} names a column twice; give [LEFT, RIGHT, SCORE], for example "
                    "['sentence1', 'sentence2', 'score']"
                )
        if self.scores is not None and self.scores in (self.columns or ()):
            raise ValueError(
                f"scores = '{self.scores}' is one of columns = {list(self.columns or ())}; leave it out of these"
            )
        return self


class Mine(Section):
    """Hard negatives of sentences that the model in training finds itself, among the positives of all rows, beside
    those that the rows have."""

    negatives: int = Field(0, ge=0)
    """Hard negatives of each pair in each step, drawn of those that its row has; 0 mines none."""

    kept: int | None = Field(None, ge=1)
    """Hard negatives that are kept of each row, the nearest that are left. None: as many as are drawn."""

    every_epochs: int = Field(1, ge=0)
    """Epochs between two searches, the first before the first step; 0 searches once, by the first weights."""

    window: Annotated[tuple[int, int], Field(strict=False)] = (0, 100)
    """Which of the ranked texts are looked at, as a slice: [10, 100] passes over the ten nearest."""

    margin: float | None = None
    """Texts whose cosine is above the positive's less this are left out."""

    share: float | None = Field(None, gt=0)
    """Texts whose cosine is above this share of the positive's are left out."""

    @model_validator(mode="after")
    def _window_holds_some(self) -> Mine:
        first, last = self.window
        least = max(self.kept or 0, self.negatives)
        if not 0 <= first < last or last - first < least:
            raise ValueError(
                f"window = [{first}, {last}] must be a slice of at least the {max(least, 1)} that are kept; for "
                f"example [{max(first, 0)}, {max(first, 0) + max(100, least)}]"
            )
        if self.kept is not None and self.kept < self.negatives:
            raise ValueError(f"kept = {self.kept} is fewer than negatives = {self.negatives}, which are drawn of them")
        return self


class Augment(Section):
    """Views of an image or of a sentence. Each strength 0 or 1 as noted switches it off. The views of a sentence differ
    by dropout alone, unless an augmentation of tokens is named."""

    name: AugmentationName = "crop_flip"
    """Of images `crop_flip`, which is described by the keys below, and which leaves sentences as they are. Of sentences
    `none`, `crop_words`, `delete_words`, `delete_word`, `mask_tokens`, `shuffle_tokens` or `cut_tokens`, applied to
    both views of a pair, and to no hard negative. Or an import path of a function of images, or of tokens."""

    options: Options = {}
    """Arguments of an augmentation that has some, by name."""

    crop: float = Field(0.5, gt=0, le=1)
    """Smallest share of the image's area that a random crop keeps; 1 never crops."""

    flip: bool = True
    """Mirror left and right with probability one half."""

    brightness: float = Field(0.4, ge=0, lt=1)
    """Brightness is multiplied by a factor drawn from [1 - x, 1 + x]."""

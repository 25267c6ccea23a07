"""How a job's encoder takes sentences and pools them: as the job says, else as the encoder's folder says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.config import JobConfig
from jobs.core.failures import words_of
from jobs.core.paths import is_built
from jobs.models.errors import ModelError
from jobs.models.pretrained import folder as pretrained
from jobs.models.pretrained.modules import ENDLESS, FolderError, Says, modules_of, says, settings_of

MAX_TOKENS = 32
"""Longest sentence where neither the job nor the encoder's folder says anything."""

FEWEST = 4
"""Tokens of the longest sentence, at least, as of `data.max_tokens`."""

IMAGE_MODULE = "image_module.ImageEncoder"
"""The first module of an encoder of images that was exported here."""


@dataclass(frozen=True)
class Reading:
    """Never `auto`, never None."""

    pooling: str
    max_tokens: int
    """Longest sentence, prompt and special tokens included."""

    normalise: bool = False
    """Whether what is pooled is brought to length 1."""

    prompt: str = ""
    """Put before every sentence."""

    include_prompt: bool = True
    """Whether the prompt's tokens are pooled too."""

    lower: bool = False
    """Whether sentences are lower-cased first."""

    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    """All prompts of the folder by name, and the name of `prompt`."""

    notes: tuple[str, ...] = ()
    """What a person should know of it."""

    @property
    def record(self) -> dict[str, Any]:
        """What decides an embedding, as plain JSON."""
        names = ("pooling", "max_tokens", "normalise", "prompt", "include_prompt", "lower")
        return {name: getattr(self, name) for name in names}


def reading(job: JobConfig) -> Reading:
    """Determine how the encoder of `job` reads. Raises ModelError for a folder that asks for what training does not
    compute, and for one that cannot be read; EncoderError for one that is not there."""
    name, pooling, given = job.model.name, job.model.pooling, job.data.max_tokens
    is_auto = pooling == "auto"
    plain = Reading("mean" if is_auto else pooling, given or MAX_TOKENS)
    if name is None or is_built(name):
        return plain
    try:
        root = pretrained.root_of(name)
        if (is_auto or given is None) and (file := pretrained.unknown_settings(name)) is not None:
            raise FolderError(
                f"{file} is not in the cache and the Hub was not asked, so it is not known whether it says so; fetch "
                f"the whole, by hf download {name}"
            )
        own = _of_image(root) if job.task == "image" else says(root)
    except (FolderError, OSError) as error:
        if not is_auto and (given is not None or job.task == "image"):  # then nothing of the folder is asked for
            return plain
        says_so = " and data.max_tokens = 128" if job.task == "sentence" else ""
        raise ModelError(
            f"model.name = '{name}' does not say how it embeds ({words_of(error)}), which model.pooling = 'mean'"
            f"{says_so} would say, for example"
        ) from error
    if own is None:
        return plain
    if is_auto and own.refusals:
        _refuse_other_task(name, job)
        raise ModelError(
            f"model.name = '{name}' is a folder of sentence-transformers that has {' and '.join(own.refusals)}, which "
            f"training does not compute; set model.pooling = '{own.pooling}' to train its encoder without"
        )
    length = given or _length(name, job, own)
    notes = tuple(_notes(name, job, own, length)) if job.task == "sentence" else ()
    if not is_auto:
        return Reading(pooling, length, notes=notes)
    return Reading(
        pooling=own.pooling,
        max_tokens=length,
        normalise=own.normalise,
        prompt=own.prompt,
        include_prompt=own.include_prompt,
        lower=own.lower,
        prompts=own.prompts,
        default_prompt=own.default_prompt,
        notes=notes,
    )


def _refuse_other_task(name: str, job: JobConfig) -> None:
    """Raise ModelError for an encoder that no pooling would help."""
    from jobs.models import transformer

    transformer.examined(name, job)


def _length(name: str, job: JobConfig, own: Says) -> int:
    """Find the longest sentence of a folder, in tokens, as sentence-transformers has it: never more than the encoder
    takes; ENDLESS where nothing limits it."""
    from jobs.models import transformer

    if job.task == "image":
        return MAX_TOKENS
    anatomy = transformer.examined(name, job)[1]
    limits = [own.length] if own.length is not None else [own.tokenizer_length, anatomy.usual]
    length = min([limit for limit in (*limits, anatomy.positions) if limit is not None], default=ENDLESS)
    if length < FEWEST:
        raise ModelError(
            f"model.name = '{name}' says that its longest sentence has {length} tokens, special ones included, which "
            f"leaves none for its words; set data.max_tokens, to {MAX_TOKENS} for example"
        )
    return length


def _notes(name: str, job: JobConfig, own: Says, length: int) -> Iterator[str]:
    """Yield what is taken from a folder of sentence-transformers, and what is not."""
    parts = [f"pooling {own.pooling}", *(["normalised"] if own.normalise else [])]
    parts += [f"prompt {own.prompt!r}"] if own.prompt else []
    parts += ["prompt not pooled"] if own.prompt and not own.include_prompt else []
    parts += ["lower-cased"] if own.lower else []
    if job.model.pooling == "auto":
        limit = f"at most {length} tokens" if length < ENDLESS else "any length"
        shown = f", sentences of {limit}" if job.data.max_tokens is None else ""
        yield f"model.name = '{name}' is read as its folder says: {', '.join(parts)}{shown}"
    else:
        parts += [f"also {' and '.join(own.refusals)}"] if own.refusals else []
        if parts != [f"pooling {job.model.pooling}"]:
            yield (
                f"model.pooling = '{job.model.pooling}' takes the place of what the folder of model.name = '{name}' "
                f"says: {', '.join(parts)}; leave it out, or write 'auto', for that"
            )
    said_length = own.tokenizer_length if own.length is None else own.length
    if job.data.max_tokens is not None and said_length is not None and said_length != job.data.max_tokens:
        yield (
            f"data.max_tokens = {job.data.max_tokens} takes the place of the {said_length} tokens that the folder of "
            f"model.name = '{name}' says; leave it out for these"
        )
    others = [key for key, text in own.prompts.items() if text and key != own.default_prompt]
    if others:
        yield (
            f"model.name = '{name}' has prompts that nothing puts before a sentence ({', '.join(others)}), as none of "
            "them is its default_prompt_name; write them into the rows, or name one there"
        )
    if own.similarity not in (None, "cosine"):
        yield f"model.name = '{name}' is compared by {own.similarity}; here, loss and evaluation are of cosines"


def _of_image(root: Path) -> Says | None:
    """Read what a folder says of images."""
    modules = modules_of(root)
    if modules is None:
        return None
    if modules[0].kind == IMAGE_MODULE:
        pooling = settings_of(root / "embedding.json").get("pooling")
        if pooling not in ("map", "mean", "cls", "first_last", "last_two", "attention"):
            raise FolderError(f"{root / 'embedding.json'} has the pooling {pooling!r}; put back what was exported")
        if pooling == "attention":
            return Says(pooling="mean", refusals=("weights of its own to pool by",))
        others = [module.kind for module in modules[1:]]
        refusals = (f"modules {', '.join(others)} behind its encoder",) if others else ()
        return Says(pooling="mean" if pooling == "map" else pooling, refusals=refusals)
    own = says(root)
    if own is None or own.pooling == "cls":
        return own
    words = f"a pooling {own.pooling} over all states of an image, those of a class token included"
    return Says(pooling="mean", refusals=(words, *own.refusals))

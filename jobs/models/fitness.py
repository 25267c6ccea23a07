"""Whether a pretrained encoder can do what a job asks of it, from its files alone, before any trial starts."""

from __future__ import annotations

import re
from typing import Any

from jobs.config import JobConfig
from jobs.config.components import is_import_path
from jobs.core.paths import is_built
from jobs.models.errors import ModelError
from jobs.models.reading import Reading, reading


def check_encoder(job: JobConfig, tokenizer: Any) -> list[str]:
    """Check the pretrained encoder of `job` and return notes on it; none on an encoder that is built. tokenizer: of a
    sentence job, if it has a tokenizer. Raises ModelError for what would end its trials."""
    name = job.model.name
    if name is None or is_built(name):
        return []
    from jobs.models import transformer

    read = reading(job)
    _, anatomy = transformer.examined(name, job)
    if job.task == "sentence" and tokenizer is not None:
        if anatomy.positions is not None and read.max_tokens > anatomy.positions:
            raise ModelError(
                f"data.max_tokens = {read.max_tokens}, but model.name = '{name}' takes {anatomy.positions} tokens at "
                f"most; set data.max_tokens = {anatomy.positions}, or less"
            )
        _check_ids(name, tokenizer, anatomy.ids)
        _check_prompt(name, tokenizer, read)
    return [*read.notes, *transformer.check_weights(name, job)]


def check_layers(job: JobConfig) -> None:
    """Raise ModelError where a pooling is of two layers that the encoder has not. One of the user's own is asked when
    it is trained."""
    how, name = job.model.pooling, job.model.name or ("bert" if job.task == "sentence" else "vit")
    if how not in ("first_last", "last_two") or is_import_path(name):
        return
    if name == "resnet":
        raise ModelError(
            f"model.pooling = '{how}' is of tokens or patches, layer by layer, and model.name = 'resnet' gives a "
            "feature map; use model.pooling = 'mean', or model.name = 'vit'"
        )
    if how == "last_two" and ((found := _layers(job)) is None or found < 2):
        has = "does not say how many it has" if found is None else f"has {found}"
        remedy = "model.layers = 2 or more, or " if is_built(name) else ""
        raise ModelError(
            f"model.pooling = 'last_two' is of two layers, and model.name = '{name}' {has}; use {remedy}"
            "model.pooling = 'mean'"
        )


def _layers(job: JobConfig) -> int | None:
    """Find the number of layers of an encoder that is no code of the user's; None where its configuration has none."""
    name = job.model.name
    if name is None or is_built(name):
        return job.model.layers
    from jobs.models import transformer

    return transformer.examined(name, job)[1].layers


def refused_guide(job: JobConfig, error: Exception) -> ModelError:
    """Return the error of a guide that cannot be one, of what was said of it as an encoder to train."""
    words = str(error).replace(f"model.name = '{job.loss.guide}'", "it")
    words = re.sub(r", a name that the Hub knows, or .* to train from nothing", " or a name that the Hub knows", words)
    return ModelError(f"loss.guide = '{job.loss.guide}' cannot be used: {words}")


def check_views(job: JobConfig) -> None:
    """Raise ModelError where single sentences have two views that are the same, and nobody has said so."""
    name = job.model.name
    if name is None or is_built(name) or job.model.dropout == 0 or job.model.same_dropout or job.augments_tokens:
        return
    from jobs.models import transformer

    _, anatomy = transformer.examined(name, job)
    if anatomy.drops:
        return
    is_open = anatomy.settable and job.model.dropout is None
    works = f"set model.dropout = 0.1 ({', '.join(anatomy.settable)} of its configuration), " if is_open else ""
    raise ModelError(
        f"data.train holds single sentences, whose two views differ by dropout alone, and model.name = '{name}' "
        f"({anatomy.kind}) has none: there is nothing to learn; {works}give pairs (columns anchor and positive), name "
        "an augmentation (augment.name = 'delete_word'), or write model.dropout = 0 if that is meant"
    )


def _check_ids(name: str, tokenizer: Any, rows: int | None) -> None:
    if rows is None:
        return
    beyond = sorted((at, token) for token, at in tokenizer.get_vocab().items() if at >= rows)
    if beyond:
        tokens = ", ".join(repr(token) for _, token in beyond[:3]) + (" ..." if len(beyond) > 3 else "")
        raise ModelError(
            f"model.name = '{name}': its table of token embeddings has {rows} rows, and its tokenizer gives ids up to "
            f"{beyond[-1][0]} ({len(beyond)} too many: {tokens}); put the tokenizer there that it was trained with, or "
            f"save it after resize_token_embeddings({beyond[-1][0] + 1})"
        )


def _check_prompt(name: str, tokenizer: Any, read: Reading) -> None:
    taken = len(tokenizer(read.prompt)["input_ids"]) if read.prompt else 0
    if taken >= read.max_tokens:
        raise ModelError(
            f"data.max_tokens = {read.max_tokens}, and the prompt of model.name = '{name}' alone takes {taken} with "
            f"its special tokens, which leaves none for a sentence; set data.max_tokens = {taken + 32}, say"
        )

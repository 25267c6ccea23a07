"""What a pretrained encoder is, from its configuration alone: how long a text it takes, how many ids, whether it drops.

The network is built without memory for its weights (torch's `meta` device), which takes some hundredths of a second, so
that a job is refused before any of its trials starts.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from jobs.core.failures import words_of
from jobs.core.provenance import Stamp, stamp
from jobs.models.errors import ModelError
from jobs.models.pretrained.folder import ADAPTER, CONFIG

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DROPOUTS = ("dropout", "dropout_prob", "dropout_rate", "pdrop")
"""How the names of a configuration's dropouts end."""


@dataclass(frozen=True)
class Anatomy:
    """What a configuration says."""

    kind: str
    """Class of the network."""

    main_input: str
    """What it encodes: `input_ids` or `pixel_values`."""

    positions: int | None
    """The longest text, in tokens; None where there is no such limit."""

    usual: int | None
    """What its configuration calls its positions, also where they are no limit."""

    ids: int | None
    """Rows of the table of token embeddings; None where it has no plain one."""

    layers: int | None
    """As its configuration says; None where it says nothing, as of stages of a feature map."""

    drops: bool
    """Whether two passes in training mode differ."""

    settable: tuple[str, ...]
    """The dropouts that its configuration names."""


def anatomy(folder: Path, *, dropout: float | None) -> Anatomy:
    """Describe the encoder in a folder. dropout: of the job, None for the encoder's own. Raises ModelError for what
    cannot be trained, without the name of the encoder."""
    try:
        return _anatomy(folder, dropout, stamp(folder / CONFIG))
    except ModelError:
        raise
    except Exception as error:  # a configuration may hold anything, and its class may ask anything of it
        raise ModelError(f"its {CONFIG} makes no encoder: {words_of(error)}") from error


@functools.lru_cache(maxsize=16)
def _anatomy(folder: Path, dropout: float | None, _stamp: Stamp) -> Anatomy:
    config = read_config(folder)
    settable = tuple(dropouts(config))
    if dropout is not None:
        set_dropout(config, dropout)
    kind = _network(config)
    with torch.device("meta"):
        network = kind(config)
    return Anatomy(
        kind=kind.__name__,
        main_input=str(network.main_input_name),
        positions=_positions(config, network),
        usual=_usual(config),
        ids=_ids(network),
        layers=getattr(config, "num_hidden_layers", None),
        drops=any(_drops(module) for module in network.modules()),
        settable=settable,
    )


def read_config(folder: Path) -> PreTrainedConfig:
    """Read the configuration in a folder. Raises ModelError for what is no encoder that can be trained; OSError and
    ValueError for what cannot be read."""
    if (folder / ADAPTER).is_file():
        raise ModelError(
            f"it holds an adapter ({ADAPTER}), and adapters are not trained; save the model merged with it, by "
            "merge_and_unload() of peft and save_pretrained()"
        )
    config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            "its weights are quantised, which cannot be trained; give the model as it was before, in fp32, fp16 or bf16"
        )
    return config


def dropouts(config: PreTrainedConfig) -> list[str]:
    """List the names of a configuration's dropouts."""
    settings = config.to_dict().items()
    return [key for key, value in settings if type(value) in (int, float) and key.endswith(DROPOUTS)]


def set_dropout(config: PreTrainedConfig, p: float) -> None:
    """Set every dropout that a configuration names."""
    names = dropouts(config)
    if p and not names:
        raise ModelError(f"model.dropout = {p}, but this encoder's configuration names no dropout; leave it out")
    for name in names:
        setattr(config, name, p)


def _network(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Find the class that AutoModel takes. Raises ModelError where it is no encoder of one kind of input."""
    try:
        mapped = MODEL_MAPPING[type(config)]
    except KeyError as error:
        raise ModelError(
            f"its kind {config.model_type!r} is none that AutoModel of transformers loads as an encoder; "
            "give one that it does, such as BERT, RoBERTa or ModernBERT"
        ) from error
    kind: type[PreTrainedModel] | None = mapped[0] if isinstance(mapped, tuple | list) else mapped
    assert kind is not None, "a configuration of the mapping has a network"
    takes = inspect.signature(kind.forward).parameters
    if {"decoder_input_ids", "decoder_inputs_embeds", "decoder_attention_mask"} & takes.keys():
        raise ModelError(
            f"it is an encoder with a decoder ({kind.__name__}), as T5 is, and only encoders are trained; give an "
            "encoder alone, such as BERT, RoBERTa, ModernBERT or all-MiniLM-L6-v2"
        )
    if {"input_ids", "pixel_values"} <= takes.keys() and not hasattr(config, "hidden_size"):
        raise ModelError(
            f"it encodes sentences and images at once ({kind.__name__}), and only encoders of one of them are trained; "
            "give the half that you want, saved by save_pretrained()"
        )
    positions = getattr(config, "position_embedding_type", None) or "absolute"
    if positions != "absolute" and not hasattr(type(config), "position_embedding_type"):
        raise ModelError(
            f"its {CONFIG} has position_embedding_type = {positions!r}, which the {kind.__name__} of transformers does "
            "not compute; give an encoder with absolute positions, or of a kind that has others, such as DeBERTa"
        )
    if "input_ids" in takes and "attention_mask" not in takes:
        raise ModelError(
            f"it takes no attention mask ({kind.__name__}), so padding would change its embeddings; give an encoder "
            "that takes one, such as BERT"
        )
    return kind


def _positions(config: PreTrainedConfig, network: nn.Module) -> int | None:
    """Find the longest text, in tokens. RoBERTa and its kin number positions from the padding's id + 1, which is their
    table's own."""
    limit = _usual(config)
    if limit is None:
        return None
    is_relative = getattr(config, "relative_attention", False) and not getattr(config, "position_biased_input", True)
    if is_relative or getattr(config, "alibi", False):
        return None
    for name, module in network.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and type(padding) is int:
            return limit - padding - 1
    named = getattr(config, "n_positions", None)  # as of a Nomic BERT, where transformers does not read it
    return max(limit, named) if isinstance(named, int) and not hasattr(type(config), "n_positions") else limit


def _usual(config: PreTrainedConfig) -> int | None:
    named = getattr(config, "max_position_embeddings", None)
    return named if isinstance(named, int) and named > 0 else None


def _ids(network: PreTrainedModel) -> int | None:
    try:
        table = network.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return None
    return table.num_embeddings if isinstance(table, nn.Embedding) else None


def _drops(module: nn.Module) -> bool:
    if isinstance(module, nn.Dropout):
        return module.p > 0
    return any("drop" in name and type(value) is float and value > 0 for name, value in vars(module).items())

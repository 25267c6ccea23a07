"""The files of an exported folder: those of transformers, of sentence-transformers, and of `embed.py`.

    config.json  model.safetensors  tokenizer.json  tokenizer_config.json     transformers; or preprocessor_config.json
    modules.json  sentence_bert_config.json  1_Pooling/  2_Dense/             sentence-transformers
    embedding.json  embed.py  image_module.py  modeling_resnet.py  resnet.py  what both lack
    attention_module.py  1_AttentionPooling/                                  a pooling that both lack

Weights are safetensors. The code is copied from this package as it is, so that a folder needs nothing of this package.

Those of sentence-transformers are written here and not by its own `save()`: it need not be installed, and what its
version 6 saves names modules that version 5 has not, and leaves out how the encoder and its text are to be loaded.
"""

from __future__ import annotations

import copy
import inspect
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors.torch import save_file
from torch import nn

import jobs.models
from jobs.config import JobConfig
from jobs.config.json_values import Json
from jobs.data.images.pixels import MEAN, STD
from jobs.export.embed import ATTENTION, OTHER_LAYER, Settings
from jobs.models import ContrastiveModel, ModelError, Reading
from jobs.models.pretrained.modules import FLAGS
from jobs.models.resnet import ResNet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SENTENCE_TRANSFORMERS = "sentence_transformers.models."
"""Under this name versions 5 and 6 both find their modules."""

CODE = "modeling_resnet"
"""The file that transformers finds the residual network in."""

HERE, MODELS = Path(__file__).parent, Path(jobs.models.__file__).parent


def write(
    into: Path,
    model: ContrastiveModel,
    job: JobConfig,
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    image_shape: tuple[int, int, int] | None,
    after: nn.Linear | None = None,
) -> Settings:
    """Write everything but the README. Returns what embedding.json says.

    tokenizer: of a sentence encoder. image_shape: channels, height, width of an image encoder's images. after: what is
    done to embeddings, written in the encoder's precision. Raises ModelError for a pooling that sentence-transformers
    has no counterpart for.
    """
    attends = model.pooling == "attention"
    if attends:
        _write_attention(into, model)
    if isinstance(model.encoder, ResNet):
        load = _write_resnet(into, model.encoder, job)
    else:
        load = _write_encoder(into, cast("PreTrainedModel", model.encoder))  # all others are of transformers
    if job.task == "sentence":
        assert tokenizer is not None
        _write_tokenizer(into, tokenizer, model.reading.max_tokens)
        modules = _write_sentence_modules(into, model, load)
    else:
        assert image_shape is not None
        _write_json(into / "preprocessor_config.json", _preprocessor(image_shape))
        shutil.copy(HERE / "image_module.py", into)
        modules = [("image_module.ImageEncoder", "")]
    head = _write_head(into, model.head, after=len(modules)) if job.evaluate.head else []
    if after is not None:
        precise = nn.Sequential(copy.deepcopy(after).to(next(model.encoder.parameters()).dtype))
        head += _write_head(into, precise, after=len(modules) + len(head))
    _write_modules(into, [*modules, *((SENTENCE_TRANSFORMERS + "Dense", name) for name in head)], model.reading)
    settings: Settings = {
        "task": job.task,
        "pooling": "map" if image_shape and not attends and _is_map(model, image_shape) else model.pooling,
        "normalise": model.reading.normalise,
        "prompt": model.reading.prompt,
        "lower": model.reading.lower,
        "skipped": model.skipped,
        "precision": job.model.precision,
        "hidden": model.width,
        "head": head,
        "width": after.out_features if after is not None else model.out_width if head else model.width,
        "load": load,
        "code": f"{CODE}.ResNetEncoder" if isinstance(model.encoder, ResNet) else None,
        "max_tokens": model.reading.max_tokens if job.task == "sentence" else None,
        "image_shape": image_shape,
        "prefix_tokens": model.prefix_tokens,
    }
    _write_json(into / "embedding.json", settings)
    shutil.copy(HERE / "embed.py", into)
    return settings


@torch.no_grad()
def _is_map(model: ContrastiveModel, image_shape: tuple[int, int, int]) -> bool:
    """Return whether the encoder gives a feature map, whatever pooling the job names."""
    pixels = torch.zeros(1, *image_shape, dtype=next(model.encoder.parameters()).dtype)
    output = model.encoder(pixels)
    return bool(getattr(output, "last_hidden_state", output).ndim == 4)


def _write_encoder(into: Path, encoder: PreTrainedModel) -> dict[str, bool]:
    """Write config.json and model.safetensors. Returns the options that AutoModel needs to load them."""
    encoder.save_pretrained(into)
    # Else AutoModel would make a pooler of random weights, and say so.
    takes_pooler = "add_pooling_layer" in inspect.signature(type(encoder).__init__).parameters
    return {"add_pooling_layer": False} if takes_pooler else {}


def _write_resnet(into: Path, encoder: ResNet, job: JobConfig) -> dict[str, bool]:
    """Write the same of a network that transformers does not know, with its code."""
    from jobs.models.modeling_resnet import ResNetEncoder, ResNetEncoderConfig

    config = ResNetEncoderConfig(
        num_channels=encoder.stem.in_channels,
        width=job.model.width,
        layers=job.model.layers,
        norm=job.model.norm,
        dropout=job.model.dropout or 0.0,
    )
    config.auto_map = {"AutoConfig": f"{CODE}.ResNetEncoderConfig", "AutoModel": f"{CODE}.ResNetEncoder"}
    wrapped = ResNetEncoder(config)
    wrapped.network.to(encoder.stem.weight.dtype)
    wrapped.network.load_state_dict(encoder.state_dict())
    wrapped.save_pretrained(into)
    for name in (f"{CODE}.py", "resnet.py"):
        shutil.copy(MODELS / name, into)
    return {"trust_remote_code": True}


def _write_tokenizer(into: Path, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
    """Write the tokenizer as training used it: cut at max_tokens, padded on the right, no token types."""
    copied = copy.deepcopy(tokenizer)
    copied.model_max_length, copied.padding_side = max_tokens, "right"
    copied.model_input_names = ["input_ids", "attention_mask"]
    copied.init_kwargs.pop("name_or_path", None)
    # A fast tokenizer remembers how it was last called, or how it came; each call says it anew.
    if (inside := getattr(copied, "backend_tokenizer", None)) is not None:
        inside.no_truncation()
        inside.no_padding()
    copied.save_pretrained(into)


def _write_sentence_modules(into: Path, model: ContrastiveModel, load: dict[str, bool]) -> list[tuple[str, str]]:
    """Write sentence-transformers' modules before the head. Returns their types and folders.

    Lower case is asked for: a tokenizer that transformers makes anew forgets what was added to it.
    """
    modules, read = [(SENTENCE_TRANSFORMERS + "Transformer", "")], model.reading
    options: dict[str, Json] = {"max_seq_length": read.max_tokens, "do_lower_case": read.lower, "model_args": load}
    if model.pooling in OTHER_LAYER:
        modules.append((SENTENCE_TRANSFORMERS + "WeightedLayerPooling", "1_WeightedLayerPooling"))
        options["config_args"] = {"output_hidden_states": True}
        _write_both_layers(into / modules[-1][1], model)
    _write_json(into / "sentence_bert_config.json", options)
    if model.pooling == "attention":
        shutil.copy(HERE / "attention_module.py", into)
        return [*modules, ("attention_module.AttentionPooling", Path(ATTENTION).parent.name)]
    modules.append((SENTENCE_TRANSFORMERS + "Pooling", f"{len(modules)}_Pooling"))
    of = "mean" if model.pooling in OTHER_LAYER else model.pooling
    modes: dict[str, Json] = {flag: mode == of for flag, mode in FLAGS.items()}
    modes |= {"word_embedding_dimension": model.width, "include_prompt": read.include_prompt}
    _write_json(into / modules[-1][1] / "config.json", modes)
    if read.normalise:
        modules.append((SENTENCE_TRANSFORMERS + "Normalize", f"{len(modules)}_Normalize"))
        _write_json(into / modules[-1][1] / "config.json", {})
    return modules


def _write_attention(into: Path, model: ContrastiveModel) -> None:
    """Write the pooling's weights; the module that loads them is for sentences alone."""
    weights = into / ATTENTION
    weights.parent.mkdir()
    save_file({"weight": model.get_parameter("pool.module.weight").detach()}, weights)
    _write_json(weights.parent / "config.json", {"embedding_dimension": model.width})


@torch.no_grad()
def _write_both_layers(folder: Path, model: ContrastiveModel) -> None:
    """Write the mean of the last layer and another one as weights of embeddings and layers, but for the embeddings."""
    encoder = model.encoder
    ids = torch.ones(1, 4, dtype=torch.int64, device=next(encoder.parameters()).device)
    output = encoder(input_ids=ids, attention_mask=ids, output_hidden_states=True)
    if not torch.equal(output.hidden_states[-1], output.last_hidden_state):
        raise ModelError(
            f"model.pooling = '{model.pooling}' of a {type(encoder).__name__} cannot be exported: it changes the last "
            "layer's states once more, which sentence-transformers does not; train with model.pooling = 'mean'"
        )
    layers = len(output.hidden_states) - 1
    weights = torch.zeros(layers + 1)
    weights[OTHER_LAYER[model.pooling]] += 1
    weights[-1] += 1
    weights = weights[1:].clone()
    config = {"word_embedding_dimension": model.width, "layer_start": 1, "num_hidden_layers": layers}
    _write_json(folder / "config.json", config)
    save_file({"layer_weights": weights}, folder / "model.safetensors")


def _preprocessor(image_shape: tuple[int, int, int]) -> dict[str, Json]:
    """Describe how pixels are scaled, for transformers' AutoImageProcessor."""
    channels, height, width = image_shape
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": False,
        "size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [MEAN] * channels,
        "image_std": [STD] * channels,
    }


def _write_head(into: Path, head: nn.Module, *, after: int) -> list[str]:
    """Write the head's linear maps, each with what follows it, as modules `after` and following. Returns their
    folders."""
    parts = [head] if isinstance(head, nn.Linear) else list(head.children())
    names: list[str] = []
    for part, following in zip(parts, [*parts[1:], nn.Identity()], strict=False):  # no head has no parts
        if isinstance(part, nn.Linear):
            names.append(f"{after + len(names)}_Dense")
            _write_dense(into / names[-1], part, type(following))
    return names


def _write_dense(folder: Path, linear: nn.Linear, activation: type[nn.Module]) -> None:
    config = {
        "in_features": linear.in_features,
        "out_features": linear.out_features,
        "bias": True,
        "activation_function": f"{activation.__module__}.{activation.__name__}",
    }
    _write_json(folder / "config.json", config)
    weights = {f"linear.{name}": values.contiguous() for name, values in linear.state_dict().items()}
    save_file(weights, folder / "model.safetensors")


def _write_modules(into: Path, modules: list[tuple[str, str]], read: Reading) -> None:
    listed = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (kind, path) in enumerate(modules)]
    _write_json(into / "modules.json", listed)
    general = {"prompts": dict(read.prompts), "default_prompt_name": read.default_prompt}
    _write_json(into / "config_sentence_transformers.json", general | {"similarity_fn_name": "cosine"})


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")

"""Whether the weights in an encoder's folder are those of its network, by what transformers says of loading them.

transformers draws at random what it does not find, and only prints that. Here it is refused, before any trial by the
names and shapes in the files alone, which takes no memory for weights, and again where they are loaded.
"""

from __future__ import annotations

import functools
import pickle
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoModel
from transformers.utils import logging

from jobs.core.failures import words_of
from jobs.core.provenance import Stamp, stamp
from jobs.models.errors import ModelError
from jobs.models.pretrained import folder as pretrained
from jobs.models.pretrained.anatomy import read_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

UNREADABLE = (OSError, ValueError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError)
"""What transformers, torch and safetensors raise for files of weights that are none."""

POINTER = b"version https://git-lfs"
"""How a file begins that Git LFS has left in place of the one that it stands for."""

UNUSED = {"pooler", "mask_token"}
"""Parts of networks that no embedding is made of, so that nothing is lost where they are made anew."""


class Loading(TypedDict):
    """Of what transformers says of loading weights, what is used."""

    missing_keys: Collection[str]
    unexpected_keys: Collection[str]
    mismatched_keys: Collection[tuple[str, tuple[int, ...], tuple[int, ...]]]
    """Name, shape in the file, and shape in the network."""


def examine(folder: Path) -> list[str]:
    """Check the weights in a folder and return notes on them. Raises ModelError for those that do not fit its
    configuration, and OSError for those that are not there, without the name of the encoder."""
    files = pretrained.weight_files(folder)
    of = (pretrained.CONFIG, *(path.relative_to(folder).as_posix() for path in files))
    return list(_examined(folder, tuple(files), tuple(stamp(folder / name) for name in of)))


@functools.lru_cache(maxsize=16)
def _examined(folder: Path, files: tuple[Path, ...], _stamps: tuple[Stamp, ...]) -> tuple[str, ...]:
    config = read_config(folder)
    # One number stands for each weight, in its shape: what is never looked at takes no memory.
    known = {key: torch.zeros(()).expand(shape) for path in files for key, shape in _shapes(path)}
    load = cast("Callable[..., tuple[PreTrainedModel, Loading]]", type(_network(config)).from_pretrained)
    with _quiet(), torch.random.fork_rng(devices=[]):
        _, loading = load(
            None,
            config=config,
            state_dict=known,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    network = refuse_unfit(folder, loading)
    return tuple(_notes(network, config, loading["unexpected_keys"]))


def refuse_unfit(folder: Path, loading: Loading) -> nn.Module:
    """Raise ModelError where weights were not found, or have another shape. loading: what transformers says of loading
    them, as `output_loading_info`. Returns the network, without memory for its weights."""
    config = read_config(folder)
    network = _network(config)
    # What takes no gradient is no weight: it is computed, as positions of sines are.
    trained = {name for name, values in network.named_parameters() if values.requires_grad and not _is_unused(name)}
    shapes = {key: (tuple(there), tuple(wanted)) for key, there, wanted in loading["mismatched_keys"] if key in trained}
    kind, file = type(network).__name__, pretrained.weight_files(folder)[0].name
    if shapes:
        key, (there, wanted) = min(shapes.items())
        raise ModelError(
            f"{len(shapes)} of its weights have another shape than its config.json gives them: {key} is "
            f"{_shape(there)} in {file}, and {_shape(wanted)} in its {kind}; give the config.json that these weights "
            "were saved with"
        )
    missing = sorted(trained & set(loading["missing_keys"]))
    if missing:
        raise ModelError(
            f"{len(missing)} of the {len(trained)} weights of its {kind} are not in {file}, and would be random: "
            f"{_some(missing)}; {_why(missing, loading['unexpected_keys'])}{_own_code(config, kind)}"
        )
    return network


def _network(config: PreTrainedConfig) -> PreTrainedModel:
    """Build the network that AutoModel makes, without memory for its weights."""
    with torch.device("meta"):
        network: PreTrainedModel = AutoModel.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    return network


def _shapes(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of a file's weights; none for an index. Raises ModelError for a file of no weights."""
    with path.open("rb") as opened:
        if opened.read(len(POINTER)) == POINTER:
            raise ModelError(
                f"{path} is no file of weights but what Git LFS leaves in its place; fetch it, by git lfs pull in the "
                "repository that it is of"
            )
    if path.name.endswith(".json"):
        return
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                yield from [(key, tuple(file.get_slice(key).get_shape())) for key in file.keys()]  # noqa: SIM118
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the pickle's protocol, as one of other things has
            held = torch.load(path, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(path))
        yield from [(str(key), tuple(value.shape)) for key, value in held.items() if isinstance(value, Tensor)]
    except (*UNREADABLE, AttributeError) as error:
        raise ModelError(
            f"{path} cannot be read as weights ({words_of(error)}), as where it is cut off; fetch or copy it again"
        ) from error


def _why(missing: Collection[str], there: Collection[str]) -> str:
    """Say what is there in place of weights that are missing, and what would work."""
    ends = f".{min(missing, key=len)}"
    before = sorted({key.removesuffix(ends[1:]) for key in there if key.endswith(ends)}, key=len)
    if before:
        return (
            f"they are there behind the prefix '{before[0]}', as where a whole was saved of which the encoder is a "
            "part; save the encoder alone, by its own save_pretrained(), or take that prefix off their names"
        )
    instead = f"it has {_some(sorted(there))} in their place; " if there else ""
    return f"{instead}give a folder as save_pretrained() has written it, config.json and weights of one encoder"


def _notes(network: nn.Module, config: PreTrainedConfig, unexpected: Collection[str]) -> Iterator[str]:
    prefix, parts = f"{getattr(network, 'base_model_prefix', '')}.", {name for name, _ in network.named_children()}
    surplus = sorted(
        key for key in unexpected if key.removeprefix(prefix).partition(".")[0] in parts and not _is_unused(key)
    )
    kind = type(network).__name__
    if surplus:
        yield (
            f"{len(surplus)} of its weights are left out, as its {kind} has no place for them: {_some(surplus)}"
            f"{_own_code(config, kind)}"
        )
    elif own := _own_code(config, kind):
        yield own.removeprefix("; ")


def _own_code(config: PreTrainedConfig, kind: str) -> str:
    """Say that a configuration names code of its own; empty where it does not."""
    own = (getattr(config, "auto_map", None) or {}).get("AutoModel")
    if own is None:
        return ""
    named = own if isinstance(own, str) else own[0]
    return f"; its config.json names code of its own ({named}), and no code of a folder is run: this is the {kind} of \
transformers"


def _is_unused(name: str) -> bool:
    return not UNUSED.isdisjoint(name.split("."))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _shape(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes)) or "one number"


@contextmanager
def _quiet() -> Iterator[None]:
    """Have transformers print nothing: what it would print is put into other words here."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]

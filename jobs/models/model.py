"""The model of a job: encoder, pooling, head and temperature.

`build` makes it, and its first weights are a function of the job's seed alone. Its dropout is keyed (dropout.py), so an
embedding in training is a function of the weights, the input and the row's keys.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import inspect
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jobs.config import JobConfig, components
from jobs.config.components import is_import_path
from jobs.core import randomness
from jobs.core.paths import is_built
from jobs.models import dropout
from jobs.models.encoders import initialise, make_encoder
from jobs.models.errors import ModelError
from jobs.models.fitness import check_layers
from jobs.models.mlm import MaskedLanguageHead
from jobs.models.pretrained.tokenizer import prompt_tokens
from jobs.models.reading import Reading, reading

Inputs = Mapping[str, Tensor]
"""What the encoder takes, batch first: pixel_values; or input_ids and attention_mask."""


STATES = {"first": 1, "before_last": -2}
"""What a pooling may ask for beside the last layer's states, and its place among those of embeddings and layers."""

OF_TWO_LAYERS = ("first_last", "last_two")
"""Built-in poolings of the mean of two layers."""

BESIDE = ("loss_module.", "follower.")
"""How the names begin of what a checkpoint has beside encoder and head."""


class ContrastiveModel(nn.Module):
    """Encoder and projection head.

    width: columns of `encode`. out_width: columns of `project` and `embed`. log_temperature: parameter of a learned
    temperature, else None. mlm: head of the auxiliary masked-language-model loss, else None. prefix_tokens: how many
    states an image encoder gives before those of the patches. unreplayable: why the encoder's dropout could not be
    replaced by keyed dropout, else None; masks are then seeded by micro-batch, and depend on its rows. reading:
    how sentences are taken and pooled. skipped: tokens at the beginning of each row that are not pooled. loss_module:
    of a loss with parameters or state, trained and saved with the rest; else None. follower: a copy that follows, for a
    loss that asks for its keys; else None. same_dropout: whether all views of a pair drop the same activations.
    """

    def __init__(self, job: JobConfig, encoder: nn.Module, *, skipped: int = 0) -> None:
        super().__init__()
        self.reading = reading(job)
        self.skipped = skipped
        self.encoder = encoder
        self.width = _width_of(encoder)
        self.head = _head(job, self.width)
        self.out_width = self.width if job.model.projection == "none" else job.model.projection_width
        self.pooling = self.reading.pooling
        self.pool, self.states_beside = pooling_of(job, self.pooling, self.width)
        self.precision, self.same_dropout = job.model.precision, job.model.same_dropout
        self.mlm = _masked_language_head(job, encoder, self.width) if job.loss.mlm_weight else None
        self.unreplayable: str | None = None
        self.log_temperature: nn.Parameter | None = None
        self._temperature = 0.0
        self._range = (math.log(job.loss.temperature_range[0]), math.log(job.loss.temperature_range[1]))
        if job.loss.temperature == "learned":
            self.log_temperature = nn.Parameter(torch.tensor(math.log(job.loss.temperature_start)))
        else:
            self._temperature = job.loss.temperature
        self.prefix_tokens = _prefix_tokens(encoder)
        self.loss_module: nn.Module | None = None
        self.follower: ContrastiveModel | None = None
        self._momentum = 0.0
        self.has_unit_rows = True

    def take_loss(self, module: nn.Module | None, *, normalised: bool, momentum: float | None = None) -> None:
        """Hold the module of the job's loss, if it has one, in the model's precision and on its device.

        normalised: whether `embed` gives unit rows. momentum: of a copy that is not trained, and follows the model by
        `follow_`; None: no copy.
        """
        like = next(self.parameters())
        self.loss_module = None if module is None else module.to(device=like.device, dtype=like.dtype).train()
        self.has_unit_rows = normalised
        if momentum is not None:
            follower = copy.deepcopy(self)
            follower.loss_module, follower.log_temperature, follower.mlm = None, None, None
            self.follower, self._momentum = follower.requires_grad_(requires_grad=False), momentum

    @torch.no_grad()
    def follow_(self) -> None:
        """Move the weights of the copy to momentum times theirs plus the rest of the model's, after every step."""
        if self.follower is not None:
            for name, followed in self.follower.named_parameters():
                followed.lerp_(self.get_parameter(name), 1 - self._momentum)
            for name, buffer in self.follower.named_buffers():
                buffer.copy_(self.get_buffer(name))

    def encode(self, inputs: Inputs) -> Tensor:
        """Compute the encoder's pooled output [n, width]."""
        dropout.restart()
        with self._autocast(), self._seeded_by_rows():
            pooled = self._pool(inputs)
            return F.normalize(pooled, dim=-1) if self.reading.normalise else pooled

    def project(self, hidden: Tensor) -> Tensor:
        """Compute the head's output [n, out_width], not normalised; hidden [n, width] as `encode` gives it."""
        with self._autocast():
            projected: Tensor = self.head(hidden)
        return projected

    def embed(self, inputs: Inputs) -> Tensor:
        """Compute rows [n, out_width] for the loss, fp32 or fp64 as the model is; unit, unless the loss asks
        otherwise."""
        projected = self.project(self.encode(inputs))
        rows = projected if projected.dtype == torch.float64 else projected.float()
        return F.normalize(rows, dim=-1) if self.has_unit_rows else rows

    def masked_logits(self, inputs: Inputs, chosen: Tensor) -> Tensor:
        """Compute the auxiliary head's guesses, [m, vocabulary] in fp32 or fp64, where chosen [n, L] holds m times."""
        assert self.mlm is not None, "loss.mlm_weight = 0 builds no head"
        encoder: Any = self.encoder
        dropout.restart()
        with self._autocast(), self._seeded_by_rows():
            hidden = encoder(**inputs, output_hidden_states=False).last_hidden_state[chosen]
        table = encoder.get_input_embeddings().weight
        logits: Tensor = self.mlm(hidden.to(table.dtype), table)
        return logits

    def temperature(self) -> float | Tensor:
        """Return the temperature: a number, or a 0-d tensor with gradient if it is learned."""
        return self._temperature if self.log_temperature is None else self.log_temperature.exp()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring a learned temperature back into its range. Call after every optimizer step."""
        if self.log_temperature is not None:
            self.log_temperature.clamp_(*self._range)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision != "bf16":
            return nullcontext()
        return torch.autocast(next(self.parameters()).device.type, torch.bfloat16)

    @contextmanager
    def _seeded_by_rows(self) -> Iterator[None]:
        """Seed torch's generators by the micro-batch while the context lasts, where dropout cannot be keyed, and put
        them back afterwards."""
        if self.unreplayable is None or not self.training:
            yield
            return
        with torch.random.fork_rng():
            torch.manual_seed(dropout.seed_of_rows())
            yield

    def _pool(self, inputs: Inputs) -> Tensor:
        if inputs.keys() == {"pixel_values"}:
            return self._pool_image(inputs["pixel_values"])
        given = dict(inputs)
        for name in [name for name, values in inputs.items() if values.is_floating_point()]:
            given[name] = inputs[name].to(next(self.encoder.parameters()).dtype)
        # Whatever its configuration says, a language model is asked for no states that nobody pools.
        output = self.encoder(**given, **self._states_asked(always="attention_mask" in inputs))
        last: Tensor = output if isinstance(output, Tensor) else output.last_hidden_state
        if last.ndim == 2:
            return last
        if last.ndim == 4:
            return self._pool_map(last)
        mask = inputs.get("attention_mask")
        return self._pool_states(output, last, _all(last) if mask is None else mask)

    def _pool_image(self, pixels: Tensor) -> Tensor:
        output = self.encoder(pixels.to(next(self.encoder.parameters()).dtype), **self._states_asked())
        last: Tensor = output if isinstance(output, Tensor) else output.last_hidden_state
        if last.ndim == 2:
            return last
        if last.ndim == 4:
            return self._pool_map(last)
        if self._takes_any_states():
            mask = _all(last)
            mask[:, : self.prefix_tokens] = 0
            return self._pool_states(output, last, mask)
        if self.pooling == "cls":
            return last[:, 0]
        if self.pooling in OF_TWO_LAYERS:
            (other,) = self._beside(output).values()
            last = (other + last) / 2
        return last[:, self.prefix_tokens :].mean(1)

    def _states_asked(self, *, always: bool = False) -> dict[str, bool]:
        """Return the arguments that ask an encoder for its layers' states; a user's own encoder may not know them."""
        is_asked = bool(self.states_beside)
        return {"output_hidden_states": is_asked} if always or is_asked else {}

    def _beside(self, output: Any) -> dict[str, Tensor]:
        """Return the states of other layers that the pooling asks for, by name. Raises ModelError where there is no
        layer before the last."""
        states = output.hidden_states if self.states_beside else ()
        if "before_last" in self.states_beside and len(states) < 3:
            raise ModelError(
                f"model.pooling = '{self.pooling}' asks for the states of the layer before the last, and this encoder "
                "has one layer; use model.pooling = 'mean'"
            )
        return {name: states[STATES[name]] for name in self.states_beside}

    def _pool_map(self, last: Tensor) -> Tensor:
        """Average a feature map, or pool its places by weights or a pooling of the user's own."""
        if not self._takes_any_states():
            return last.mean((2, 3))
        states = last.flatten(2).transpose(1, 2)
        return self._pool_states(None, states, _all(states))

    def _takes_any_states(self) -> bool:
        """Return whether patches and places are pooled as tokens are."""
        return self.pooling == "attention" or is_import_path(self.pooling)

    def _pool_states(self, output: Any, states: Tensor, mask: Tensor) -> Tensor:
        if self.skipped:
            mask = mask * (torch.arange(mask.shape[1], device=mask.device) >= self.skipped)
        given = {} if output is None else self._beside(output)
        with torch.autocast(states.device.type, enabled=False):  # a sum of many is not kept in bf16
            # A mean of two layers adds them as they are.
            is_kept = states.dtype == torch.float64 or self.pooling in OF_TWO_LAYERS
            whole = states if is_kept else states.float()
            pooled: Tensor = self.pool(states=whole, mask=mask, **given)
        return pooled


def build(
    job: JobConfig,
    *,
    tokenizer: Any = None,
    image_shape: tuple[int, int, int] | None = None,
    inputs: Inputs | None = None,
    device: torch.device | str = "cpu",
) -> ContrastiveModel:
    """Build the job's model in training mode, on the device. Its first weights are a function of job.seed alone.

    tokenizer: for `bert`, to set its vocabulary. image_shape: channels, height, width, for `vit` and `resnet`. inputs:
    two rows as the encoder will take them; they say the shape of images, if they have pixel_values. Raises ModelError
    where the job asks for what cannot be made.
    """
    if inputs is not None and image_shape is None and "pixel_values" in inputs:
        channels, height, width = inputs["pixel_values"].shape[1:]
        image_shape = (channels, height, width)
    check_layers(job)
    seed = randomness.init_seed(job.seed)
    # Constructors draw from the global generator before `initialise` overwrites what they drew.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        vocabulary = None if tokenizer is None else len(tokenizer)
        encoder = make_encoder(job, vocabulary=vocabulary, image_shape=image_shape, inputs=inputs)
        model = ContrastiveModel(job, encoder, skipped=_prompt_tokens(tokenizer, reading(job)))
    initialise(model.head, seed, "head")
    if model.mlm is not None:
        initialise(model.mlm, seed, "mlm")
    dropout.replace_dropout(encoder)
    if isinstance(model.pool, nn.Module):
        dropout.replace_dropout(model.pool)
    if is_import_path(model.pooling):
        _refuse_unkeyed(model)
    if not is_built(job.model.name) or is_import_path(job.model.name or ""):
        model.unreplayable = dropout.why_unreplayable(encoder, dict(inputs or _example(job, image_shape)))
        if model.unreplayable is not None:
            dropout.restore_dropout(encoder)
    if job.model.precision == "fp64":
        model = model.double()
    if job.execution.compile:
        dropout.leave_uncompiled()
        model.encoder.compile(dynamic=job.task == "sentence" or None)
    return model.to(device).train()


def import_code(job: JobConfig) -> None:
    """Import what the job's encoder is made of: seconds for all but a ResNet. In a thread, as torch's compiler, which
    comes with transformers, leaves a frame of its import behind, and with it whatever the callers hold, a model among
    that, stays until garbage is collected."""
    if job.model.name != "resnet":
        thread = threading.Thread(target=importlib.import_module, args=("jobs.models.transformer",))
        thread.start()
        thread.join()


def refuse_what_parts_of_a_batch_change(model: ContrastiveModel, job: JobConfig, *, world: int) -> None:
    """Raise ValueError where `world` ranks, or micro-batches, encode parts of a batch, and the encoder gives rows of a
    part something else than it gives them in the whole."""
    if world == 1 and not job.has_micro_batches:
        return
    remedy = "or execution.ranks = 1 without micro and micro_tokens"
    if model.unreplayable:
        raise ValueError(
            f"this encoder's dropout cannot be replayed ({model.unreplayable}), so ranks and micro-batches would "
            f"change the result; set model.dropout = 0, {remedy}"
        )
    kinds = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
    norms = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    if norms:
        raise ValueError(
            f"this encoder has batch norm ({norms[0]}, {len(norms)} in all), which takes its statistics per rank "
            "and per micro-batch, so ranks and micro-batches would change the result; use an encoder with layer or "
            f"group norm, {remedy}"
        )


def initial_hash(model: nn.Module) -> str:
    """Compute the sha256, in hex, over names and values of all parameters but a copy's: equal for models that start
    alike."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if name.startswith(BESIDE[1]):
            continue
        values = parameter.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _example(job: JobConfig, image_shape: tuple[int, int, int] | None) -> dict[str, Tensor]:
    """Make two rows that any encoder of a built-in task takes."""
    if job.task == "sentence":
        ids = torch.ones(2, 4, dtype=torch.int64)
        return {"input_ids": ids, "attention_mask": ids}
    return {"pixel_values": torch.zeros(2, *(image_shape or (3, 224, 224)))}


def _prompt_tokens(tokenizer: Any, read: Reading) -> int:
    """Count the tokens of a prompt that is not pooled, with special ones before it, as sentence-transformers does."""
    if read.include_prompt or not read.prompt:
        return 0
    if tokenizer is None:
        raise ModelError("this encoder's prompt is not pooled, so its tokens are counted; pass tokenizer_for(job)")
    return prompt_tokens(tokenizer, read.prompt, max_tokens=read.max_tokens)


def _refuse_unkeyed(model: ContrastiveModel) -> None:
    """Raise ModelError for a pooling of the user's own whose vectors could not be made again."""
    states, rows = torch.ones(2, 4, model.width), torch.arange(2)
    given = dict.fromkeys(model.states_beside, states)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), dropout.dropout_keys(seed=0, step=0, rows=rows):
        before = torch.get_rng_state()
        model.pool(states=states, mask=_all(states), **given)
        if not torch.equal(before, torch.get_rng_state()):
            raise ModelError(
                f"model.pooling = '{model.pooling}' draws random numbers elsewhere than in nn.Dropout, so no vector "
                "could be made again; use a class of nn.Module with nn.Dropout"
            )


def _all(states: Tensor) -> Tensor:
    """Make a mask [n, L] that counts all of the states [n, L, width]."""
    return states.new_ones(states.shape[:2], dtype=torch.int64)


def pooling_of(job: JobConfig, name: str, width: int) -> tuple[Callable[..., Tensor], tuple[str, ...]]:
    """Return what pools states, and which of STATES it asks for too."""
    component = components.load("pooling", name)
    if not isinstance(component, type):
        function = components.called("pooling", name, job.model.pooling_options)
        return function, _states_asked_by(component)
    options = components.options("pooling", component, job.model.pooling_options)
    module = component(**options, **({"width": width} if components.asks_for(component, "width") else {}))
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"model.pooling = '{name}' is no class of nn.Module; give one, or a function of states and mask"
        )
    return _Pooling(module), _states_asked_by(module.forward)


def _states_asked_by(function: object) -> tuple[str, ...]:
    return tuple(name for name in STATES if components.asks_for(function, name))


class _Pooling(nn.Module):
    """A module that pools, called with what it asks for."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._asked = tuple(inspect.signature(module.forward).parameters)

    def forward(self, **given: Tensor) -> Tensor:
        pooled: Tensor = self.module(**{name: given[name] for name in self._asked if name in given})
        return pooled


def _head(job: JobConfig, width: int) -> nn.Module:
    """Build no head, a linear map, or SimCLR's two layers (Chen et al. 2020, arXiv:2002.05709) without batch norm."""
    out = job.model.projection_width
    if job.model.projection == "none":
        return nn.Identity()
    if job.model.projection == "linear":
        return nn.Linear(width, out)
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out))


def _masked_language_head(job: JobConfig, encoder: Any, width: int) -> MaskedLanguageHead:
    table = encoder.get_input_embeddings() if hasattr(encoder, "get_input_embeddings") else None
    if not isinstance(table, nn.Embedding):
        raise ModelError(
            f"loss.mlm_weight = {job.loss.mlm_weight} needs an encoder with a table of token embeddings, and "
            f"model.name = '{job.model.name}' ({type(encoder).__name__}) has none; use 'bert', or mlm_weight = 0"
        )
    return MaskedLanguageHead(width, table)


def _width_of(encoder: Any) -> int:
    if not hasattr(encoder, "config"):
        if not hasattr(encoder, "width"):
            raise ModelError(
                f"{type(encoder).__name__} has neither `width` nor a `config`; set self.width to its output's columns"
            )
        return int(encoder.width)
    sizes = getattr(encoder.config, "hidden_sizes", None)
    return int(sizes[-1] if sizes else encoder.config.hidden_size)


def _prefix_tokens(encoder: Any) -> int:
    """Count the tokens of an image encoder's output before those of the patches."""
    embeddings = getattr(encoder, "embeddings", None)
    has_cls = getattr(embeddings, "cls_token", None) is not None
    return int(has_cls) + int(getattr(getattr(encoder, "config", None), "num_register_tokens", 0) or 0)

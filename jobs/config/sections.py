"""The sections of a job: each with its fields, their bounds and the rules within it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    WithJsonSchema,
    model_serializer,
    model_validator,
)

from jobs.config.after_sections import AfterTraining, Judges
from jobs.config.components import (
    LossName,
    MetricPath,
    OptimizerName,
    PoolingName,
    ScheduleName,
    TransformName,
    builtin_names,
    is_import_path,
    is_of_batch,
    metric_name,
)
from jobs.config.section import Options, Section

OF_TOKENS = ("max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens")
"""Poolings that sentences alone have."""


UNBOUNDED = ("dcl", "flatnce", "sogclr")
"""Losses without a minimum in 1 / temperature on separable batches, so that a learned one runs to its clamp."""

DIAMETER = "diameter"
"""The margin of distances: the mean distance of what belongs together."""

Margin: TypeAlias = Annotated[
    float,
    Field(ge=0),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, {"const": DIAMETER, "type": "string"}]}),
]
"""Of `triangle` it may be given as DIAMETER, which its options say already."""


Share = Annotated[float, Field(ge=0, lt=1)]


class Budget(Section):
    """How long a job trains. Exactly one of the three is given."""

    samples: int | None = Field(None, ge=0)
    """Pairs seen, rounded down to whole batches. 0: nothing is trained, and the encoder is judged once as it is."""

    steps: int | None = Field(None, gt=0)
    """Optimizer steps."""

    seconds: float | None = Field(None, gt=0)
    """Seconds of training by rank 0's clock; loading, evaluations and checkpoints do not count. The step under way when
    they are over is finished. How many steps that makes depends on the machine, so such a job is not reproducible bit
    for bit, and one that was killed goes on from its newest checkpoint with the seconds that it had used there. (Only
    where all of its checkpoints are damaged do points stand in the ledger that its second course does not have.)"""

    @model_serializer(mode="wrap")
    def _as_ever(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out `seconds` where it is not given: it came later, and the id of a job must stay what it was."""
        dumped: dict[str, Any] = dump(self)
        return dumped if self.seconds is not None else {key: dumped[key] for key in dumped if key != "seconds"}

    @model_validator(mode="after")
    def _exactly_one(self) -> Budget:
        given = [name for name in ("samples", "steps", "seconds") if getattr(self, name) is not None]
        if len(given) != 1:
            which = f", found {' and '.join(given)}" if given else ""
            raise ValueError(
                f"give exactly one of samples, steps and seconds{which}; for example budget = {{ samples = 100_000 }}"
            )
        return self


class Model(Section):
    """The encoder and its head."""

    name: str | None = None
    """`vit`, `resnet` or `bert`, built from the fields below and trained from nothing; an import path of an encoder of
    your own, such as `mylab.models:MyEncoder`; else a local folder or a Hub name for transformers' AutoModel, with
    `{seed}` in it for the job's seed: `encoders/{seed}` was trained with the same. None: `vit` for images, `bert` for
    sentences."""

    options: Options = {}
    """Arguments of an encoder by import path, by name."""

    width: int = Field(64, gt=0)
    """Hidden width (vit, bert) or channels of the first stage (resnet)."""

    layers: int = Field(2, gt=0)
    """Transformer layers, or residual blocks in each of three stages."""

    heads: int = Field(4, gt=0)
    """Attention heads."""

    patch: int = Field(4, gt=0)
    """Side of a vit patch, in pixels."""

    vocabulary: int = Field(8000, ge=100)
    """Size of the WordPiece vocabulary that is trained on `data.train` for `bert`."""

    norm: Literal["group", "batch"] = "group"
    """Normalisation of the resnet."""

    pooling: PoolingName = "auto"
    """How token states become one vector: the first token's, the mean over tokens of the last layer, of the first and
    the last, or of the last two, or by learned weights (`attention`). Of sentences also the largest value of each
    column, the last token's, the mean weighted by position, or the sum divided by the root of the count, under the
    names of sentence-transformers. `auto`: as a folder of sentence-transformers says, its prompt, lower-casing and
    normalisation included; `mean` where none does. Any other value takes the place of all that. An import path is a
    pooling of your own, such as `mylab.models:attention`."""

    pooling_options: Options = {}
    """Arguments of a pooling by import path, by name."""

    projection: Literal["none", "linear", "mlp"] = "mlp"
    """Head between the encoder and the loss. Evaluation looks at the encoder unless `evaluate.head` is set."""

    projection_width: int = Field(64, gt=0)
    """Width of the head's output."""

    dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout in the encoder, hidden states and attention alike. None: the encoder's own (0.1 for `bert`, 0 for
    `vit` and `resnet`)."""

    same_dropout: bool = False
    """Both views of a pair, and its hard negatives, drop the same activations: what is left of SimCSE is then to tell
    sentences apart. An arm to compare with."""

    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    """bf16: autocast in the encoder; similarities and loss stay in fp32. fp64: for exactness tests."""


class Loss(Section):
    """The in-batch contrastive loss."""

    name: LossName = "infonce"
    """InfoNCE, also by textbook cross entropy (`infonce_ce`) or with FlatNCE's gradient norm (`infonce_matched`);
    decoupled contrastive learning (`dcl`); `flatnce`; `siglip` (jobs/losses/builtin has the formulas); or the import
    path of your own, such as `mylab.losses:focal_nce`."""

    options: Options = {}
    """Arguments of a loss that has some, by name."""

    temperature: float | Literal["learned"] = 0.1
    """Similarities are divided by it. `learned`: a parameter, started and clamped as below."""

    temperature_start: float = Field(0.07, gt=0)
    """First value of a learned temperature."""

    temperature_range: Annotated[tuple[float, float], Field(strict=False)] = (0.01, 1.0)
    """Clamp of a learned temperature, after every optimizer step."""

    symmetric: bool = False
    """Mean of both directions."""

    same_side: bool = False
    """Pairs share negatives of their own side too: SimCLR's 2B - 2 negatives."""

    hard_negative_weight: float = Field(1.0, gt=0)
    """Weight of an anchor's own hard negatives."""

    mask_duplicates: bool = True
    """Rows with the same content are not negatives of each other: pairs of which an anchor or positive is also one of
    the other's (the same text, but for blanks around it, or the same image). A hard negative that is the anchor or its
    positive is none of that anchor. A batch of which nothing is left by this is an error, but for `queue`, which has
    negatives of earlier batches, and for losses without negatives."""

    margin: Margin = 0.0
    """Additive margin on the positive's similarity, in cosine units. `diameter`, of `triangle` alone: as wide as what
    belongs together, in its distances; what `options.margin` of that loss is unless it says a number."""

    bias: float = 0.0
    """Added to the logits of siglip, which often starts at -10."""

    guide: str | None = None
    """A frozen encoder whose similarities a loss asks for, such as `gist` and `distillation`: a local folder or a Hub
    name, with its own tokenizer, pooling and length as its folder says. Of images and sentences."""

    mlm_weight: float = Field(0.0, ge=0)
    """Weight of an auxiliary masked-language-model loss on all sentences of the batch (SimCSE, Gao et al. 2021). It is
    the mean over all masked tokens of the global batch. 0: none. Sentences only."""

    mlm_probability: float = Field(0.15, gt=0, lt=1)
    """Share of the tokens that the auxiliary loss masks: 80 % of them by the mask token, 10 % by a random one, and 10 %
    stay."""

    @model_validator(mode="before")
    @classmethod
    def _margin_of_distances(cls, given: object) -> object:
        """Leave out a margin that says what the options of `triangle` say already, so that both ways are one job."""
        if not isinstance(given, dict) or given.get("margin") != DIAMETER:
            return given
        if (name := given.get("name", "infonce")) != "triangle":
            raise ValueError(
                f"margin = '{DIAMETER}' is a width of distances, and name = '{name}' is computed of cosines; set name "
                "= 'triangle', or for a loss of anchors a number in cosine units, such as margin = 0.1"
            )
        options = given.get("options") or {}
        own = options.get("margin", DIAMETER) if isinstance(options, dict) else DIAMETER
        if own != DIAMETER:
            raise ValueError(f"margin = '{DIAMETER}' and options.margin = {own!r} are two margins; remove one of them")
        return {key: value for key, value in given.items() if key != "margin"}

    @model_validator(mode="after")
    def _known_to_work(self) -> Loss:
        low, high = self.temperature_range
        if isinstance(self.temperature, float) and self.temperature <= 0:
            raise ValueError(f"temperature = {self.temperature} must be above 0, for example 0.1")
        if isinstance(self.temperature, float) and not 1e-30 <= self.temperature <= 1e30:
            raise ValueError(f"temperature = {self.temperature} must lie between 1e-06 and 1e+06, for example 0.1")
        if not 0 < low <= self.temperature_start <= high:
            raise ValueError(
                f"temperature_range = [{low}, {high}] must be positive, ascending and hold "
                f"temperature_start = {self.temperature_start}"
            )
        if self.temperature == "learned" and self.name in UNBOUNDED:
            raise ValueError(
                f"temperature = 'learned' with name = '{self.name}' has no minimum and runs to its clamp; "
                "give a number, or use name = 'infonce'"
            )
        if self.guide is not None and (self.guide in builtin_names("encoder") or is_import_path(self.guide)):
            raise ValueError(
                f"guide = '{self.guide}' is trained from nothing, so it knows nothing; give the folder of a pretrained "
                "encoder, or a name that the Hub knows"
            )
        if self.guide is not None and self.name in builtin_names("loss") and not is_of_batch(self.name):
            raise ValueError(
                f"guide = '{self.guide}' is asked for by no loss of anchors, which name = '{self.name}' is; use 'gist' "
                "or 'distillation', or remove it"
            )
        if self.name == "siglip" and self.same_side:
            raise ValueError("same_side = true is not defined for name = 'siglip'; set same_side = false")
        if self.name != "siglip" and self.bias != 0:
            raise ValueError(f"bias = {self.bias} is siglip's only; remove it, or set name = 'siglip'")
        return self


class Batch(Section):
    """The global batch."""

    size: int = Field(256, gt=1)
    """Pairs per optimizer step, over all ranks."""

    negatives_group: int | None = Field(None, gt=1)
    """Consecutive pairs of the batch that share negatives. None: all of them. Smaller groups are what is often called
    gradient accumulation: another objective, not an approximation."""

    pool: int | None = Field(None, gt=1, json_schema_extra={"deprecated": True})
    """What `negatives_group` was called, and is in runs begun before."""

    @model_validator(mode="after")
    def _whole_groups(self) -> Batch:
        if self.negatives_group is not None and self.pool is not None:
            raise ValueError(
                f"negatives_group = {self.negatives_group}, pool = {self.pool}: the same under two names; remove pool"
            )
        for name, group in (("negatives_group", self.negatives_group), ("pool", self.pool)):
            if group is not None and self.size % group:
                fitting = next((size for size in range(min(group, 10_000), 1, -1) if self.size % size == 0), None)
                remedy = f"for example {name} = {fitting}" if fitting else f"or leave {name} out"
                raise ValueError(f"{name} = {group} must divide size = {self.size}, {remedy}")
        return self


class Optimizer(Section):
    """The optimizer and its schedule."""

    name: OptimizerName = "adamw"
    """`adamw`, or `sgd` with momentum; `lion`, `tiger`, `lamb`, `lars`, `adafactor`, `muon`, `eg_step`, `eg_step_full`
    (jobs/optim/builtin has the rules); or an import path of a class or function (params, lr, **options), such as
    `torch.optim:RAdam`."""

    options: Options = {}
    """Arguments of an optimizer that has some, by name."""

    lr: float = Field(1e-3, gt=0)
    """Peak learning rate."""

    weight_decay: float = Field(0.01, ge=0)
    """Decoupled decay of matrices; biases, norms and loss parameters have none."""

    betas: Annotated[tuple[Share, Share], Field(strict=False)] = (0.9, 0.999)
    """Adam's averaging."""

    momentum: float = Field(0.9, ge=0, lt=1)
    """SGD's momentum."""

    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the steps over which the rate climbs to its peak."""

    schedule: ScheduleName = "cosine"
    """What the rate does after the warm-up: constant, linear and cosine, of which the last two end at 0; or an import
    path of a function of the share that has passed."""

    schedule_options: Options = {}
    """Arguments of a schedule that has some, by name."""

    transform: TransformName | None = None
    """What is done to the gradient after the sum over ranks and the clipping: `soft_clip`; `child_tuning`, which trains
    a random share of all numbers at each step, or `child_tuning_d`, which trains those that matter most at the first
    weights; or an import path of a class. None: nothing."""

    transform_options: Options = {}
    """Arguments of a transform that has some, by name."""

    layer_decay: float | None = Field(None, gt=0, le=1)
    """Rates of layers: that of layer l of L is lr * layer_decay^(L - l), with the embeddings as layer 0 and the head as
    layer L, which has lr (jobs/optim/layers.py). None: one rate."""

    average_half_life: float | None = Field(None, gt=0)
    """Pairs after which a step's weights count half as much in an exponential moving average, which is what is
    evaluated and exported. Statistics of a batch norm are those of the trained weights. None: no average."""

    fisher_pairs: int = Field(8, gt=1)
    """Consecutive pairs of the global batch that stand for an example where squared gradients are averaged: what
    `child_tuning_d` chooses by. Pairs that fill no group at the end of a batch are left out."""

    clip: float | None = Field(None, gt=0)
    """Largest norm of the whole gradient, after the sum over ranks. None: no clipping."""


MEASURED = ("knn_accuracy", "probe_accuracy", "spearman", "alignment", "uniformity")
"""Metrics that are measured without being asked for, each where it is defined."""


class Evaluate(AfterTraining):
    """How a job is judged."""

    times: int = Field(4, gt=0)
    """Evaluations, evenly spaced over the budget, the last at its end; one more before the first step. Of more than
    999, as many are recorded, evenly chosen, the last among them; all are in the trial's log."""

    head: bool = False
    """Judge the head's output in place of the encoder's."""

    neighbours: int = Field(20, gt=0)
    """k of the kNN classifier."""

    references: int = Field(5000, gt=1)
    """Labelled rows of `data.train` (the first ones) that the kNN classifier and the linear probe learn from."""

    probe: bool = True
    """Fit the linear probe as well, at the last evaluation."""

    batch: int = Field(256, gt=0)
    """Rows encoded at once."""

    judge: Judges | None = None
    """What the rows of `data.tune` and `data.confirm` are, and what is asked about them: `sts`, pairs of sentences with
    people's scores; `classes`, rows with labels; or an import path of a class of your own. None: `sts` of sentences,
    `classes` of images. Where these are tables of sets, a table by set's name says it of each."""

    judge_options: Options = {}
    """Arguments of a judge that has some, by name; where `judge` is a table, these by set's name."""

    metrics: Annotated[tuple[MetricPath, ...], Field(strict=False)] = ()
    """Further metrics, by import path, each known by the name after its colon. Built-in ones are measured anyway."""

    metric_options: dict[str, Options] = {}
    """Arguments of metrics that have some, by the metric's name."""

    @model_validator(mode="after")
    def _named_apart(self) -> Evaluate:
        names = [metric_name(path) for path in self.metrics]
        for path, name in zip(self.metrics, names, strict=True):
            if (name in MEASURED and name != path) or names.count(name) > 1:
                raise ValueError(
                    f"metrics: '{path}' is called {name}, as another one is; give the function another name"
                )
        if unknown := sorted(self.metric_options.keys() - set(names)):
            raise ValueError(f"metric_options.{unknown[0]}: no metric of evaluate.metrics is called so")
        return self


class Execution(Section):
    """How the job is computed. None of this changes the result beyond rounding."""

    ranks: int = Field(1, gt=0)
    """Processes that share the batch."""

    micro: int | None = Field(None, gt=0)
    """Pairs encoded at once on a rank. None: the rank's whole share."""

    micro_tokens: int | None = Field(None, gt=0)
    """Padded tokens encoded at once on a rank, all views and hard negatives of its pairs counted. Consecutive pairs
    fill a micro-batch up to it, and a micro-batch holds at least one pair. Sentences only, in place of `micro`."""

    keep_graphs: int = Field(0, ge=0)
    """Chunks that keep their graph and are not encoded twice, when `micro` or `micro_tokens` splits the share."""

    graph_memory_mb: int | None = Field(None, gt=0)
    """Memory for kept graphs on a rank, in place of `keep_graphs`: the first micro-batches of a step keep theirs as
    long as all that autograd saves for them fits. Beside it a rank needs the memory of one micro-batch, as it does
    without."""

    tile: int | None = Field(None, gt=0)
    """Rows and columns of logits held at once. None: chosen."""

    exchange: Literal["gather", "ring"] = "gather"
    """How embeddings travel between ranks."""

    compile: bool = False
    """torch.compile the encoder. Dropout stays outside of what is compiled, so its masks are the same."""

    verify: bool = False
    """Before the first step that this process trains: compare the gradient of a few pairs, computed as configured here,
    with plain autograd on one process, and refuse to train if a tensor differs."""

    threads: int = Field(1, gt=0)
    """CPU threads of a rank."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where the rank has one."""

    checkpoint_every: int = Field(500, gt=0)
    """Optimizer steps between checkpoints."""

    keep_checkpoints: int = Field(2, ge=2)
    """Checkpoints kept: the newest, and what to fall back to."""

    deadline_s: float = Field(600.0, gt=0)
    """Seconds that one optimizer step, one evaluation or one checkpoint may take. A rank that takes longer is hung: its
    stack is kept, and the attempt ends. Loading may take an hour."""

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Execution:
        if self.micro is not None and self.micro_tokens is not None:
            raise ValueError(
                f"micro = {self.micro} and micro_tokens = {self.micro_tokens} both say how large a micro-batch is; "
                "remove one"
            )
        if self.keep_graphs and self.graph_memory_mb is not None:
            raise ValueError(
                f"keep_graphs = {self.keep_graphs} and graph_memory_mb = {self.graph_memory_mb} both say how many "
                "graphs are kept; remove one"
            )
        return self

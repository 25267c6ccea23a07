"""What keyed dropout costs beside nn.Dropout, and in a whole training step: `make bench ONLY=dropout`.

Both sides take turns in one process, and the fastest of several turns counts, so a busy machine does little harm to the
ratios. Shapes: hidden states of a small ViT, of BERT-base, and the attention weights of BERT-base.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from jobs.config import JobConfig
from jobs.models import ContrastiveModel, build, dropout_keys
from jobs.models.dropout import KeyedDropout, restore_dropout

P = 0.1


def fastest_ms(turns: int, *sides: Callable[[], None]) -> list[float]:
    """Milliseconds of the fastest turn of each side; the sides alternate."""
    best = [float("inf")] * len(sides)
    for turn in range(turns + 1):
        for index, side in enumerate(sides):
            began = time.perf_counter()
            side()
            if turn:
                best[index] = min(best[index], 1e3 * (time.perf_counter() - began))
    return best


def once(module: nn.Module, x: Tensor, gradient: Tensor) -> None:
    """One forward and backward pass through a dropout."""
    with dropout_keys(seed=0, step=1, rows=torch.arange(len(x))):
        module(x).backward(gradient)


def step(model: ContrastiveModel, inputs: dict[str, Tensor]) -> None:
    """Forward and backward of 2 x 64 rows."""
    with dropout_keys(seed=0, step=1, rows=torch.arange(128)):
        embedded = model.embed(inputs)
    torch.autograd.backward(torch.logsumexp(embedded[:64] @ embedded[64:].T, 1).mean())


def model(task: str, dropout: float, *, keyed: bool = True) -> ContrastiveModel:
    """The default small encoder of a task."""
    fields = {
        "task": task,
        "budget": {"steps": 1},
        "data": {"train": "digits", "confirm": "digits"},
        "model": {"dropout": dropout, "patch": 2},
    }
    made = build(JobConfig.model_validate(fields), tokenizer=range(2000), image_shape=(1, 8, 8))
    if not keyed:
        restore_dropout(made.encoder)
    return made


def test_keyed_dropout_beside_that_of_torch() -> None:
    torch.set_num_threads(1)
    lines = [f"{'forward and backward, one thread, p = 0.1':52}{'keyed':>9}{'nn':>9}{'ratio':>8}"]
    for shape in [(128, 17, 64), (64, 32, 768), (64, 12, 32, 32)]:
        x, gradient = torch.randn(shape, requires_grad=True), torch.randn(shape)
        sides = [partial(once, module.train(), x, gradient) for module in (KeyedDropout(P), nn.Dropout(P))]
        keyed, plain = fastest_ms(15, *sides)
        lines.append(f"dropout of {shape!s:41}{keyed:6.2f} ms{plain:6.2f} ms{keyed / plain:8.2f}")
    ids = torch.randint(5, 2000, (128, 16))
    texts = {"input_ids": ids, "attention_mask": (torch.arange(16) < torch.randint(4, 17, (128, 1))).long()}
    for task, inputs in (("image", {"pixel_values": torch.rand(128, 1, 8, 8)}), ("sentence", texts)):
        sides = [
            partial(step, model(task, p, keyed=keyed), inputs) for p, keyed in ((P, True), (P, False), (0.0, True))
        ]
        keyed, plain, none = fastest_ms(10, *sides)
        name = f"step of the small {task} encoder, batch 64"
        lines.append(f"{name:52}{keyed:6.1f} ms{plain:6.1f} ms{keyed / plain:8.2f}   without dropout {none:.1f} ms")
    print("\n" + "\n".join(lines))

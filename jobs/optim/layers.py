"""Which layer of a model each parameter is in: the embeddings are 0, the encoder's layers 1 to N from the inputs on,
and what stands above them, the head, is N + 1.

The layers are the children of the largest list of modules in the encoder: `layer` of BERT and ViT, `blocks` of a ResNet
(three stages' blocks, one after another), `layers`, `h`, `block` or `stages` of others. What is made before them, and
any embedding table beside them, is of the embeddings: positions, patches, the stem. What is made after them, a last
norm or a pooler, is of the head, as is all that is no part of the encoder: projection, pooling, temperature, parameters
of the loss. An encoder without such a list is one layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Depths:
    """Where parameters stand."""

    of: dict[str, int]
    """By name."""

    head: int
    """Depth of the head, and so of what has the full rate."""


def depths(model: nn.Module) -> Depths:
    """Find the depth of every parameter. A model without an `encoder` is taken as one."""
    encoder = getattr(model, "encoder", None)
    prefix, root = ("encoder.", encoder) if isinstance(encoder, nn.Module) else ("", model)
    tables = {id(p) for part in root.modules() if isinstance(part, nn.Embedding) for p in part.parameters()}
    inside = _numbered(root)
    head = 1 + max(inside.values(), default=1)
    found: dict[str, int] = {}
    is_above = False
    for name, parameter in model.named_parameters():
        if not name.startswith(prefix):
            found[name] = head
        elif id(parameter) in inside:
            found[name], is_above = inside[id(parameter)], True
        elif id(parameter) in tables:
            found[name] = 0
        elif inside:
            found[name] = head if is_above else 0
        else:
            found[name] = 1
    return Depths(found, head)


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """List the parameters of more than one dimension in the encoder's layers."""
    where = depths(model)
    named = model.named_parameters()
    return [p for name, p in named if p.ndim > 1 and 0 < where.of[name] < where.head]


def _numbered(encoder: nn.Module) -> dict[int, int]:
    """Number the children of the largest list of modules that have parameters, from 1, by the id of each parameter. A
    table of embeddings is no layer."""
    lists = [part for part in encoder.modules() if isinstance(part, nn.ModuleList | nn.Sequential)]
    sizes = [sum(parameter.numel() for parameter in part.parameters()) for part in lists]
    if not lists or not max(sizes):
        return {}
    largest = lists[sizes.index(max(sizes))]  # of two that hold the same, the outer one
    children = [
        child for child in largest if any(True for _ in child.parameters()) and not isinstance(child, nn.Embedding)
    ]
    return {id(p): number for number, child in enumerate(children, 1) for p in child.parameters()}

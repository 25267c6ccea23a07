"""The encoders of jobs. What needs torch is imported when it is asked for: to check a job needs none of it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from jobs.models.errors import ModelError
from jobs.models.fitness import check_encoder, check_layers, check_views, refused_guide
from jobs.models.reading import Reading

if TYPE_CHECKING:
    from jobs.models.dropout import dropout_keys
    from jobs.models.model import (
        ContrastiveModel,
        build,
        import_code,
        initial_hash,
        refuse_what_parts_of_a_batch_change,
    )

__all__ = [
    "ContrastiveModel",
    "ModelError",
    "Reading",
    "build",
    "check_encoder",
    "check_layers",
    "check_views",
    "dropout_keys",
    "import_code",
    "initial_hash",
    "refuse_what_parts_of_a_batch_change",
    "refused_guide",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"jobs.models.{'dropout' if name == 'dropout_keys' else 'model'}"), name)

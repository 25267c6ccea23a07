"""`python -m jobs.workers.node_info [--gpus] [SOURCE...]`: what ranks find on a node: versions, GPUs, data.

Prints one line of JSON, in a process of its own: what is wrong with torch or a driver then harms nobody else.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import TypedDict

PACKAGES = ("torch", "ray", "numpy", "pyarrow", "transformers", "tokenizers", "safetensors", "scikit-learn", "pydantic")
"""What a trial's numbers may depend on."""


class Gpus(TypedDict):
    """The GPUs that torch sees."""

    names: list[str]
    cuda: str | None
    """The version that torch was built for; None: for CPUs only."""

    error: str | None
    """The first error of a product of matrices on each."""


def versions() -> dict[str, str]:
    """Return the versions of Python and of packages; `missing` for a package that is not installed."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed[name] = "missing"
    return installed


def missing(sources: Sequence[str]) -> dict[str, str]:
    """Find which sources of data are not here, each with why; files are not opened. FOLDER:SPLIT, as judges of
    retrieval read, is here where the folder is."""
    from jobs.core.paths import is_folder_here
    from jobs.data.formats import DataError
    from jobs.data.resolve import locate

    reasons = {}
    for source in sources:
        try:
            locate(source)
        except DataError as error:
            folder, colon, _ = source.rpartition(":")
            if not (colon and is_folder_here(folder)):
                reasons[source] = str(error)
    return reasons


def gpus() -> Gpus:
    """Try each of the GPUs that torch sees, and describe them."""
    import torch

    names, error = [], None
    for index in range(torch.cuda.device_count()):
        try:
            names.append(torch.cuda.get_device_name(index))
            square = torch.ones(64, 64, device=torch.device("cuda", index))
            if float((square @ square).sum().item()) != 64.0**3:
                raise RuntimeError(f"GPU {index} multiplies wrongly")
        except RuntimeError as caught:  # torch's own errors are RuntimeErrors
            error = error or f"GPU {index}: {str(caught).splitlines()[0]}"
    return {"names": names, "cuda": torch.version.cuda, "error": error}


def main(arguments: Sequence[str]) -> int:
    """Run with these command-line arguments and return the exit status."""
    sources = [argument for argument in arguments if argument != "--gpus"]
    node = {"versions": versions(), "missing": missing(sources), "gpus": gpus() if "--gpus" in arguments else None}
    sys.stdout.write(json.dumps(node) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

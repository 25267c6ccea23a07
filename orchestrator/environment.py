"""What is needed to run a sweep again: command, commit, versions, hardware."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "ray", "optuna", "mlflow", "transformers", "pyarrow", "numpy", "scipy", "scikit-learn", "pydantic")
"""Versions that are recorded with a run."""


def environment(sweep_file: Path, folder: Path | str) -> dict[str, Any]:
    """What is needed to run a sweep again: command, commit, versions, hardware. No environment variables: secrets."""
    return {
        "command": f"orchestrator launch {sweep_file} --into {folder}",
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        **machine(),
    }


def machine() -> dict[str, Any]:
    """What sets how fast trials run here: processor, cpus, gpus."""
    return {"processor": _processor(), "cpus": os.cpu_count(), "gpus": _gpus()}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _commit() -> str | None:
    here = str(Path(__file__).parent)
    commit = _output("git", "-C", here, "rev-parse", "HEAD")
    changed = _output("git", "-C", here, "status", "--porcelain", "--untracked-files=no")
    return f"{commit} with changes" if commit and changed else commit


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    return (_output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader") or "").splitlines()

"""What a checkpoint costs the training thread: a snapshot that a thread writes, against writing it there and then."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from jobs.artifacts import checkpoint

ROUNDS = 12


def test_a_checkpoint_holds_training_up_for_a_fraction_of_what_writing_it_takes(tmp_path: Path) -> None:
    """21 MB of weights and AdamW's two moments, alternating in one run."""
    torch.set_num_threads(1)
    model = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(5)))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 1024)).sum().backward()
    optimizer.step()
    writer = checkpoint.Writer()
    steps = iter(range(1, 10**6))

    def taken() -> checkpoint.Checkpoint:
        return checkpoint.snapshot(
            step=next(steps),
            model=model.state_dict(),
            optimizer=optimizer.state_dict(),
            extra={"seconds": 0.0, "untrained": {}},
        )

    def at_once() -> None:
        checkpoint.write(tmp_path / "one", taken(), keep=2)

    def handed_over() -> None:
        writer.submit(partial(checkpoint.write, tmp_path / "two", taken(), keep=2))

    def seconds(work: Callable[[], None]) -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    times: dict[str, list[float]] = {"at once": [], "handed over": []}
    for _ in range(ROUNDS):
        times["at once"].append(seconds(at_once))
        times["handed over"].append(seconds(handed_over))
        writer.wait()
    medians = {name: statistics.median(found) for name, found in times.items()}
    ratio = medians["handed over"] / medians["at once"]
    print(f"\ncheckpoint: at once {medians['at once'] * 1e3:.0f} ms, handed over {medians['handed over'] * 1e3:.0f} ms")
    print(f"handing a checkpoint over takes {ratio:.2f} of the time of writing it")
    assert ratio < 0.5

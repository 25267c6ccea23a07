"""A user's training loop, as it would stand outside the package: twenty lines of torch on the bundled digits."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from jobs.data import open_table


def digits(source: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels and labels."""
    table = open_table(source)
    pixels = np.stack([np.frombuffer(image, np.uint8) for image in table["image"].to_pylist()])
    return torch.tensor(pixels / 255, dtype=torch.float32), torch.tensor(table["label"].to_pylist())


def main(config: Any, context: Any) -> None:
    """Train a linear map, checkpointed every five steps, averaged over ranks."""
    torch.manual_seed(context.seed)
    inputs, labels = digits(config.data.train)
    judged, wanted = digits(context.data)
    model = torch.nn.Linear(64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.options["lr"])
    saved, begun = context.checkpoint_dir / "state.pt", 0
    if saved.exists():
        state = torch.load(saved)
        model.load_state_dict(state["model"])
        begun = state["step"]
    for step in range(begun + 1, config.budget.steps + 1):
        rows = torch.arange(len(inputs))[(step + context.rank) % 7 :: 7]
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[rows]), labels[rows]).backward()
        if context.world > 1:
            for parameter in model.parameters():
                dist.all_reduce(parameter.grad)
        optimizer.step()
        time.sleep(config.options.get("pause_s", 0))
        accuracy = (model(judged).argmax(1) == wanted).double()
        context.report({"accuracy": float(accuracy.mean()), "begun_after": begun}, step)
        if step % 5 == 0 or context.should_stop:
            if context.rank == 0:
                aside = saved.with_suffix(f".{os.getpid()}")
                torch.save({"model": model.state_dict(), "step": step}, aside)
                aside.rename(saved)
            if context.should_stop:
                return
    accuracy = (model(judged).argmax(1) == wanted).double()  # also where an attempt before this one made the last step
    context.rows("accuracy", range(len(wanted)), accuracy.tolist())


def keeps_once(config: Any, context: Any) -> None:
    """Has nothing left to do when it begins again, as after a kill that came late."""
    context.report({"accuracy": 0.5}, 12)
    done = context.checkpoint_dir / "done"
    if done.exists():
        return
    context.rows("accuracy", ["a", "b"], [0.25, 0.75], groups=["g", None])
    done.touch()
    while not context.should_stop:
        time.sleep(0.01)


def fails(config: Any, context: Any) -> None:
    """Raises at its second step."""
    context.report({"accuracy": 0.5}, 1)
    raise LookupError("as it does")


def fails_late(config: Any, context: Any) -> None:
    """Reports for a second and a half, and then raises."""
    for step in range(1, 31):
        time.sleep(0.05)
        context.report({"accuracy": step / 100}, step)
    raise LookupError("late")


def leaves(config: Any, context: Any) -> None:
    """Ends the process, as it thinks."""
    raise SystemExit(3)


def diverges(config: Any, context: Any) -> None:
    """Reports what is not finite."""
    context.report({"accuracy": float("nan")}, 1)


def waits(config: Any, context: Any) -> None:
    """Until it is to stop."""
    step = 0
    while not context.should_stop():
        step += 1
        context.report({"accuracy": step / 1000}, step)
        time.sleep(0.01)


def takes_one(config: Any) -> None:
    """No loop."""

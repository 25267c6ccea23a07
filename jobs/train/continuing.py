"""What a training finds in its trial's files, and what it leaves there so that another one can continue it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jobs.artifacts import checkpoint, trial_dir
from jobs.artifacts.storage import Storage
from jobs.config import JobConfig

CHECKPOINTS = "checkpoints"


def open_folder(
    place: Storage, fence: trial_dir.Fence, job: JobConfig, *, named: bool, remark: Callable[[str], None]
) -> None:
    """Claim the trial's folder, and clear away what a dead process has left half written. Raises as `trial.open_folder`
    does, whose `named` and `remark` these are, and trial.TakenOver."""
    fence.hold()
    trial_dir.open_folder(place, job, named=named, remark=remark)
    if (place.scratch / CHECKPOINTS).is_file():
        remark(f"{CHECKPOINTS} is a file; {trial_dir.quarantine(place, CHECKPOINTS)}")
    place.inside(CHECKPOINTS).clean()


def find(
    place: Storage, *, remark: Callable[[str], None]
) -> tuple[checkpoint.Checkpoint | None, dict[str, Any] | None]:
    """What the trial's files hold: the newest sound checkpoint, and the result if it has ended. remark: told what is
    wrong with them."""
    checkpoints = place.inside(CHECKPOINTS)
    found, remarks = checkpoint.newest(checkpoints)
    for sentence in remarks:
        remark(sentence)
    newest = (found.step, found.extra["seconds"]) if found else None
    result = trial_dir.read_result(place, newest=newest, remark=remark)
    if found is None and result is None:
        if remarks:
            remark("no sound checkpoint is left: training starts again from step 0")
        return None, None
    until = found.step if found else result["step"] if result else 0
    told = (found.extra if found else result or {}).get(trial_dir.POINTS_TOLD)
    if (fault := trial_dir.points_fault(place, until=until, expected=told)) is not None:
        kept = trial_dir.start_over(place, checkpoints)
        remark(f"{trial_dir.POINTS} is damaged ({fault}): training starts again from step 0; {kept}")
        return None, None
    return found, result


def commit(
    place: Storage,
    fence: trial_dir.Fence,
    *,
    taken: checkpoint.Checkpoint | None,
    result: dict[str, Any] | None,
    keep: int,
) -> None:
    """Write whatever tells of a checkpoint, and then the checkpoint, of which the newest `keep` stay. Raises
    trial.TakenOver, storage.StorageFull and ConnectionError."""
    fence.hold()
    place.publish(trial_dir.POINTS, "log.rank0.txt")
    if result is not None:
        trial_dir.write_result(place, result)
    if taken is not None:
        checkpoint.write(place.inside(CHECKPOINTS), taken, keep=keep, permit=fence.hold)

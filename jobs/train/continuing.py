"""What a training finds in its trial's files, and what it leaves there so that another one can continue it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from jobs.artifacts import checkpoint, rows, trial_dir
from jobs.artifacts.storage import Storage
from jobs.config import JobConfig
from jobs.core.outcomes import Outcomes, RowIds

CHECKPOINTS = "checkpoints"


def open_folder(
    storage: Storage, fence: trial_dir.Fence, job: JobConfig, *, named: bool, remark: Callable[[str], None]
) -> None:
    """Claim the trial's folder, and clear away what a dead process has left half written. Raises trial_dir.TakenOver,
    and as `trial_dir.open_folder` does, which takes `named` and `remark`."""
    fence.hold()
    trial_dir.open_folder(storage, job, named=named, remark=remark)
    if (storage.scratch / CHECKPOINTS).is_file():
        remark(f"{CHECKPOINTS} is a file; {trial_dir.quarantine(storage, CHECKPOINTS)}")
    if (storage.scratch / rows.NAME).is_dir():
        remark(f"{rows.NAME} is a folder; {trial_dir.quarantine(storage, rows.NAME)}")
    storage.inside(CHECKPOINTS).clean()


def find(
    storage: Storage, *, remark: Callable[[str], None]
) -> tuple[checkpoint.Checkpoint | None, trial_dir.Result | None]:
    """Read what the trial's files hold: the newest sound checkpoint, and the result if it has ended. remark: called
    with what is wrong with them."""
    checkpoints = storage.inside(CHECKPOINTS)
    newest, remarks = checkpoint.newest(checkpoints)
    for sentence in remarks:
        remark(sentence)
    passed = (newest.step, newest.extra["seconds"]) if newest else None
    result = trial_dir.read_result(storage, newest=passed, remark=remark)
    if result is not None and (fault := rows.fault(storage, result.get(rows.DIGEST))) is not None:
        aside = trial_dir.quarantine(storage, rows.NAME)
        remark(f"{rows.NAME} is damaged ({fault}); {aside}; the trial is judged again")
        result = None
    if newest is None and result is None:
        if remarks:
            remark("no sound checkpoint is left: training starts again from step 0")
        return None, None
    until = newest.step if newest else result["step"] if result else 0
    counted = (
        newest.extra.get(trial_dir.POINTS_TOLD) if newest else result.get(trial_dir.POINTS_TOLD) if result else None
    )
    if (fault := trial_dir.points_fault(storage, until=until, expected=counted)) is not None:
        kept = trial_dir.start_over(storage, checkpoints)
        remark(f"{trial_dir.POINTS} is damaged ({fault}): training starts again from step 0; {kept}")
        return None, None
    return newest, result


def rows_of(outcomes: Mapping[str, Outcomes], ids: RowIds | None, *, threads: int) -> bytes | None:
    """Write what an evaluation says of each row, as the content of a rows.parquet; None without ids, and where it says
    nothing by row."""
    if ids is None:
        return None
    with torch.no_grad(), threadpool_limits(limits=threads):
        return rows.encode({name: (outcome.ids or ids, outcome) for name, outcome in outcomes.items()})


def commit(
    storage: Storage,
    fence: trial_dir.Fence,
    *,
    taken: checkpoint.Checkpoint | None,
    result: Mapping[str, object] | None,
    keep: int,
    kept: bytes | None = None,
) -> None:
    """Write whatever leads up to a checkpoint, and then the checkpoint; only the newest `keep` checkpoints stay. kept:
    content of the result's rows. Raises trial_dir.TakenOver, storage.StorageFull and ConnectionError."""
    fence.hold()
    storage.publish(trial_dir.POINTS, "log.rank0.txt")
    if kept is not None:
        storage.write(rows.NAME, kept)
    if result is not None:
        trial_dir.write_result(storage, result)
    if taken is not None:
        checkpoint.write(storage.inside(CHECKPOINTS), taken, keep=keep, permit=fence.hold)

"""The head's part of a question: runs a verb, and writes what it printed and made into its job's log (parcel.py).

    python -m orchestrator.cli.answer JOB [--brings] VERB ...

Started by the job that `asking.py` submits. Files are kept in the log until whoever asked has them and ends the job, or
has had time enough; then the log is emptied.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from orchestrator.cli.submission.parcel import BRINGS, HERE, Printed, Writer
from orchestrator.run_dir import folder as runs
from orchestrator.system import scratch
from orchestrator.system.exit_codes import Exit

LARGEST_MB = 2000.0
"""What is sent lies in the head's log meanwhile, a third larger."""

CLOCK_S = 60.0
"""How far the clock of a file server may be behind this machine's."""

WAIT_S, SLOWEST = 300.0, 50_000.0
"""How long whoever asked may take, and how many bytes a second at least."""


Verbs = Callable[..., object]
"""The command line: called with arguments, it ends by SystemExit."""


def answer(job: str, verbs: Verbs, arguments: Sequence[str], *, brings: bool) -> int:
    """Run a verb, and tell what it printed, the files that it made and its exit code. Returns the files' bytes."""
    sent, writer, began = 0, Writer(job, sys.stdout), time.time()
    with scratch.folder("answer") as temporary:
        made = temporary / "files"
        code = _run(verbs, [str(made) if argument == HERE else argument for argument in arguments], writer)
        if brings and code == Exit.DONE:
            report_folder = made if HERE in arguments else runs.find(arguments[1]).report
            code, sent = _send(report_folder, writer, since=began - CLOCK_S)
    writer.line(code=code)
    return sent


def _run(verbs: Verbs, arguments: Sequence[str], writer: Writer) -> int:
    out, err = Printed(writer, "out"), Printed(writer, "err")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            verbs(list(arguments), prog_name="orchestrator")
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else Exit.DONE if ended.code is None else Exit.SOME_FAILED
    return Exit.DONE


def _send(folder: Path, writer: Writer, *, since: float) -> tuple[int, int]:
    """Send what the verb has made; a report of before, which could not be replaced, is none of its."""
    paths = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    files = sorted(path for path in paths if path.stat().st_mtime >= since)
    size_mb = sum(path.stat().st_size for path in files) / 2**20
    if size_mb > LARGEST_MB:
        note = (
            f"error: {size_mb:,.0f} MB of files are more than the {LARGEST_MB:,.0f} MB that come through a job server"
        )
        writer.line(err=f"{note}; run the same command on the cluster's head, without --address\n")
        return Exit.MISSING, 0
    return Exit.DONE, sum(writer.file(path, path.relative_to(folder).as_posix()) for path in files)


@contextlib.contextmanager
def _emptied(sent: list[int]) -> Iterator[None]:
    """Keep the log until SIGTERM or for as long as reading it may take, then empty it, if files are in it."""
    thanked = threading.Event()

    def heard(_number: int, _frame: FrameType | None) -> None:
        if not sent:  # it is the verb that is to end
            raise KeyboardInterrupt
        thanked.set()

    signal.signal(signal.SIGTERM, heard)
    try:
        yield
    finally:
        if sent and sent[0]:
            thanked.wait(WAIT_S + sent[0] / SLOWEST)
            with contextlib.suppress(OSError):  # a terminal, where somebody tries this by hand
                os.ftruncate(sys.stdout.fileno(), 0)


def main(verbs: Verbs) -> None:
    """Answer as the arguments of this process say."""
    job, *arguments = sys.argv[1:]
    brings = arguments[:1] == [BRINGS]
    sent: list[int] = []
    with _emptied(sent):
        sent.append(answer(job, verbs, arguments[brings:], brings=brings))


if __name__ == "__main__":
    from orchestrator.cli import main as command_line

    main(command_line)

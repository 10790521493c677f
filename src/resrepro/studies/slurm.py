"""A SLURM job that is to end before its runs do, and is queued again by submitit's means."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from resrepro.errors import Interrupted

# submitit has SLURM send it before a job's time is over, and queues the job again when it comes.
WARNING = signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"]


@contextmanager
def queued_again() -> Iterator[None]:
    """Queues the SLURM job that this is again, if runs were stopped because it was warned.

    SIGTERM comes before a job makes room for another, and also when scancel ends it: SLURM knows
    which. A job that it has ended by now, or queued again itself, is left as it is.

    Raises:
        SystemExit: runs were stopped; they are saved.
        Interrupted: the same, where this is no job that submitit gave to SLURM.
    """
    try:
        yield
    except Interrupted as stop:
        if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
            raise
        asked = subprocess.run(
            ["squeue", "--noheader", "--format=%T", f"--jobs={_job()}"],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
        )
        if asked.stdout.strip() == "RUNNING":
            signal.raise_signal(WARNING)  # submitit's handler does the rest, and exits
        sys.exit(stop.status)


def _job() -> str:
    """This job's number; of an array the last task shares its number with all of the array."""
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]

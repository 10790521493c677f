"""A SLURM job that is to end before its run does, and is queued again (by submitit's means)."""

import os
import signal
import subprocess

# submitit has SLURM send it before a job's time is over, and queues the job again when it comes.
WARNING = signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"]


def is_job() -> bool:
    """Whether this process is a job that submitit gave to SLURM."""
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm"


def queue_again() -> None:
    """Queues this job again if SLURM has only warned it: for another's sake, or of its time limit.

    SIGTERM is that warning as well as the end that scancel brings: SLURM knows which. A job that
    it has ended by now, or queued again itself, is left as it is.

    Raises:
        SystemExit: the job was queued again.
    """
    job = os.environ["SLURM_JOB_ID"]
    asked = subprocess.run(
        ["squeue", "--noheader", "--format=%T", f"--jobs={job}"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.stdout.strip() == "RUNNING":
        signal.raise_signal(WARNING)

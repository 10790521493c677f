"""Runs of a study through an engine: a Hydra launcher (joblib, Ray …), or SLURM by submitit."""

import os
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from resrepro import extension, interruption
from resrepro.configuration import composition
from resrepro.configuration.schema import Config
from resrepro.errors import ConfigError, Interrupted, ResreproError, one_line
from resrepro.runs.run_directory import RunDirectory
from resrepro.runs.status import several
from resrepro.studies import processes, slurm
from resrepro.studies.display import counted, done_of
from resrepro.studies.plan import Plan
from resrepro.studies.processes import Begun, Train
from resrepro.studies.sweep import train_job

LOOK_SECONDS = 2.0  # between two looks at whether jobs have ended
SUBMITIT = "hydra_plugins.hydra_submitit_launcher.submitit_launcher."
EXECUTORS = {"SlurmLauncher": "slurm", "LocalLauncher": "local"}


@dataclass(frozen=True)
class Work:
    """What the jobs do, wherever they run: each trains the runs of a group, all at once.

    Attributes:
        groups: of runs, one a job.
        extensions: that the runs need.
        folder: that paths begin in.
    """

    groups: list[list[Config]]
    extensions: list[str]
    folder: Path

    def __call__(self, number: int) -> None:
        """Does one job."""
        os.chdir(self.folder)
        extension.load_extensions(self.extensions)
        group = self.groups[number]
        with slurm.queued_again():
            if len(group) == 1:
                train_job(group[0], "", set())
            else:
                processes.train(len(group))(f"job {number}", group, group)

    def checkpoint(self, number: int) -> Any:
        """What submitit hands in again when a job's time is over: the same, which goes on."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, number)

    def job(self, _: DictConfig) -> None:
        """The same as Hydra calls it."""
        self(HydraConfig.get().job.num)


def launcher(words: list[str], plan: Plan) -> Train | None:
    """What trains a study's runs through the launcher that its words choose; None: they do not.

    Raises:
        ConfigError: the launcher ends with the command, and is not to be waited for.
    """
    folder = Path(plan.outputs).expanduser() / plan.experiment / ".sweep"
    config = composition.launcher_config("reproduce", words, folder)
    name = config.hydra.runtime.choices["hydra/launcher"]
    _, is_submitit, executor = config.hydra.launcher._target_.partition(SUBMITIT)
    if name == "basic":
        return None
    if not (plan.wait or is_submitit):
        raise ConfigError(f"wait=false: hydra/launcher={name} ends with the command; leave it out")

    def train(title: str, runs: list[Config], waiting: list[Config]) -> Begun:
        at_once = plan.jobs or 1
        groups = [waiting[i : i + at_once] for i in range(0, len(waiting), at_once)]
        work = Work(groups, extension.loaded(), Path.cwd())
        print(
            f"{title}: {done_of(runs, waiting)}, {counted(len(groups), 'job')} through {name}",
            flush=True,
        )
        failures = []
        if is_submitit:
            settings: Any = OmegaConf.to_container(config.hydra.launcher, resolve=True)
            _through_submitit(EXECUTORS[executor], settings, work, plan.wait)
        else:
            try:
                composition.launch(config, words, work.job, len(groups))
            except Exception as error:  # whatever an engine raises when it loses a job
                failures = [f"hydra/launcher={name}: {one_line(error)}"]
                print(failures[0], file=sys.stderr, flush=True)
        # A job leaves a run to whoever has begun it since.
        held = {run.name for run in waiting if RunDirectory(run.directory).is_held()}
        return Begun({run.name for run in waiting} - (held if plan.wait else set()), failures)

    return train


def _through_submitit(executor: str, settings: dict[str, Any], work: Work, wait: bool) -> None:
    """Hands jobs in, one array of them, and waits for their end or does not.

    Hydra's launcher would wait in any case.

    Raises:
        ResreproError: they cannot be handed in.
    """
    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
    from submitit import AutoExecutor

    del settings["_target_"]
    folder = settings.pop("submitit_folder")
    requeues = settings.pop("max_num_timeout", 0)
    common = {field.name for field in fields(BaseQueueConf)}
    try:
        engine = AutoExecutor(folder, cluster=executor, slurm_max_num_timeout=requeues)
        engine.update_parameters(
            **{k if k in common else f"{executor}_{k}": v for k, v in settings.items()}
        )
        jobs = engine.map_array(work, range(len(work.groups)))
    except Exception as error:  # whatever submitit and sbatch say
        raise ResreproError(f"hydra/launcher={executor}: {one_line(error)}") from error
    ids = several([job.job_id for job in jobs])
    print(f"jobs {ids}; their logs lie in {Path(folder).parent}", flush=True)
    if wait:
        try:
            with interruption.watched():
                while not all(job.done() for job in jobs):
                    interruption.check()
                    time.sleep(LOOK_SECONDS)
        except Interrupted:
            print("the jobs go on without this command", flush=True)
            raise

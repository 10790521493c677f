"""What a study does: its runs, and what is made of them."""

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from resrepro.configuration import composition
from resrepro.configuration.schema import Config, Reproduce, typed
from resrepro.errors import ConfigError

OWN_KEYS = ("study", "jobs", "wait", "hydra")
ARTEFACTS = ("error-vs-depth", "figure1", "figure6", "figure7", "table6", "claims", "report")


@dataclass(frozen=True)
class Plan:
    """What a study does.

    Attributes:
        name: the study's.
        runs: all of them, complete or not.
        artefacts: that are made of them.
        jobs: how many run at once; None to decide by the machine.
        seeds: how many of each net are planned in all; verdicts say so. None where none are.
        wait: whether to wait for runs that go on elsewhere.
    """

    name: str
    runs: list[Config]
    artefacts: list[str]
    jobs: int | None
    seeds: int | None = None
    wait: bool = True

    @property
    def outputs(self) -> str:
        """The folder that the experiment's folder lies in."""
        return self.runs[0].outputs

    @property
    def experiment(self) -> str:
        """The experiment that the runs belong to."""
        return self.runs[0].experiment


def plan_study(composed: DictConfig, of_runs: list[str], config_dir: str | None) -> Plan:
    """The runs of a study, the user's overrides over the study's.

    Raises:
        ConfigError: the study, or one of its runs, is not configured right.
    """
    asked = typed(Reproduce, composed)
    if asked.jobs is not None and asked.jobs < 1:
        raise ConfigError(f"jobs={asked.jobs}: must be 1 or more")
    # Not resolved: ${recipe.learning_rate} in a study means the run's.
    study: Any = OmegaConf.to_container(composed.study, resolve=False)
    try:
        name, artefacts = study["name"], study["artefacts"]
        for key in ("runs", "artefacts"):
            if not isinstance(study[key], list):
                raise TypeError(f"{key}={study[key]} is none")
        common = [f"experiment={name}", *composition.words_of(study["overrides"])]
        sweeps = [common + composition.words_of(sweep) + of_runs for sweep in study["runs"]]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"a study needs name, runs and artefacts (lists) and overrides (a text): {error}"
        ) from error
    if unknown := set(artefacts) - {"constructed", *ARTEFACTS}:
        raise ConfigError(
            f"study {name}: there is no artefact {', '.join(sorted(unknown))}; "
            f"choose among constructed, {', '.join(ARTEFACTS)}"
        )
    if not sweeps:
        raise ConfigError(f"study {name}: has no runs; say some, as in runs: [depth=20,56]")
    runs = composition.expand("reproduce", sweeps, config_dir)
    if len({(run.outputs, run.experiment) for run in runs}) > 1:
        raise ConfigError("a study has one experiment and one outputs folder: sweep over neither")
    seeds = study.get("seeds")
    if seeds is not None and (not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1):
        raise ConfigError(f"study {name}: seeds={seeds}: must be 1 or more, how many are planned")
    return Plan(name, runs, artefacts, asked.jobs, seeds, asked.wait)


def cost(run: Config) -> float:
    """What a run's time is about proportional to."""
    return run.depth * (1 + run.recipe.iterations) * run.recipe.batch_size * run.model.width**2

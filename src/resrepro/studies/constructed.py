"""The constructed solution: a trained net made deeper by identity layers (paper, section 1).

It is a run of its own. Its weights come from the shallower run's checkpoint in place of a random
draw, and it has no iterations, or some if it is to be trained on from there.
"""

from dataclasses import replace

from resrepro import extension
from resrepro.configuration.schema import Config, Constructed, from_mapping
from resrepro.errors import ConfigError, ResreproError
from resrepro.runs.run_directory import RunDirectory


def constructed_from(source: RunDirectory, depth: int, iterations: int = 0) -> Config:
    """The configuration of a deeper net made from a complete run; it goes to the same experiment.

    Raises:
        ConfigError: the depth is not 6n+2 or not deeper than the run's, or the iterations are no
            number from 0 on; or the run's extension was not given.
        ResreproError: the run is not complete, or has lost its checkpoint.
    """
    config, summary = source.config(), source.summary()
    extension.require(config.extensions)
    if summary is None or summary["status"] != "complete":
        raise ResreproError(f"{source.path} is not complete; train it to its end first")
    folder = source.path.absolute().parent
    made = replace(
        config,
        depth=depth,
        recipe=replace(config.recipe, iterations=iterations),
        constructed=Constructed(
            config.depth, source.checkpoint_digest(), str(source.path.absolute())
        ),
        outputs=str(folder.parent),
        experiment=folder.name,
        logger=None,
        cuda_graph=None,  # the source may have been trained on a GPU, and this be done on none
        tag=_tag(config, iterations),
    )
    made = from_mapping(made.to_dict(), is_used=False)  # depth and iterations may be any word
    if made.depth <= config.depth:
        raise ConfigError(
            f"depth={depth}: must be deeper than {source.name}, which has {config.depth}"
        )
    return made


def _tag(source: Config, iterations: int) -> str:
    word = f"constructed{source.depth}{'-trained' if iterations else ''}"
    return f"{source.tag}-{word}" if source.tag else word


def constructed_solutions(runs: list[Config]) -> list[Config]:
    """What a study can construct: each plain net as deep as its run, from the shallowest one.

    The source has the same seed and tag; only complete ones are used.
    """
    plain = [run for run in runs if run.model.name == "plain"]
    shallowest: dict[tuple[int, str | None], Config] = {}
    for run in sorted(plain, key=lambda run: run.depth):
        shallowest.setdefault((run.seed, run.tag), run)
    made = []
    for run in plain:
        source = shallowest[run.seed, run.tag]
        directory = RunDirectory(source.directory)
        if run.depth > source.depth and _is_complete(directory):
            there = RunDirectory(replace(run, tag=_tag(source, 0)).directory)
            try:
                made.append(_as_here(constructed_from(directory, run.depth), run))
            except ResreproError:
                if not _is_complete(there):
                    raise
                # The source's checkpoint is gone; what was made of it before stays.
                made.append(replace(there.config(), outputs=run.outputs, experiment=run.experiment))
    return made


def _as_here(made: Config, run: Config) -> Config:
    """Where and how the study's own runs happen; the source may have been trained elsewhere."""
    return replace(
        made,
        data=run.data,
        device=run.device,
        threads=run.threads,
        cuda_graph=run.cuda_graph,
        activation_checkpointing=run.activation_checkpointing,
    )


def _is_complete(run: RunDirectory) -> bool:
    summary = run.summary() if run.exists() else None
    return summary is not None and summary["status"] == "complete"

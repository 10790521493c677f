"""Writes run directories as if nets had been trained, with errors that a test chooses."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from resrepro.configuration.schema import Config, Constructed, Data, Model, Recipe, WarmUp
from resrepro.paper.curves import Group, collect
from resrepro.runs.run_directory import Row, RunDirectory

EXPERIMENT = "made-up"
PAPER = Recipe("paper", 64000, 128, 0.1, 0.9, 1e-4, [0.5, 0.75], 4, True, WarmUp(110))
DIGITS = Recipe("digits", 300, 128, 0.02, 0.9, 1e-4, [0.5, 0.75], 1, False, WarmUp(110, 0.002))
CLASSES = {"cifar10": 10, "cifar100": 100, "digits": 10, "image_folder": 3}
IMAGES = {"cifar10": (50000, 10000), "cifar100": (50000, 10000), "digits": (1437, 360)}

# A net: family and depth; its numbers, one for each seed, by the names that `write` knows.
Nets = Mapping[tuple[str, int], Mapping[str, Sequence[float]]]


def config(
    outputs: Path,
    model: str,
    depth: int,
    seed: int = 0,
    *,
    shortcut: str = "A",
    width: int = 16,
    recipe: Recipe = PAPER,
    data: Data | str = "cifar10",
    origin: int | None = None,
    tag: str | None = None,
    **keys: Any,
) -> Config:
    """A run's configuration; with an origin, a constructed solution's."""
    constructed = None
    if origin is not None:
        source = outputs / EXPERIMENT / f"{model}-{origin}-s{seed}{f'-{tag}' if tag else ''}"
        constructed = Constructed(origin, f"{seed:064x}", str(source))
        word = f"constructed{origin}"
        tag, recipe = f"{tag}-{word}" if tag else word, replace(recipe, iterations=0)
    return Config(
        Model(model, width, shortcut if model == "residual" else None),
        depth,
        seed,
        Data(data) if isinstance(data, str) else data,
        recipe,
        outputs=str(outputs),
        experiment=EXPERIMENT,
        tag=tag,
        constructed=constructed,
        **keys,
    )


def write(
    made: Config,
    *,
    train: float = 5.0,
    test: float = 10.0,
    clean: float | None = None,
    best: float | None = None,
    status: str = "complete",
    evaluations: int = 4,
    response: float | None = None,
    responses: list[float] | None = None,
    **summary: Any,
) -> RunDirectory:
    """The run directory of a configuration.

    Args:
        made: the configuration.
        train: final training error, percent.
        test: final test error.
        clean: training error without augmentation; None for the same as `train`.
        best: test error of the row before the last; None for worse than the last.
        status: in summary.json; a run that is not complete has done half its iterations.
        evaluations: rows; 0 for a run that has only just begun.
        response: the deviation of every layer.
        responses: the deviations, one by one.
        summary: more for summary.json.
    """
    last = made.recipe.iterations if status == "complete" else made.recipe.iterations // 2
    rows = []
    for i in range(1, (1 if last == 0 else evaluations) + 1):
        left = evaluations - i if last else 0
        final = test if left == 0 else test + 3 * left
        rows.append(
            Row(
                iteration=last * i // evaluations if last else 0,
                epoch=0.1 * i,
                learning_rate=0.1,
                train_loss=0.5,
                train_error=train + 2 * left,
                test_loss=0.7,
                test_error=best if best is not None and left == 1 else final,
                seconds=20.0 * i,
            )
        )
    run = RunDirectory(made.directory)
    run.open(made)
    run.write_metrics(rows)
    train_images, test_images = IMAGES.get(made.data.name, (60, 30))
    run.write_summary(
        {
            "status": status,
            "reason": None if status in ("complete", "running") else f"was made {status}",
            "iteration": last,
            "iterations": made.recipe.iterations,
            "classes": CLASSES[made.data.name],
            "train_images": train_images,
            "test_images": test_images,
            "final_train_error": rows[-1].train_error if rows else None,
            "final_test_error": rows[-1].test_error if rows else None,
            "best_test_error": min(row.test_error for row in rows) if rows else None,
            "clean_train_error": (train if clean is None else clean)
            if status == "complete"
            else None,
            "parameters": 1000 * made.depth + 722,
            "images_per_second": 1234.5,
            "seconds": 80.0,
            "device": "cpu",
            "data_digest": "d1e5" * 16,
            "versions": {"torch": "9.9.9"},
            "host": "a-host",
            **summary,
        },
        rows,
    )
    if response is not None:
        responses = [response] * (made.depth - 1)
    if responses is not None:
        run.write_responses(responses)
    return run


def write_nets(outputs: Path, nets: Nets, **keys: Any) -> None:
    """Runs of several nets: seed i has the i-th of each quantity's numbers."""
    for (model, depth), quantities in nets.items():
        for seed, values in enumerate(zip(*quantities.values(), strict=True)):
            write(
                config(outputs, model, depth, seed, **keys),
                **dict(zip(quantities, values, strict=True)),
            )


def group(outputs: Path) -> Group:
    """The one group of runs there is."""
    (only,) = collect(str(outputs), EXPERIMENT)
    return only

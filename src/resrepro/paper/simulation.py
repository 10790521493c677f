"""How often verdicts are false, and how often they are found: python -m resrepro.paper.simulation.

Studies of four nets are made up and judged as real ones are, by the primary claims.
"""

import sys
from collections import Counter
from dataclasses import dataclass

import numpy as np
from tabulate import tabulate

from resrepro.paper.claims import (
    ASSUMED,
    ASSUMED_SHORT,
    RESPONSE,
    TEST,
    TRAIN,
    Asker,
    Numbers,
    primary_questions,
)
from resrepro.paper.verdicts import judge

NETS = (("plain", 20), ("plain", 56), ("residual", 20), ("residual", 56))
SEEDS = (1, 2, 3, 5, 10)
KINDS = ("normal", "skewed", "tied")
STUDIES = 2000

Four = tuple[float, float, float, float]


@dataclass(frozen=True)
class World:
    """The truth that studies are drawn from.

    Attributes:
        train: clean training error of each of NETS, percent.
        test: test error.
        train_spread: deviation of the log-odds of one seed's training error.
        test_spread: of its test error.
        images: for training and for testing.
        assumed: the deviation of log-odds that is assumed for one seed.
    """

    train: Four
    test: Four
    train_spread: Four
    test_spread: Four
    images: tuple[int, int] = (50_000, 10_000)
    assumed: float = ASSUMED_SHORT


# Log-odds deviations of 0.2 to 0.45 are what ten seeds of the digits nets gave.
DIGITS_SPREAD: tuple[Four, Four] = ((0.44, 0.35, 0.42, 0.39), (0.21, 0.41, 0.42, 0.26))
UNEQUAL_SPREAD: tuple[Four, Four] = ((0.1, 0.4, 0.1, 0.1), (0.1, 0.4, 0.1, 0.4))
# Every difference that a primary claim is about is exactly its margin, 0.5 points.
AT_MARGIN: tuple[Four, Four] = ((1.5, 2.0, 1.0, 1.5), (9.0, 9.5, 8.5, 9.0))
DIGITS = World((1.0, 70.7, 0.44, 0.42), (3.3, 72.2, 2.8, 2.4), *DIGITS_SPREAD, (1438, 359))
WHOLE_SPREAD: tuple[Four, Four] = ((0.1, 0.15, 0.1, 0.1), (0.03, 0.09, 0.03, 0.09))
# The paper's errors; training errors of another reproduction of it; spreads are guesses.
PAPER = World(
    (0.74, 3.33, 0.40, 0.04),
    (9.5, 13.5, 8.75, 6.97),
    *WHOLE_SPREAD,
    assumed=ASSUMED,
)
NULLS = {
    "spreads as on digits": World(*AT_MARGIN, *DIGITS_SPREAD),
    "spreads as after a whole schedule": World(*AT_MARGIN, *WHOLE_SPREAD, assumed=ASSUMED),
    "spreads that differ fourfold": World(*AT_MARGIN, *UNEQUAL_SPREAD),
}


def drawn(
    world: World, kind: str, seeds: int, studies: int, draws: np.random.Generator
) -> list[Numbers]:
    """Made-up studies.

    Args:
        world: the truth.
        kind: of the seeds' scatter: normal; skewed (gamma, skewness 1.4); tied, which is normal
            and a tenth as wide, on the few images of digits, so that most seeds tie.
        seeds: of each net.
        studies: how many.
        draws: where the random numbers come from.
    """
    images = DIGITS.images if kind == "tied" else world.images
    errors = {
        quantity: _errors(means, spreads, count, kind, (studies, 4, seeds), draws)
        for quantity, means, spreads, count in (
            (TRAIN, world.train, world.train_spread, images[0]),
            (TEST, world.test, world.test_spread, images[1]),
        )
    }
    sizes = dict(zip((TRAIN, TEST), images, strict=True))
    made = []
    for i in range(studies):
        values = {
            quantity: {
                net: dict(enumerate(of_net.tolist()))
                for net, of_net in zip(NETS, of_all[i], strict=True)
            }
            for quantity, of_all in errors.items()
        }
        made.append(Numbers({**values, RESPONSE: {}}, sizes, 10, world.assumed, {}, {}))
    return made


def _errors(
    means: Four,
    spreads: Four,
    images: int,
    kind: str,
    shape: tuple[int, int, int],
    draws: np.random.Generator,
) -> np.ndarray:
    """Errors in percent, (studies, nets, seeds), in whole images, with the means given."""
    share = np.array(means)[:, None] / 100
    scatter = share * (1 - share) * np.array(spreads)[:, None]
    if kind == "skewed":
        shares = share + scatter * (draws.gamma(2, size=shape) - 2) / np.sqrt(2)
    else:
        shares = share + scatter * draws.normal(size=shape) * (0.1 if kind == "tied" else 1)
    # Rounded up or down by chance, so that the mean stays.
    count = np.floor(shares * images + draws.random(shape))
    return np.asarray(100 * np.clip(count, 0, images) / images)


def words(study: Numbers) -> dict[str, str]:
    """The primary claims' words, by the claims' ids."""
    return {v.id: v.word for v in judge(primary_questions(Asker(study)))}


def false_rate(
    world: World, kind: str, seeds: int, studies: int, draws: np.random.Generator
) -> float:
    """The share of studies with any verdict, where every difference is at its margin."""
    made = drawn(world, kind, seeds, studies, draws)
    return float(np.mean([set(words(study).values()) != {"not decided"} for study in made]))


def stopping_rate(world: World, most: int, studies: int, draws: np.random.Generator) -> float:
    """The same, for one who looks after every seed from the second to the last."""
    found = 0
    for study in drawn(world, "normal", most, studies, draws):
        looks = (words(_first(study, seeds)) for seeds in range(2, most + 1))
        found += any(set(look.values()) != {"not decided"} for look in looks)
    return found / studies


def _first(study: Numbers, seeds: int) -> Numbers:
    values = {
        quantity: {
            net: {seed: v for seed, v in of_net.items() if seed < seeds}
            for net, of_net in nets.items()
        }
        for quantity, nets in study.values.items()
    }
    return Numbers(values, study.images, study.classes, study.assumed, {}, {})


def power(
    world: World, seeds: int, studies: int, draws: np.random.Generator
) -> dict[str, Counter[str]]:
    """How often each claim gets which word."""
    counts: dict[str, Counter[str]] = {}
    for study in drawn(world, "normal", seeds, studies, draws):
        for claim, word in words(study).items():
            counts.setdefault(claim, Counter())[word] += 1
    return counts


def main(studies: int = STUDIES) -> None:
    """Prints the tables of docs/fidelity.md."""
    draws = np.random.default_rng(0)
    rows = [
        [f"{name}, {kind}"]
        + [f"{100 * false_rate(world, kind, n, studies, draws):.1f}" for n in SEEDS]
        for name, world in NULLS.items()
        for kind in KINDS
    ]
    _print([f"false verdicts, % of {studies:,} studies", *(f"n = {n}" for n in SEEDS)], rows)
    rate = stopping_rate(NULLS["spreads as on digits"], 10, studies // 4, draws)
    print(f"looking after every seed from 2 to 10: {100 * rate:.1f}%\n")
    for name, world in (("digits", DIGITS), ("the paper's errors", PAPER)):
        counts = {n: power(world, n, studies // 4, draws) for n in SEEDS}
        rows = [
            [claim] + [f"{100 * counts[n][claim][_found(n)] / (studies // 4):.0f}" for n in SEEDS]
            for claim in counts[SEEDS[0]]
        ]
        _print([f"supported, % ({name})", *(f"n = {n}" for n in SEEDS)], rows)


def _found(seeds: int) -> str:
    return "indicated" if seeds == 1 else "supported"


def _print(headers: list[str], rows: list[list[str]]) -> None:
    print(tabulate(rows, headers, "github", disable_numparse=True), end="\n\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

"""The learning rate, a pure function of the iteration and of where the warm-up ended."""

from resrepro.configuration.schema import Recipe


def warms_up(recipe: Recipe, depth: int) -> bool:
    """Whether a net of this depth starts at the lower rate (paper: 110 layers)."""
    return recipe.warm_up.depth is not None and depth >= recipe.warm_up.depth


def learning_rate(recipe: Recipe, iteration: int, warming_up: bool = False) -> float:
    """The rate of iteration 0, 1, 2, …: divided by 10 at each of the recipe's drops.

    While the net warms up it is the warm-up's rate, or the scheduled one where that is lower,
    so that a net that never warms up follows the schedule all the same.
    """
    drops = sum(iteration >= round(d * recipe.iterations) for d in recipe.drops)
    scheduled = recipe.learning_rate / float(10**drops)
    return min(scheduled, recipe.warm_up.learning_rate) if warming_up else scheduled

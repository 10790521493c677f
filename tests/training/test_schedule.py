from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resrepro.configuration.schema import Recipe, WarmUp
from resrepro.training.schedule import learning_rate, warms_up

PAPER = Recipe(
    name="paper",
    iterations=64_000,
    batch_size=128,
    learning_rate=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    drops=[0.5, 0.75],
    padding=4,
    flip=True,
    warm_up=WarmUp(depth=110, learning_rate=0.01, until_error=80),
)

rates = st.floats(1e-6, 1e3)
recipes = st.builds(
    lambda iterations, rate, drops, warm_up: replace(
        PAPER,
        iterations=iterations,
        learning_rate=rate,
        drops=sorted(drops),
        warm_up=WarmUp(depth=8, learning_rate=warm_up),
    ),
    st.integers(1, 100_000),
    rates,
    st.lists(st.floats(0.001, 0.999), max_size=4, unique=True),
    rates,
)


@pytest.mark.parametrize(
    ("iteration", "rate"),
    [(0, 0.1), (31_999, 0.1), (32_000, 0.01), (47_999, 0.01), (48_000, 0.001), (63_999, 0.001)],
)
def test_the_papers_rates(iteration: int, rate: float) -> None:
    assert learning_rate(PAPER, iteration) == rate


@given(recipe=recipes, data=st.data())
def test_the_rate_changes_only_at_the_drops_and_there_by_ten(
    recipe: Recipe, data: st.DataObject
) -> None:
    drops = [round(fraction * recipe.iterations) for fraction in recipe.drops]
    near = st.sampled_from(drops) if drops else st.just(1)
    iteration = data.draw(near | st.integers(1, recipe.iterations)) or 1
    before, after = learning_rate(recipe, iteration - 1), learning_rate(recipe, iteration)
    if iteration in drops:
        assert before / after == pytest.approx(10.0 ** drops.count(iteration))
    else:
        assert before == after


@given(recipe=recipes)
def test_the_rate_begins_whole_and_ends_divided_by_all_drops(recipe: Recipe) -> None:
    drops = [round(fraction * recipe.iterations) for fraction in recipe.drops]
    begin, end = drops.count(0), len(drops)
    assert learning_rate(recipe, 0) == pytest.approx(recipe.learning_rate / 10**begin)
    last = learning_rate(recipe, recipe.iterations)
    assert last == pytest.approx(recipe.learning_rate / 10**end)


@given(iterations=st.integers(1, 16_000))
def test_a_shorter_run_drops_at_the_same_fractions(iterations: int) -> None:
    shorter = replace(PAPER, iterations=4 * iterations)
    for iteration, rate in [
        (2 * iterations - 1, 0.1),
        (2 * iterations, 0.01),
        (3 * iterations - 1, 0.01),
        (3 * iterations, 0.001),
    ]:
        assert learning_rate(shorter, iteration) == rate


@pytest.mark.parametrize(("depth", "warm"), [(8, False), (56, False), (110, True), (1202, True)])
def test_nets_of_110_layers_and_more_warm_up(depth: int, warm: bool) -> None:
    assert warms_up(PAPER, depth) is warm
    assert not warms_up(replace(PAPER, warm_up=WarmUp(depth=None)), depth)


def test_the_rate_comes_back_after_the_warm_up() -> None:
    assert learning_rate(PAPER, 0, warming_up=True) == 0.01
    assert learning_rate(PAPER, 399, warming_up=True) == 0.01
    assert learning_rate(PAPER, 400, warming_up=False) == 0.1
    assert learning_rate(PAPER, 32_000, warming_up=False) == 0.01


@given(recipe=recipes, iteration=st.integers(0, 100_000))
def test_the_warm_up_never_raises_the_rate(recipe: Recipe, iteration: int) -> None:
    warm = learning_rate(recipe, iteration, warming_up=True)
    assert warm <= learning_rate(recipe, iteration)
    assert warm <= recipe.warm_up.learning_rate


def test_a_net_that_never_ends_its_warm_up_follows_the_drops() -> None:
    assert learning_rate(PAPER, 40_000, warming_up=True) == 0.01
    assert learning_rate(PAPER, 50_000, warming_up=True) == 0.001

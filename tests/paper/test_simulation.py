import numpy as np
import pytest

from resrepro.paper.claims import TEST, TRAIN
from resrepro.paper.simulation import (
    AT_MARGIN,
    DIGITS,
    KINDS,
    NETS,
    NULLS,
    World,
    drawn,
    false_rate,
    power,
)

STUDIES = 500
# What counting so many studies adds to 5% in one case of a hundred.
SLACK = 2.33 * np.sqrt(0.05 * 0.95 / STUDIES)
NULL, WHOLE = NULLS["spreads as on digits"], NULLS["spreads as after a whole schedule"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("null", "seeds"), [(NULL, 2), (NULL, 3), (NULL, 5), (NULL, 10), (WHOLE, 2)]
)
def test_few_studies_at_the_margins_get_any_verdict(null: World, kind: str, seeds: int) -> None:
    rate = false_rate(null, kind, seeds, STUDIES, np.random.default_rng(0))
    assert rate <= 0.05 + SLACK


def test_the_rate_of_false_verdicts_is_not_zero() -> None:
    assert false_rate(NULL, "normal", 2, STUDIES, np.random.default_rng(1)) > 0.002


@pytest.mark.parametrize("kind", KINDS)
def test_studies_are_drawn_with_the_means_and_the_ties_they_should_have(kind: str) -> None:
    studies = drawn(NULL, kind, 3, 2000, np.random.default_rng(2))
    for quantity, means in zip((TRAIN, TEST), AT_MARGIN, strict=True):
        for net, mean in zip(NETS, means, strict=True):
            values = np.array([list(study.values[quantity][net].values()) for study in studies])
            assert values.mean() == pytest.approx(mean, abs=5 * values.std() / np.sqrt(6000))
            ties = np.mean(values[:, 0] == values[:, 1])
            assert ties > 0.2 if kind == "tied" else ties < 0.1


def test_large_effects_are_found_with_three_seeds() -> None:
    found = power(DIGITS, 3, 100, np.random.default_rng(3))
    assert found["plain-train"]["supported"] >= 95
    assert found["residual-beats-plain-deep"]["supported"] >= 95
    assert sum(found["residual-train"].values()) == 100

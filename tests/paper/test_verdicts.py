import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from resrepro.paper.verdicts import (
    LEVEL,
    Pool,
    Question,
    Sample,
    Term,
    Verdict,
    difference,
    half_width,
    holm,
    judge,
    p_value,
    pool,
)

N = 10_000
ASSUMED = 0.3


def sample(*values: float, net: str = "net", images: int | None = N) -> Sample:
    return Sample(net, values, images)


def question(
    deep: tuple[float, ...],
    shallow: tuple[float, ...],
    *others: tuple[float, ...],
    id: str = "id",  # noqa: A002
    above: bool = True,
    margin: float = 0.5,
    opposite: float | None = None,
    primary: bool = True,
    images: int | None = N,
    unlearned: str = "",
) -> Question:
    """Whether deep less shallow is above its margin; other nets lend their spread."""
    nets = [sample(*values, net=f"net {i}", images=images) for i, values in enumerate(others)]
    terms = (
        Term(1, sample(*deep, net="deep", images=images)),
        Term(-1, sample(*shallow, net="shallow", images=images)),
    )
    return Question(
        id,
        primary,
        "plain",
        "a claim",
        "a source",
        terms,
        pool([*(term.sample for term in terms), *nets], ASSUMED),
        above,
        margin,
        -margin if opposite is None else opposite,
        "points",
        unlearned=unlearned,
    )


def judged(*nets: tuple[float, ...], **keys: object) -> Verdict:
    (verdict,) = judge([question(*nets, **keys)])  # type: ignore[arg-type]
    return verdict


def log_odds(*percent: float) -> np.ndarray:
    p = np.array(percent) / 100
    return np.log(p / (1 - p))


def test_spreads_are_pooled_over_nets_by_their_degrees_of_freedom() -> None:
    made = pool([sample(8.0, 9.0, 10.0), sample(30.0, 33.0), sample(5.0)], ASSUMED)
    a, b = log_odds(8, 9, 10).var(ddof=1), log_odds(30, 33).var(ddof=1)
    assert made.freedom == 3
    assert made.variance == pytest.approx((2 * a + b) / 3)
    assert pool([sample(5.0)], ASSUMED) == Pool(0.0, 0, ASSUMED)


def test_the_pooled_spread_is_carried_back_by_p_times_one_less_p() -> None:
    asked = question((9.0, 9.1, 9.2), (40.0, 40.5, 40.1), (60.0, 70.0, 64.0))
    spread = asked.pool.variance
    value, error, freedom = difference(asked)
    deviations = [9.1 * 0.909, 40.2 * 0.598]
    assert value == pytest.approx(9.1 - 40.2)
    assert error == pytest.approx(math.sqrt(sum(spread * d**2 / 3 for d in deviations)), rel=1e-6)
    assert freedom == 6


def test_a_net_with_a_larger_spread_than_the_pooled_one_counts_with_it() -> None:
    quiet = [(9.0, 9.01), (5.0, 5.01), (4.0, 4.01)]
    wild = (12.0, 14.0)
    asked = question(wild, quiet[0], *quiet[1:])
    own = log_odds(*wild).var(ddof=1)
    assert own > 3 * asked.pool.variance
    _, error, freedom = difference(asked)
    assert (freedom, asked.pool.freedom) == (2, 4)  # the claim's nets' own, not all nets'
    expected = math.sqrt(own * (13 * 0.87) ** 2 / 2 + own * (9.005 * 0.90995) ** 2 / 2)
    assert error == pytest.approx(expected)


def test_nets_with_few_wrong_images_lend_no_spread() -> None:
    steady = [(8.0, 9.0, 10.0), (30.0, 33.0, 36.0)]
    few, enough = (0.06, 0.08, 0.13), (0.08, 0.11, 0.14)  # 9 and 11 of 10,000 images
    assert pool(map(sample_of, [*steady, few]), ASSUMED) == pool(map(sample_of, steady), ASSUMED)
    assert pool(map(sample_of, [*steady, enough]), ASSUMED).freedom == 6
    assert pool([sample_of(few)], ASSUMED).freedom == 2  # unless there are no others
    # In a claim such a net is as uncertain as its count of wrong images, and no other net more.
    asked = question(steady[0], few)
    _, error, freedom = difference(asked)
    spread, p = log_odds(*steady[0]).var(ddof=1), np.mean(few) / 100
    expected = spread * (9 * 0.91) ** 2 + max(spread * (100 * p) ** 2, 0.005**2) + p * 1e4 / N
    assert (error, freedom) == (pytest.approx(math.sqrt(expected / 3), rel=1e-3), 2)


def sample_of(values: tuple[float, ...]) -> Sample:
    return sample(*values)


def test_responses_have_the_spread_of_their_logarithm() -> None:
    asked = question((0.1, 0.4, 0.2), (0.0, 0.2, 0.1), images=None, margin=-0.05, above=False)
    _, error, freedom = difference(asked)
    assert error == pytest.approx(math.sqrt(2 * np.var([0.1, 0.4, 0.2], ddof=1) / 3))
    assert freedom == 4


@pytest.mark.parametrize("images", [N, 359])
@pytest.mark.parametrize("deep", [8.51, 8.4, 20.0])
def test_seeds_that_tie_decide_nothing_by_themselves(deep: float, images: int) -> None:
    verdict = judged((deep, deep), (8.0, 8.0), images=images)
    assert (verdict.word, verdict.interval, verdict.p) == ("not decided", None, None)
    assert verdict.reason == "all seeds tie, so their spread is not known"
    # Nor do they make another net's spread smaller than it is.
    among = judged((deep, deep), (8.0, 8.0), (5.0, 9.0), (30.0, 44.0), images=images)
    low, high = among.interval or (0, 0)
    assert high - low > 2 * 2.7 * 0.2 * 7.4 / 2


def test_a_seeds_deviation_is_at_least_half_an_image() -> None:
    assert sample(8.0, images=359).deviation(1e-9) == pytest.approx(50 / 359)
    assert sample(8.0, images=None).deviation(0.0) == 0.01


def test_no_image_wrong_is_half_an_image_wrong() -> None:
    made = sample(0.0, 0.0, 0.02)
    half = 0.5 / N
    expected = np.var(np.log([half / (1 - half)] * 2 + [0.0002 / 0.9998]), ddof=1)
    assert made.spread() == pytest.approx(expected)
    assert math.isfinite(sample(100.0, 100.0).deviation(0.1))


@given(t=st.floats(0.01, 20), freedom=st.integers(1, 60), error=st.floats(0.01, 10))
def test_p_values_and_intervals_are_students(t: float, freedom: int, error: float) -> None:
    assert p_value(t * error, error, freedom, 0) == pytest.approx(2 * stats.t.sf(t, freedom))
    assert half_width(error, freedom) == pytest.approx(error * stats.t.ppf(0.975, freedom))
    assert p_value(t, 1, math.inf, 0) == pytest.approx(2 * stats.norm.sf(t))
    assert half_width(error, math.inf) == pytest.approx(1.959964 * error)


def rejected(p_values: list[float], level: float) -> set[int]:
    """Holm's procedure as he wrote it: step down, stop at the first that is not rejected."""
    found: set[int] = set()
    left = len(p_values)
    for i in sorted(range(left), key=lambda i: p_values[i]):
        if left * p_values[i] > level:
            break
        found.add(i)
        left -= 1
    return found


P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=9)


@given(p_values=P_VALUES, level=st.sampled_from([0.01, 0.05, 0.2, 0.5, 0.9]))
def test_holm_rejects_what_the_step_down_procedure_rejects(
    p_values: list[float], level: float
) -> None:
    adjusted = holm(p_values)
    assert {i for i, p in enumerate(adjusted) if p <= level} == rejected(p_values, level)


def test_holm_on_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.2, 0.9, 0.6]) == pytest.approx([0.6, 1.0, 1.0])
    assert holm([]) == []


@given(p_values=P_VALUES)
def test_holm_keeps_the_order_and_lowers_nothing(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(raw <= p <= 1 for raw, p in zip(p_values, adjusted, strict=True))
    for (a, b), (x, y) in zip(
        itertools.combinations(p_values, 2), itertools.combinations(adjusted, 2), strict=True
    ):
        if a != b:
            assert (x <= y) if a < b else (x >= y)


SHALLOW = (10.0, 10.1, 9.9)


@pytest.mark.parametrize(
    ("deep", "above", "word", "reason"),
    [
        (12.0, True, "supported", "above the margin of 0.5"),
        (8.0, True, "contradicted", "below -0.5, the opposite"),
        (10.0, True, "no such effect", "below the margin of 0.5, and no opposite was found"),
        (9.45, True, "no such effect", "below the margin of 0.5, and no opposite was found"),
        (10.6, True, "not decided", "the interval reaches across the margin of 0.5"),
        (12.0, False, "contradicted", "above 0.5, the opposite"),
        (8.0, False, "supported", "below the margin of 0.5"),
        (10.0, False, "supported", "below the margin of 0.5"),
        (10.6, False, "not decided", "the interval reaches across the margin of 0.5"),
    ],
)
def test_the_words_and_their_reasons(deep: float, above: bool, word: str, reason: str) -> None:
    opposite = -0.5 if above else 0.5
    verdict = judged((deep, deep + 0.1, deep - 0.1), SHALLOW, above=above, opposite=opposite)
    assert (verdict.word, verdict.reason) == (word, reason)
    assert verdict.difference == pytest.approx(deep - 10)
    assert (verdict.p is not None and verdict.p < LEVEL) == (word != "not decided")
    assert verdict.n == {"deep": 3, "shallow": 3}


def test_what_only_the_correction_prevents_is_not_called_too_near() -> None:
    near = question((11.0, 11.1, 10.9), SHALLOW, (20.0, 20.6, 19.8), id="near")
    (alone,) = judge([near])
    low, _ = alone.interval or (0, 0)
    assert alone.word == "supported"
    assert low > 0.5
    others = [question((10.5, 10.4, 10.6), SHALLOW, id=str(i)) for i in range(40)]
    verdict = judge([near, *others])[0]
    assert verdict.word == "not decided"
    assert verdict.reason == "its interval alone would decide, but not among 41 claims"
    assert verdict.interval == alone.interval


def test_claims_without_runs_and_secondary_ones_are_counted_as_they_should() -> None:
    near = question((11.0, 11.1, 10.9), SHALLOW, id="near")
    missing = Question(
        "lacking", True, "plain", "c", "s", (), near.pool, True, 0.5, -0.5, "points", ("plain-56",)
    )
    single = question((11.0,), SHALLOW, id="single")
    secondary = question((12.0, 12.1), SHALLOW, id="secondary", primary=False)
    (alone,) = judge([near])
    among = {v.id: v for v in judge([near, missing, single, secondary])}
    assert among["near"].p == pytest.approx(3 * (alone.p or 0))
    assert [among[name].p for name in ("lacking", "single", "secondary")] == [None] * 3
    assert (among["lacking"].word, among["lacking"].reason) == ("not decided", "needs plain-56")
    assert among["secondary"].word == "supported"


def test_one_seed_indicates_and_has_no_p_value() -> None:
    verdict = judged((30.0,), (8.0,))
    assert (verdict.word, verdict.leaning, verdict.p) == ("indicated", "supported", None)
    assert verdict.reason == ("for the claim: one seed of deep, shallow, the spread is assumed")
    variance = sum((ASSUMED * 100 * p * (1 - p)) ** 2 + 1e4 * p * (1 - p) / N for p in (0.3, 0.08))
    half = 1.959964 * math.sqrt(variance)
    assert verdict.interval == pytest.approx((22 - half, 22 + half), abs=1e-4)
    against = judged((8.0,), (30.0,))
    assert (against.word, against.leaning) == ("indicated", "contradicted")
    assert against.reason.startswith("against the claim: one seed")
    near = judged((10.0,), (8.0,))
    assert (near.word, near.leaning) == ("not decided", "")
    assert near.reason == (
        "the interval reaches across the margin of 0.5; one seed of deep, shallow, the spread is "
        "assumed"
    )


def test_one_seed_of_one_net_indicates_whatever_the_others_have() -> None:
    verdict = judged((30.0,), (8.0, 8.1, 8.2))
    assert (verdict.word, verdict.p) == ("indicated", None)
    assert "one seed of deep," in verdict.reason


def test_nets_that_learned_nothing_decide_nothing() -> None:
    verdict = judged((90.0, 90.1), (80.0, 80.1), unlearned="nothing was learned")
    assert (verdict.word, verdict.reason, verdict.p) == ("not decided", "nothing was learned", None)
    assert judged((90.0,), (20.0,), unlearned="x").word == "not decided"


@pytest.mark.parametrize(("value", "word"), [(0.0, "supported"), (1e-9, "contradicted")])
def test_what_was_computed_has_no_interval_and_no_p_value(value: float, word: str) -> None:
    terms = (Term(1, sample(-1.0, value, images=None)),)
    asked = Question(
        "id", False, "plain", "c", "s", terms, Pool(0, 0, 1), False, 0, 0, "points", certain=True
    )
    (verdict,) = judge([asked])
    assert (verdict.word, verdict.interval, verdict.p) == (word, None, None)
    assert (verdict.difference, verdict.n) == (value, {"net": 2})
    assert "not sampled" in verdict.reason


@pytest.mark.parametrize(
    ("seeds", "planned", "progress"),
    [((3, 3), None, ""), ((3, 3), 3, ""), ((3, 2), 3, "interim"), ((3, 4), 3, "more than planned")],
)
def test_fewer_and_more_seeds_than_planned_are_labelled(
    seeds: tuple[int, int], planned: int | None, progress: str
) -> None:
    deep, shallow = (
        [base + 0.1 * i for i in range(n)] for base, n in zip((12, 10), seeds, strict=True)
    )
    (verdict,) = judge([question(tuple(deep), tuple(shallow))], planned)
    assert (verdict.planned, verdict.progress) == (planned, progress)

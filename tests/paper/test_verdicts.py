import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from resrepro.paper.verdicts import (
    LEVEL,
    MOST_SEEDS,
    Estimate,
    Question,
    Term,
    Verdict,
    difference,
    holm,
    judge,
    p_value,
)

# Errors as test sets give them: hundredths of a percent.
ERRORS = st.integers(0, 9999).map(lambda hundredths: hundredths / 100)
SAMPLES = st.lists(ERRORS, min_size=2, max_size=7)


def of_seeds(values: list[float]) -> Estimate:
    return Estimate(float(np.mean(values)), float(np.var(values, ddof=1)), len(values), False)


def against(deep: Estimate, shallow: Estimate) -> tuple[Term, Term]:
    return Term(1, "deep", deep), Term(-1, "shallow", shallow)


def question(
    terms: tuple[Term, ...], margin: float = 0.5, above: bool = True, key: str = "key"
) -> Question:
    return Question(key, "a claim", "a source", terms, above, margin, "points")


def judged(
    deep: list[float], shallow: list[float], margin: float = 0.5, above: bool = True
) -> Verdict:
    terms = against(of_seeds(deep), of_seeds(shallow))
    (verdict,) = judge([question(terms, margin, above)])
    return verdict


@given(deep=SAMPLES, shallow=SAMPLES)
def test_two_nets_are_compared_by_welchs_test(deep: list[float], shallow: list[float]) -> None:
    assume(len(set(deep)) > 1 and len(set(shallow)) > 1)
    value, error, freedom = difference(against(of_seeds(deep), of_seeds(shallow)))
    scipys = stats.ttest_ind(deep, shallow, equal_var=False)
    assert value == pytest.approx(np.mean(deep) - np.mean(shallow), abs=1e-9)
    assert freedom == pytest.approx(scipys.df, rel=1e-6)
    assert p_value(value, error, freedom, 0) == pytest.approx(scipys.pvalue, rel=1e-6, abs=1e-12)


@given(deep=SAMPLES, shallow=SAMPLES, margin=st.floats(-5, 5))
def test_a_margin_is_a_shift_of_one_sample(
    deep: list[float], shallow: list[float], margin: float
) -> None:
    assume(len(set(deep)) > 1 and len(set(shallow)) > 1)
    verdict = judged(deep, shallow, margin)
    moved = stats.ttest_ind(np.array(deep) - margin, shallow, equal_var=False)
    assert verdict.p_adjusted == pytest.approx(moved.pvalue, rel=1e-6, abs=1e-12)
    interval = stats.ttest_ind(deep, shallow, equal_var=False).confidence_interval(0.95)
    assert verdict.interval == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)


@given(samples=st.lists(SAMPLES, min_size=4, max_size=4))
def test_four_nets_have_the_sum_of_their_variances(samples: list[list[float]]) -> None:
    variances = [np.var(s, ddof=1) / len(s) for s in samples]
    assume(all(variances))
    signs = (1, -1, -1, 1)
    terms = tuple(Term(sign, "net", of_seeds(s)) for sign, s in zip(signs, samples, strict=True))
    value, error, freedom = difference(terms)
    a, b, c, d = (np.mean(s) for s in samples)
    assert value == pytest.approx(a - b - c + d, abs=1e-9)
    assert error**2 == pytest.approx(sum(variances))
    parts = sum(v**2 / (len(s) - 1) for v, s in zip(variances, samples, strict=True))
    assert freedom == pytest.approx(sum(variances) ** 2 / parts)


def test_one_net_against_a_number_is_the_one_sample_test() -> None:
    values = [40.0, 43.5, 41.2, 44.9]
    value, error, freedom = difference((Term(1, "net", of_seeds(values)),))
    scipys = stats.ttest_1samp(values, 45)
    assert freedom == pytest.approx(3)
    assert p_value(value, error, freedom, 45) == pytest.approx(scipys.pvalue)


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


SEEDS = 3
REPETITIONS = 4000
SLACK = 3 * math.sqrt(0.05 * 0.95 / REPETITIONS)  # of counting so many, three deviations


@pytest.mark.parametrize("deviations", [(0.3, 0.3), (1.0, 0.1), (0.6, 0.2), (0.2, 0.0)])
def test_at_the_margin_few_verdicts_are_false_and_the_interval_covers_it(
    deviations: tuple[float, float],
) -> None:
    draws = np.random.default_rng(0)
    samples = draws.normal((10.5, 10.0), deviations, (REPETITIONS, SEEDS, 2))
    false = missed = 0
    for sample in samples:
        deep, shallow = (of_seeds(list(net)) for net in sample.T)
        value, error, freedom = difference(against(deep, shallow))
        false += p_value(value, error, freedom, 0.5) < LEVEL
        missed += abs(value - 0.5) > stats.t.ppf(0.975, freedom) * error
    assert false / REPETITIONS < 0.05 + SLACK
    assert missed / REPETITIONS < 0.05 + SLACK
    assert false > 0


def test_of_many_claims_at_their_margins_rarely_one_gets_a_verdict() -> None:
    draws = np.random.default_rng(1)
    studies, claims = 150, 6
    false = 0
    for _ in range(studies):
        asked = []
        for key in range(claims):
            deep, shallow = draws.normal((12.5, 12.0), (0.7, 0.3), (SEEDS, 2)).T
            terms = against(of_seeds(list(deep)), of_seeds(list(shallow)))
            asked.append(question(terms, key=str(key)))
        false += any(verdict.verdict != "not decided" for verdict in judge(asked))
    assert false / studies < 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)


def test_one_seed_with_the_assumed_spread_gives_few_false_verdicts() -> None:
    draws = np.random.default_rng(2)
    false = 0
    for deep, shallow in draws.normal((9.5, 9.0), 0.6, (REPETITIONS, 2)):
        nets = (Estimate(value, 0.36, 1, True) for value in (deep, shallow))
        false += p_value(*difference(against(*nets)), 0.5) < LEVEL
    assert 0.05 - SLACK < false / REPETITIONS < 0.05 + SLACK


@pytest.mark.parametrize("above", [True, False])
def test_a_large_effect_is_found_in_every_repetition(above: bool) -> None:
    draws = np.random.default_rng(3)
    for _ in range(100):
        deep, shallow = draws.normal((16, 9), (0.4, 0.2), (3, 2)).T
        verdict = judged(list(deep), list(shallow), above=above)
        assert verdict.verdict == ("supported" if above else "contradicted")
        assert verdict.n == {"deep": 3, "shallow": 3}


@pytest.mark.parametrize(
    ("deep", "above", "word"),
    [
        ([12.0, 12.1, 11.9], True, "supported"),
        ([12.0, 12.1, 11.9], False, "contradicted"),
        ([8.0, 8.1, 7.9], True, "contradicted"),
        ([8.0, 8.1, 7.9], False, "supported"),
        ([10.4, 10.9, 10.6], True, "not decided"),
        ([10.4, 10.9, 10.6], False, "not decided"),
    ],
)
def test_a_verdict_follows_the_side_of_the_margin(
    deep: list[float], above: bool, word: str
) -> None:
    verdict = judged(deep, [10.0, 10.1, 9.9], above=above)
    assert verdict.verdict == word
    assert verdict.value == pytest.approx(np.mean(deep) - 10)
    if word != "not decided":
        side = "above" if np.mean(deep) > 10.5 else "below"
        assert verdict.why == f"{side} the margin of 0.5"


def test_other_claims_make_a_claim_harder_to_decide() -> None:
    near = question(against(of_seeds([11.0, 11.2, 11.6]), of_seeds([10.0, 10.2, 9.8])), key="near")
    (alone,) = judge([near])
    p = alone.p_adjusted
    assert p is not None
    assert LEVEL / 4 < p < LEVEL
    open_ones = [
        question(against(of_seeds([9.0, 11.0, 12.5]), of_seeds([9.0, 12.0])), key=str(i))
        for i in range(3)
    ]
    among_others = judge([near, *open_ones])[0]
    assert (alone.verdict, among_others.verdict) == ("supported", "not decided")
    assert among_others.p_adjusted == pytest.approx(4 * p)
    assert among_others.interval == alone.interval


def test_claims_that_cannot_be_tested_do_not_make_others_harder_to_decide() -> None:
    near = question(against(of_seeds([11.0, 11.2, 11.6]), of_seeds([10.0, 10.2, 9.8])), key="near")
    certain = Question(
        "certain",
        "a claim",
        "a source",
        (Term(1, "net", Estimate(0, 0, 3, False)),),
        False,
        0.0,
        "points",
        certain=True,
    )
    lacking = Question("lacking", "a claim", "a source", (), True, 0.5, "points", ("plain-56",))
    (alone,) = judge([near])
    assert judge([lacking, near, certain])[1] == alone


def test_one_seed_is_judged_by_the_normal_distribution_and_says_so() -> None:
    one, several = Estimate(12.0, 0.36 + 0.09, 1, True), of_seeds([10.0, 10.0, 10.0])
    (verdict,) = judge([question(against(one, several))])
    half = 1.959964 * math.sqrt(0.45)
    assert verdict.interval == pytest.approx((2 - half, 2 + half), abs=1e-5)
    assert verdict.p_adjusted == pytest.approx(2 * stats.norm.sf(1.5 / math.sqrt(0.45)))
    assert verdict.why.endswith("; one seed only of deep, its spread is assumed")


def test_seeds_that_all_agree_decide_by_their_number_alone() -> None:
    same = [10.0, 10.0, 10.0]
    higher = judged([11.0, 11.0, 11.0], same)
    assert (higher.verdict, higher.p_adjusted, higher.interval) == ("supported", 0, (1, 1))
    assert judged([10.4, 10.4, 10.4], same).verdict == "contradicted"
    on_it = judged([10.5, 10.5, 10.5], same)
    assert (on_it.verdict, on_it.p_adjusted) == ("not decided", 1)


@pytest.mark.parametrize(("value", "word"), [(0.0, "supported"), (1e-9, "contradicted")])
def test_what_was_computed_has_no_p_value(value: float, word: str) -> None:
    terms = (Term(1, "net", Estimate(value, 0, 1, False)),)
    asked = Question("key", "a claim", "s", terms, False, 0.0, "points", certain=True)
    (verdict,) = judge([asked])
    assert (verdict.verdict, verdict.p_adjusted) == (word, None)
    assert "not sampled" in verdict.why
    assert "assumed" not in verdict.why


def test_a_missing_net_leaves_a_claim_undecided_and_is_named() -> None:
    missing = ("plain-56", "ResNet-20's responses")
    (verdict,) = judge([Question("key", "a claim", "s", (), True, 0.5, "points", missing)])
    assert verdict.verdict == "not decided"
    assert verdict.why == "needs plain-56, ResNet-20's responses"
    assert (verdict.value, verdict.interval, verdict.p_adjusted) == (None, None, None)


@settings(max_examples=60)
@given(
    deep=st.lists(st.integers(900, 1200), min_size=2, max_size=4).map(
        lambda e: [x / 100 for x in e]
    ),
    spread=st.integers(1, 100).map(lambda hundredths: hundredths / 100),
    others=st.integers(0, 4),
)
def test_so_many_seeds_as_a_verdict_asks_for_would_decide_and_one_less_would_not(
    deep: list[float], spread: float, others: int
) -> None:
    assume(len(set(deep)) > 1)
    shallow = Estimate(10.0, spread, 2, False)
    on_its_margin = against(Estimate(10.5, 0.1, 9, False), Estimate(10.0, 0.1, 9, False))

    def with_seeds(n: int | None) -> Verdict:
        nets = [of_seeds(deep), shallow]
        if n:
            nets = [Estimate(e.value, e.spread, n, False) for e in nets]
        asked = [question(on_its_margin, key=str(i)) for i in range(others)]
        return judge([question(against(*nets)), *asked])[0]

    before = with_seeds(None)
    assume(before.verdict == "not decided")
    asked_for = re.search(r"(about|more than) (\d+) seeds a net would decide", before.why)
    assert asked_for
    n = int(asked_for[2])
    most = max(len(deep), 2)
    assert n > most
    if asked_for[1] == "more than":
        assert n == MOST_SEEDS
        assert with_seeds(n).verdict == "not decided"
    else:
        assert with_seeds(n).verdict != "not decided"
        assert n == most + 1 or with_seeds(n - 1).verdict == "not decided"

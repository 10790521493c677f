"""Statistics for few seeds: is a number above or below its margin? See docs/fidelity.md."""

import math
from dataclasses import dataclass

from scipy import stats

LEVEL = 0.05
MOST_SEEDS = 100  # beyond which no number is given


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        value: the mean.
        spread: variance of one seed.
        n: seeds.
        assumed: whether the spread is an assumption, as with one seed.
    """

    value: float
    spread: float
    n: int
    assumed: bool

    def variance(self, n: int | None = None) -> float:
        """Of the mean, with these seeds or with n of them."""
        return self.spread / (n or self.n)

    def freedom(self, n: int | None = None) -> float:
        """Degrees of freedom of the variance."""
        return math.inf if self.assumed else (n or self.n) - 1


@dataclass(frozen=True)
class Term:
    """A net's estimate with its sign in a difference."""

    sign: int
    net: str
    estimate: Estimate


@dataclass(frozen=True)
class Question:
    """A claim as a number that must lie above or below a margin.

    Attributes:
        key: a short name that stays the same.
        claim: the sentence.
        source: where the paper says so.
        terms: whose signed sum the number is; none where nets are missing.
        above: whether the claim says above (or else below) the margin.
        margin: from where on a difference counts.
        unit: of the number.
        missing: what is needed and not there.
        certain: the number was computed and not sampled.
    """

    key: str
    claim: str
    source: str
    terms: tuple[Term, ...]
    above: bool
    margin: float
    unit: str
    missing: tuple[str, ...] = ()
    certain: bool = False

    def agrees(self, value: float) -> bool:
        """Whether a number lies on the claim's side of the margin."""
        return value > self.margin if self.above else value <= self.margin


@dataclass(frozen=True)
class Verdict:
    """What the runs say of a claim.

    Attributes:
        verdict: supported, contradicted or not decided.
        why: in words; what would decide it, where it is not decided.
        interval: 95%, of this claim by itself.
        p_adjusted: over all claims that were tested.
        n: seeds of each net.
    """

    key: str
    claim: str
    source: str
    verdict: str
    why: str
    value: float | None = None
    interval: tuple[float, float] | None = None
    unit: str = ""
    margin: float | None = None
    p_adjusted: float | None = None
    n: dict[str, int] | None = None


def difference(terms: tuple[Term, ...], n: int | None = None) -> tuple[float, float, float]:
    """The terms' signed sum, its standard error and its degrees of freedom.

    Welch and Satterthwaite: the variances are not taken to be equal. With n, as if every net had
    n seeds.
    """
    value = sum(term.sign * term.estimate.value for term in terms)
    parts = [(t.estimate.variance(n), t.estimate.freedom(n)) for t in terms]
    variance = sum(v for v, _ in parts)
    shares = sum(v**2 / f for v, f in parts if v)
    return value, math.sqrt(variance), variance**2 / shares if shares else math.inf


def p_value(value: float, error: float, freedom: float, margin: float) -> float:
    """Two-sided, of the number being equal to its margin."""
    if error == 0:
        return float(value == margin)
    return float(2 * stats.t.sf(abs(value - margin) / error, freedom))


def holm(p_values: list[float]) -> list[float]:
    """Adjusts p-values so that the chance of any false verdict stays below the level."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def judge(questions: list[Question]) -> list[Verdict]:
    """The verdict on each question, all of them taken together."""
    tested = [q for q in questions if q.terms and not q.certain]
    p_values = holm([p_value(*difference(q.terms), q.margin) for q in tested])
    adjusted = dict(zip((q.key for q in tested), p_values, strict=True))
    return [_verdict(question, adjusted.get(question.key), len(tested)) for question in questions]


def _verdict(q: Question, p: float | None, tests: int) -> Verdict:
    if not q.terms:
        return Verdict(
            q.key, q.claim, q.source, "not decided", f"needs {', '.join(q.missing)}", unit=q.unit
        )
    value, error, freedom = difference(q.terms)
    half = float(stats.t.ppf(1 - LEVEL / 2, freedom)) * error
    if p is None:
        word = "supported" if q.agrees(value) else "contradicted"
        why = "computed from the same images for every seed, not sampled"
    elif p < LEVEL:
        word = "supported" if q.agrees(value) else "contradicted"
        why = f"{'above' if value > q.margin else 'below'} the margin of {q.margin:g}"
    else:
        word = "not decided"
        why = f"too near the margin of {q.margin:g} for its spread; {_more(q, tests)} would decide"
    if single := [term.net for term in q.terms if term.estimate.assumed and not q.certain]:
        why += f"; one seed only of {', '.join(single)}, its spread is assumed"
    return Verdict(
        key=q.key,
        claim=q.claim,
        source=q.source,
        verdict=word,
        why=why,
        value=value,
        interval=(value - half, value + half),
        unit=q.unit,
        margin=q.margin,
        p_adjusted=p,
        n={term.net: term.estimate.n for term in q.terms},
    )


def _more(q: Question, tests: int) -> str:
    """How many seeds of each net would decide, if means and spreads stay as they are."""
    most = max(term.estimate.n for term in q.terms)
    for n in range(max(2, most + 1), MOST_SEEDS + 1):
        if p_value(*difference(q.terms, n), q.margin) < LEVEL / tests:
            return f"about {n} seeds a net"
    return f"more than {MOST_SEEDS} seeds a net"

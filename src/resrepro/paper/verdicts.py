"""Statistics for few seeds: is a number above or below its margin? See docs/fidelity.md."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import special

LEVEL = 0.05
WORDS = ("supported", "contradicted", "no such effect", "indicated", "not decided")
RESPONSE_FLOOR = 0.01  # of the deviation of one seed's logarithm of responses
FEW = 10  # wrong images, below which drawing them moves log-odds as seeds do (1 / sqrt(10) = 0.32)


@dataclass(frozen=True)
class Sample:
    """One quantity of one net, a value for each seed.

    Attributes:
        net: its name.
        values: errors in percent, or logarithms of responses.
        images: that the errors were measured on; None where the values are no errors.
    """

    net: str
    values: tuple[float, ...]
    images: int | None

    @property
    def n(self) -> int:
        """Seeds."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Over seeds."""
        return sum(self.values) / self.n

    @property
    def has_few_wrong(self) -> bool:
        """Whether single images make its log-odds, which then say nothing of other nets."""
        return self.images is not None and self.mean / 100 * self.images < FEW

    def spread(self) -> float:
        """The variance of one seed, of log-odds if the values are errors; needs two seeds."""
        if self.images is None:
            return float(np.var(self.values, ddof=1))
        return float(np.var(self.log_odds(), ddof=1))

    def log_odds(self) -> np.ndarray:
        """Of the errors, (n,)."""
        p = self._share(np.array(self.values))
        return np.asarray(np.log(p / (1 - p)))

    def _share(self, percent: np.ndarray | float) -> np.ndarray:
        """Errors as shares; none of the images wrong, or all, count as half an image from that."""
        half = 0.5 / self.images if self.images else 0.0
        return np.clip(np.asarray(percent) / 100, half, 1 - half)

    def deviation(self, spread: float) -> float:
        """Of one seed in the values' own unit, from a variance as `spread` gives it."""
        if self.images is None:
            return max(math.sqrt(spread), RESPONSE_FLOOR)
        p = float(self._share(self.mean))
        # Half an image: seeds that happen to tie are not therefore without spread.
        return max(100 * p * (1 - p) * math.sqrt(spread), 50 / self.images)

    def sampling(self) -> float:
        """The deviation that drawing the images at random gives an error, in points."""
        if self.images is None:
            return 0.0
        p = float(self._share(self.mean))
        return 100 * math.sqrt(p * (1 - p) / self.images)


@dataclass(frozen=True)
class Pool:
    """The spread of one seed, over all nets of a study.

    Attributes:
        variance: of log-odds, or of the logarithm of responses.
        freedom: its degrees of freedom; 0 where no net has two seeds.
        assumed: the deviation, for claims on nets with one seed.
    """

    variance: float
    freedom: int
    assumed: float


def pool(samples: Iterable[Sample], assumed: float) -> Pool:
    """Pools the spreads of nets, each with n - 1 degrees of freedom.

    Nets with few wrong images are left out, unless all are such.
    """
    several = [sample for sample in samples if sample.n > 1]
    several = [sample for sample in several if not sample.has_few_wrong] or several
    freedom = sum(sample.n - 1 for sample in several)
    total = sum((sample.n - 1) * sample.spread() for sample in several)
    return Pool(total / freedom if freedom else 0.0, freedom, assumed)


@dataclass(frozen=True)
class Term:
    """A net's values with their sign in a difference."""

    sign: int
    sample: Sample


@dataclass(frozen=True)
class Question:
    """A claim as a number that must lie above or below a margin.

    Attributes:
        id: a short name that stays the same.
        primary: whether it is tested with the other primary claims, and counted.
        family: of nets it is about: plain, residual or a user's own.
        statement: the sentence.
        source: where the paper says so.
        terms: whose signed sum of means the number is; none where nets are missing.
        pool: of the quantity, over all nets of the study.
        above: whether the claim says above (or else below) the margin.
        margin: from where on a difference counts.
        opposite: beyond which the opposite was found; the margin itself where there is no
            third case.
        unit: of the number.
        missing: what is needed and not there.
        unlearned: why the nets that are there can decide nothing, or nothing.
        certain: the number was computed and not sampled.
    """

    id: str
    primary: bool
    family: str
    statement: str
    source: str
    terms: tuple[Term, ...]
    pool: Pool
    above: bool
    margin: float
    opposite: float
    unit: str
    missing: tuple[str, ...] = ()
    unlearned: str = ""
    certain: bool = False

    @property
    def single(self) -> list[str]:
        """The nets with one seed."""
        return [term.sample.net for term in self.terms if term.sample.n == 1]

    @property
    def tied(self) -> bool:
        """Whether no net of the study shows any spread, though it has several seeds."""
        return not (self.certain or self.single or self.pool.variance)

    @property
    def testable(self) -> bool:
        """Whether there is a p-value."""
        usable = self.terms and not (self.unlearned or self.tied)
        return bool(self.primary and usable and not self.single)


@dataclass(frozen=True)
class Verdict:
    """What the runs say of a claim.

    Attributes:
        id: the question's, as the next six are.
        word: one of WORDS.
        reason: why that word, in words.
        difference: the number that was judged; None where nets are missing.
        interval: 95%, of this claim by itself; None where the number was computed.
        n: seeds of each net.
        planned: seeds of each net that the study planned; None where none were.
        p: two-sided, adjusted over the primary claims; None for others, and with one seed.
        leaning: of what is indicated, the word that more seeds may bring.
    """

    id: str
    primary: bool
    family: str
    statement: str
    source: str
    above: bool
    margin: float
    opposite: float
    unit: str
    word: str
    reason: str
    difference: float | None = None
    interval: tuple[float, float] | None = None
    n: dict[str, int] | None = None
    planned: int | None = None
    p: float | None = None
    leaning: str = ""

    @property
    def progress(self) -> str:
        """What is to be said of the number of seeds: interim, more than planned, or nothing."""
        if self.planned is None or not self.n:
            return ""
        if min(self.n.values()) < self.planned:
            return "interim"
        return "more than planned" if max(self.n.values()) > self.planned else ""


def difference(question: Question) -> tuple[float, float, float]:
    """The terms' signed sum, its standard error and its degrees of freedom.

    Where a net has one seed the spread of all is assumed, and the degrees are infinite.
    """
    assumed, variance, value = bool(question.single), 0.0, 0.0
    spread, freedom = question.pool.assumed**2, math.inf
    if not assumed:
        spread, freedom = _spread(question)
    for term in question.terms:
        sample = term.sample
        value += term.sign * sample.mean
        deviation = sample.deviation(spread)
        if assumed or sample.has_few_wrong:
            deviation = math.hypot(deviation, sample.sampling())
        variance += deviation**2 / sample.n
    return value, math.sqrt(variance), freedom


def _spread(question: Question) -> tuple[float, float]:
    """The variance of one seed, pooled over all nets, and its degrees of freedom.

    Nets differ in their spread: that of a net of the claim counts where it is larger, with the
    degrees of the claim's nets alone.
    """
    samples = [term.sample for term in question.terms]
    own = max((s.spread() for s in samples if not s.has_few_wrong), default=0.0)
    if own <= question.pool.variance:
        return question.pool.variance, question.pool.freedom
    return own, min(sum(s.n - 1 for s in samples), question.pool.freedom)


def p_value(value: float, error: float, freedom: float, margin: float) -> float:
    """Two-sided, of the number being equal to its margin."""
    t = -abs(value - margin) / error
    return 2 * float(special.ndtr(t) if math.isinf(freedom) else special.stdtr(freedom, t))


def half_width(error: float, freedom: float) -> float:
    """Of the 95% interval."""
    share = 1 - LEVEL / 2
    if math.isinf(freedom):
        return error * float(special.ndtri(share))
    return error * float(special.stdtrit(freedom, share))


def holm(p_values: list[float]) -> list[float]:
    """Adjusts p-values so that the chance of any false verdict stays below the level."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def judge(questions: list[Question], planned: int | None = None) -> list[Verdict]:
    """The verdict on each question, the primary ones taken together.

    Primary claims without a test count among them all the same: to leave out runs makes no other
    verdict easier.
    """
    primary = [q for q in questions if q.primary]
    raw = [p_value(*difference(q), q.margin) if q.testable else 1.0 for q in primary]
    adjusted = {q.id: p for q, p in zip(primary, holm(raw), strict=True) if q.testable}
    return [_verdict(q, adjusted.get(q.id), len(primary), planned) for q in questions]


def _verdict(q: Question, p: float | None, tests: int, planned: int | None) -> Verdict:
    value, interval, leaning = None, None, ""
    if not q.terms:
        word, reason = "not decided", f"needs {', '.join(q.missing)}"
    elif q.certain:
        (term,) = q.terms
        value = max(term.sample.values)  # it may be above its margin for no seed
        word = "supported" if value <= q.margin else "contradicted"
        reason = "computed from the same images for every seed, not sampled"
    elif q.tied:
        value, _, _ = difference(q)
        word, reason = "not decided", "all seeds tie, so their spread is not known"
    else:
        value, error, freedom = difference(q)
        half = half_width(error, freedom)
        interval = (value - half, value + half)
        word, reason = _word(q, (value, error, freedom), p, tests)
        if q.single and word != "not decided":
            word, leaning, reason = "indicated", word, f"{_LEANINGS[word]}: {reason}"
    if q.terms and q.unlearned:
        word, leaning, reason = "not decided", "", q.unlearned
    return Verdict(
        q.id,
        q.primary,
        q.family,
        q.statement,
        q.source,
        q.above,
        q.margin,
        q.opposite,
        q.unit,
        word,
        reason,
        difference=value,
        interval=interval,
        n={term.sample.net: term.sample.n for term in q.terms} or None,
        planned=planned,
        p=p,
        leaning=leaning,
    )


def _word(
    q: Question, number: tuple[float, float, float], p: float | None, tests: int
) -> tuple[str, str]:
    """The word and its reason for a number that was sampled, as `difference` gives it."""
    value, error, freedom = number
    alone = p_value(value, error, freedom, q.margin)
    correction = tests if q.primary else 1
    beyond = p_value(value, error, freedom, q.opposite) * correction < LEVEL
    sign = 1 if q.above else -1
    if sign * value > sign * q.margin:
        word, reason = "supported", f"{_side(value, q.margin)} the margin of {q.margin:g}"
    elif q.opposite == q.margin or (beyond and sign * value < sign * q.opposite):
        word, reason = "contradicted", f"{_side(value, q.opposite)} {q.opposite:g}, the opposite"
    else:
        word = "no such effect"
        reason = f"{_side(value, q.margin)} the margin of {q.margin:g}, and no opposite was found"
    if q.single:
        reason = f"one seed of {', '.join(q.single)}, the spread is assumed"
    if (alone * correction if p is None else p) < LEVEL:
        return word, reason
    if alone < LEVEL:
        open_because = f"its interval alone would decide, but not among {tests} claims"
    else:
        open_because = f"the interval reaches across the margin of {q.margin:g}"
    return "not decided", f"{open_because}; {reason}" if q.single else open_because


_LEANINGS = {
    "supported": "for the claim",
    "contradicted": "against the claim",
    "no such effect": "that there is no such effect",
}


def _side(value: float, bound: float) -> str:
    return "above" if value > bound else "below"
